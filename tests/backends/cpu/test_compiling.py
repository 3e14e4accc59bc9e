"""Machine code kept on disk: a second process compiles nothing, and trouble with the disk costs a warning only."""

import gc
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from numba.core import types
from numba.core.dispatcher import Dispatcher

from backends.cpu import compiling
from backends.cpu.compiling import announced, inner, kernel, lasting
from backends.cpu.team import shared
from tests.test_imports import imports

ROOT = Path(__file__).parents[3]


def returned_uncounted() -> list[str]:
    """The compiled functions of this process that return an array and count no references."""
    compiled = [each for each in gc.get_objects() if issubclass(type(each), Dispatcher)]  # proxies may be dead
    return [
        each.py_func.__qualname__
        for each in compiled
        if each.targetoptions.get("_nrt") is False
        and any(holds_array(version.signature.return_type) for version in each.overloads.values())
    ]


def holds_array(kind: types.Type) -> bool:
    return isinstance(kind, types.Array) or any(map(holds_array, getattr(kind, "types", ())))


# What `prepare` compiles for a model, and what that model then still lacks: prompts, decoding, two sequences, sampling.
RUN = """
import json, sys, time, warnings
warnings.showwarning = lambda message, *_: print("WARNING", message, file=sys.stderr)
import numpy as np
import backends
from collections import Counter
from backends.cpu.compiling import KernelCache, announced
from backends.cpu.sketching import drawn
from backends.quantised import BITS, quantise
from tests.backends.cpu.test_compiling import returned_uncounted
from tests.helpers import dense_config
from tinyqwen.config import FULL, SLIDING, DualChunk
from tinyqwen.formats import DTYPES, format_of
from tinyqwen.kv_cache import KVCache
from tinyqwen.model import forward
from tinyqwen.prepare import prepare
from tinyqwen.sampling import Sampling, sample
from tinyqwen.shortlist import sample_shortlisted
from tinyqwen.step import make_step
from tinyqwen.weights import random_weights, tree

kinds = {
    "plain": {},
    "chunks": {"dual_chunk_attention_config": DualChunk(120, 30)},
    "window": {"sliding_window": 70, "layer_types": (FULL, SLIDING, SLIDING)},
    "alone": {"hidden_size": 512, "intermediate_size": 608, "head_dim": 32},
}
kinds["together"], together = kinds["alone"], sys.argv[3] != "alone"
config = dense_config(**{"hidden_size": 520, "intermediate_size": 600} | kinds[sys.argv[3]])
backend, at_first, later = backends.get("cpu"), [], []
sampling = Sampling(True, 0.7, 20, 0.8)

def kept(name, array):
    format = format_of(name, array.shape, sys.argv[1])
    return quantise(array, BITS[format]) if format in BITS else array.astype(DTYPES[format])

weights = tree({name: kept(name, array) for name, array in random_weights(config).items()})
make_cache = lambda backend, config: KVCache(backend, config, sys.argv[2])
asked, look_up = Counter(), KernelCache.load_overload

def counted(cache, signature, context):
    asked[str(cache.path(signature))] += 1
    return look_up(cache, signature, context)

KernelCache.load_overload = counted
start = time.perf_counter()
settings = {"kv_format": sys.argv[2], "sketching": True, "together": together, "compiling": at_first.append}
prepare(backend, config, weights, sampling, **settings)
prepared = time.perf_counter() - start
with announced(later.append):
    one, two = make_cache(backend, config), make_cache(backend, config)
    for parts in (
        [([1] * 300, one)], [([1], one)], [([1, 2, 3], one), ([1] * 4, two)], [([1], one), ([1], two)],
        [([1] * 200, one)], [([1] * 200, one)], [([1], one)],
    ):
        parts = parts if together else parts[:1]
        logits_NV = forward(backend, config, weights, make_step(parts))
    sample(backend, logits_NV[0], [], sampling=sampling, uniform=0.5)
    head_VD, nobody = weights.lm_head.weight, np.array([], int)
    x_1D, sketch = np.ones((1, config.hidden_size), np.float32), drawn(head_VD)
    sample_shortlisted(backend, x_1D, head_VD, sketch, nobody, sampling=sampling, uniform=0.5, vocabulary=len(head_VD))
assert max(asked.values()) == 1, "a kernel was loaded, and not found by the next call"
said = {"at_first": at_first, "later": later, "seconds": prepared, "logit": float(logits_NV[0, 0])}
print(json.dumps(said | {"returned": returned_uncounted()}))
"""


# The same, after the process that helps the first start has done all of it alone.
BESIDE = RUN.replace(
    "start = time",
    """
import pickle, subprocess
from tinyqwen.prepare import Tiny, form_of, kind as kind_of, small
from tinyqwen.weights import Node, walk

forms = {kind_of(path): form_of(array) for path, array in walk(weights) if not isinstance(array, Node)}
task = pickle.dumps((backend.features, [Tiny(small(config), forms, sys.argv[2], sampling, True)]))
subprocess.run([sys.executable, "-m", "tinyqwen.prepare_beside"], input=task, check=True)
start = time""",
)


