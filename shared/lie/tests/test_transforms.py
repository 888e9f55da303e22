"""One suite for every group: dtypes, batch shapes, default dtypes, and the transforms of torch, none skipped.

The truth of a derivative is the same function in float64 by the other mode; of a transform, eager evaluation.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from lie.groups import (
    SE2,
    SE3,
    SO2,
    SO3,
    Heisenberg,
    LieGroup,
    Product,
    RxSO2,
    RxSQ,
    Sim2,
    Sim3,
    Subgroup,
    T,
    Trivial,
)

GROUPS = [
    *(T(2), SO2(), RxSO2(), RxSQ(), SE2(), SO3(), SE3(), Sim2(), Sim3(), Heisenberg(), Trivial(3)),
    *(Product(SO3(), T(2)), Subgroup(SE3(), (2, 3, 4, 5))),
]
DTYPES = [torch.float32, torch.float64]
SHAPES = [(), (0,), (1,), (3,), (2, 0, 3), (2, 1, 3)]
SECOND_ORDER = ("log exp", "act", "relative")  # what layers and losses are made of; the rest follows from these
every_group = pytest.mark.parametrize("group", GROUPS, ids=lambda G: type(G).__name__)
every_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=str)


@pytest.fixture(params=DTYPES, ids=lambda dtype: f"default {dtype}")
def default(request) -> Iterator[torch.dtype]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(request.param)
    yield request.param
    torch.set_default_dtype(before)


def coordinates(group: LieGroup, *shape: int, dtype: torch.dtype, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return 0.4 * torch.randn(*shape, group.dim, generator=generator, dtype=dtype)


def maps(group: LieGroup, dtype: torch.dtype):
    """The verbs as functions of one algebra element, by name."""
    v = group.exp(coordinates(group, dtype=dtype, seed=1))
    b = coordinates(group, dtype=dtype, seed=2)
    d = group.point_dim or group.matrix_dim - 1
    x = torch.linspace(-1.0, 1.0, d, dtype=dtype)
    return {
        "exp": group.exp,
        "log exp": lambda a: group.log(group.exp(a)),
        "inverse": lambda a: group.inverse(group.exp(a)),
        "relative": lambda a: group.relative(group.exp(a), v),
        "act": lambda a: group.act(group.exp(a), x),
        "adjoint": lambda a: group.adjoint(group.exp(a)),
        "vector_field": lambda a: group.vector_field(a, x),
        "bracket": lambda a: group.bracket(a, b),
        "left_jacobian": group.left_jacobian,
        "bch": lambda a: group.bch(a, b, 5),
        "interpolate": lambda a: group.interpolate(group.exp(a), v, 0.3),
        "distance": lambda a: group.distance(group.exp(a), v),
    }


def close(got: torch.Tensor, expected: torch.Tensor, dtype: torch.dtype, epsilons: float) -> None:
    assert got.dtype == expected.dtype == dtype
    assert got.shape == expected.shape
    if got.numel():
        scale = expected.abs().max().clamp(min=1.0)
        assert (got - expected).abs().max() <= epsilons * torch.finfo(dtype).eps * scale


@every_group
@every_dtype
def test_shapes_and_broadcasting(group, dtype, default):
    for shape in SHAPES:
        a = coordinates(group, *shape, dtype=dtype)
        g = group.exp(a)
        m = group.matrix_dim
        assert g.shape == (*shape, m, m) and group.log(g).shape == a.shape
        assert group.inverse(g).shape == g.shape and group.adjoint(g).shape == (*shape, group.dim, group.dim)
        for other in (group.exp(coordinates(group, dtype=dtype)), group.exp(coordinates(group, 3, dtype=dtype))):
            if shape == (0,) and other.ndim == 3:
                continue  # 0 and 3 do not broadcast
            batch = torch.broadcast_shapes(shape, other.shape[:-2])
            for u, v in ((g, other), (other, g)):
                relative = group.relative(u, v)
                assert relative.shape == (*batch, group.dim) and relative.dtype == dtype
                single = group.relative(u.expand(*batch, m, m), v.expand(*batch, m, m))
                close(relative, single, dtype, 8)
        d = group.point_dim or m
        x = torch.ones(4, 1, *([1] * len(shape)), d, dtype=dtype)
        assert group.act(g, x).shape == (4, 1, *shape, d)
        assert group.vector_field(a, x).shape == (4, 1, *shape, d)


@every_group
@every_dtype
def test_func_transforms(group, dtype, default):
    """vmap, jvp, vjp and Hessian of every verb: forward and reverse agree, and float32 follows float64."""
    a = coordinates(group, dtype=dtype)
    tangent = coordinates(group, dtype=dtype, seed=3)
    batch = coordinates(group, 3, dtype=dtype)
    exact_maps = maps(group, torch.float64)
    for name, f in maps(group, dtype).items():
        value = f(a)
        assert value.dtype == dtype, name
        mapped = torch.func.vmap(f)(batch)
        close(mapped, torch.stack([f(row) for row in batch]), dtype, 32)
        primal, along = torch.func.jvp(f, (a,), (tangent,))
        close(primal, value, dtype, 8)
        J = torch.func.jacrev(f)(a)
        close(along, (J @ tangent.unsqueeze(-1)).squeeze(-1), dtype, 32)
        if name not in SECOND_ORDER:
            continue
        H = torch.func.hessian(f)(a)
        exact_H = torch.func.jacrev(torch.func.jacrev(exact_maps[name]))(a.double())
        assert H.dtype == dtype and torch.isfinite(H).all(), name
        if H.numel():
            # The constants v and b of the float32 run are rounded: 1e-7 of their own, grown by two derivatives.
            error = (H.double() - exact_H).abs().max() / exact_H.abs().max().clamp(min=1.0)
            assert error <= 100 * torch.finfo(dtype).eps, (name, float(error))


@every_group
@pytest.mark.parametrize("dtype", [torch.float32, pytest.param(torch.float64, marks=pytest.mark.slow)], ids=str)
def test_compiles_without_graph_breaks(group, dtype):
    """The verbs as one graph, and their jvp inside a compiled function, under the other default dtype."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64 if dtype == torch.float32 else torch.float32)
    try:
        torch._dynamo.reset()
        verbs = [maps(group, dtype)[name] for name in ("log exp", "act", "adjoint", "left_jacobian")]

        def everything(a, tangent):
            return torch.func.jvp(lambda b: tuple(f(b) for f in verbs), (a,), (tangent,))

        a, tangent = coordinates(group, dtype=dtype), coordinates(group, dtype=dtype, seed=3)
        compiled = torch.compile(everything, fullgraph=True, backend="eager")(a, tangent)
        for got, value in zip(compiled, everything(a, tangent), strict=True):
            for x, y in zip(got, value, strict=True):
                close(x, y, dtype, 32)
    finally:
        torch.set_default_dtype(before)


@pytest.mark.slow  # half a minute to two of compilation each
@pytest.mark.parametrize("group", [SO3(), SE3(), Sim3()], ids=repr)
def test_compiles_to_machine_code_with_gradients(group):
    """Through the default backend, forward and backward of the pairwise relative elements."""
    torch._dynamo.reset()

    def pairs(a):
        u = group.exp(a)
        return group.pairwise(u)

    a = coordinates(group, 7, dtype=torch.float64).requires_grad_()
    for f in (torch.compile(pairs, fullgraph=True), pairs):
        (gradient,) = torch.autograd.grad(f(a).square().sum(), a)
        if f is not pairs:
            compiled = gradient
    close(compiled, gradient, torch.float64, 100)
