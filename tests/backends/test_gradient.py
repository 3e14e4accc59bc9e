"""The gradient wrapper: what it follows, what it adds up, what it refuses. That gradients are right: see the blocks."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from backends import Backend, operation
from backends.gradient import Gradient
from backends.tracing import Tracing
from tests.gradients import DOUBLE, assert_slopes, double
from tests.helpers import Recording, moe_config, normal
from tinyqwen.blocks.attention import softmax
from tinyqwen.blocks.cross_entropy import log_probability
from tinyqwen.blocks.linear import add, linear
from tinyqwen.blocks.rope import rope
from tinyqwen.blocks.swiglu import swiglu
from tinyqwen.model import forward
from tinyqwen.step import make_step
from tinyqwen.weights import random_weights, tree

pytestmark = pytest.mark.training


def numbers(seed, *shape):
    return normal(seed, *shape).astype(np.float64)


def gradients_of(function, *arrays):
    """Of sum(function(backend, *arrays) * seed), and that sum as a function."""
    tape = Gradient(DOUBLE, {str(n): array for n, array in enumerate(arrays)})
    out = function(tape, *arrays)
    seed = numbers(99, *out.shape)
    tape.backward(out, seed)
    return tape, lambda: (function(DOUBLE, *arrays) * seed).sum()


# ---- views --------------------------------------------------------------------------------------------------------

VIEWS = {
    "reshape": lambda x: x.reshape(3, 8),
    "slice": lambda x: x[1:5],
    "one column": lambda x: x[:, 2:3],
    "every second, backwards": lambda x: x[::-2, ::-1],
    "transposed": lambda x: x.T,
    "axes swapped and cut": lambda x: x.reshape(2, 3, 4).swapaxes(0, 2)[1:, :, 0],
    "a view of a view of a view": lambda x: x[1:].T[1:].T[:3, :2],
    "broadcast axis": lambda x: x[None, 2],
}


@pytest.mark.parametrize("view", VIEWS.values(), ids=VIEWS)
@pytest.mark.parametrize("of", ["a parameter", "a result"])
def test_gradients_follow_views(view, of):
    def function(backend, x_NF):
        if of == "a result":
            x_NF = softmax(backend, x_NF)
        return swiglu(backend, view(x_NF), view(x_NF))

    x_NF = numbers(1, 6, 4)
    tape, loss = gradients_of(function, x_NF)
    assert_slopes(loss, x_NF, tape.gradients["0"])


@operation
def fused_feed_forward(backend, x_TD, gate_up_ID, down_DF):
    """One matrix for gate and up, told apart by views; x is used twice, so its gradients must add up."""
    gate_up_T2F = linear(backend, x_TD, gate_up_ID).reshape(x_TD.shape[0], 2, -1)
    h_TF = swiglu(backend, gate_up_T2F[:, 0], gate_up_T2F[:, 1])
    return swiglu(backend, x_TD, linear(backend, h_TF, down_DF))


def test_composites_are_opened():
    arrays = numbers(1, 3, 5), numbers(2, 14, 5), numbers(3, 5, 7)
    tape, loss = gradients_of(fused_feed_forward, *arrays)
    for n, array in enumerate(arrays):
        assert_slopes(loss, array, tape.gradients[str(n)])


def test_memory_that_parameters_share_is_one(backend):
    """All parameters in one buffer: so are their gradients."""
    buffer = normal(1, 30)
    parameters = {"weight": buffer[:20].reshape(4, 5), "bias": buffer[20:24], "norm": buffer[24:].reshape(2, 3).T}
    tape = Gradient(backend, parameters)
    assert len(tape.twins) == 1
    out = linear(tape, normal(2, 3, 5), parameters["weight"], parameters["bias"])
    tape.backward(out, np.ones_like(out))
    np.testing.assert_allclose(tape.gradients["bias"], 3)
    assert tape.gradients["norm"].shape == (3, 2) and not tape.gradients["norm"].any()


@given(st.lists(st.tuples(st.sampled_from("+*L"), st.integers(0, 9), st.integers(0, 9)), min_size=1, max_size=12))
def test_any_web_of_operations(steps):
    """Results used once, often or by themselves: whatever leads to the end. (Unused ones are left out.)"""

    def web(backend, x_NN, w_NN):
        made, used = [x_NN], set()
        for kind, a, b in steps:
            a, b = a % len(made), b % len(made)
            used |= {a, b}
            if kind == "L":
                made.append(linear(backend, softmax(backend, made[a]), w_NN))
                used -= {b} - {a}
            else:
                made.append((add if kind == "+" else swiglu)(backend, made[a], made[b]))
        end = made[-1]
        for n in set(range(1, len(made) - 1)) - used:
            end = add(backend, end, made[n])
        return end

    arrays = numbers(1, 2, 2), numbers(2, 2, 2)
    tape, loss = gradients_of(web, *arrays)
    for n, array in enumerate(arrays):
        assert_slopes(loss, array, tape.gradients[str(n)])


# ---- adding up ----------------------------------------------------------------------------------------------------


def test_backward_adds_until_it_is_cleared(backend):
    x, w = normal(1, 4, 5), normal(2, 3, 5)
    tape = Gradient(backend, {"w": w})
    expected, d_out = np.zeros_like(w), normal(3, 4, 3)
    for part in (x, 2 * x, x):
        tape.backward(linear(tape, part, w), d_out)
        expected = expected + d_out.T @ part
        np.testing.assert_allclose(tape.gradients["w"], expected, rtol=1e-5, atol=1e-5)
    linear(tape, x, w)
    tape.clear()
    assert not tape.gradients["w"].any() and not tape.tape
    tape.backward(linear(tape, x, w), d_out)
    np.testing.assert_allclose(tape.gradients["w"], d_out.T @ x, rtol=1e-5, atol=1e-5)


def test_what_the_caller_gives_stays_as_it_is():
    x, y = numbers(1, 4, 5), numbers(2, 4, 5)
    tape = Gradient(DOUBLE, {"x": x, "y": y})
    d_out = np.ones((4, 5))
    out = add(tape, add(tape, x, y), add(tape, x, x))
    tape.backward(out, d_out)
    assert (d_out == 1).all()
    assert (tape.gradients["x"] == 3).all() and (tape.gradients["y"] == 1).all()


def test_constants_cost_nothing_and_get_nothing(backend):
    """Frozen weights and inputs: no twin, no gradient."""
    frozen, w = normal(1, 3, 5), normal(2, 5, 3)
    tape = Gradient(backend, {"w": w})
    out = linear(tape, linear(tape, normal(3, 2, 5), frozen), w)
    tape.backward(out, np.ones_like(out))
    assert set(tape.gradients) == {"w"} and set(tape.twins) == set(tape.lasting)


def test_a_tape_holds_no_memory_after_backward(backend):
    tape = Gradient(backend, {"w": normal(2, 5, 5)})
    out = linear(tape, normal(1, 2, 5), tape.parameters["w"])
    tape.backward(out, np.ones_like(out))
    assert not tape.tape and len(tape.twins) == 1


# ---- recomputation ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("nested", [False, True])
def test_recomputing_changes_no_gradient(nested):
    arrays = numbers(1, 3, 5), numbers(2, 14, 5), numbers(3, 5, 7)
    x_TD, gate_up_ID, down_DF = arrays

    @operation
    def outer(backend, x_TD):
        return fused_feed_forward(backend, add(backend, x_TD, x_TD), gate_up_ID, down_DF)

    kept = {"fused_feed_forward", "outer"} if nested else {"fused_feed_forward"}
    found = []
    for recompute in ((), kept):
        watching = Recording(DOUBLE)
        tape = Gradient(watching, {str(n): array for n, array in enumerate(arrays)}, recompute)
        out = outer(tape, outer(tape, x_TD))
        assert len(tape.tape) == ((2 if nested else 4) if recompute else 10)
        tape.backward(out, numbers(9, 3, 5))
        found.append((out, *tape.gradients.values()))
        ran = [name for name, _ in watching.seen].count("linear")
        assert ran == {False: 4, True: 8 + 4 * nested}[bool(recompute)]
    for plain, recomputed in zip(*found):
        np.testing.assert_array_equal(plain, recomputed)


# ---- refusals -----------------------------------------------------------------------------------------------------


@operation
def opaque(backend, x):
    return np.tanh(x)


def test_what_has_no_gradient_is_refused_and_not_taken_for_a_constant():
    x = numbers(1, 2, 3)
    tape = Gradient(DOUBLE, {"x": x})
    opaque(tape, numbers(2, 2, 3))  # of a constant it is one
    with pytest.raises(TypeError, match="opaque has no gradient"):
        opaque(tape, add(tape, x, x))
    with pytest.raises(TypeError, match="opaque has no gradient"):
        opaque(tape, x[1:])


def test_a_result_that_is_lost_between_operations_is_noticed():
    x = numbers(1, 2, 3)
    tape = Gradient(DOUBLE, {"x": x})
    copied = add(tape, x, x).copy()
    out = add(tape, copied, x)
    with pytest.raises(TypeError, match="add made a result that nothing used"):
        tape.backward(out, np.ones((2, 3)))


def test_a_result_in_the_memory_of_an_argument_is_refused():
    """A body that gives back what it was given would get that one's gradient."""
    tape = Gradient(Backend(np, {"add": lambda backend, x, y: x}, np.float64), {"x": (x := numbers(1, 2, 3))})
    with pytest.raises(TypeError, match="add has a gradient, so its result must have memory of its own"):
        add(tape, x, x)


