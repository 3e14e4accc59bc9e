"""Generation: why it stops; company, chunks and interrupts change nothing; numbers that are none are named."""

import contextlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import backends
from backends import Wrapper
from backends.sketch import sketch_of
from tests.checkpoints import stories_pieces, stories_tensors
from tinyqwen.config import Config
from tinyqwen.errors import ModelFilesError, UsageError
from tinyqwen.generate import Running, generate, share
from tinyqwen.kv_cache import KVCache
from tinyqwen.sampling import Sampling
from tinyqwen.weights import random_weights, tree

CONFIG = Config(
    hidden_size=24, intermediate_size=40, num_hidden_layers=2, num_attention_heads=6, num_key_value_heads=2,
    vocab_size=50, tie_word_embeddings=True, rope_theta=1e6,
)  # fmt: skip
WEIGHTS = tree(random_weights(CONFIG, scale=0.4))
NUMPY = backends.get("numpy")
LIVELY = Sampling(do_sample=True, temperature=1.5)


def start(ids, **settings):
    values = {"sampling": Sampling(), "context": 100, "max_new_tokens": 8, **settings}
    return Running(list(ids), KVCache(NUMPY, CONFIG), **values)


def run(*sequences, backend=NUMPY, weights=WEIGHTS, **settings):
    for _ in generate(backend, CONFIG, weights, sequences, **settings):
        pass
    return [sequence.new_ids for sequence in sequences]


class Steps(Wrapper):
    """Keeps the steps that pass."""

    def __init__(self, inner):
        super().__init__(inner)
        self.seen = []

    def run(self, operation, arrays, settings, door=None):
        if operation.name == "decoder_layer" and settings["layer"] == 0:
            self.seen.append(settings["step"])
        return super().run(operation, arrays, settings, door)


def test_each_step_knows_how_long_its_texts_are():
    """All of a prompt from its first chunk on, then a token more each time; logits are for whoever is at the end."""
    watching = Steps(NUMPY)
    run(start([1, 2, 3], max_new_tokens=4), start(range(20), max_new_tokens=2), backend=watching, chunk=8)
    lengths = [[int(step.length_T[span.start]) for span in step.spans] for step in watching.seen]
    assert lengths == [[3, 20], [4, 20], [5, 20], [6, 20], [21]]
    assert [len(step.row_N) for step in watching.seen] == [1, 1, 1, 2, 1]


# ---- a model that was trained ----


@pytest.fixture(scope="module")
def stories(data):
    config, tensors = stories_tensors(data)
    return config, tree(tensors), stories_pieces(data)


@pytest.mark.parametrize(("chunk", "company"), [(256, 0), (5, 0), (256, 3), (7, 3)])
def test_stories260k_tells_its_published_story_word_for_word(stories, data, chunk, company):
    """From its first token; from 40 tokens of prompt in chunks; and with other stories told in the same steps."""
    config, weights, pieces = stories
    published = (data / "stories260K" / "stories260K.md").read_text("utf-8").split("-t 0.0\n")[1].split("\n```")[0]
    ids = [1]
    if chunk < 256:
        first = Running([1], KVCache(NUMPY, config), Sampling(), context=512, max_new_tokens=40)
        for _ in generate(NUMPY, config, weights, [first]):
            pass
        ids = first.ids
    story = Running(ids, KVCache(NUMPY, config), Sampling(), context=512, max_new_tokens=257 - len(ids))
    others = [
        Running([1, 410 + n, 300], KVCache(NUMPY, config), LIVELY, context=512, seed=n, max_new_tokens=60 * (n + 1))
        for n in range(company)
    ]
    for _ in generate(NUMPY, config, weights, [*others, story], chunk=chunk):
        pass
    text = b"".join(pieces[token] for token in story.ids[1:]).decode().removeprefix(" ")
    assert text == published


# ---- why it stops ----


