"""Public functions are right for an input or refuse it: dtypes, sizes, layouts, gradients, and what does not belong."""

from __future__ import annotations

import math
from functools import cache

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from lie.groups import SE2, SE3, SO2, SO3, Heisenberg, RxSO2, RxSQ, Sim2, Sim3, T, Trivial
from lieconv import LieConv, LieResNet, build_geometry, density_weights, farthest_points
from lieconv.geometry import kernel_dim
from lieconv.models import potential
from lieconv.nn import (
    BottleneckBlock,
    KernelNetwork,
    MaskedBatchNorm,
    PointLayerNorm,
    VectorReadout,
    masked_mean,
    pool,
)
from lieconv.testing import measure_equivariance

GROUPS = [T(2), SO2(), RxSO2(), RxSQ(), SE2(), Sim2(), Trivial(2), T(3), SO3(), SE3(), Sim3()]


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def points(*shape: int, dtype: torch.dtype = torch.float64, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, dtype=dtype, generator=generator(seed))


@cache
def models(group, dtype: torch.dtype) -> dict[str, torch.nn.Module]:
    torch.manual_seed(0)
    small = {"channels": 8, "num_layers": 1, "num_neighbors": 3}
    nets = {
        "layer": LieConv(2, 3, group=group, num_neighbors=3),
        "mean": LieResNet(2, 3, group=group, **small),
        "sum": LieResNet(2, 3, group=group, pool="sum", out_vectors=1, **small),
        "points": LieResNet(2, 3, group=group, pool=False, downsample=0.5, **small),
        "potential": potential(2, 3, group=group, radius=None, channels=8, num_layers=1),
    }
    return {name: net.to(dtype).eval() for name, net in nets.items()}


def leaves(output) -> list[torch.Tensor]:
    return list(output) if isinstance(output, tuple) else [output]


