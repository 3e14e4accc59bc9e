"""What every test may ask for: `backend`, each backend in turn, and `data`, the folder of reference files."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

import backends

# The same examples in every run: a failure can be repeated, and a pass means the same tomorrow.
# TINYQWEN_TEST_PROFILE=long searches twenty times as many.
ALWAYS = {"derandomize": True, "deadline": None, "suppress_health_check": [HealthCheck.too_slow]}
settings.register_profile("short", max_examples=20, **ALWAYS)
settings.register_profile("long", max_examples=400, **ALWAYS)
settings.load_profile(os.environ.get("TINYQWEN_TEST_PROFILE", "short"))


@pytest.fixture(scope="session", params=[*backends.NAMES, "cpu-generic", "cuda-host"])
def backend(request):
    """Each backend in turn, the cpu also as on an older processor: one suite binds them all to the definitions."""
    if request.param == "cpu-generic":
        return backends.get("cpu", features=())
    if request.param == "cuda-host":
        from tests.cuda_host.on_numpy import OnNumPy

        return OnNumPy()
    return backends.get(request.param)


@pytest.fixture(scope="session")
def data() -> Path:
    """The folder of published configs, tokenizers and reference outputs."""
    root = Path(__file__).parent.parent
    folder = Path(os.environ.get("TINYQWEN_TEST_DATA", root / "../shared/data")).resolve()
    if not folder.is_dir():
        pytest.skip(f"no test data in {folder}; TINYQWEN_TEST_DATA may name another folder")
    return folder
