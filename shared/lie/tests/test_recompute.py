"""Relative elements keep nothing of a pair for backward, and differentiate as if they did."""

from __future__ import annotations

import pytest
import torch
from lie.groups import SE2, SE3, SO3, LieGroup, Product, Sim3, T

GROUPS = [SE2(), SO3(), SE3(), Sim3(), Product(SO3(), T(2))]
every_group = pytest.mark.parametrize("group", GROUPS, ids=repr)


def elements(group, count: int, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return group.exp(0.5 * torch.randn(count, group.dim, generator=generator, dtype=torch.float64))


@every_group
def test_derivatives_of_every_order_are_those_of_the_plain_function(group):
    u, v = elements(group, 3, 0).requires_grad_(), elements(group, 2, 1).requires_grad_()
    plain = group._relative(u.unsqueeze(1), v.unsqueeze(0))
    pairs = group.pairwise(u, v)
    assert torch.equal(plain, pairs)
    w = torch.linspace(-1.0, 1.0, pairs.numel(), dtype=torch.float64).view_as(pairs)
    first = [torch.autograd.grad((w * x.sin()).sum(), (u, v), create_graph=True) for x in (plain, pairs)]
    torch.testing.assert_close(*first, rtol=1e-13, atol=1e-13)
    second = [torch.autograd.grad(sum(x.square().sum() for x in g), (u, v), create_graph=True) for g in first]
    torch.testing.assert_close(*second, rtol=1e-12, atol=1e-12)
    third = [torch.autograd.grad(sum(x.square().sum() for x in g), (u, v)) for g in second]
    torch.testing.assert_close(*third, rtol=1e-10, atol=1e-10)


def test_one_of_the_two_may_be_constant_or_come_from_a_graph():
    a = 0.3 * torch.randn(4, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    a.requires_grad_()
    G, v = SE3(), elements(SE3(), 4, 1)
    for f in (lambda u: G.relative(u, v), lambda u: G.relative(v, u), G.pairwise):
        (gradient,) = torch.autograd.grad(f(G.exp(a)).square().sum(), a)
        torch.testing.assert_close(gradient, torch.func.grad(lambda b, f=f: f(G.exp(b)).square().sum())(a))
    assert torch.autograd.gradgradcheck(lambda b: G.relative(G.exp(b), v), a)


def test_batched_and_forward_gradients():
    G = SE3()
    a = 0.3 * torch.randn(3, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    leaf = a.clone().requires_grad_()
    value = G.pairwise(G.exp(leaf))
    basis = torch.eye(value.numel(), dtype=torch.float64).view(-1, *value.shape)
    (J,) = torch.autograd.grad(value, leaf, basis, is_grads_batched=True)
    expected = torch.func.jacfwd(lambda b: G.pairwise(G.exp(b)))(a)
    torch.testing.assert_close(J.view_as(expected), expected, rtol=1e-12, atol=1e-12)
    with torch.autograd.forward_ad.dual_level():
        dual = torch.autograd.forward_ad.make_dual(leaf, torch.ones_like(a))
        along = torch.autograd.forward_ad.unpack_dual(G.pairwise(G.exp(dual))).tangent
    torch.testing.assert_close(along, expected.flatten(-2).sum(-1), rtol=1e-12, atol=1e-12)


@every_group
def test_nothing_of_a_pair_is_kept(group):
    n = 40
    kept = []
    a = torch.zeros(n, group.dim, requires_grad=True)
    u = group.exp(a)
    with torch.autograd.graph.saved_tensors_hooks(lambda x: kept.append(x.numel()) or x, lambda x: x):
        pairs = group.pairwise(u)
    assert pairs.requires_grad and max(kept) <= n * group.matrix_dim**2


class Scaled(LieGroup):
    """Translations in a learnable unit."""

    dim, matrix_dim, point_dim = 2, 3, 2

    def __init__(self) -> None:
        self.unit = torch.tensor([1.0, 2.0], requires_grad=True, dtype=torch.float64)

    def exp(self, a):
        return T(2).exp(a * self.unit.to(a))

    def log(self, g):
        return T(2).log(g) / self.unit.to(g)


@pytest.mark.parametrize("nested", [False, True])
@pytest.mark.parametrize("learns_too", [False, True])
def test_parameters_of_a_users_group_have_their_gradient(learns_too, nested):
    scaled = Scaled()
    group = Product(SO3(), scaled) if nested else scaled
    u = group.identity(dtype=torch.float64)
    u[-3:-1, -1] = torch.tensor([0.3, 0.4])
    along = group.relative(u.requires_grad_(learns_too), group.identity(dtype=torch.float64))
    (slope,) = torch.autograd.grad(along.square().sum(), scaled.unit)
    # d/dk (t / k)^2 = -2 t^2 / k^3 at t = (0.3, 0.4), k = (1, 2)
    torch.testing.assert_close(slope, torch.tensor([-0.18, -0.04], dtype=torch.float64))


def test_generators_that_learn_are_refused_and_not_cached():
    group = Scaled()
    for verb in (group.hat, group.left_jacobian, lambda a: group.bracket(a, a)):
        with torch.no_grad(), pytest.raises(ValueError, match="generators of Scaled to be constants"):
            verb(torch.zeros(2, dtype=torch.float64))
