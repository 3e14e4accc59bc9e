import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.helpers import assert_close, call, moe_config, normal
from tinyqwen.blocks.moe import experts, route, sigmoid_gate, sparse_moe
from tinyqwen.weights import Node

SEED = st.integers(0, 2**32 - 1)
TOKENS, EXPERTS = st.integers(1, 8), st.integers(1, 9)
# Three linear layers of up to 13 terms, a softmax, and a sum over at most 9 experts.
NOISE = 3e-6


def mlp(seed, D, M):
    arrays = normal(seed, M, D), normal(seed + 1, M, D), normal(seed + 2, D, M)
    return Node(**{name: Node(weight=array) for name, array in zip(("gate_proj", "up_proj", "down_proj"), arrays)})


def on(backend, weights):
    """The same tree in the backend's memory."""
    if isinstance(weights, list):
        return [on(backend, item) for item in weights]
    if isinstance(weights, Node):
        return Node(**{name: on(backend, branch) for name, branch in vars(weights).items()})
    return backend.xp.asarray(weights)


def silu(z):
    return z / (1 + np.exp(-z))


def mlp_reference(x_TD, weights):
    gate_FD, up_FD, down_DF = (getattr(weights, name).weight for name in ("gate_proj", "up_proj", "down_proj"))
    return (silu(x_TD @ gate_FD.T.astype(np.float64)) * (x_TD @ up_FD.T.astype(np.float64))) @ down_DF.T


def dense_sum(x_TD, expert_TA, weight_TA, weights):
    """Every expert works on every token; those that were not chosen count zero times."""
    weight_TE = np.zeros((len(x_TD), len(weights)))
    np.put_along_axis(weight_TE, expert_TA, weight_TA, axis=1)
    return sum(weight_TE[:, [e]] * mlp_reference(x_TD, each) for e, each in enumerate(weights))


def clear_choice(seed, T, E):
    """Tokens whose router logits are a shuffled ladder with steps of 0.25, to be used with gate = identity.

    Of logits this far apart every float32 program makes the same choice. Random ones come arbitrarily close to each
    other, and then the choice is noise; what must hold there is tested below, on ties made on purpose.
    """
    rng = np.random.default_rng(seed)
    return np.array([rng.permutation(E) for _ in range(T)], np.float32) / 4


# ---- the router ---------------------------------------------------------------------------------------------------


@given(SEED, TOKENS, EXPERTS, st.data(), st.booleans())
def test_the_heaviest_experts_are_chosen_in_order(backend, seed, T, E, data, normalise):
    A = data.draw(st.integers(1, E), "A")
    x_TE = clear_choice(seed, T, E)
    expert_TA, weight_TA = call(backend, route, x_TE, np.eye(E, dtype=np.float32), top_k=A, normalise=normalise)
    probability_TE = np.exp(x_TE.astype(np.float64)) / np.exp(x_TE.astype(np.float64)).sum(axis=1, keepdims=True)
    expected_TA = np.argsort(-probability_TE, axis=1)[:, :A]
    chosen_TA = np.take_along_axis(probability_TE, expected_TA, axis=1)
    np.testing.assert_array_equal(expert_TA, expected_TA)
    expected = chosen_TA / chosen_TA.sum(axis=1, keepdims=True) if normalise else chosen_TA
    np.testing.assert_allclose(weight_TA, expected, rtol=NOISE)
    assert weight_TA.dtype == np.float32


@given(SEED, TOKENS, st.integers(2, 9))
def test_weights_sum_to_less_than_one_unless_normalised(backend, seed, T, E):
    """Softmax comes before the choice, so what the others would have got is missing."""
    x_TE, gate_EE = clear_choice(seed, T, E), np.eye(E, dtype=np.float32)
    _, weight_TA = call(backend, route, x_TE, gate_EE, top_k=E - 1, normalise=False)
    assert (weight_TA.sum(axis=1) < 1).all()
    _, weight_TA = call(backend, route, x_TE, gate_EE, top_k=E - 1, normalise=True)
    np.testing.assert_allclose(weight_TA.sum(axis=1, dtype=np.float64), 1, rtol=NOISE)


