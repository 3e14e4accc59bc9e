import pytest


@pytest.fixture(scope="session", autouse=True)
def reference_is_installed():
    for name in ("torch", "transformers"):
        pytest.importorskip(name, reason=f"the oracle needs {name}: pip install tinyqwen[oracle]")
