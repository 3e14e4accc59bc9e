"""The cpu backend as a whole: what may be asked of it, what it costs to import, and that it always says the same."""

import json
import os
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest

import backends
from backends.cpu import threads
from backends.cpu.features import NEEDED, detected
from tests.helpers import CONFIGS, assert_close, dense_config, greedy, logits_of, moe_config, small_weights, tokens
from tinyqwen.generate import Running, generate
from tinyqwen.kv_cache import KVCache
from tinyqwen.sampling import Sampling

ROOT = Path(__file__).parents[3]


def python(script, **environment):
    """What a process of its own prints, as JSON."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), **environment}
    done = subprocess.run([sys.executable, "-c", script], env=environment, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


# ---- asking for it ------------------------------------------------------------------------------------------------


def test_numba_is_a_name_for_it_and_settings_are_kept():
    cpu = backends.get("numba", features=(), threads=1)
    assert (cpu.name, cpu.features, cpu.threads, cpu.dtype) == ("cpu", frozenset(), 1, np.float32)
    assert backends.get("cpu").features == detected() <= set(NEEDED)
    assert 1 <= backends.get("cpu").threads <= threads.most_threads()


@pytest.mark.parametrize("count", [0, -1, 1000])
def test_threads_that_are_none_or_more_than_cores_are_refused(count):
    with pytest.raises(ValueError, match=rf"threads must be from 1 to \d+, .* is {count}$"):
        backends.get("cpu", threads=count)


def test_features_that_the_processor_lacks_are_refused():
    with pytest.raises(ValueError, match="no amx"):
        backends.get("cpu", features={"amx"})


def test_other_backends_have_no_such_settings():
    with pytest.raises(ValueError, match="threads are a setting of the cpu backend"):
        backends.get("numpy", threads=2)


def test_numba_is_imported_only_when_it_is_needed():
    """It takes 0.2 s, and the commands that compute nothing should not wait for it."""
    script = """
import json, sys, time
import backends, tinyqwen.runtime, tinyqwen.cli.main
tinyqwen.cli.main.make_parser()
backends.get("numpy"); backends.get("meta")
before = "numba" in sys.modules
backends.get("cpu")
print(json.dumps([before, "numba" in sys.modules]))
"""
    assert python(script) == [False, True]


# ---- how many threads -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("groups", "files", "cores"),
    [
        ("0::/\n", {"cpu.max": "max 100000"}, np.inf),
        ("0::/\n", {"cpu.max": "250000 100000"}, 2.5),
        ("0::/a/b\n", {"a/cpu.max": "150000 100000", "a/b/cpu.max": "max 100000"}, 1.5),
        ("0::/a/b\n", {"cpu.max": "50000 100000"}, 0.5),
        ("3:cpu,cpuacct:/a\n0::/\n", {"cpu/a/cpu.cfs_quota_us": "300000", "cpu/a/cpu.cfs_period_us": "100000"}, 3.0),
        ("3:cpuset:/a\n", {"cpu/a/cpu.cfs_quota_us": "300000", "cpu/a/cpu.cfs_period_us": "100000"}, np.inf),
        ("3:cpu:/\n", {"cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000"}, np.inf),
        ("0::/gone\n", {"cpu.max": "nonsense"}, np.inf),
    ],
)
def test_the_quota_of_a_container(tmp_path, groups, files, cores):
    (tmp_path / "groups").write_text(groups)
    for name, text in files.items():
        (tmp_path / "root" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "root" / name).write_text(text)
    assert threads.quota(tmp_path / "groups", tmp_path / "root") == cores


def test_without_control_groups_there_is_no_quota(tmp_path):
    assert threads.quota(tmp_path / "none") == np.inf


@pytest.mark.parametrize(("quota", "cores"), [(0.5, 1), (1.9, 1), (np.inf, threads.most_threads())])
def test_the_default_is_what_the_quota_pays_for(monkeypatch, quota, cores):
    monkeypatch.setattr(threads, "quota", lambda: quota)
    assert threads.usable_cores() == cores


def test_a_process_bound_to_one_core_uses_one():
    if not hasattr(os, "sched_setaffinity"):
        pytest.skip("this system does not bind processes to cores")
    script = """
import json, os
os.sched_setaffinity(0, list(os.sched_getaffinity(0))[:1])
import backends
print(json.dumps(backends.get("cpu").threads))
"""
    assert python(script) == 1


# ---- the same, always ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
@pytest.mark.parametrize("times", [5, pytest.param(100, marks=pytest.mark.slow)])
def test_same_seed_same_threads_same_tokens(config, times):
    """And the same logits, to the last bit, whichever thread did what."""
    cpu = backends.get("cpu")
    weights, ids = small_weights(config), tokens(config, 60)
    first_TV = logits_of(cpu, config, weights, ids)
    answers = set()
    for _ in range(times):
        running = Running(list(ids), KVCache(cpu, config), Sampling(True), 999, seed=3, max_new_tokens=12)
        for _ in generate(cpu, config, weights, [running]):
            pass
        answers.add(tuple(running.new_ids))
        np.testing.assert_array_equal(logits_of(cpu, config, weights, ids), first_TV)
    assert len(answers) == 1


def test_one_thread_and_all_say_the_same():
    config = moe_config(intermediate_size=600, hidden_size=520)  # large enough that rows are shared
    weights, ids = small_weights(config), tokens(config, 300)
    one, all_ = (logits_of(backends.get("cpu", threads=n), config, weights, ids) for n in (1, threads.most_threads()))
    np.testing.assert_array_equal(one, all_)


def test_callers_at_once_do_not_disturb_each_other():
    """A server answers several people from as many Python threads: each gets what it would have got alone."""
    config, fast = dense_config(intermediate_size=600, hidden_size=520), backends.get("cpu")
    alone, weights = backends.get("cpu", threads=1), small_weights(config)
    prompts = [tokens(config, 30 + 9 * n, seed=n) for n in range(4)]
    expected, answers = [greedy(fast, config, weights, prompt, 20) for prompt in prompts], {}

    def answer(n, backend):
        answers[n, backend] = [greedy(backend, config, weights, prompts[n], 20) for _ in range(3)]

    people = [threading.Thread(target=answer, args=(n, backend)) for n in range(4) for backend in (fast, alone)]
    for person in people:
        person.start()
    for person in people:
        person.join()
    assert len(answers) == 8
    for (n, _), said in answers.items():
        assert said == [expected[n]] * 3


# ---- other processors ---------------------------------------------------------------------------------------------

TINY = """
import json
import backends
from tests.helpers import CONFIGS, logits_of, small_weights, tokens
cpu = backends.get("cpu", features=())
out = {}
for name in ("dense", "moe"):
    config = CONFIGS[name]
    out[name] = logits_of(cpu, config, small_weights(config), tokens(config, 20)).tolist()
print(json.dumps(out))
"""


def test_the_kernels_compile_for_a_processor_without_wide_vectors():
    """The oldest x86-64 there is (or the plainest of this architecture): the same model, the same logits."""
    out = python(TINY, NUMBA_CPU_NAME="generic", NUMBA_CPU_FEATURES="")
    numpy = backends.get("numpy")
    for name, logits in out.items():
        config = CONFIGS[name]
        expected_TV = logits_of(numpy, config, small_weights(config), tokens(config, 20))
        assert_close(np.float32(logits), expected_TV, 1e-5)