def run(cache, script=RUN, formats=("f32", "f32"), kind="plain", **environment):
    """A process of its own with that cache folder: what it printed, as JSON, and its warnings.

    formats   of the weights and of the KV cache
    kind      of attention
    """
    environment = {**os.environ, "TINYQWEN_CACHE": str(cache), "PYTHONPATH": str(ROOT), **environment}
    command = [sys.executable, "-c", script, *formats, kind]
    done = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout), done.stderr


@pytest.fixture(scope="module")
def filled(tmp_path_factory):
    """A cache folder in which a first process has left its kernels, and what that process said."""
    cache = tmp_path_factory.mktemp("cache")
    return cache, run(cache)


def test_the_first_start_compiles_and_the_model_finds_all_kernels_ready(filled):
    cache, (said, errors) = filled
    assert {"rms_norm.norm_rows", "swiglu.swiglu_rows"} <= set(said["at_first"]) and errors == ""
    assert said["later"] == [], "a tiny model must need the kernels that the real one does"
    assert len(list(cache.glob("kernels/*/*.nbc"))) >= len(said["at_first"])


@pytest.mark.parametrize("kind", ["chunks", "window"])
def test_attention_in_parts_finds_its_kernels_ready(filled, kind):
    said, _ = run(filled[0], kind=kind)
    assert said["later"] == []


@pytest.mark.slow
@pytest.mark.parametrize("formats", [("bf16", "bf16"), ("int8", "int8"), ("int4", "bf16")])
def test_every_format_finds_its_kernels_ready(tmp_path, formats):
    first, _ = run(tmp_path, formats=formats)
    second, _ = run(tmp_path, formats=formats)
    assert first["at_first"] and (first["later"], second["at_first"], second["later"]) == ([], [], [])


@pytest.mark.slow
def test_who_never_runs_several_sequences_together_compiles_fewer(tmp_path):
    alone, _ = run(tmp_path, formats=("int8", "bf16"), kind="alone")
    more, _ = run(tmp_path, formats=("int8", "bf16"), kind="together")
    assert (alone["later"], more["later"]) == ([], []) and "decoder_layer.layers_of_tokens" in more["at_first"]


@pytest.mark.slow
def test_the_process_that_helps_compiles_the_same_kernels(tmp_path):
    said, errors = run(tmp_path, BESIDE, formats=("bf16", "bf16"))
    assert (said["at_first"], said["later"], errors) == ([], [], "")


def test_a_tuple_and_arguments_gathered_by_a_star_have_a_file_each():
    """Their types have one name, but a function compiled for the one does not serve the other."""
    cache = compiling.KernelCache(test_a_tuple_and_arguments_gathered_by_a_star_have_a_file_each)
    one, other = types.Tuple((types.int64, types.float32)), types.StarArgTuple((types.int64, types.float32))
    assert repr(one) == repr(other) and one != other
    assert cache.path((one,)) != cache.path((other,))


def test_what_counts_no_references_returns_no_array(filled):
    """Its caller would take the array for its own, and free it while others use it."""
    assert filled[1][0]["returned"] == []


def test_one_that_returns_an_array_is_noticed():
    @inner
    def same(x_N):
        return 1, x_N

    assert same(np.zeros(3))[0] == 1 and [name for name in returned_uncounted() if name.endswith("same")]


def test_a_second_process_compiles_nothing_and_computes_the_same(filled):
    cache, (first, _) = filled
    second, errors = run(cache)
    assert (second["at_first"], second["later"], errors) == ([], [], "")
    assert second["logit"] == first["logit"] and second["seconds"] < first["seconds"] / 3


