"""What every test may ask for: `backend`, each backend in turn, and `data`, the folder of reference files."""

from __future__ import annotations

import os
from functools import partial
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

import backends
from backends.cuda import Cuda
from tests.cuda_host import host
from tests.cuda_host.fake_cupy import FakeCupy

# The same examples in every run: a failure can be repeated, and a pass means the same tomorrow.
# TINYQWEN_TEST_PROFILE=long searches twenty times as many.
ALWAYS = {"derandomize": True, "deadline": None, "suppress_health_check": [HealthCheck.too_slow]}
settings.register_profile("short", max_examples=20, **ALWAYS)
settings.register_profile("long", max_examples=400, **ALWAYS)
settings.load_profile(os.environ.get("TINYQWEN_TEST_PROFILE", "short"))


# Each backend in turn: one suite binds them all to the definitions. Training, and comparison with transformers itself,
# are for those of the processor.
#
# cpu-generic        as on an older processor
# cupy-definitions   the definitions themselves on what stands in for CuPy's arrays
# cuda-host          with the CUDA kernels, built for this processor
# cuda-device        on a GPU, where there is one
BACKENDS = {
    **{name: partial(backends.get, name) for name in backends.NAMES},
    "cpu-generic": partial(backends.get, "cpu", features=()),
    "cupy-definitions": lambda: backends.Backend(FakeCupy()),
    "cuda-host": lambda: Cuda(FakeCupy()),
}
if backends.choose()[0] == "cuda":
    BACKENDS["cuda-device"] = partial(backends.get, "cuda")
PROCESSOR = [name for name in BACKENDS if not name.startswith("cu")]


def pytest_generate_tests(metafunc):
    if "backend" in metafunc.fixturenames:
        marked = metafunc.definition.get_closest_marker
        processor = marked("training") or marked("oracle")  # goldens of the same outputs bind the others
        names = PROCESSOR if processor else [n for n in BACKENDS if n != "cuda-host" or not marked("many")]
        metafunc.parametrize("backend", names, indirect=True, scope="session")


@pytest.fixture(scope="session")
def backend(request):
    if request.param == "cuda-host" and (why := host.missing()):
        pytest.skip(why)
    return BACKENDS[request.param]()


@pytest.fixture(scope="session")
def data() -> Path:
    """The folder of published configs, tokenizers and reference outputs."""
    root = Path(__file__).parent.parent
    folder = Path(os.environ.get("TINYQWEN_TEST_DATA", root / "../shared/data")).resolve()
    if not folder.is_dir():
        pytest.skip(f"no test data in {folder}; TINYQWEN_TEST_DATA may name another folder")
    return folder