def test_of_equally_likely_experts_the_lower_number_is_chosen(backend):
    """An exact tie must not depend on the sort: 40 equal logits with top 8 tell a stable sort from a lucky one."""
    x_TE = np.zeros((3, 40), np.float32)
    x_TE[1, 30] = 1  # one clear winner, then ties
    x_TE[2, :5] = -1  # the first five are out
    expert_TA, _ = call(backend, route, x_TE, np.eye(40, dtype=np.float32), top_k=8, normalise=False)
    assert expert_TA.tolist() == [[*range(8)], [30, *range(7)], [*range(5, 13)]]


@given(SEED, st.integers(0, 3))
def test_a_near_tie_may_fall_either_way_but_not_between(backend, seed, steps):
    """Two logits a few last places apart: the result is that of one choice or of the other, never a mixture."""
    E, A, D = 5, 2, 5
    x_TD = np.float32([[2, 0.5, 0.5, -1, -2]])
    for _ in range(steps):
        x_TD[0, 2] = np.nextafter(x_TD[0, 2], np.float32(1))
    weights = [mlp(seed + 3 * e, D, 13) for e in range(E)]
    expert_TA, weight_TA = call(backend, route, x_TD, np.eye(E, dtype=np.float32), top_k=A, normalise=False)
    out_TD = call(backend, experts, x_TD, expert_TA, weight_TA, on(backend, weights))
    either = [dense_sum(x_TD, np.array([[0, second]]), weight_TA, weights) for second in (1, 2)]
    off = [np.abs(out_TD - expected_TD).max() / np.abs(expected_TD).max() for expected_TD in either]
    assert min(off) <= NOISE < max(off)
    if steps == 0:
        assert off[0] <= NOISE, "an exact tie falls to the lower number"


# ---- the experts --------------------------------------------------------------------------------------------------


@given(SEED, TOKENS, EXPERTS, st.data())
def test_equals_the_sum_over_all_experts_with_the_others_zeroed(backend, seed, T, E, data):
    A, D = data.draw(st.integers(1, E), "A"), 6
    rng = np.random.default_rng(seed)
    expert_TA = np.array([rng.permutation(E)[:A] for _ in range(T)])
    x_TD, weight_TA = normal(seed, T, D), rng.random((T, A), dtype=np.float32)
    weights = [mlp(seed + 3 * e, D, 13) for e in range(E)]
    out_TD = call(backend, experts, x_TD, expert_TA, weight_TA, on(backend, weights))
    assert out_TD.dtype == np.float32
    assert_close(out_TD, dense_sum(x_TD, expert_TA, weight_TA, weights), NOISE)


def test_an_expert_that_nobody_chose_is_not_read(backend):
    """Its weights may be anything, NaN included: only chosen experts cost memory traffic."""
    x_TD, expert_TA, weight_TA = normal(0, 3, 6), np.array([[0, 2], [2, 3], [0, 3]]), normal(1, 3, 2)
    weights = [mlp(3 * e, 6, 13) for e in range(5)]
    expected_TD = call(backend, experts, x_TD, expert_TA, weight_TA, on(backend, weights))
    for e in (1, 4):
        weights[e].gate_proj.weight[:] = weights[e].up_proj.weight[:] = weights[e].down_proj.weight[:] = np.nan
    np.testing.assert_array_equal(call(backend, experts, x_TD, expert_TA, weight_TA, on(backend, weights)), expected_TD)


