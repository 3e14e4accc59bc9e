"""What is kept of a generation is what the model computed, and keeping it changes nothing."""

import numpy as np
import pytest

import backends
from backends import Backend
from tests.helpers import CONFIGS, Recording, dense_config, logits_of, moe_config, small_weights
from tests.tinyqwen.trace.watching import MANY, captured, start
from tinyqwen.blocks.attention import attention, softmax
from tinyqwen.errors import UsageError
from tinyqwen.generate import generate
from tinyqwen.trace.attention_maps import AttentionMap, attention_maps, attention_weights, joined
from tinyqwen.trace.capture import capture
from tinyqwen.trace.lens import distribution, layer_outputs, lens
from tinyqwen.trace.routing import Routing, routers, routing

BACKEND = backends.get("numpy")


@pytest.mark.parametrize("name", CONFIGS)
def test_looking_changes_no_token(name, backend):
    config = CONFIGS[name]
    weights = small_weights(config, backend)
    plain, watched = start(config, MANY, backend=backend), start(config, MANY, backend=backend)
    for _ in generate(backend, config, weights, plain, chunk=5):
        pass
    capture(backend, config, weights, watched, lambda path, operation: True, chunk=5)
    assert [one.ids for one in plain] == [one.ids for one in watched]


def test_only_what_was_asked_for_is_kept():
    config = moe_config()
    _, steps = captured(config, attention_weights(2))
    assert {one.path for step in steps for one in step.kept} == {"layers.2.self_attn.attention.softmax"}
    _, steps = captured(config, layer_outputs)
    assert all(len(one.result) == len(step.step.row_N) for step in steps for one in step.kept), "one row a sequence"


def test_what_is_kept_is_a_copy():
    """The model writes over some of its results; a capture that only referred to them would change."""
    config = dense_config()
    recording = Recording(BACKEND)
    sequences = start(config)
    steps = capture(recording, config, small_weights(config), sequences, lambda path, operation: operation == "add")
    kept = [one.result for step in steps for one in step.kept]
    made = recording.outputs("add")
    assert len(kept) == len(made) > 0
    assert all(np.array_equal(a, b) and not np.shares_memory(a, b) for a, b in zip(kept, made))


# ---- attention ----------------------------------------------------------------------------------------------------