def test_it_stops_at_a_stop_id_which_is_the_last_id():
    free = run(start([1, 2], max_new_tokens=30))[0]
    stop = free[5]
    stopped = start([1, 2], max_new_tokens=30, stop_ids=frozenset([stop]))
    [ids] = run(stopped)
    assert stopped.finish_reason == "stop"
    assert ids == free[: free.index(stop) + 1]


def test_it_stops_at_max_new_tokens():
    sequence = start([1, 2, 3], max_new_tokens=4)
    assert len(run(sequence)[0]) == 4
    assert sequence.finish_reason == "length"


def test_it_stops_when_the_context_is_full_and_says_so():
    sequence = start([1, 2, 3], max_new_tokens=None, context=10)
    run(sequence)
    assert (len(sequence.ids), sequence.finish_reason) == (10, "context")


def test_the_caller_may_stop_a_sequence():
    sequence, other = start([1, 2]), start([3])
    for event in generate(NUMPY, CONFIG, WEIGHTS, [sequence, other]):
        if event.running is sequence and len(sequence.new_ids) == 2:
            sequence.finish_reason = "stop"
    assert (len(sequence.new_ids), len(other.new_ids)) == (2, 8)


@pytest.mark.parametrize(
    ("ids", "settings", "words"),
    [([], {}, "empty"), (range(20), {"context": 20}, "20 tokens"), ([1], {"max_new_tokens": 0}, "at least 1")],
)
def test_what_cannot_start_is_refused_with_numbers(ids, settings, words):
    with pytest.raises(UsageError, match=words):
        start(ids, **settings)


def test_ids_without_text_are_never_chosen():
    sequence = start([1], sampling=Sampling(do_sample=True, temperature=100.0), max_new_tokens=80)
    assert max(run(sequence, vocabulary=7)[0]) == 6


# ---- what changes nothing ----


prompts = st.lists(st.lists(st.integers(0, 49), min_size=1, max_size=12), min_size=1, max_size=4)


@given(prompts, st.integers(1, 20))
def test_company_and_chunks_change_nothing(ids_lists, chunk):
    together = run(*(start(ids, sampling=LIVELY, seed=n) for n, ids in enumerate(ids_lists)), chunk=chunk)
    alone = [run(start(ids, sampling=LIVELY, seed=n))[0] for n, ids in enumerate(ids_lists)]
    assert together == alone


def test_the_same_seed_says_the_same_and_another_seed_something_else():
    texts = [run(start([5, 6], sampling=LIVELY, seed=seed, max_new_tokens=20))[0] for seed in (1, 1, 2)]
    assert texts[0] == texts[1] != texts[2]


@given(prompts, st.integers(1, 9))
def test_a_step_never_takes_more_prompt_than_its_share_and_always_something(ids_lists, chunk):
    sequences = [start(ids) for ids in ids_lists]
    taken = share(sequences, chunk)
    decoding = sum(len(sequence.pending) == 1 for sequence in sequences)
    assert taken
    assert sum(len(ids) for _, ids in taken) <= chunk + decoding
    assert all(ids == sequence.pending[: len(ids)] for sequence, ids in taken)


class Interrupting(Wrapper):
    """Ctrl-C at the n-th operation."""

    def __init__(self, inner, at):
        super().__init__(inner)
        self.left = at

    def run(self, operation, arrays, settings, door=None):
        self.left -= 1
        if self.left == 0:
            raise KeyboardInterrupt
        return super().run(operation, arrays, settings, door)


@pytest.mark.parametrize("at", [*range(1, 60), *range(60, 400, 17)])
def test_an_interrupt_at_any_operation_loses_nothing(at):
    """Interrupted and continued, two sequences say what they say undisturbed."""
    undisturbed = run(start([1, 2, 3, 4], sampling=LIVELY), start([7], seed=3), chunk=3)
    sequences = [start([1, 2, 3, 4], sampling=LIVELY), start([7], seed=3)]
    with contextlib.suppress(KeyboardInterrupt):
        run(*sequences, backend=Interrupting(NUMPY, at), chunk=3)
    assert run(*sequences, chunk=3) == undisturbed


