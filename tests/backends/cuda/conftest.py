"""The kernels of these tests run on this processor, in an order of threads that `gpu` names."""

import pytest

from tests.cuda_host.host import ORDERS, missing
from tests.cuda_host.on_numpy import OnNumPy


@pytest.fixture(scope="session", params=ORDERS)
def gpu(request):
    if why := missing():
        pytest.skip(why)
    return OnNumPy(request.param)
