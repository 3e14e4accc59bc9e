"""The kernels of these tests run on this processor, in an order of threads that `gpu` names."""

import pytest

from tests.cuda_host.host import ORDERS, missing

if missing():
    pytest.skip(missing(), allow_module_level=True)


@pytest.fixture(scope="session", params=ORDERS)
def gpu(request):
    from tests.cuda_host.on_numpy import OnNumPy

    return OnNumPy(request.param)