# ---- with a sketch of the head ----

SKETCH = sketch_of(WEIGHTS.lm_head.weight)
BY_FEW = [
    Sampling(),
    Sampling(repetition_penalty=1.3),
    Sampling(do_sample=True, temperature=1.5, top_k=5, top_p=0.9),
    Sampling(do_sample=True, top_k=64, repetition_penalty=2.0),  # more than there are
]


class Operations(Wrapper):
    """Keeps the names of operations."""

    def __init__(self, inner):
        super().__init__(inner)
        self.seen = set()

    def run(self, operation, arrays, settings, door=None):
        self.seen.add(operation.name)
        return super().run(operation, arrays, settings, door)


@pytest.mark.parametrize("sampling", BY_FEW)
@pytest.mark.parametrize("name", ["numpy", "cpu"])
def test_a_sketch_changes_nothing_that_is_said(name, sampling):
    """Whenever it is there: from the beginning, from the third step on, or for prompts in chunks."""
    backend = backends.get(name)
    for ids in ([1, 2, 3], list(range(20))):
        expected = run(start(ids, sampling=sampling), backend=backend, vocabulary=45)
        late = iter([None, None])
        for sketch in (lambda: SKETCH, lambda: next(late, SKETCH)):  # noqa: B023
            watching = Operations(backend)
            kept = dict(vocabulary=45, chunk=7, sketch=sketch)
            assert run(start(ids, sampling=sampling), backend=watching, **kept) == expected
            assert "tile_bounds" in watching.seen
            assert run(start(ids, sampling=sampling), backend=backend, **kept) == expected


@pytest.mark.parametrize(
    "settings",
    [{"sampling": LIVELY}, {"sampling": Sampling(repetition_penalty=0.9)}, {"log_p": []},
     {"sampling": Sampling(do_sample=True, top_k=65)}],
)  # fmt: skip
def test_who_asks_for_more_than_a_few_gets_all_logits(settings):
    watching = Operations(NUMPY)
    said = run(start([1, 2, 3], **settings), backend=watching, sketch=lambda: SKETCH)
    assert said == run(start([1, 2, 3], **settings)) and "tile_bounds" not in watching.seen


def test_several_sequences_share_the_head_and_the_last_one_takes_the_sketch():
    watching, two = Operations(NUMPY), ([1, 2, 3], [7])
    said = run(*(start(ids) for ids in two), backend=watching, sketch=lambda: SKETCH)
    assert said == [run(start(ids))[0] for ids in two] and "tile_bounds" not in watching.seen
    said = run(start([1, 2, 3]), start([7], max_new_tokens=3), backend=watching, sketch=lambda: SKETCH)
    assert said == [run(start([1, 2, 3]))[0], run(start([7], max_new_tokens=3))[0]] and "tile_bounds" in watching.seen


# ---- numbers that are none ----


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("model.layers.1.mlp.up_proj.weight", np.nan, "layers.1.mlp.up_proj.weight itself holds 1"),
        ("model.layers.0.self_attn.k_proj.bias", np.inf, "layers.0.self_attn.k_proj.bias itself holds 1"),
        ("model.norm.weight", np.nan, "norm.weight itself holds 1"),
        ("model.layers.1.input_layernorm.weight", 3e38, "layers.1"),  # finite, but too large to compute with
    ],
)
@pytest.mark.parametrize("sketch", [None, SKETCH])
def test_numbers_that_are_not_finite_are_named_by_layer_and_tensor(name, value, words, sketch):
    tensors = random_weights(CONFIG, scale=0.4)
    tensors[name].flat[3] = value
    sequence = start([1, 2, 3])
    with np.errstate(all="ignore"), pytest.raises(ModelFilesError, match=words.replace(".", r"\.")):
        run(sequence, weights=tree(tensors), sketch=lambda: sketch)
    assert sequence.cache.length == 0 and sequence.new_ids == []