def brute_force(config, weights, ids, layer):
    """The attention weights of all queries of one sequence, head by head and query by query, without cache or mask."""
    recording = Recording(BACKEND)
    logits_of(recording, config, weights, ids)
    turned = [array.astype(np.float64) for array in recording.outputs("rope")]
    per_layer, chunk = len(turned) // config.num_hidden_layers, config.dual_chunk_attention_config
    *queries, k_TGK = turned[per_layer * layer : per_layer * (layer + 1)]
    T, H, K = queries[0].shape
    out_HTT = np.zeros((H, T, T))
    for h in range(H):
        for t in range(T):
            first = max(0, t + 1 - (config.window(layer) or T))
            k_SK = k_TGK[first : t + 1, h // (H // k_TGK.shape[1])]
            way_S = [min(t // chunk.chunk_len - s // chunk.chunk_len, 2) if chunk else 0 for s in range(first, t + 1)]
            score_S = np.array([k_K @ queries[way][t, h] for k_K, way in zip(k_SK, way_S)]) / np.sqrt(K)
            weight_S = np.exp(score_S - score_S.max())
            out_HTT[h, t, first : t + 1] = weight_S / weight_S.sum()
    return out_HTT


@pytest.mark.parametrize("name", ["dense", "window", "chunks", "moe"])
@pytest.mark.parametrize("layer", [0, 2])
def test_attention_equals_a_brute_force_recomputation(name, layer):
    """Prefill in chunks, decode, three sequences in the same steps: the same weights as one plain pass over the ids."""
    config = CONFIGS[name]
    sequences, steps = captured(config, chunk=6)
    maps = attention_maps(steps, layer)
    assert {one.phase for one in maps} == {"prefill", "decode"}
    for number, running in enumerate(sequences):
        expected_HTT = brute_force(config, small_weights(config), running.ids[:-1], layer)
        whole = joined(maps, number)
        assert whole.position == 0
        np.testing.assert_allclose(whole.weights_HTS, expected_HTT, atol=2e-6)
        np.testing.assert_allclose(whole.weights_HTS.sum(-1), 1, atol=1e-5)
        np.testing.assert_allclose(whole.sink_HT, expected_HTT[:, :, 0], atol=2e-6)


def test_the_last_rows_are_those_of_the_whole():
    _, steps = captured(dense_config(), chunk=4)
    maps = attention_maps(steps, 1)
    whole = joined(maps, 0)
    for last in (1, 4, 6, 14, 99):
        some = joined(maps, 0, last=last)
        assert np.array_equal(some.weights_HTS, whole.weights_HTS[:, -last:])
        assert some.position == max(0, whole.weights_HTS.shape[1] - last)


def test_entropy_has_its_closed_forms():
    weights_HTS = np.float32([[[1, 0, 0, 0], [0.25] * 4, [0.5, 0.5, 0, 0]]])
    assert AttentionMap(0, "prefill", 0, weights_HTS).entropy_HT.tolist() == [[0, 2, 1]]


def test_what_a_faster_body_does_in_one_go_is_opened_where_it_is_asked_for():
    """In the layer that is looked at the definition runs, and shows the weights; elsewhere the body."""
    config, ran = dense_config(), []

    def one_piece(backend, *arrays, **settings):
        ran.append(None)
        return attention.definition(BACKEND, *arrays, **settings)

    weights, keep = small_weights(config), attention_weights(1)
    fast, plain = (
        attention_maps(capture(backend, config, weights, start(config), keep), 1)
        for backend in (Backend(bodies={"attention": one_piece}), BACKEND)
    )
    for one, other in zip(fast, plain, strict=True):
        assert np.array_equal(one.weights_HTS, other.weights_HTS)
    assert len(ran) == len(fast) * (config.num_hidden_layers - 1)


def test_what_was_not_kept_is_said():
    config = dense_config()
    steps = capture(BACKEND, config, small_weights(config), start(config), attention_weights(0))
    with pytest.raises(UsageError, match="layer 1 were not kept"):
        attention_maps(steps, 1)


# ---- experts ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["moe", "moe-normalised"])
def test_routing_equals_the_route_operation(name):
    config, recording = CONFIGS[name], Recording(BACKEND)
    sequences = start(config, MANY)
    steps = capture(recording, config, small_weights(config), sequences, routers, chunk=6)
    found = routing(steps)
    sparse = [layer for layer in range(config.num_hidden_layers) if config.is_sparse(layer)]
    assert list(found) == sparse
    made = recording.outputs("route")
    for n, route in enumerate(found.values()):
        expert_TA, weight_TA = (np.concatenate(part) for part in zip(*made[n :: len(sparse)]))
        assert np.array_equal(route.expert_TA, expert_TA) and np.array_equal(route.weight_TA, weight_TA)
        assert route.load_E.sum() == expert_TA.size
        assert [list(expert_TA.ravel()).count(e) for e in range(config.num_experts)] == route.load_E.tolist()
        for number, running in enumerate(sequences):
            mine = route.sequence_T == number
            assert route.token_T[mine].tolist() == running.ids[:-1]
            assert route.position_T[mine].tolist() == list(range(len(running.ids) - 1))


def test_the_shared_gate_is_the_one_that_scales_the_shared_expert():
    """sigmoid_gate's result over its input, element by element, is the gate."""
    config = moe_config()

    class Gates(Recording):
        def run(self, operation, arrays, settings, door=None):
            out = super().run(operation, arrays, settings, door)
            if operation.name == "sigmoid_gate":
                self.seen.append(("ratio", np.median(out / arrays[1], axis=-1)))
            return out

    gates = Gates(BACKEND)
    steps = capture(gates, config, small_weights(config), start(config), routers)
    np.testing.assert_allclose(routing(steps)[1].gate_T, np.concatenate(gates.outputs("ratio")), rtol=1e-5)


def test_margins_and_ties():
    probability_TE = np.float32([[0.5, 0.3, 0.15, 0.05], [0.4, 0.25, 0.25, 0.1]])
    route = Routing(0, *[np.arange(2)] * 3, np.array([[0, 1]] * 2), probability_TE[:, :2], probability_TE, np.ones(2))
    np.testing.assert_allclose(route.margin_T, [0.15, 0], atol=1e-6)
    assert route.tied_T.tolist() == [False, True]
    all_chosen = Routing(
        0, *[np.arange(2)] * 3, np.array([[0, 1, 2, 3]] * 2), probability_TE, probability_TE, np.ones(2)
    )
    assert np.isnan(all_chosen.margin_T).all() and not all_chosen.tied_T.any()


def test_a_dense_model_has_no_routers():
    assert routing(captured(dense_config())[1]) == {}


# ---- logit lens ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", CONFIGS)
def test_the_last_layers_lens_is_the_models_own_distribution(name):
    config = CONFIGS[name]
    weights = small_weights(config)
    sequences, steps = captured(config, layer_outputs, chunk=6)
    found = lens(BACKEND, config, weights, steps)
    assert len(found) == sum(len(running.new_ids) for running in sequences)
    for one in found:
        ids = sequences[one.sequence].ids[: one.position + 1]
        expected_V = softmax(BACKEND, logits_of(BACKEND, config, weights, ids)[-1])
        assert len(one.token_L) == config.num_hidden_layers
        assert one.token_L[-1] == expected_V.argmax()
        np.testing.assert_allclose(one.probability_L[-1], expected_V.max(), rtol=1e-4)
        assert one.phase == ("prefill" if one.position < sequences[one.sequence].prompt_length else "decode")
    flips = found[0].flip_L
    assert not flips[0] and flips[1] == (found[0].token_L[1] != found[0].token_L[0])


def test_the_lens_of_a_shorter_model_is_that_layers_row():
    """What layer 1 would have said is what the same model says when it has two layers only."""
    config = dense_config()
    weights = small_weights(config)
    (running,), steps = captured(config, layer_outputs, prompts=((7, 0),))
    short = dense_config(num_hidden_layers=2)
    for one in lens(BACKEND, config, weights, steps):
        expected_V = softmax(BACKEND, logits_of(BACKEND, short, weights, running.ids[: one.position + 1])[-1])
        assert one.token_L[1] == expected_V.argmax()
        np.testing.assert_allclose(one.probability_L[1], expected_V.max(), rtol=1e-4)


def test_padding_rows_are_never_said():
    config = dense_config()
    weights = small_weights(config)
    _, steps = captured(config, layer_outputs)
    assert all((one.token_L < 5).all() for one in lens(BACKEND, config, weights, steps, vocabulary=5))
    row_ND = steps[0].kept[-1].result
    assert np.allclose(distribution(BACKEND, config, weights, row_ND).sum(-1), 1)
