"""Energies are continuously differentiable along every path of the points, extensive, and of one molecule each."""

from __future__ import annotations

import math

import pytest
import torch
from lie.groups import SE2, SE3, SO2, SO3, LieGroup, Product, RxSO2, RxSQ, Sim2, Sim3, Subgroup, T, Trivial
from lieconv import LieConv, LieResNet, build_geometry
from lieconv.models import potential

SUBGROUPS = [
    Subgroup(T(3), (0, 1)),
    Subgroup(SE3(), (2, 3, 4, 5)),  # rotations about the vertical, and translations
    Subgroup(SE3(), (2, 5)),  # rotations about and translations along one axis
    Subgroup(SO3(), (0,)),
    Subgroup(RxSO2(), (0,)),  # dilations about the origin
    Subgroup(Sim3(), (0, 4, 5, 6)),  # dilations and translations
    Product(SO2(), T(1)),
]
GROUPS = [T(1), T(2), T(3), SO2(), RxSO2(), RxSQ(), SE2(), SO3(), SE3(), Sim2(), Sim3(), Trivial(2), *SUBGROUPS]


class Shifts(LieGroup):
    """Translations of the plane along curves: (x, y) -> (x + a, y + b + a^2 / 2 + a x). No affine structure is known.

    The same action in other words: translations in the coordinates (x, y - x^2 / 2).
    """

    dim, matrix_dim, point_dim, stabiliser_dim = 2, 3, 2, 0

    def exp(self, a):
        s, t = a.unbind(-1)
        zero, one = torch.zeros_like(s), torch.ones_like(s)
        rows = one, zero, s, s, one, t + 0.5 * s * s, zero, zero, one
        return torch.stack(rows, -1).unflatten(-1, (3, 3))

    def log(self, g):
        s = g[..., 0, 2]
        return torch.stack([s, g[..., 1, 2] - 0.5 * s * s], -1)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def paths(group: LieGroup) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    """Paths of six points in one, two or three dimensions, x + t v: what happens at t = 0 is in the name."""
    d = group.point_dim or group.matrix_dim
    x = torch.randn(6, d, dtype=torch.float64, generator=generator())
    v = torch.randn(6, d, dtype=torch.float64, generator=generator(1))
    cases = {"generic": (x, v)}

    swap = 0.3 * x
    swap[0], swap[1], swap[2] = 0.0, 0.0, 0.0
    swap[1, 0], swap[2, -1] = 2.0, 2.0 if d > 1 else -2.0
    along = torch.zeros_like(v)
    along[1, 0] = 1.0
    cases["the two farthest neighbours of a point change places"] = swap, along

    pair = x.clone()
    pair[1] = pair[0]
    cases["two points pass through each other"] = pair, v
    cases["three points meet"] = torch.cat([pair[:2], pair[:1], x[3:]]), v

    direction = torch.tensor([1.0, 0.5, -0.3], dtype=torch.float64)[:d]
    line = torch.arange(1.0, 7.0, dtype=torch.float64).sub(3.3).unsqueeze(-1) * direction
    cases["all points on one line"] = line, v

    angle = torch.arange(6, dtype=torch.float64) * math.pi / 3
    ring = torch.stack([angle.cos(), angle.sin(), torch.zeros_like(angle)], -1)[:, :d] + 0.1
    cases["a ring"] = ring, v

    centre = x.clone()
    centre[2] = 0.0
    cases["a point crosses the centre"] = centre, v
    crossing = centre.clone()
    crossing[4] = 0.0
    cases["two points cross the centre"] = crossing, v
    axis = x.clone()
    axis[1, 0] = axis[2, -1] = 0.0
    cases["points cross an axis"] = axis, v

    near = 0.3 * x
    near[0] = 0.0
    near[1] = 0.0
    near[1, 0] = 2.0
    cases["a neighbour enters the radius"] = near, along  # radius 2, below
    if group.isometric:  # no number that dilations leave alone has a limit there
        cases["all points meet in one"] = torch.ones_like(x), v
        cases["all points meet in the centre"] = torch.zeros_like(x), v
    return cases


