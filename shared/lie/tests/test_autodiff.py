"""Forward-mode products and Hamiltonian fields, against their laws and finite differences."""

from __future__ import annotations

import pytest
import torch
from lie.autodiff import hamiltonian_field, jvp_along


def network(z):
    return (z.sin() * z.roll(1, -1)).cumsum(-1)


def test_jvp_is_the_central_difference_and_linear():
    generator = torch.Generator().manual_seed(0)
    x, v, w = torch.randn(3, 4, 5, dtype=torch.float64, generator=generator)
    value, along = jvp_along(network, x, v)
    assert torch.equal(value, network(x))
    h = 1e-5  # error h^2 / 6 of the third derivative plus eps / h: about 1e-10
    torch.testing.assert_close(along, (network(x + h * v) - network(x - h * v)) / (2 * h), rtol=0, atol=1e-8)
    torch.testing.assert_close(
        jvp_along(network, x, 2 * v - w)[1], 2 * along - jvp_along(network, x, w)[1], rtol=1e-13, atol=1e-13
    )


def test_jvp_of_several_tangents_computes_the_primal_once():
    x, v = torch.randn(4, dtype=torch.float64), torch.randn(7, 4, dtype=torch.float64)
    value, along = jvp_along(network, x, v)
    assert value.shape == (4,) and along.shape == (7, 4)
    for one, tangent in zip(along, v, strict=True):
        torch.testing.assert_close(one, jvp_along(network, x, tangent)[1], rtol=1e-14, atol=1e-15)


def test_jvp_chain_rule():
    x, v = torch.randn(2, 5, dtype=torch.float64)
    inner, pushed = jvp_along(network, x, v)
    torch.testing.assert_close(jvp_along(lambda y: network(network(y)), x, v)[1], jvp_along(network, inner, pushed)[1])


def test_jvp_errors():
    with pytest.raises(ValueError, match=r"expected a tangent of shape \(3,\)"):
        jvp_along(network, torch.zeros(3), torch.zeros(4))
    with pytest.raises(TypeError, match="one floating-point dtype"):
        jvp_along(network, torch.zeros(3), torch.zeros(3, dtype=torch.float64))


def energy(z):
    q, p = z.chunk(2, -1)
    return 0.5 * (p**2).sum(-1) + (1 - q.cos()).sum(-1) + 0.1 * (q * p).sum(-1)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_hamiltonian_field_is_symplectic_gradient_and_conserves(dtype):
    z = torch.randn(6, 4, dtype=dtype, generator=torch.Generator().manual_seed(0))
    field = hamiltonian_field(energy)
    q, p = z.chunk(2, -1)
    expected = torch.cat([p + 0.1 * q, -(q.sin() + 0.1 * p)], -1)
    torch.testing.assert_close(field(z), expected)
    assert torch.equal(field(torch.zeros(()), z), field(z))
    _, change = jvp_along(energy, z, field(z))
    assert change.abs().max() <= 8 * torch.finfo(dtype).eps * z.abs().max() ** 2  # a sum of products that cancel
    jacobian = torch.func.vmap(torch.func.jacfwd(field))(z)
    assert jacobian.diagonal(dim1=-2, dim2=-1).sum(-1).abs().max() <= 1e-6  # Liouville


def test_hamiltonian_field_of_points_and_training_through_it():
    stiffness = torch.tensor(2.0, dtype=torch.float64, requires_grad=True)
    field = hamiltonian_field(lambda z: 0.5 * (z[:, 1] ** 2 + stiffness * z[:, 0] ** 2).sum((-2, -1)), dim=-3)
    z = torch.randn(3, 2, 4, 2, dtype=torch.float64)
    torch.testing.assert_close(field(z), torch.stack([z[:, 1], -2.0 * z[:, 0]], 1))
    field(z).square().sum().backward()
    torch.testing.assert_close(stiffness.grad, 2 * 2.0 * z[:, 0].detach().square().sum())


def test_hamiltonian_field_errors():
    with pytest.raises(ValueError, match="equally many"):
        hamiltonian_field(energy)(torch.zeros(3))
