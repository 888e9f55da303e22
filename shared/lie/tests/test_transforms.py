"""One suite for every group: dtypes, batch shapes, default dtypes, and the transforms of torch, none skipped.

The truth of a batch are its rows; of a derivative, the other mode and float64; of a transform, eager evaluation.
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
SHAPES = [(), (0,), (2, 1, 3)]
SECOND_ORDER = ("log exp", "act", "relative")  # what layers and losses are made of; the rest follows from these
COMPILED = ("log exp", "relative", "act", "adjoint", "vector_field", "left_jacobian", "bracket")
every_group = pytest.mark.parametrize("group", GROUPS, ids=lambda G: type(G).__name__)
every_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=str)
every_shape = pytest.mark.parametrize("shape", SHAPES, ids=str)


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


def inputs(group: LieGroup, shape: tuple[int, ...], dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    """Coordinates and a tangent."""
    return coordinates(group, *shape, dtype=dtype), coordinates(group, *shape, dtype=dtype, seed=3)


def weights(value: torch.Tensor) -> torch.Tensor:
    """Numbers between -1 and 1 of the shape of a result, that no symmetry of it meets."""
    return torch.linspace(0.3, 97.0, value.numel(), dtype=value.dtype).sin().view_as(value)


@every_group
@every_dtype
@every_shape
def test_eager_batches(group, dtype, shape, default):
    a, _ = inputs(group, shape, dtype)
    for f in maps(group, dtype).values():
        value = f(a)
        assert value.dtype == dtype and value.shape[: len(shape)] == shape
        rows = [f(row) for row in a.reshape(-1, group.dim)] if a.numel() else []
        if rows:
            close(value.flatten(0, len(shape) - 1) if shape else value[None], torch.stack(rows), dtype, 32)


@every_group
@every_dtype
@every_shape
def test_vmap(group, dtype, shape, default):
    a, other = inputs(group, shape, dtype)
    for f in maps(group, dtype).values():
        close(torch.func.vmap(f)(torch.stack([a, other])), torch.stack([f(a), f(other)]), dtype, 32)
        moved = torch.func.vmap(f, in_dims=-1, out_dims=-1)(torch.stack([a, other], -1))
        close(moved, torch.stack([f(a), f(other)], -1), dtype, 32)


@every_group
@every_dtype
@every_shape
def test_jvp_and_vjp(group, dtype, shape, default):
    """Forward and reverse agree, ``<w, Df[v]> == <Df^T w, v>``, by torch.func and by autograd alone."""
    a, v = inputs(group, shape, dtype)
    for f in maps(group, dtype).values():
        value, along = torch.func.jvp(f, (a,), (v,))
        close(value, f(a), dtype, 8)
        assert along.dtype == dtype and along.shape == value.shape
        w = weights(value)
        again, pull = torch.func.vjp(f, a)
        close(again, value, dtype, 8)
        (gradient,) = pull(w)
        assert gradient.dtype == dtype and gradient.shape == a.shape
        close((gradient * v).sum()[None], (w * along).sum()[None], dtype, 64)
        leaf = a.clone().requires_grad_()
        result = f(leaf)
        if result.requires_grad:
            (plain,) = torch.autograd.grad((w * result).sum(), leaf)
            close(plain, gradient, dtype, 32)


@every_group
@every_dtype
@every_shape
def test_hessian(group, dtype, shape, default):
    """Forward over reverse, against reverse over reverse in float64."""
    a, _ = inputs(group, shape, dtype)
    exact = maps(group, torch.float64)
    for name in SECOND_ORDER:
        f = maps(group, dtype)[name]

        def weighed(b, g=f):
            value = g(b)
            return (weights(value) * value).sum()

        H = torch.func.hessian(weighed)(a)
        assert H.dtype == dtype and H.shape == (*a.shape, *a.shape) and torch.isfinite(H).all()
        truth = torch.func.jacrev(torch.func.jacrev(lambda b, name=name: weighed(b, exact[name])))(a.double())
        if H.numel():
            # The constants v and b of the float32 run are rounded: 1e-7 of their own, grown by two derivatives.
            error = (H.double() - truth).abs().max() / truth.abs().max().clamp(min=1.0)
            assert error <= 100 * torch.finfo(dtype).eps, (name, float(error))


def compiles(group: LieGroup, dtype: torch.dtype, shape: tuple[int, ...], names: tuple[str, ...]) -> None:
    """The verbs as one graph without breaks, and their jvp inside it, agree with eager evaluation."""
    torch._dynamo.reset()
    verbs = [maps(group, dtype)[name] for name in names]
    a, v = inputs(group, shape, dtype)

    def everything(a, v):
        return torch.func.jvp(lambda b: tuple(f(b) for f in verbs), (a,), (v,))

    compiled = torch.compile(everything, fullgraph=True, backend="eager")(a, v)
    for got, expected in zip(compiled, everything(a, v), strict=True):
        for x, y in zip(got, expected, strict=True):
            close(x, y, dtype, 32)


@every_group
@every_dtype
def test_compiles_without_graph_breaks(group, dtype):
    """With the default dtype that is not the one of the data; what follows from these verbs is among the slow tests."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64 if dtype == torch.float32 else torch.float32)
    try:
        compiles(group, dtype, (2, 1, 3), COMPILED if dtype == torch.float32 else ("log exp", "act"))
    finally:
        torch.set_default_dtype(before)


@pytest.mark.slow  # ten minutes of tracing in all
@every_group
@every_dtype
@every_shape
def test_compiles_without_graph_breaks_in_every_shape(group, dtype, shape, default):
    compiles(group, dtype, shape, tuple(maps(group, dtype)))


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