@given(st.lists(st.floats(-1e4, 1e4, width=32), min_size=1, max_size=5))
def test_the_gate_scales_by_the_sigmoid_and_does_not_overflow(backend, gates):
    gate_T1 = np.float32(gates)[:, None]
    out_TD = call(backend, sigmoid_gate, gate_T1, np.full((len(gates), 2), 3, np.float32))
    expected_T1 = 3 / (1 + np.exp(np.minimum(-gate_T1.astype(np.float64), 700)))
    np.testing.assert_allclose(out_TD, np.repeat(expected_T1, 2, axis=1), rtol=1e-6, atol=1e-30)


# ---- the block ----------------------------------------------------------------------------------------------------


def moe_weights(seed, E, D, gate_ED):
    return Node(
        gate=Node(weight=gate_ED),
        experts=[mlp(seed + 3 * e, D, 13) for e in range(E)],
        shared_expert=mlp(seed + 100, D, 17),
        shared_expert_gate=Node(weight=normal(seed + 200, 1, D)),
    )


@given(SEED, TOKENS, st.booleans())
def test_the_block_equals_the_formula_in_float64(backend, seed, T, normalise):
    E, A = 9, 4
    config = moe_config(hidden_size=E, num_experts=E, num_experts_per_tok=A, norm_topk_prob=normalise)
    x_TD = clear_choice(seed, T, E)
    weights = moe_weights(seed, E, E, np.eye(E, dtype=np.float32))
    out_TD = call(backend, sparse_moe, x_TD, on(backend, weights), config=config)

    probability_TE = np.exp(x_TD.astype(np.float64)) / np.exp(x_TD.astype(np.float64)).sum(axis=1, keepdims=True)
    expert_TA = np.argsort(-probability_TE, axis=1)[:, :A]
    weight_TA = np.take_along_axis(probability_TE, expert_TA, axis=1)
    if normalise:
        weight_TA /= weight_TA.sum(axis=1, keepdims=True)
    gate_T1 = 1 / (1 + np.exp(-x_TD.astype(np.float64) @ weights.shared_expert_gate.weight.T))
    shared_TD = gate_T1 * mlp_reference(x_TD, weights.shared_expert)
    assert_close(out_TD, dense_sum(x_TD, expert_TA, weight_TA, weights.experts) + shared_TD, NOISE)


@given(SEED, TOKENS, st.randoms(use_true_random=False))
def test_the_experts_names_do_not_matter(backend, seed, T, random):
    """Renumbering the experts, router rows and all, changes nothing but the order of one sum."""
    E = 9
    config = moe_config(hidden_size=E, num_experts=E, num_experts_per_tok=4)
    x_TD, weights = clear_choice(seed, T, E), moe_weights(seed, E, E, np.eye(E, dtype=np.float32))
    expected_TD = call(backend, sparse_moe, x_TD, on(backend, weights), config=config)
    order = random.sample(range(E), E)
    weights.gate.weight = weights.gate.weight[order]
    weights.experts = [weights.experts[e] for e in order]
    assert_close(call(backend, sparse_moe, x_TD, on(backend, weights), config=config), expected_TD, NOISE)


@pytest.mark.parametrize("gate, share", [(-1e3, 0), (0, 0.5), (1e3, 1)])
def test_the_shared_expert_sees_every_token_scaled_by_its_own_gate(backend, gate, share):
    """Also the tokens of which no routed expert is left: these are silenced here."""
    E = 5
    config = moe_config(hidden_size=E, num_experts=E, num_experts_per_tok=2)
    x_TD, weights = clear_choice(0, 3, E) + 1, moe_weights(0, E, E, np.eye(E, dtype=np.float32))
    weights.shared_expert_gate.weight[:] = gate
    for each in weights.experts:
        each.down_proj.weight[:] = 0
    out_TD = call(backend, sparse_moe, x_TD, on(backend, weights), config=config)
    expected_TD = share * mlp_reference(x_TD.astype(np.float64), weights.shared_expert)
    np.testing.assert_allclose(out_TD, expected_TD, rtol=1e-5, atol=1e-5 * np.abs(expected_TD).max() + 1e-30)
