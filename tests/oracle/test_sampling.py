"""Sampling against transformers' own processors, on random logits with many ties."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import backends
from tinyqwen.sampling import Sampling, filtered

torch = pytest.importorskip("torch", reason="the oracle needs torch: pip install '.[oracle]'")
transformers = pytest.importorskip("transformers", reason="the oracle needs transformers: pip install '.[oracle]'")
from transformers.generation import logits_process  # noqa: E402

pytestmark = pytest.mark.oracle
NUMPY = backends.get("numpy")

logit_arrays = st.builds(
    # Quarters in a small range tie often; the rest of each example is ordinary.
    lambda seed, size, step: (
        np.round(np.random.default_rng(seed).normal(0, 3, size) / step) * step
        if step
        else np.random.default_rng(seed).normal(0, 3, size)
    ).astype(np.float32),
    st.integers(0, 10**6),
    st.integers(1, 3000),
    st.sampled_from([0, 0.25, 1.0]),
)


def reference(logits_V, seen, sampling):
    """What transformers does, in its order; the greedy path stops after the penalty, as its `generate` does."""
    ids, scores = torch.tensor([seen], dtype=torch.long), torch.tensor(logits_V)[None]
    chain = []
    if sampling.repetition_penalty != 1.0:
        chain.append(logits_process.RepetitionPenaltyLogitsProcessor(sampling.repetition_penalty))
    if sampling.do_sample:
        if sampling.temperature != 1.0:
            chain.append(logits_process.TemperatureLogitsWarper(sampling.temperature))
        if sampling.top_k:
            chain.append(logits_process.TopKLogitsWarper(sampling.top_k))
        if sampling.top_p < 1.0:
            chain.append(logits_process.TopPLogitsWarper(sampling.top_p))
        if sampling.min_p > 0.0:
            chain.append(logits_process.MinPLogitsWarper(sampling.min_p))
    for process in chain:
        scores = process(ids, scores)
    return scores[0].numpy()


samplings = st.builds(
    Sampling,
    do_sample=st.sampled_from([True, True, True, False]),
    temperature=st.sampled_from([1.0, 0.7, 2.0]),
    top_k=st.sampled_from([0, 1, 5, 20, 50]),
    top_p=st.sampled_from([1.0, 0.8, 0.5, 0.95, 0.01]),
    min_p=st.sampled_from([0.0, 0.05, 0.3]),
    repetition_penalty=st.sampled_from([1.0, 1.1, 0.8]),
)


@settings(max_examples=400)
@given(logit_arrays, samplings, st.lists(st.integers(0, 10**6), max_size=8))
def test_the_kept_tokens_and_their_logits_are_those_of_transformers(logits_V, sampling, seen):
    seen = [token % len(logits_V) for token in seen]
    ours = filtered(NUMPY, logits_V, np.array(sorted(set(seen)), int), sampling)
    theirs = reference(logits_V, seen, sampling)
    assert ours.dtype == np.float32
    # Which of several EQUAL tokens stays at top-p's threshold is unspecified there (their sort is not stable): the kept
    # logits must be the same as a collection, and as sets wherever the threshold does not fall between equals.
    np.testing.assert_allclose(np.sort(ours), np.sort(theirs), rtol=1e-6)
    threshold = ours[ours > -np.inf].min()
    clear = ours > threshold * (1 + 1e-6) if threshold > 0 else ours > threshold * (1 - 1e-6)
    assert (theirs[clear] > -np.inf).all()
    if not ((ours == -np.inf) & np.isclose(penalised(logits_V, seen, sampling), threshold, rtol=1e-6)).any():
        assert np.array_equal(ours > -np.inf, theirs > -np.inf)


def penalised(logits_V, seen, sampling):
    """The logits before any filter: an equal of the threshold may have been removed."""
    only = Sampling(sampling.do_sample, sampling.temperature, repetition_penalty=sampling.repetition_penalty)
    return filtered(NUMPY, logits_V, np.array(sorted(set(seen)), int), only)


def test_a_whole_vocabulary():
    """151,646 logits, where the rounding of a long cumulative sum would show."""
    logits_V = np.random.default_rng(0).normal(0, 2, 151646).astype(np.float32)
    for sampling in (
        Sampling(True, 0.7, 20, 0.8, 0.0, 1.05),
        Sampling(True, 1.0, 0, 0.9),
        Sampling(True, 1.0, 0, 1.0, 0.02),
    ):
        ours, theirs = filtered(NUMPY, logits_V, np.array([5, 77]), sampling), reference(logits_V, [5, 77], sampling)
        differing = np.flatnonzero((ours > -np.inf) != (theirs > -np.inf))
        assert len(differing) <= 1e-4 * (theirs > -np.inf).sum(), "more than rounding at the threshold"