def test_a_file_cut_short_is_compiled_again(filled):
    cache, (first, _) = filled
    file = next(cache.glob("kernels/*/swiglu.swiglu_rows-*.nbc"))
    whole = file.read_bytes()
    file.write_bytes(whole[: len(whole) // 2])
    said, errors = run(cache)
    assert said["logit"] == first["logit"] and len(errors.splitlines()) <= 1
    assert len(file.read_bytes()) > len(whole) // 2


ONE = """
import json, sys, warnings
import numpy as np
warnings.showwarning = lambda message, *_: print("WARNING", message, file=sys.stderr)
import backends
from tinyqwen.blocks.rms_norm import rms_norm
from tinyqwen.blocks.swiglu import swiglu
x_TD = np.ones((2, 5), np.float32)
print(json.dumps(swiglu(backends.get("cpu"), x_TD, rms_norm(backends.get("cpu"), x_TD, x_TD[0], eps=0.0)).tolist()))
"""


def test_a_cache_that_cannot_be_written_costs_one_warning(tmp_path):
    """Not even by root: a file stands where the folder should be."""
    (tmp_path / "file").write_text("")
    said, errors = run(tmp_path / "file", ONE)
    np.testing.assert_allclose(said, 1 / (1 + np.exp(-1)), rtol=1e-6)
    assert len(errors.splitlines()) == 1 and "compiled anew at each start" in errors and str(tmp_path) in errors


@pytest.fixture
def as_if_ours(tmp_path, monkeypatch):
    """Kernels of this file are kept, too, in a folder of the test's own."""
    ours = [*compiling.sources(), Path(__file__).resolve()]
    compiling.key()
    monkeypatch.setattr(compiling, "sources", lambda: ours)
    monkeypatch.setenv("TINYQWEN_CACHE", str(tmp_path))


def test_a_kernel_of_ones_own_is_not_kept(tmp_path, monkeypatch):
    """The key knows nothing of its source: after an edit, the old machine code would run."""
    monkeypatch.setenv("TINYQWEN_CACHE", str(tmp_path))

    @inner
    def add(first, last, x_N, out_N):
        for n in range(first, last):
            out_N[n] += x_N[n]

    out_N = np.zeros(5)
    shared(add)(5, np.arange(5.0), out_N)
    assert out_N.tolist() == [0, 1, 2, 3, 4] and list(tmp_path.glob("kernels/*/*add*")) == []
    assert list(tmp_path.glob("kernels/*/*launch*")) == []


def test_a_full_disk_costs_one_warning_and_leaves_nothing_half_written(as_if_ours, tmp_path, monkeypatch):
    compiling.warn_once.cache_clear()

    def full(self, data):
        self.touch()
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)

    @kernel
    def twice(x):
        return 2 * x

    with pytest.warns(UserWarning, match="No space left") as seen:
        assert (twice(3), twice(1.5)) == (6, 3.0)
    compiling.warn_once.cache_clear()
    assert len(seen) == 1 and list(tmp_path.glob("kernels/*/*")) == []


# ---- the key ------------------------------------------------------------------------------------------------------


@pytest.fixture
def fresh_key():
    compiling.key.cache_clear()
    yield compiling.key
    compiling.key.cache_clear()


def test_an_edit_of_any_source_makes_another_key(fresh_key, tmp_path, monkeypatch):
    keys = {fresh_key()}
    for number, source in enumerate(compiling.sources()):
        edited = tmp_path / f"{number}.py"
        edited.write_bytes(source.read_bytes() + b"# edited\n")
        changed = [edited if each == source else each for each in compiling.sources()]
        with monkeypatch.context() as patch:
            patch.setattr(compiling, "sources", lambda changed=changed: changed)
            fresh_key.cache_clear()
            keys.add(fresh_key())
    assert len(keys) == 1 + len(compiling.sources())
    assert {"memory.py", "exp.py", "quantised.py"} <= {source.name for source in compiling.sources()}


def test_another_version_or_processor_makes_another_key(fresh_key, monkeypatch):
    keys = {fresh_key()}
    monkeypatch.setattr(compiling.numba, "__version__", "1000")
    fresh_key.cache_clear()
    keys.add(fresh_key())
    other, _ = run("/proc", "import json; from backends.cpu.compiling import key; print(json.dumps(key()))",
                   NUMBA_CPU_NAME="generic")  # fmt: skip
    assert len({*keys, other}) == 3


def test_kernels_are_made_of_the_files_that_the_key_stands_for():
    """What a kernel imports of this project must be among them, or be no part of its machine code."""
    ours = {name for source in compiling.sources() for name in (source.stem, source.parent.name)}
    for source in compiling.sources():
        for name in imports(source):
            parts = name.split(".")
            if parts[0] == "backends" and parts[1] not in ("interface", "Backend", "large_pages", "cache_folder"):
                assert parts[2 if parts[1] == "cpu" else 1] in ours, f"{source.name} imports {name}"
            assert parts[0] not in ("tinyqwen", "tests")


def test_old_keys_are_forgotten_and_the_latest_kept(tmp_path, monkeypatch):
    for n in range(compiling.KEYS_KEPT + 3):
        (tmp_path / str(n)).mkdir()
        (tmp_path / str(n) / "file").touch()
        os.utime(tmp_path / str(n), (n, n))
    compiling.forget_old(tmp_path)
    assert {each.name for each in tmp_path.iterdir()} == {str(n) for n in range(3, compiling.KEYS_KEPT + 3)}


# ---- names --------------------------------------------------------------------------------------------------------


def test_kernels_of_one_function_with_other_numbers_are_kept_apart(as_if_ours, tmp_path):
    def times(factor):
        @kernel
        def multiply(x):
            return factor * x

        return multiply

    compiled = []
    with announced(compiled.append):
        assert (times(2)(5), times(3)(5), times(2)(5)) == (10, 15, 10)
    assert len(compiled) == 2 and len(list(tmp_path.glob("kernels/*/*.nbc"))) == 2


def test_what_has_no_lasting_name_is_refused():
    with pytest.raises(TypeError, match="cannot be kept"):
        lasting(np.zeros(3))