def jumps(net, x: torch.Tensor, v: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Jumps of energy and gradient along paths (P, N, d): at t = 0, and where they change most.

    The place of the latter in -1 < t < 1 is found by bisection, always towards the half in which they change more.
    Energies count in units of their range along the path, gradients in units of the largest.
    """

    def at(t: torch.Tensor) -> torch.Tensor:  # (P, T) -> (P, T, 1 + N d)
        points = (x.unsqueeze(1) + t[..., None, None] * v.unsqueeze(1)).requires_grad_()
        energy = net(points.flatten(0, 1), VALUES.expand(t.numel(), -1, -1))
        (gradient,) = torch.autograd.grad(energy.sum(), points)
        return torch.cat([energy.detach().view(*t.shape, 1), gradient.flatten(-2)], -1)

    t = torch.linspace(-1.0, 1.0, 24, dtype=torch.float64).expand(len(x), -1)  # zero is not among them
    samples = at(t)
    size = samples[..., 1:].flatten(1).abs().amax(1, keepdim=True).expand(-1, samples.shape[-1]).clone()
    size[:, 0] = samples[..., 0].amax(1) - samples[..., 0].amin(1)

    def change(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        return ((b - a) / size.unsqueeze(1)).abs().amax(-1)

    ends = at(torch.tensor([-H, H], dtype=torch.float64).expand(len(x), 2))
    worst = change(samples[:, :-1], samples[:, 1:]).argmax(1, keepdim=True)
    places = torch.cat([worst, worst + 1], 1)  # (P, 2)
    t, y = t.gather(1, places), samples.take_along_dim(places[..., None], 1)
    while float((t[:, 1] - t[:, 0]).max()) > 2 * H:
        middle = t.mean(1, keepdim=True)
        new = at(middle)
        left = change(y[:, :1], new) > change(new, y[:, 1:])  # (P, 1)
        t = torch.where(left, torch.cat([t[:, :1], middle], 1), torch.cat([middle, t[:, 1:]], 1))
        y = torch.where(left.unsqueeze(-1), torch.cat([y[:, :1], new], 1), torch.cat([new, y[:, 1:]], 1))
    return change(ends[:, :1], ends[:, 1:]).squeeze(1), change(y[:, :1], y[:, 1:]).squeeze(1)


def network(group: LieGroup, make=LieResNet, **options) -> torch.nn.Module:
    torch.manual_seed(0)
    settings = {"channels": 16, "num_layers": 1, "bottleneck": 2, "group": group} | options
    net = (make(2, 1, **settings) if make is LieResNet else make(2, **settings)).double()
    with torch.no_grad():
        for parameter in net.parameters():  # away from initialisation, where much is nearly linear
            parameter += 0.3 * torch.randn(parameter.shape, dtype=parameter.dtype, generator=generator(5))
    return net.eval()


# A smooth gradient changes by its slope times 2 H: soft frames fade over some 0.05 of the points' distances, or 0.005
# of their unit where all meet, and are squared and multiplied: the slope is at most some 1e4 times the gradient.
H, SMOOTH = 1e-9, 1e-4
VALUES = torch.randn(1, 6, 2, dtype=torch.float64, generator=generator(7))


@pytest.mark.parametrize("group", [*GROUPS, Shifts()], ids=repr)
def test_gradients_do_not_jump_along_any_path(group):
    """With default options, and as potentials, with a radius where that means something."""
    cases = paths(group)
    x, v = (torch.stack(points) for points in zip(*cases.values(), strict=True))
    nets = {"default": network(group), "forces": network(group, potential, radius=None)}
    if group.isometric:
        nets["radius"] = network(group, potential, radius=2.0)
    for name, net in nets.items():
        for case, at_zero, elsewhere in zip(cases, *jumps(net, x, v), strict=True):
            assert at_zero < SMOOTH and elsewhere < SMOOTH, (name, case, float(at_zero), float(elsewhere))


def force_net(group=None, **options) -> LieResNet:
    return network(group or SE3(), potential, **({"radius": 1.5, "num_neighbors": 16} | options))


def molecule(count: int = 7) -> tuple[torch.Tensor, torch.Tensor]:
    """Points (1, N, 3) and features (1, N, 2)."""
    x = 0.6 * torch.randn(1, count, 3, dtype=torch.float64, generator=generator(3))
    return x, torch.randn(1, count, 2, dtype=torch.float64, generator=generator(4))


@pytest.mark.parametrize("group", [T(3), SE3(), Trivial(3), Subgroup(SE3(), (2, 3, 4, 5))], ids=repr)
@pytest.mark.parametrize("training", [False, True])
def test_energies_of_sets_far_apart_add_up(group, training):
    """Two copies have twice the energy of one and two molecules the sum: padded, ragged, shared, in training too."""
    net = LieResNet(
        2, 3, group=group, pool="sum", radius=1.5, num_neighbors=20, channels=8, num_layers=2, out_vectors=1
    )
    net = net.double()
    (x, a), (y, b) = molecule(7), molecule(5)
    if isinstance(group, Trivial):
        shift = torch.zeros(3, dtype=torch.float64)  # it sees where points are: the copies lie on each other, and weigh
    else:
        shift = torch.tensor([30.0, 0.0, 0.0], dtype=torch.float64)
    net(x, a)  # the first training batch sets the scale of the kernel coordinates
    net.train(training)
    one, two = net(x, a), net(y, b)
    assert one[0].abs().min() > 1e-3
    if not isinstance(group, Trivial):
        twice = net(torch.cat([x, x + shift], 1), torch.cat([a, a], 1))
        torch.testing.assert_close(twice, (2 * one[0], 2 * one[1]))
        both = net(torch.cat([x, y + shift], 1), torch.cat([a, b], 1))
        torch.testing.assert_close(both[0], one[0] + two[0])
    mask = torch.arange(7) < torch.tensor([[7], [5]])
    padded = net(
        torch.cat([x, torch.nn.functional.pad(y, (0, 0, 0, 2), value=math.nan)]),
        torch.cat([a, torch.nn.functional.pad(b, (0, 0, 0, 2))]),
        mask,
    )
    for got, expected in zip(padded, zip(one, two, strict=True), strict=True):
        torch.testing.assert_close(got, torch.cat(expected))
    batch = torch.arange(2).repeat_interleave(torch.tensor([7, 5]))
    ragged = net(torch.cat([x[0], y[0]]), torch.cat([a[0], b[0]]), batch=batch)
    torch.testing.assert_close(ragged, padded)
    shared = net(x, torch.cat([a, 2 * a]))
    torch.testing.assert_close(shared, net(x.expand(2, -1, -1), torch.cat([a, 2 * a])))
    none = net(x, a, torch.zeros(1, 7, dtype=torch.bool))
    assert all((out == 0).all() for out in none)


def test_the_sum_is_of_the_outputs_of_points_and_elements_count_as_one():
    x, values = molecule()
    for options in ({}, {"lift": "sampled", "num_samples": 3}):
        torch.manual_seed(0)
        total = LieResNet(2, 3, group=SE3(), pool="sum", channels=8, num_layers=1, **options).double().eval()
        each = (
            LieResNet(2, 3, group=SE3(), pool=False, norm="layer", channels=8, num_layers=1, **options).double().eval()
        )
        each.load_state_dict(total.state_dict())
        torch.testing.assert_close(total(x, values), each(x, values).sum(1))
    half = network(SE3(), pool="sum")
    assert torch.allclose(half(x, values), half(x.expand(2, -1, -1), values.expand(2, -1, -1))[:1])


@pytest.mark.parametrize("pool", ["max", "Sum", "", None, 0, 1, 1.0, ("sum",)], ids=repr)
def test_other_pools_are_refused(pool):
    with pytest.raises(ValueError, match="expected pool 'mean', 'sum' or False, got"):
        LieResNet(1, 1, group=SE3(), pool=pool)


def test_options_that_were_taken_for_true_are_refused():
    for options in (
        {"forces": "no"},
        {"at_random": 1},
        {"at_random": "off"},
        {"downsample": True},
        {"downsample": "0.5"},
        {"downsample": [True, 1.0]},
        {"out_vectors": True},
        {"out_vectors": False},
        {"generator": 3},
        {"radius": True},
        {"num_layers": True},
        {"bottleneck": 2.0},
    ):
        with pytest.raises(TypeError):
            LieResNet(1, 1, group=SE3(), **({"num_layers": 2} | options))
    for options in (
        {"norm": "none"},
        {"norm": True},
        {"norm": False},
        {"lift": True},
        {"coordinates": None},
        {"fill": -0.1},
        {"radius": math.nan},
        {"at_random": True},
        {"downsample": [0.5]},
    ):
        with pytest.raises(ValueError, match=r"expected|nothing is drawn"):
            LieResNet(1, 1, group=SE3(), **({"num_layers": 2} | options))
    for bad in ("yes", 2, None):
        with pytest.raises(ValueError, match="expected standardise as True, False or 'once'"):
            LieConv(1, 1, group=SE3(), standardise=bad)
        with pytest.raises(TypeError, match="expected True or False as smooth"):
            build_geometry(SE3(), molecule()[0], smooth=bad)
    for radius in (torch.tensor(-1.0), torch.tensor(math.nan), torch.tensor(math.inf)):
        with pytest.raises(ValueError, match="positive radius"):
            build_geometry(SE3(), molecule()[0], radius=radius)
    with pytest.raises(TypeError, match="one floating-point number as radius"):
        build_geometry(SE3(), molecule()[0], radius=torch.ones(2))


def test_networks_for_forces_refuse_what_makes_them_jump_or_mix():
    for options, message in (
        ({"norm": "batch"}, "use norm='layer'"),
        ({"downsample": 0.5}, "use downsample=1"),
        ({"radius": None, "fill": 0.5}, "use radius"),
        ({"at_random": True}, "at_random=False"),
        ({"lift": "sampled"}, "lift='exact'"),
        ({"group": SO2(), "coordinates": "log"}, "coordinates='auto'"),
        ({"group": RxSQ(), "radius": None, "coordinates": "entries"}, "coordinates='auto'"),
        ({"group": RxSO2()}, "leave radius out"),
        ({"group": RxSQ()}, "leave radius out"),
        ({"group": Sim3()}, "dilates lengths"),
    ):
        with pytest.raises(ValueError, match=message):
            potential(1, **({"group": SE3(), "radius": 1.0, "channels": 8, "num_layers": 1} | options))


def c60() -> torch.Tensor:
    """The vertices of a truncated icosahedron, (1, 60, 3), from the coordinates of its Wikipedia article."""
    golden = 0.5 * (1 + math.sqrt(5.0))
    corners = []
    for a, b, c in ((0, 1, 3 * golden), (1, 2 + golden, 2 * golden), (golden, 2, 2 * golden + 1)):
        for signs in range(8):
            p = [s * z for s, z in zip((1 - 2 * (signs >> i & 1) for i in range(3)), (a, b, c), strict=True)]
            corners += [tuple(p[(i + j) % 3] + 0.0 for j in range(3)) for i in range(3)]
    return torch.tensor(sorted(set(corners)), dtype=torch.float64).unsqueeze(0)


@pytest.mark.parametrize("group", [T(3), SE3()], ids=repr)
def test_a_crowd_is_refused_and_a_radius_is_smooth(group):
    """C60 with 32 neighbours: which atoms lie just outside changes with every vibration."""
    x = c60()
    assert x.shape == (1, 60, 3)
    values = torch.ones(1, 60, 2, dtype=torch.float64)
    net = network(group, potential, radius=None, num_neighbors=32)
    with pytest.raises(ValueError, match=r"at most 32 neighbours, since forces jump.*point 0 of sample 0 has more"):
        net(x, values)
    mask = (torch.arange(60) < 32).unsqueeze(0)
    assert torch.isfinite(net(x, values, mask)).all()  # not in a crowd: 32 valid points
    ragged = torch.zeros(60, dtype=torch.long)
    with pytest.raises(ValueError, match="at most 32 neighbours"):
        net(x[0], values[0], batch=ragged)
    with pytest.raises(ValueError, match=r"at most 3 neighbours within the radius.*smaller radius"):
        network(group, potential, radius=2.5, num_neighbors=3)(x, values)
    smooth = network(group, potential, radius=4.2, num_neighbors=32)
    v = 0.3 * torch.randn(60, 3, dtype=torch.float64, generator=generator(1))
    t = torch.tensor([-H, H, -0.5, 0.5], dtype=torch.float64).view(4, 1, 1)
    points = (x + t * v).requires_grad_()
    (g,) = torch.autograd.grad(smooth(points, values.expand(4, -1, -1)).sum(), points)
    assert (g[1] - g[0]).abs().max() < SMOOTH * g.abs().max()


def test_a_crowd_is_refused_by_transforms_and_compilers():
    x, values = molecule(9)
    net = network(SE3(), potential, radius=None, num_neighbors=8)
    with pytest.raises(ValueError, match="at most 8 neighbours"):
        torch.func.grad(lambda y: net(y, values).sum())(x)
    with pytest.raises(ValueError, match="cannot be seen under vmap"):
        torch.func.vmap(lambda y: net(y[None], values))(x)
    fits = network(SE3(), potential, radius=None, num_neighbors=9)
    torch.testing.assert_close(torch.func.vmap(lambda y: fits(y[None], values))(x)[0], fits(x, values))
    torch._dynamo.reset()
    compiled = torch.compile(
        network(SE3(), potential, radius=2.0, num_neighbors=8), fullgraph=True, backend="aot_eager"
    )
    with torch.no_grad(), pytest.raises(RuntimeError, match="forces jump"):
        compiled(0.1 * x, values)


def test_a_radius_reaches_one_image_of_a_point():
    cell = torch.tensor([[2.0, 0.0, 0.0], [0.0, 3.0, 0.0], [7.9, 0.1, 3.0]], dtype=torch.float64)  # shortest vector 2
    x = torch.rand(6, 3, dtype=torch.float64, generator=generator()) @ cell
    v = torch.randn(6, 3, dtype=torch.float64, generator=generator(1))
    net = force_net(radius=1.0)

    def in_cell(points, values):
        return net(points, values, cell=cell)

    for largest in jumps(in_cell, x.unsqueeze(0), v.unsqueeze(0)):
        assert float(largest) < SMOOTH
    for radius in (1.01, None):
        with pytest.raises(ValueError, match="at most 1, half the shortest vector"):
            force_net(radius=radius)(x.unsqueeze(0), VALUES, cell=cell)


def test_in_training_energies_are_of_one_molecule_and_repeat():
    """The gradient of one molecule's energy by another's points is zero, also as a difference quotient."""
    (x, a), (y, b) = molecule(7), molecule(7)
    y = y.flip(1) + 0.1
    nets = {
        "potential": force_net(num_neighbors=16),
        "sum": network(SE3(), pool="sum", radius=1.5, num_neighbors=3),
        "layer": network(SE3(), norm="layer", radius=1.5, num_neighbors=3),
    }
    for name, net in nets.items():
        net.train()
        with torch.no_grad():
            net(x, a)
        points, values = torch.cat([x, y]).requires_grad_(), torch.cat([a, b])
        energy = net(points, values)
        (gradient,) = torch.autograd.grad(energy[0].sum(), points)
        assert (gradient[1] == 0).all() and gradient[0].abs().max() > 1e-4, name
        with torch.no_grad():
            other = net(torch.cat([x, 1.7 * y]), values)
            assert torch.equal(other[0], energy[0]), name
            step = 1e-6 * torch.randn(x.shape, dtype=x.dtype, generator=generator(2))
            up, down = net(torch.cat([x + step, y]), values)[0], net(torch.cat([x - step, y]), values)[0]
        # Central differences: an error of step^2, and rounding of 1e-16 / 1e-6.
        torch.testing.assert_close((up - down) / 2, (gradient[0] * step[0]).sum().view(1), rtol=1e-4, atol=1e-12)


def test_draws_at_random_are_by_choice():
    x = torch.randn(1, 40, 3, generator=generator())
    values = torch.randn(1, 40, 2, generator=generator(1))

    def repeats(**options) -> bool:
        torch.manual_seed(0)
        layer = LieConv(2, 3, group=T(3), num_neighbors=8, **options).train()
        return torch.equal(layer(x, values), layer(x, values))

    assert repeats(radius=3.0) and repeats(fill=0.9, at_random=False) and repeats()
    assert not repeats(radius=3.0, at_random=True) and not repeats(fill=0.9)
    for options, same in (({}, False), ({"at_random": False}, True), ({"at_random": True}, False)):
        torch.manual_seed(0)
        net = LieResNet(2, 1, group=T(3), channels=8, num_layers=1, norm="layer", downsample=0.2, **options).train()
        net(x, values)
        assert torch.equal(net(x, values), net(x, values)) == same
    with pytest.raises(ValueError, match="give a radius or a fill fraction"):
        LieConv(2, 3, group=T(3), at_random=True)


def test_a_query_that_loses_its_last_neighbour_fades():
    """Without a point of its own a query's weights would jump from one to nothing at the radius."""
    layer = LieConv(1, 2, group=T(2), radius=1.0).double()
    x, values = torch.zeros(1, 1, 2, dtype=torch.float64), torch.ones(1, 1, 1, dtype=torch.float64)
    for quadrature in (None, torch.full((1, 1), 5.0, dtype=torch.float64)):
        distances = torch.tensor([0.0, 1 - 1e-3, 1 - 1e-6, 1.0, 1.1], dtype=torch.float64)
        queries = torch.stack([distances, 0 * distances], -1).unsqueeze(0)
        out = layer(x, values, queries=queries, quadrature=quadrature) - layer.linear.bias
        at, near, nearer, edge, outside = out[0].norm(dim=-1)
        assert at > 1e-2 and near < 1e-4 * at and nearer < 1e-10 * at and edge == outside == 0
    weights = build_geometry(T(2), x, queries=x, radius=1.0).weights
    assert weights.sum().item() == 1.0