def test_backward_starts_at_a_result():
    x = numbers(1, 2, 3)
    tape = Gradient(DOUBLE, {"x": x})
    out = add(tape, x, x)
    with pytest.raises(ValueError, match="starts at the result of an operation"):
        tape.backward(numbers(2, 2, 3), np.ones((2, 3)))
    tape.backward(out, np.ones((2, 3)))
    with pytest.raises(ValueError, match="since the last backward"):
        tape.backward(out, np.ones((2, 3)))


def test_parameters_are_of_the_backends_type(backend):
    with pytest.raises(TypeError, match=r"norm\.weight is float64: parameters that are trained must be float32"):
        Gradient(backend, {"norm.weight": numbers(1, 3)})


def test_a_gradient_passes_the_door_and_may_have_a_faster_body():
    calls = []

    def fast(backend, d_out, x, cos, sin):
        calls.append(d_out.shape)
        return d_out, None, None

    tape = Gradient(
        watching := Recording(Backend(np, bodies={"rope_gradient": fast})), {"x": (x := normal(1, 2, 3, 4))}
    )
    out = rope(tape, x, normal(2, 2, 2), normal(3, 2, 2))
    tape.backward(out, np.ones_like(out))
    assert calls == [(2, 3, 4)] and [name for name, _ in watching.seen] == ["rope", "rope_gradient"]


def test_a_trace_of_training_counts_twice_as_much_on_the_way_back(backend):
    """Every block's gradient states a cost, so that whoever watches the door need not look inside, and bodies run."""
    config = moe_config()
    tensors = random_weights(config)
    tracing = Tracing(backend, {})
    tape = Gradient(tracing, tensors)
    log_p_N = log_probability(tape, forward(tape, config, tree(tensors), make_step([([1, 2, 3], None)])), np.array([4]))
    there = [span for span in tracing.spans if span.depth == 0 and span.operation != "rope_tables"]
    tracing.spans.clear()
    tape.backward(log_p_N, np.ones(1, np.float32))
    back = [span for span in tracing.spans if span.depth == 0]
    assert [f"{span.operation}_gradient" for span in reversed(there)] == [span.operation for span in back]
    assert sum(span.cost.flops for span in back) == 2 * sum(span.cost.flops for span in there)


def test_double_is_double():
    assert double([normal(1, 2), None, (normal(1, 2),)])[2][0].dtype == np.float64
