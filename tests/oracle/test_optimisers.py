"""AdamW and clipping, in torch and here: the same parameters after many steps."""

from __future__ import annotations

import numpy as np
import pytest

from tests.helpers import normal
from tinyqwen.train.optimisers.adamw import adamw, clip, start

pytestmark = [pytest.mark.oracle, pytest.mark.training]


@pytest.mark.parametrize("settings", [{}, {"betas": (0.8, 0.999), "eps": 1e-5}], ids=["usual", "unusual"])
def test_adamw_with_clipping_equals_torchs(backend, settings):
    """200 steps, in which decay, clipping and bias correction all matter. Both round to float32 in their own order."""
    import torch

    shapes, lr, decay = {"a": (30, 17), "b": (17,)}, 0.01, 0.3
    ours = {name: normal(n, *shape) for n, (name, shape) in enumerate(shapes.items())}
    theirs = {name: torch.nn.Parameter(torch.tensor(array)) for name, array in ours.items()}
    settings = {"betas": (0.9, 0.95), "eps": 1e-8, **settings}
    groups = [{"params": [theirs["a"]], "weight_decay": decay}, {"params": [theirs["b"]], "weight_decay": 0.0}]
    optimiser, state = torch.optim.AdamW(groups, lr=lr, **settings), start(backend, ours)
    for step in range(200):
        gradients = {name: normal(100 + step, *shape) * np.float32(step % 7) for name, shape in shapes.items()}
        for name, parameter in theirs.items():
            parameter.grad = torch.tensor(gradients[name])
        norm = torch.nn.utils.clip_grad_norm_(theirs.values(), 20.0)
        assert clip(backend, gradients, 20.0) == pytest.approx(float(norm), rel=1e-6)
        optimiser.step()
        adamw(backend, ours, gradients, state, lr=lr, weight_decay=decay, **settings)
    for name, parameter in theirs.items():
        np.testing.assert_allclose(ours[name], parameter.detach().numpy(), rtol=0, atol=1e-6)
