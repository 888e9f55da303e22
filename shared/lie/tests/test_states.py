"""States that are tuples of tensors, of every shape, against the same equation on one tensor."""

from __future__ import annotations

import pytest
import torch
from lie.integrators import odeint
from torch import Tensor

T = torch.linspace(0.0, 1.0, 5, dtype=torch.float64)
METHODS = ["dopri5", "rk4", "leapfrog", "gauss4", "implicit_midpoint", "dop853", "scipy_solver"]


def of_tuples(t: Tensor, y: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    q, p = y
    return p, -q.sin()


@pytest.mark.parametrize("shape", [(), (1,), (3,), (2, 3), (0,)])
@pytest.mark.parametrize("method", METHODS)
def test_parts_of_every_shape(method: str, shape: tuple[int, ...]) -> None:
    if method == "dop853" and shape == ():
        with pytest.raises(ValueError, match="leading axis of every part"):
            odeint(of_tuples, (torch.ones(()).double(), torch.zeros(()).double()), T, method=method)
        return
    q, p = torch.full(shape, 2.0, dtype=torch.float64), torch.zeros(shape, dtype=torch.float64)
    options = {"step_size": 0.05} if method not in ("dopri5", "dop853", "scipy_solver") else {}
    positions, momenta = odeint(of_tuples, (q, p), T, method=method, options=options)
    assert positions.shape == momenta.shape == (len(T), *shape)
    # A pendulum released at 2 rad: both conserve the energy 1 - cos(2) to the error of the coarsest method here.
    energy = momenta.square() / 2 + 1 - positions.cos()
    assert torch.all((energy - (1 - q.cos())).abs() < 1e-3)