@settings(max_examples=30, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
@given(
    group=st.sampled_from(GROUPS),
    dtype=st.sampled_from([torch.float32, torch.float64, torch.float16, torch.bfloat16]),
    batch=st.integers(0, 3),
    number=st.sampled_from([0, 1, 2, 7]),
    valid=st.sampled_from(["all", "some", "none"]),
    layout=st.sampled_from(["padded", "ragged", "shared"]),
    strided=st.booleans(),
    seed=st.integers(0, 100),
)
def test_networks_are_right_or_refuse(group, dtype, batch, number, valid, layout, strided, seed):
    """Against double precision, one contiguous sample at a time, of its valid points alone."""
    x = points(batch, number, group.point_dim, seed=seed)
    values = points(batch, number, 2, seed=seed + 1)
    x = x[:1].expand(batch, -1, -1) if layout == "shared" else x
    mask = torch.rand(batch, number, generator=generator(seed + 2)) < {"all": 1.1, "some": 0.6, "none": -1.0}[valid]
    mask = mask[:1].expand(batch, -1) if layout == "shared" else mask
    given_x, given_values = (a.to(dtype) for a in (x[:1] if layout == "shared" else x, values))
    given_mask = mask[:1] if layout == "shared" else mask
    options = {}
    if layout == "ragged":
        options = {"batch": torch.arange(batch).repeat_interleave(number)}
        given_x, given_values, given_mask = (a.flatten(0, 1) for a in (given_x, given_values, given_mask))
    if strided:
        given_x, given_values = (a.mT.contiguous().mT for a in (given_x, given_values))
        given_mask = given_mask.repeat_interleave(2, -1)[..., ::2]
    for name, net in models(group, dtype).items():
        if dtype in (torch.float16, torch.bfloat16):
            with pytest.raises(TypeError, match="float32 or float64"):
                net(given_x, given_values, given_mask, **options)
            continue
        if layout == "shared" and batch == 0:
            continue  # no coordinates to share
        if layout == "ragged" and number == 0:
            continue  # no sample is there
        outputs = leaves(net(given_x, given_values, given_mask, **options))
        reference = models(group, torch.float64)[name]
        for output in outputs:
            assert output.dtype == dtype and torch.isfinite(output).all(), name
        for b in range(batch):
            alone = leaves(reference(x[b, mask[b]][None], values[b, mask[b]][None]))
            for output, expected in zip(outputs, alone, strict=True):
                if name == "layer":
                    got = output[b * number : (b + 1) * number] if layout == "ragged" else output[b]
                    assert (got[~mask[b]] == 0).all()
                    got = got[mask[b]]
                elif name == "points":
                    got = output[b]
                    assert (got[expected.shape[1] :] == 0).all()
                    got = got[: expected.shape[1]]
                else:
                    got = output[b]
                # Some hundred operations of relative error 1e-7 on numbers of about one; frames fade at 0.05.
                size = max(1.0, float(expected.detach().abs().max())) if expected.numel() else 1.0
                tolerance = 2e-4 if dtype == torch.float32 else 1e-10
                assert got.shape == expected[0].shape
                assert ((got.double() - expected[0]).abs() <= tolerance * size).all(), (name, b)


@pytest.mark.parametrize("group", [T(3), SE3(), SO3()], ids=repr)
def test_gradients_by_all_inputs_are_difference_quotients(group):
    torch.manual_seed(0)
    layer = LieConv(2, 2, group=group, num_neighbors=4, hidden=4, basis=2).double()
    x, values = points(2, 6, 3).requires_grad_(), points(2, 6, 2, seed=1).requires_grad_()
    mask = torch.arange(6) < torch.tensor([[6], [4]])
    queries = (0.5 * points(2, 3, 3, seed=2)).requires_grad_()
    quadrature = (points(2, 6, seed=3).abs() + 0.1).requires_grad_()
    radius = torch.tensor(2.5, dtype=torch.float64, requires_grad=True)
    features = points(2, 6, 2, seed=4).requires_grad_()

    def at_queries(x, values, queries, quadrature):
        return layer(x, values, mask, queries=queries, quadrature=quadrature)

    def in_a_ball(x, values, radius, features):
        geometry = build_geometry(group, x, mask, num_neighbors=6, radius=radius, frame_features=features)
        return layer(geometry, values)

    tolerances = {"eps": 1e-6, "atol": 1e-6, "rtol": 1e-4}
    assert torch.autograd.gradcheck(at_queries, (x, values, queries, quadrature), **tolerances)
    assert torch.autograd.gradcheck(in_a_ball, (x, values, radius, features), **tolerances)
    weights = lambda y: density_weights(T(3), y, mask, num_neighbors=2)  # noqa: E731
    assert torch.autograd.gradcheck(weights, (x,), **tolerances)
    if group != SO3():
        cell = (4 * torch.eye(3, dtype=torch.float64) + 0.1 * points(3, 3, seed=5)).requires_grad_()

        def stress(x, values, cell):
            return layer(x @ cell, values, cell=cell)

        inside = torch.rand(2, 6, 3, dtype=torch.float64, generator=generator(6)).requires_grad_()
        assert torch.autograd.gradcheck(stress, (inside, values, cell), **tolerances)
    net = potential(2, group=group, radius=3.0, channels=8, num_layers=1, out_vectors=1).double()
    net(x, values)  # the first training batch sets the scale of the kernel coordinates
    assert torch.autograd.gradcheck(lambda a, b: net(a, b, mask), (x, values), **tolerances)


def test_gradients_of_parts_are_difference_quotients():
    x = points(2, 5, 3).requires_grad_()
    mask = torch.arange(5) < torch.tensor([[5], [2]])
    geometry = build_geometry(T(3), points(2, 5, 3, seed=1), mask, num_neighbors=3)
    torch.manual_seed(0)
    block, readout = BottleneckBlock(3, group=T(3), norm="layer").double(), VectorReadout(3, 2, group=T(3)).double()
    parts = {
        "mean": lambda y: masked_mean(y, mask),
        "pool": lambda y: pool(geometry, y.reshape(1, 10, 3)),
        "sum": lambda y: pool(geometry, y.reshape(1, 10, 3), "sum"),
        "batch norm": lambda y: MaskedBatchNorm(3).double()(y, mask),
        "layer norm": lambda y: PointLayerNorm(3).double()(y, mask),
        "block": lambda y: block(geometry, y),
        "vectors": lambda y: readout(geometry, y),
    }
    for name, part in parts.items():
        assert torch.autograd.gradcheck(part, (x,)), name
        empty = part(x) if name != "mean" else masked_mean(x[:0], mask[:0])
        assert torch.isfinite(empty).all(), name


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("group", [T(3), SE3(), SO2(), RxSQ(), SE2()], ids=repr)
def test_what_one_sample_holds_does_not_reach_another(group, bad):
    """Samples with fewer points than num_neighbors; zero times NaN would be NaN."""
    d = group.point_dim
    x, values = points(3, 6, d), points(3, 6, 2, seed=1)
    values[0] = bad
    values[2, 0] = bad
    mask = torch.ones(3, 6, dtype=torch.bool)
    mask[2, 0] = False
    torch.manual_seed(0)
    for model in (LieConv(2, 3, group=group).double(), models(group, torch.float64)["mean"]):
        out = model(x, values, mask)
        alone = model(x[1:], values[1:], mask[1:])
        torch.testing.assert_close(out[1:], alone, rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(
            out[2],
            model(x[2:, 1:], values[2:, 1:])[0]
            if model.__class__ is LieResNet
            else torch.cat([0 * out[2, :1], model(x[2:, 1:], values[2:, 1:])[0]]),
        )


def test_half_precision_pools_add_in_single_precision():
    """The mean of 4000 numbers of about 60, whose sum a float16 cannot hold and a bfloat16 does not count up to."""
    x = 60 + points(1, 4000, 2)
    mask = torch.ones(1, 4000, dtype=torch.bool)
    padded = build_geometry(T(1), points(1, 4000, 1), num_neighbors=1)
    ragged = build_geometry(T(1), points(4000, 1), num_neighbors=1, batch=torch.zeros(4000, dtype=torch.long))
    for dtype in (torch.float16, torch.bfloat16):
        given_x = x.to(dtype)
        for mean in (masked_mean(given_x, mask), pool(padded, given_x), pool(ragged, given_x)):
            assert mean.dtype == dtype
            expected = given_x.double().mean(1)
            assert ((mean.double() - expected).abs() <= torch.finfo(dtype).eps * expected).all()


def test_a_radius_whose_square_vanishes_holds_coincident_points_alone():
    x = torch.tensor([[[0.0, 0.0], [0.0, 0.0], [0.5, 0.0]]])
    for radius in (1e-30, torch.tensor(0.0)):
        weights = build_geometry(T(2), x, radius=radius, num_neighbors=3).weights
        assert torch.equal(weights.sort(-1).values, torch.tensor([[0, 0.5, 0.5], [0, 0.5, 0.5], [0, 0, 1]]))


def test_lengths_that_leave_the_range_of_numbers_are_refused():
    x = points(2, 5, 3, dtype=torch.float32)
    with pytest.raises(ValueError, match="choose a larger unit"):
        build_geometry(SE3(), x * 1e18)
    assert torch.isfinite(build_geometry(SE3(), x * 1e15).kernel_coords).all()
    for group in (Sim3(), RxSO2(), RxSQ()):
        with pytest.raises(ValueError, match="choose a smaller unit"):
            build_geometry(group, x[..., : group.point_dim] * 1e-18)
        torch.manual_seed(0)
        layer = LieConv(2, 3, group=group).double()
        y, values = points(2, 5, group.point_dim), points(2, 5, 2, seed=1)
        for scale in (1e-140, 1e140):
            torch.testing.assert_close(layer(y * scale, values), layer(y, values))
    with pytest.raises(ValueError, match=r"a radius whose square is a number in torch.float32, got 1e\+30"):
        build_geometry(T(3), x, radius=1e30)


def refused() -> dict[str, tuple[type[Exception], str, object]]:
    """Calls that are to fail: name -> error, part of its message, call."""
    x, v = points(2, 6, 3, dtype=torch.float32), points(2, 6, 2, dtype=torch.float32)
    mask = torch.ones(2, 6, dtype=torch.bool)
    layer, flat = LieConv(2, 3, group=SE3(), num_neighbors=3), (x.flatten(0, 1), v.flatten(0, 1))
    geometry = build_geometry(SE3(), x, num_neighbors=3)
    first = torch.tensor([0, 7])
    eye = torch.eye(3)
    net = LieResNet(2, 1, group=SE3(), channels=8, num_layers=1).eval()
    sampled = {"lift": "sampled", "elements": (torch.ones(3, 4, 4), torch.zeros(3, 0))}
    calls = {
        "batch falls, unsigned": (
            ValueError,
            "non-decreasing",
            lambda: layer(*flat, batch=torch.tensor([1] * 6 + [0] * 6, dtype=torch.uint8)),
        ),
        "batch complex": (TypeError, "integer sample numbers", lambda: layer(*flat, batch=torch.zeros(12) + 0j)),
        "batch list": (TypeError, "batch as a tensor", lambda: layer(*flat, batch=[0] * 12)),
        "cell list": (TypeError, "cell vectors as a real tensor", lambda: layer(x, v, cell=[[1.0]])),
        "cell complex": (TypeError, "cell vectors as a real tensor", lambda: layer(x, v, cell=9 * eye + 0j)),
        "quadrature complex": (TypeError, "a real tensor", lambda: layer(x, v, quadrature=torch.ones(2, 6) + 0j)),
        "quadrature list": (TypeError, "a real tensor", lambda: layer(x, v, quadrature=[1.0])),
        "coordinates complex": (TypeError, "floating-point", lambda: layer(x + 0j, v)),
        "values complex": (TypeError, "floating-point values", lambda: layer(x, v + 0j)),
        "values integer": (TypeError, "floating-point values", lambda: layer(x, v.long())),
        "values complex, geometry": (TypeError, "values of torch.float32", lambda: layer(geometry, v + 0j)),
        "targets list": (TypeError, "targets as a tensor", lambda: layer(x, v, targets=[0, 1])),
        "targets of other rows": (
            ValueError,
            "of sample b in row b",
            lambda: layer(x, v, targets=first.flip(0), target_shape=(2, 1)),
        ),
        "target_shape": (
            ValueError,
            "target_shape of 2 samples",
            lambda: layer(x, v, targets=first, target_shape=(3, 2)),
        ),
        "target_mask": (
            TypeError,
            "a boolean target_mask",
            lambda: layer(x, v, targets=first, target_shape=(2, 1), target_mask=torch.ones(2)),
        ),
        "target_mask shape": (
            ValueError,
            r"target_mask of shape \(2,\)",
            lambda: layer(x, v, targets=first, target_shape=(2, 1), target_mask=torch.ones(3, dtype=torch.bool)),
        ),
        "restricted": (ValueError, "targets from 0 to 11", lambda: geometry.restricted(torch.tensor([12]))),
        "frame_features": (
            ValueError,
            "frame_features",
            lambda: build_geometry(SE3(), x, frame_features=torch.ones(3, 6, 2)),
        ),
        "frame_features without frames": (
            ValueError,
            "frame_features",
            lambda: build_geometry(T(3), x, frame_features=torch.ones(9, 9, 2)),
        ),
        "frame_features integer": (
            TypeError,
            "frame_features of",
            lambda: build_geometry(SE3(), x, frame_features=torch.ones(2, 6, 2).long()),
        ),
        "elements": (ValueError, r"elements \(12, 4, 4\)", lambda: build_geometry(SE3(), x, **sampled)),
        "elements of the exact lift": (
            ValueError,
            "leave elements out",
            lambda: build_geometry(SE3(), x, elements=sampled["elements"]),
        ),
        "num_neighbors": (ValueError, "at most 65536", lambda: build_geometry(SE3(), x, num_neighbors=10**9)),
        "num_neighbors fraction": (
            TypeError,
            "an integer num_neighbors",
            lambda: build_geometry(SE3(), x, num_neighbors=2.0),
        ),
        "group name": (TypeError, "by_name", lambda: farthest_points("t", x, fraction=0.5)),
        "group class": (TypeError, "make one", lambda: density_weights(SE3, x)),
        "group name, vectors": (TypeError, "by_name", lambda: VectorReadout(2, 1, group="se3")),
        "kernel_dim": (TypeError, "make one", lambda: kernel_dim(SE3)),
        "batch norm integer": (TypeError, "floating-point features", lambda: MaskedBatchNorm(2)(v.long())),
        "batch norm complex": (TypeError, "floating-point features", lambda: MaskedBatchNorm(2)(v + 0j)),
        "batch norm channels": (ValueError, r"features \(..., P, 3\)", lambda: MaskedBatchNorm(3)(v)),
        "batch norm mask": (ValueError, "expected a mask", lambda: MaskedBatchNorm(2)(v, mask[:1, :3])),
        "batch norm mask integer": (TypeError, "boolean mask", lambda: MaskedBatchNorm(2)(v, mask.long())),
        "batch norm momentum": (ValueError, "momentum", lambda: MaskedBatchNorm(2, momentum=-1.0)),
        "batch norm switch": (TypeError, "synchronise", lambda: MaskedBatchNorm(2, synchronise="no")),
        "layer norm dtype": (TypeError, "of torch.float32", lambda: PointLayerNorm(2)(v.half())),
        "layer norm mask": (TypeError, "boolean mask", lambda: PointLayerNorm(2)(v, mask.long())),
        "mean integer": (TypeError, "floating-point", lambda: masked_mean(v.long(), mask)),
        "mean mask": (TypeError, "boolean mask", lambda: masked_mean(v, mask.float())),
        "pool rows": (ValueError, "rows", lambda: pool(geometry, torch.ones(1, 5, 3))),
        "pool kind": (ValueError, "'mean' or 'sum'", lambda: pool(geometry, torch.ones(1, 12, 3), "max")),
        "kernel network": (
            TypeError,
            "of torch.float32",
            lambda: KernelNetwork(3, 4)(x.double(), KernelNetwork(3, 4).matrices(geometry)),
        ),
        "kernel network width": (
            ValueError,
            "4 kernel coordinates",
            lambda: KernelNetwork(4, 4)(x, KernelNetwork(4, 4).matrices(geometry)),
        ),
        "vectors dtype": (
            TypeError,
            "values of torch.float32",
            lambda: VectorReadout(2, 1, group=SE3())(geometry, v.double()),
        ),
        "vectors geometry": (ValueError, "kernel coordinates", lambda: VectorReadout(2, 1, group=T(3))(geometry, v)),
        "block geometry": (TypeError, "a Geometry", lambda: BottleneckBlock(2, group=SE3())(x, v)),
        "block width": (ValueError, "bottleneck of at least 1", lambda: BottleneckBlock(2, group=SE3(), bottleneck=0)),
        "tester group": (TypeError, "by_name", lambda: measure_equivariance(net, "se3", x, v)),
        "tester number": (TypeError, "num_elements", lambda: measure_equivariance(net, SE3(), x, v, num_elements=2.5)),
        "tester without elements": (
            ValueError,
            "at least one",
            lambda: measure_equivariance(net, SE3(), x, v, elements=torch.zeros(0, 4, 4)),
        ),
        "tester NaN": (
            ValueError,
            "NaN or infinity at the points",
            lambda: measure_equivariance(lambda a, b: a.sum(1) * math.nan, SE3(), x, v),
        ),
        "tester labels": (
            TypeError,
            "vary continuously",
            lambda: measure_equivariance(lambda a, b: a.sum(1).argmax(-1), SE3(), x, v),
        ),
        "tester one number": (
            ValueError,
            "at least two samples",
            lambda: measure_equivariance(lambda a, b: a.sum(), SE3(), x, v),
        ),
        "tester integer points": (
            TypeError,
            "floating-point points",
            lambda: measure_equivariance(net, SE3(), x.long(), v),
        ),
    }
    return calls


@pytest.mark.parametrize("name", refused())
def test_what_makes_no_sense_is_refused(name):
    error, message, call = refused()[name]
    with pytest.raises(error, match=message):
        call()


def test_the_tester_refuses_a_model_that_breaks_after_a_motion():
    outputs = iter([torch.arange(4.0), torch.full((4,), math.nan)])
    with pytest.raises(ValueError, match="NaN or infinity after a motion"):
        measure_equivariance(lambda a, b: next(outputs), SE3(), torch.zeros(4, 1, 3), torch.zeros(4, 1, 1))
    report = measure_equivariance(lambda a, b: a.square().sum((1, 2)), SO3(), points(4, 5, 3), points(4, 5, 1))
    assert report.worst < 1e-12  # one number a sample


@pytest.mark.parametrize("group", [T(2), SE2(), RxSQ(), Heisenberg()], ids=repr)
@pytest.mark.parametrize("shape", [(0, 5), (2, 0), (2, 1)])
def test_few_or_no_points_are_subsampled(group, shape):
    index, (count, most), kept = farthest_points(group, points(*shape, 2), fraction=0.5)
    assert (count, most) == (shape[0], min(1, shape[1]) if shape[0] and shape[1] < 2 else 3)
    assert index.shape == kept.shape == (count * most,) and kept.all()
    if group.isometric:
        weights = density_weights(group, points(*shape, 2))
        assert weights.shape == shape and (weights == 1).all()
