"""Derivatives along vector fields, against their laws, closed forms and finite differences.

``EPS`` is the rounding of float64; a tolerance of n EPS is relative to the terms that cancel, unless it says otherwise.
"""

from __future__ import annotations

import math

import pytest
import torch
from lie.autodiff import (
    conservation_defect,
    hamiltonian_field,
    jet,
    jvp_along,
    lagrangian_field,
    lie_bracket,
    lie_derivative,
    momentum_map,
    poisson_bracket,
)
from lie.groups import SE2, SE3, SO2, SO3, Heisenberg, Product, RxSO2, RxSQ, Sim2, Sim3, T

EPS = torch.finfo(torch.float64).eps
GROUPS = [T(2), SO2(), RxSO2(), RxSQ(), SE2(), SO3(), SE3(), Sim2(), Sim3(), Heisenberg(), Product(SO2(), SE2())]


def draw(*shape, seed=0, dtype=torch.float64):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def assert_close(got, expected, eps, scale=1.0):
    """Equal within ``eps`` roundings of numbers of size ``scale``."""
    assert got.shape == expected.shape and got.dtype == expected.dtype
    error = float((got - expected).abs().max()) / (scale * torch.finfo(got.dtype).eps)
    assert error <= eps, f"{error:.1f} eps"


def network(z):
    return (z.sin() * z.roll(1, -1)).cumsum(-1)


# Products along tangents


def test_jvp_is_the_central_difference_and_linear():
    x, v, w = draw(3, 4, 5)
    value, along = jvp_along(network, x, v)
    assert torch.equal(value, network(x))
    h = 1e-5  # error h^2 / 6 of the third derivative plus eps / h: about 1e-10
    torch.testing.assert_close(along, (network(x + h * v) - network(x - h * v)) / (2 * h), rtol=0, atol=1e-8)
    assert_close(jvp_along(network, x, 2 * v - w)[1], 2 * along - jvp_along(network, x, w)[1], 32)


@pytest.mark.parametrize(("chunk_size", "calls"), [(None, 1), (7, 1), (100, 1), (3, 3), (1, 7)])
def test_jvp_of_several_tangents_computes_the_primal_once_a_chunk(chunk_size, calls):
    x, v = draw(4), draw(7, 4, seed=1)
    seen = []

    def counted(z):
        seen.append(z.shape)
        return network(z)

    value, along = jvp_along(counted, x, v, chunk_size=chunk_size)
    assert seen == [x.shape] * calls
    assert torch.equal(value, network(x)) and along.shape == (7, 4)
    for one, tangent in zip(along, v, strict=True):
        assert_close(one, jvp_along(network, x, tangent)[1], 4)


def test_the_primal_of_several_tangents_is_not_repeated_in_memory():
    x, v = draw(50), draw(40, 50, seed=1)
    sizes = []

    class Recorder(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            if func is torch.ops.aten.exp.default:
                sizes.append(tuple(args[0].shape))
            return func(*args, **(kwargs or {}))

    with Recorder():
        value, _ = jvp_along(torch.exp, x, v)
    assert sizes == [(50,)]  # exp of the point alone; the tangents are multiplied by it
    assert value.untyped_storage().nbytes() == 50 * 8


def test_jvp_chain_rule():
    x, v = draw(2, 5)
    inner, pushed = jvp_along(network, x, v)
    torch.testing.assert_close(jvp_along(lambda y: network(network(y)), x, v)[1], jvp_along(network, inner, pushed)[1])


@pytest.mark.parametrize("chunk_size", [None, 2])
def test_jvp_of_nested_tensors(chunk_size):
    x = {"weight": draw(3, 2), "bias": (draw(3, seed=1),)}
    v = {"weight": draw(5, 3, 2, seed=2), "bias": (draw(5, 3, seed=3),)}
    point = draw(2, seed=4)

    def f(parameters):
        return (parameters["weight"] @ point + parameters["bias"][0], parameters["bias"][0].square().sum())

    value, along = jvp_along(f, x, v, chunk_size=chunk_size)
    assert torch.equal(value[0], x["weight"] @ point + x["bias"][0]) and value[1].shape == ()
    assert_close(along[0], v["weight"] @ point + v["bias"][0], 4)
    assert_close(along[1], 2 * v["bias"][0] @ x["bias"][0], 16)
    one, _ = jvp_along(f, x, {"weight": v["weight"][0], "bias": (v["bias"][0][0],)})
    assert torch.equal(one[0], value[0])


def test_jvp_errors():
    with pytest.raises(ValueError, match=r"expected a tangent of shape \(3,\)"):
        jvp_along(network, torch.zeros(3), torch.zeros(4))
    with pytest.raises(ValueError, match=r"or several of them stacked in front, got \(2, 4\)"):
        jvp_along(network, torch.zeros(3), torch.zeros(2, 4))
    with pytest.raises(TypeError, match="one floating-point dtype"):
        jvp_along(network, torch.zeros(3), torch.zeros(3, dtype=torch.float64))
    with pytest.raises(TypeError, match=r"got torch\.int64"):
        jvp_along(network, torch.zeros(3, dtype=torch.int64), torch.zeros(3, dtype=torch.int64))
    with pytest.raises(ValueError, match="at least one tangent"):
        jvp_along(network, torch.zeros(3), torch.zeros(0, 3))
    with pytest.raises(ValueError, match="chunk_size of at least 1, got 0"):
        jvp_along(network, torch.zeros(3), torch.zeros(2, 3), chunk_size=0)
    with pytest.raises(ValueError, match="structure of the point"):
        jvp_along(lambda pair: pair[0], (torch.zeros(3),), torch.zeros(3))


# Jets


def test_jet_of_closed_forms_up_to_order_six():
    x, v, c = 0.5 * draw(3, 5)
    j = torch.arange(1, 7, dtype=torch.float64)
    value, derivatives = jet(lambda y: (c * y).sum(-1).exp(), x, v, order=6)
    torch.testing.assert_close(value, (c * x).sum().exp(), rtol=4 * EPS, atol=0)
    torch.testing.assert_close(derivatives, (c * v).sum() ** j * value, rtol=32 * EPS, atol=0)  # 6 factors, 5 terms

    _, derivatives = jet(torch.sin, x, v, order=6)
    expected = torch.stack([v**n * torch.sin(x + n * math.pi / 2) for n in range(1, 7)])
    assert_close(derivatives, expected, 16, scale=float((v.abs() ** 6).max().clamp(min=1)))  # the shift by pi/2 rounds

    _, derivatives = jet(lambda y: y**3, x, v, order=6)
    assert torch.equal(derivatives[3:], torch.zeros(3, 5, dtype=torch.float64))  # exactly: 3 x^2, 6 x, 6, 0, 0, 0
    assert_close(derivatives[2], 6 * v**3, 8)


def test_jet_along_a_curve():
    """x(t) = (cos t, sin t) from t = 0.3: derivatives of x y = sin(2t) / 2 and of log(2 + x)."""
    t = torch.tensor(0.3, dtype=torch.float64)
    point, *curve = [torch.stack([(t + n * math.pi / 2).cos(), (t + n * math.pi / 2).sin()]) for n in range(7)]
    value, derivatives = jet(lambda y: y[0] * y[1], point, curve, order=6)
    assert_close(value, (2 * t).sin() / 2, 2)
    expected = torch.stack([2.0 ** (n - 1) * (2 * t + n * math.pi / 2).sin() for n in range(1, 7)])
    assert_close(derivatives, expected, 8, scale=32)  # binomial sums of size 2^5
    # (1 + t)^2 has two derivatives: a curve may end early, and log of it is 2 log(1 + t)
    _, derivatives = jet(torch.log, torch.ones(1).double(), [2 * torch.ones(1).double()] * 2, order=5)
    expected = torch.tensor([2.0 * (-1) ** (n - 1) * math.factorial(n - 1) for n in range(1, 6)], dtype=torch.float64)
    assert_close(derivatives[:, 0], expected, 8, scale=2.0**5 * math.factorial(4))  # terms of Faa di Bruno's sum


def test_jet_laws():
    x, v = 0.7 * draw(2, 4)

    def outer(y):
        return torch.stack([(y * y.roll(1)).sum(-1).tanh(), (y.square().sum(-1) + 1).log()], -1)

    inner, pushed = jet(network, x, v, order=4)
    value, derivatives = jet(lambda y: outer(network(y)), x, v, order=4)
    assert torch.equal(value, outer(inner))
    size = float(derivatives.abs().max())
    # Faa di Bruno. Terms ten times as large as their sums may cancel.
    assert_close(jet(outer, inner, pushed, order=4)[1], derivatives, 20, scale=size)
    assert torch.equal(jet(outer, inner, list(pushed), order=4)[1], jet(outer, inner, pushed, order=4)[1])
    power = torch.tensor([3.0, 9.0, 27.0, 81.0], dtype=torch.float64).unsqueeze(-1)
    assert_close(jet(lambda y: outer(network(y)), x, 3 * v, order=4)[1], power * derivatives, 20, scale=81 * size)
    assert torch.equal(jet(network, x, v, order=1)[1][0], jvp_along(network, x, v)[1])
    assert torch.equal(jet(network, x, v, order=2)[1], pushed[:2])


def test_jet_is_the_taylor_series_and_can_be_differentiated():
    x, v = 0.3 * draw(2, 4)
    value, derivatives = jet(network, x, v, order=6)
    taylor = value + sum(d / math.factorial(j) for j, d in enumerate(derivatives, start=1))
    # The seventh derivative of terms x sin x over 7!: |v|^7 (|x| + 7) / 5040 and four of them are summed.
    assert (taylor - network(x + v)).abs().max() <= 4 * 8 * float(v.abs().max()) ** 7 / 5040
    gradient = torch.func.grad(lambda y: jet(lambda u: (u**4).sum(), y, v, order=3)[1][2])(x)
    assert_close(gradient, 24 * v**3, 8)


def test_jet_errors():
    x = torch.zeros(3)
    with pytest.raises(ValueError, match="order of at least 1, got 0"):
        jet(network, x, x, order=0)
    with pytest.raises(ValueError, match="empty sequence"):
        jet(network, x, [], order=2)
    with pytest.raises(ValueError, match=r"expected a tangent of shape \(3,\).*got \(4,\)"):
        jet(network, x, torch.zeros(4), order=2)
    with pytest.raises(ValueError, match=r"got \(2,\)"):
        jet(network, x, [x, torch.zeros(2)], order=2)
    with pytest.raises(TypeError, match="one floating-point dtype"):
        jet(network, x, x.double(), order=2)


# Lie derivatives of maps


def points(group, *shape, seed=0):
    return draw(*shape, group.point_dim or group.matrix_dim, seed=seed)


@pytest.mark.parametrize("group", GROUPS, ids=repr)
def test_lie_derivative_is_the_change_as_the_group_acts(group):
    """The sign: the derivative of act(exp(-ta), f(act(exp(ta), x))) at t = 0."""
    a, x = draw(group.dim, seed=1), points(group, 6)
    mixing = draw(x.shape[-1], x.shape[-1], seed=2)

    def f(y):
        return (y @ mixing).sin()

    def field(y):
        return group.vector_field(a, y)

    def moved(t):
        return group.act(group.exp(-t * a), f(group.act(group.exp(t * a), x)))

    h = 1e-4  # h^2 / 6 times a third derivative of about 1e3 plus eps / h
    torch.testing.assert_close(
        lie_derivative(f, x, field, field), (moved(h) - moved(-h)) / (2 * h), rtol=1e-5, atol=1e-5
    )


@pytest.mark.parametrize("group", [SO2(), SO3(), SE2(), SE3(), Sim2()], ids=repr)
def test_lie_derivative_vanishes_for_equivariant_maps(group):
    """A map of sets of points made of the differences, for all generators at once."""
    x = points(group, 5, seed=3)
    generators = torch.eye(group.dim, dtype=torch.float64).unsqueeze(1)  # (dim, 1, dim), against (5, d)

    def fields(y):
        return group.vector_field(generators, y)

    def f(y):  # a step towards the mean, by a weight free of units
        difference = y.mean(-2, keepdim=True) - y
        size = difference.square().sum(-1, keepdim=True)
        return y + (size / size.sum(-2, keepdim=True)).exp() * difference

    defect = lie_derivative(f, x, fields, fields)
    assert_close(defect, torch.zeros(group.dim, *x.shape, dtype=torch.float64), 8)  # 5 points, sums of 10 terms
    assert torch.equal(lie_derivative(f, x, fields, fields, chunk_size=1), defect)

    def invariant(y):
        size = (y - y.mean(-2, keepdim=True)).square().sum(-1)
        return size / size.sum()

    assert_close(lie_derivative(invariant, x, fields), torch.zeros(group.dim, 5, dtype=torch.float64), 8)


def test_lie_derivative_of_a_composition():
    x, a, b = draw(4), draw(4, 4, seed=1), draw(4, 4, seed=2)
    left, right, middle = (lambda y: y @ a), (lambda y: (y @ b).cos()), (lambda y: y.square() - 1)
    whole = lie_derivative(lambda y: network(y.tanh()), x, left, right)
    inner = lie_derivative(torch.tanh, x, left, middle)
    parts = jvp_along(network, x.tanh(), inner)[1] + lie_derivative(network, x.tanh(), middle, right)
    assert_close(whole, parts, 4, scale=4)


def test_lie_derivative_errors():
    x = torch.zeros(3)
    with pytest.raises(ValueError, match=r"expected field_out to give \(3,\).*got \(2, 3\)"):
        lie_derivative(torch.sin, x, lambda y: y, lambda y: torch.stack([y, y]))
    with pytest.raises(ValueError, match=r"expected a tangent of shape \(3,\)"):
        lie_derivative(torch.sin, x, lambda y: y[:2])


# Brackets of fields


def fields(seed):
    """Three smooth fields on R^3 with values and derivatives of order 1."""
    return [lambda x, A=A, b=b: (x @ A + b).sin() for A, b in zip(draw(3, 3, 3, seed=seed), draw(3, 3), strict=True)]


@pytest.mark.parametrize("seed", range(3))
def test_bracket_laws(seed):
    X, Y, Z = fields(seed)  # noqa: N806
    x = draw(8, 3, seed=seed + 10)
    bracket = lie_bracket(X, Y)
    assert torch.equal(bracket(x), -lie_bracket(Y, X)(x))
    assert torch.equal(bracket(torch.zeros(()), x), bracket(x))

    def f(y):
        return (y * y.roll(1, -1)).sum(-1, keepdim=True).cos()

    product = lie_bracket(X, lambda y: f(y) * Y(y))(x)
    size = 30.0  # sums of 3 x 3 products of numbers of size 2
    assert_close(product, f(x) * bracket(x) + jvp_along(f, x, X(x))[1] * Y(x), 4, scale=size)
    jacobi = [lie_bracket(a, lie_bracket(b, c))(x) for a, b, c in ((X, Y, Z), (Y, Z, X), (Z, X, Y))]
    assert_close(sum(jacobi), torch.zeros_like(x), 8, scale=max(size, *(float(term.abs().max()) for term in jacobi)))
    linear = lie_bracket(X, lambda y: 2 * Y(y) - 3 * Z(y))(x)
    assert_close(linear, 2 * bracket(x) - 3 * lie_bracket(X, Z)(x), 8, scale=size)


def test_bracket_is_the_commutator_of_derivatives_of_functions():
    X, Y, _ = fields(5)  # noqa: N806
    x = draw(3, seed=6)

    def f(y):
        return (y * y.roll(1, -1)).sum(-1).sin()

    def along(field, g):
        return lambda y: jvp_along(g, y, field(y))[1]

    commutator = along(X, along(Y, f))(x) - along(Y, along(X, f))(x)
    assert_close(jvp_along(f, x, lie_bracket(X, Y)(x))[1], commutator, 8)


@pytest.mark.parametrize("group", GROUPS, ids=repr)
def test_bracket_of_fundamental_fields_is_the_field_of_the_bracket(group):
    """For a left action with a minus; without it for the right action by the inverse."""
    a, b = draw(2, group.dim)
    x = points(group, 5, seed=1)

    def field(c):
        return lambda y: group.vector_field(c, y)

    expected = group.vector_field(group.bracket(a, b), x)
    size = 1 + float(expected.abs().max() + a.abs().max() * b.abs().max() * x.abs().max())
    assert_close(lie_bracket(field(a), field(b))(x), -expected, 4, scale=size)

    def opposite(c):
        return lambda y: jvp_along(lambda t: group.act(group.exp(-t * c), y), c.new_zeros(1), c.new_ones(1))[1]

    assert_close(lie_bracket(opposite(a), opposite(b))(x), opposite(group.bracket(a, b))(x), 4, scale=size)


@pytest.mark.parametrize("group", GROUPS, ids=repr)
def test_bracket_of_left_invariant_fields_is_left_invariant(group):
    a, b, c = draw(3, group.dim)
    g = group.exp(c)

    def field(d):
        return lambda h: h @ group.hat(d)

    size = float(g.abs().max()) * (1 + float(a.abs().max() * b.abs().max()))
    assert_close(lie_bracket(field(a), field(b))(g), field(group.bracket(a, b))(g), 4, scale=size)


def test_bracket_is_the_gap_in_a_small_square_of_flows():
    """Flows of X, Y, then back along X and Y: the gap is h^2 [X, Y] + O(h^3)."""
    group = SE3()
    a, b = draw(2, 6)
    x = draw(4, 3, seed=1)

    def gap(h):
        y = x
        for step in (h * a, h * b, -h * a, -h * b):
            y = group.act(group.exp(step), y)
        return y - x

    h = 1e-3  # the mean over both signs is even in h: an error of h^2 relative and of eps / h^2 absolute
    expected = lie_bracket(lambda y: group.vector_field(a, y), lambda y: group.vector_field(b, y))(x)
    torch.testing.assert_close((gap(h) + gap(-h)) / (2 * h**2), expected, rtol=1e-4, atol=1e-4)


def test_bracket_errors():
    x = torch.zeros(3)
    with pytest.raises(ValueError, match=r"the field X to give a velocity of the shape of the point, \(3,\)"):
        lie_bracket(lambda y: y[:2], lambda y: y)(x)
    with pytest.raises(ValueError, match="the field Y"):
        lie_bracket(lambda y: y, lambda y: y.sum())(x)


# Hamilton's equations


def energy(z):
    q, p = z.chunk(2, -1)
    return 0.5 * (p**2).sum(-1) + (1 - q.cos()).sum(-1) + 0.1 * (q * p).sum(-1)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_hamiltonian_field_is_symplectic_gradient_and_conserves(dtype):
    z = draw(6, 4, dtype=dtype)
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
    with pytest.raises(ValueError, match="along axis -3"):
        hamiltonian_field(energy, dim=-3)(torch.zeros(2, 4))


# Poisson brackets


def observables(seed):
    """Three functions on the phase space of two degrees of freedom, of size 1 with their derivatives."""
    return [
        lambda z, A=A: (z @ A).sin().prod(-1) + 0.2 * (z[..., :1] * z[..., 2:]).sum(-1)
        for A in draw(3, 4, 2, seed=seed)
    ]


def test_poisson_bracket_of_coordinates():
    z = draw(5, 6)
    for i in range(6):
        for j in range(6):
            got = poisson_bracket(lambda y, i=i: y[..., i], lambda y, j=j: y[..., j])(z)
            assert torch.equal(got, torch.full((5,), float((j == i + 3) - (i == j + 3)), dtype=torch.float64))


@pytest.mark.parametrize("seed", range(3))
def test_poisson_bracket_laws(seed):
    f, g, h = observables(seed)
    z = draw(8, 4, seed=seed + 10)
    fg, fh, gh = poisson_bracket(f, g), poisson_bracket(f, h), poisson_bracket(g, h)
    size = 10.0  # sums of 4 products of derivatives
    assert_close(fg(z), -poisson_bracket(g, f)(z), 4, scale=size)
    leibniz = poisson_bracket(f, lambda y: g(y) * h(y))(z)
    assert_close(leibniz, g(z) * fh(z) + fg(z) * h(z), 8, scale=size)
    terms = [poisson_bracket(f, gh)(z), poisson_bracket(g, poisson_bracket(h, f))(z), poisson_bracket(h, fg)(z)]
    assert_close(sum(terms), torch.zeros(8, dtype=torch.float64), 8, scale=max(size, float(terms[0].abs().max())))
    # The map from functions to fields turns the bracket round.
    expected = -lie_bracket(hamiltonian_field(f), hamiltonian_field(g))(z)
    assert_close(hamiltonian_field(fg)(z), expected, 4, scale=size)
    assert_close(fh(z), jvp_along(f, z, hamiltonian_field(h)(z))[1], 4, scale=size)
    both = poisson_bracket(lambda y: torch.stack([f(y), g(y)], -1), h)(z)
    assert_close(both, torch.stack([fh(z), gh(z)], -1), 4, scale=size)


def test_poisson_bracket_is_differentiable_and_takes_bodies():
    z = draw(3, 2, 4, 2)
    squares = poisson_bracket(
        lambda y: y[..., 0, :, :].square().sum((-2, -1)), lambda y: y[..., 1, :, :].square().sum((-2, -1)), dim=-3
    )
    assert_close(squares(z), 4 * (z[:, 0] * z[:, 1]).sum((-2, -1)), 16, scale=8)
    torch.testing.assert_close(torch.func.grad(lambda y: squares(y).sum())(z), 4 * z.flip(1))  # {q^2, p^2} = 4 q p


def test_poisson_bracket_errors():
    with pytest.raises(ValueError, match="equally many"):
        poisson_bracket(energy, energy)(torch.zeros(3))
    with pytest.raises(ValueError, match=r"expected g to give one value a state, shape \(5,\).*got \(5, 4\)"):
        poisson_bracket(energy, lambda z: z)(torch.zeros(5, 4))
    with pytest.raises(ValueError, match=r"expected f to give values for each state, shape \(5,\).*got \(\)"):
        poisson_bracket(lambda z: z.sum(), energy)(torch.zeros(5, 4))


# Lagrange's equations

MASSES, LENGTHS, GRAVITY = (1.3, 0.7), (0.9, 1.1), 9.81


def double_pendulum(z):
    """Angles from the vertical; rods without mass."""
    (a, b), (va, vb) = z[..., :2].unbind(-1), z[..., 2:].unbind(-1)
    (m, n), (k, l) = MASSES, LENGTHS  # noqa: E741
    kinetic = 0.5 * (m + n) * (k * va) ** 2 + 0.5 * n * (l * vb) ** 2 + n * k * l * va * vb * (a - b).cos()
    return kinetic + GRAVITY * ((m + n) * k * a.cos() + n * l * b.cos())


def double_pendulum_energy(z):
    """The Hamiltonian side, with the mass matrix inverted by hand."""
    (a, b), (pa, pb) = z[..., :2].unbind(-1), z[..., 2:].unbind(-1)
    (m, n), (k, l) = MASSES, LENGTHS  # noqa: E741
    aa, bb, ab = (m + n) * k**2, n * l**2, n * k * l * (a - b).cos()
    kinetic = 0.5 * (bb * pa**2 + aa * pb**2 - 2 * ab * pa * pb) / (aa * bb - ab**2)
    return kinetic - GRAVITY * ((m + n) * k * a.cos() + n * l * b.cos())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_lagrangian_field_of_the_double_pendulum(dtype):
    """Against the accelerations in closed form (e.g. Goldstein, solved by Cramer's rule)."""
    z = draw(50, 4, dtype=dtype)
    field = lagrangian_field(double_pendulum)
    (a, b), (va, vb) = z[..., :2].unbind(-1), z[..., 2:].unbind(-1)
    (m, n), (k, l), d = MASSES, LENGTHS, a - b  # noqa: E741
    turn = 2 * m + n - n * (2 * d).cos()
    fall = -GRAVITY * (2 * m + n) * a.sin() - n * GRAVITY * (a - 2 * b).sin()
    first = (fall - 2 * d.sin() * n * (vb**2 * l + va**2 * k * d.cos())) / (k * turn)
    inner = va**2 * k * (m + n) + GRAVITY * (m + n) * a.cos() + vb**2 * l * n * d.cos()
    second = 2 * d.sin() * inner / (l * turn)
    size = float(first.abs().max() + second.abs().max())
    # The mass matrix has a condition of up to (1 + sqrt(7/20)) / (1 - sqrt(7/20)), about 4 with the lengths 10.
    assert_close(field(z), torch.stack([va, vb, first, second], -1), 40, scale=size)
    assert torch.equal(field(torch.zeros(()), z), field(z))
    assert_close(lagrangian_field(double_pendulum, check=False)(z), field(z), 1, scale=size)


def test_lagrangian_and_hamiltonian_agree_under_the_legendre_transform():
    z = draw(20, 4)
    field = lagrangian_field(double_pendulum)
    state, pushed = jvp_along(field.momentum, z, field(z))
    expected = hamiltonian_field(double_pendulum_energy)(state)
    size = float(expected.abs().max())
    assert_close(pushed, expected, 40, scale=size)  # the condition of the mass matrix, about 10
    assert_close(field.energy(z), double_pendulum_energy(state), 40, scale=GRAVITY)
    change = jvp_along(field.energy, z, field(z))[1]  # torque times speed: the terms of it cancel
    assert_close(change, torch.zeros(20, dtype=torch.float64), 40, scale=size * float(z.abs().max()))
    mass = field.mass_matrix(z)
    assert_close(state[..., 2:], (mass @ z[..., 2:, None]).squeeze(-1), 8, scale=10)
    assert_close(mass, mass.mT, 2, scale=2)


def test_energy_is_constant_along_the_integrated_motion():
    field = lagrangian_field(double_pendulum)
    z = draw(3, 4)
    first, h = field.energy(z), 2e-3
    for _ in range(40):  # the classical Runge-Kutta method: a relative error of (h w)^5 / 120 a step, w about 7
        k1 = field(z)
        k2 = field(z + 0.5 * h * k1)
        k3 = field(z + 0.5 * h * k2)
        z = z + h / 6 * (k1 + 2 * k2 + 2 * k3 + field(z + h * k3))
    torch.testing.assert_close(field.energy(z), first, rtol=0, atol=1e-8)


def test_lagrangian_field_in_a_magnetic_field_and_a_change_of_gauge():
    """L = v^2 / 2 + B (x vy - y vx) / 2 turns: a = B (vy, -vx). A total derivative in L changes nothing."""
    z, B = draw(6, 4), 1.7  # noqa: N806

    def magnetic(y):
        q, v = y.chunk(2, -1)
        return 0.5 * v.square().sum(-1) + 0.5 * B * (q[..., 0] * v[..., 1] - q[..., 1] * v[..., 0])

    def total(y):
        q, v = y.chunk(2, -1)
        return jvp_along(lambda u: u.prod(-1).sin() + u.square().sum(-1), q, v)[1]

    expected = torch.stack([z[:, 2], z[:, 3], B * z[:, 3], -B * z[:, 2]], -1)
    assert_close(lagrangian_field(magnetic)(z), expected, 8, scale=4)
    assert_close(lagrangian_field(lambda y: magnetic(y) + total(y))(z), expected, 8, scale=10)  # v . D^2F v cancels


def test_lagrangian_field_of_bodies():
    masses = torch.tensor([1.0, 2.0, 5.0], dtype=torch.float64)

    def springs(z):  # (..., 2, n, d)
        q, v = z.unbind(-3)
        stretch = (q.unsqueeze(-2) - q.unsqueeze(-3)).square().sum((-3, -2, -1))
        return 0.5 * (masses * v.square().sum(-1)).sum(-1) - 0.25 * stretch

    field = lagrangian_field(springs, dim=-3)
    for batch in ((), (4,), (2, 3), (0,)):
        z = draw(*batch, 2, 3, 2)
        q, v = z.unbind(-3)
        pull = q.sum(-2, keepdim=True) - 3 * q
        expected = torch.stack([v, pull / masses.unsqueeze(-1)], -3)
        assert field(z).shape == z.shape and field.mass_matrix(z).shape == (*batch, 6, 6)
        if z.numel():
            assert_close(field(z), expected, 8, scale=8)
            diagonal = masses.repeat_interleave(2).diag().expand(*batch, 6, 6)
            assert torch.equal(field.mass_matrix(z), diagonal)
    assert torch.equal(field.momentum(z), z) and field.energy(z).shape == (0,)


def test_lagrangian_field_can_be_trained_through_and_calls_the_lagrangian_once():
    stiffness = torch.tensor(2.0, dtype=torch.float64, requires_grad=True)
    calls = []

    def spring(z):
        calls.append(z.shape)
        q, v = z.chunk(2, -1)
        return 0.5 * (1 + q.square().sum(-1)) * v.square().sum(-1) - 0.5 * stiffness * q.square().sum(-1)

    z = draw(3, 10)
    lagrangian_field(spring)(z).square().sum().backward()
    assert calls == [z.shape]  # once for six tangents of ten states

    def squares(s):
        q, v = z.chunk(2, -1)
        # (1 + q^2) a + 2 (q.v) v = q v^2 - s q
        force = q * (v.square().sum(-1, keepdim=True) - s) - 2 * (q * v).sum(-1, keepdim=True) * v
        return (force / (1 + q.square().sum(-1, keepdim=True))).square().sum()

    expected = torch.func.grad(squares)(stiffness.detach())
    torch.testing.assert_close(stiffness.grad, expected, rtol=1e-13, atol=0)
    assert torch.autograd.gradcheck(lagrangian_field(double_pendulum), (draw(2, 4).requires_grad_(),))


def test_a_mass_matrix_that_is_not_positive_definite():
    def saddle(z):
        return z[..., 0] * z[..., 1] ** 2  # mass 2 q

    z = torch.tensor([[1.0, 2.0], [-1.0, 2.0]], dtype=torch.float64)
    field = lagrangian_field(saddle)
    for way in (field, torch.func.vmap(field), lambda y: torch.func.jvp(field, (y,), (y,))):
        with pytest.raises(ValueError, match=r"positive definite mass matrix.*\(Batch element 1\).*check=False"):
            way(z)
    with pytest.raises(RuntimeError, match=r"\(Batch element 1\)"):  # compiled, it is torch's own error
        torch.compile(field, fullgraph=True, backend="eager")(z)
    unchecked = lagrangian_field(saddle, check=False)
    for way in (unchecked, torch.func.vmap(unchecked), torch.compile(unchecked, fullgraph=True, backend="eager")):
        got = way(z)
        torch.testing.assert_close(got[0], torch.tensor([2.0, -2.0], dtype=torch.float64))  # q a + v^2 = v^2 / 2
        assert got[1, 0] == 2 and got[1, 1].isnan()


def test_lagrangian_field_errors():
    with pytest.raises(ValueError, match="equally many"):
        lagrangian_field(double_pendulum)(torch.zeros(3))
    with pytest.raises(ValueError, match=r"expected L to give one value a state, shape \(5,\).*got \(5, 1\)"):
        lagrangian_field(lambda z: z[..., :1].square())(torch.zeros(5, 4))


# Conserved momenta


def two_body(z):
    """Pairs pull on each other by a function of their distance: invariant under all rigid motions. (..., 2, n, d)."""
    q, p = z.unbind(-3)
    gaps = (q.unsqueeze(-2) - q.unsqueeze(-3)).square().sum(-1)
    return 0.5 * p.square().sum((-2, -1)) + (1 + gaps).log().sum((-2, -1)) + 0.3 * gaps.sin().sum((-2, -1))


@pytest.mark.parametrize("group", [T(2), T(3), SO2(), SO3(), SE2(), SE3()], ids=repr)
def test_rigid_motions_conserve_the_momenta_of_a_pair_potential(group):
    z = draw(6, 2, 4, group.point_dim)
    Q = momentum_map(group, dim=-3)  # noqa: N806
    assert Q(z).shape == (6, group.dim)
    defect = conservation_defect(two_body, Q, z, dim=-3)
    # 12 forces of size 5 on arms of length 3 cancel in pairs.
    assert_close(defect, torch.zeros(6, group.dim, dtype=torch.float64), 16, scale=15)

    def pushed(y):  # a constant pull on the first body breaks every generator
        return two_body(y) + y[..., 0, 0, :].sum(-1)

    broken = conservation_defect(pushed, Q, z, dim=-3)
    torque = group.vector_field(torch.eye(group.dim, dtype=torch.float64).unsqueeze(1), z[:, 0, 0]).sum(-1).mT
    assert_close(broken, torque, 16, scale=15)  # the derivative of the pull along the action


def test_momenta_are_those_of_mechanics():
    z = draw(5, 2, 4, 3)
    q, p = z.unbind(1)
    assert_close(momentum_map(T(3), dim=-3)(z), p.sum(1), 4, scale=4)
    angular = torch.linalg.cross(q, p).sum(1)
    assert_close(momentum_map(SO3(), dim=-3)(z), angular, 8, scale=8)
    assert_close(momentum_map(SE3(), dim=-3)(z), torch.cat([angular, p.sum(1)], -1), 8, scale=8)
    plane = z[..., :2].unbind(1)
    moment = (plane[0][..., 0] * plane[1][..., 1] - plane[0][..., 1] * plane[1][..., 0]).sum(1, keepdim=True)
    assert_close(momentum_map(SO2(), dim=-3)(z[..., :2]), moment, 8, scale=8)
    assert_close(momentum_map(SE2(), dim=-3)(z[..., :2]), torch.cat([moment, plane[1].sum(1)], -1), 8, scale=8)


def kepler(z):
    q, p = z.chunk(2, -1)
    return 0.5 * p.square().sum(-1) - q.norm(dim=-1).reciprocal()


def test_a_central_potential_conserves_angular_momentum_and_nothing_else():
    z = draw(20, 6)
    distance = z[:, :3].norm(dim=-1, keepdim=True)
    defect = conservation_defect(kepler, momentum_map(SO3()), z)
    assert (defect.abs() <= 8 * EPS * (distance**-1 + z[:, 3:].square().sum(-1, keepdim=True))).all()  # force times arm
    linear = conservation_defect(kepler, momentum_map(T(3)), z)
    torch.testing.assert_close(linear, z[:, :3] / distance**3, rtol=1e-13, atol=0)  # minus the force

    def runge_lenz(y):
        q, p = y.chunk(2, -1)
        return torch.linalg.cross(p, momentum_map(SO3())(y)) - q / q.norm(dim=-1, keepdim=True)

    size = float((z[:, 3:].norm(dim=-1) / distance[:, 0]).max() * (1 + distance.reciprocal().max()))
    assert_close(conservation_defect(kepler, runge_lenz, z), torch.zeros_like(z[:, :3]), 32, scale=size)
    # Along the flow: the rate of change of Q is minus the defect.
    rate = jvp_along(momentum_map(T(3)), z, hamiltonian_field(kepler)(z))[1]
    assert torch.equal(rate, -linear)


@pytest.mark.parametrize("group", GROUPS, ids=repr)
def test_momentum_map_laws(group):
    d = group.point_dim or group.matrix_dim
    a, b, c = 0.5 * draw(3, group.dim)
    z = draw(5, 2 * d, seed=1)
    q, p = z.chunk(2, -1)
    Q = momentum_map(group)  # noqa: N806
    size = 1 + float(Q(z).abs().max()) * (1 + float(a.abs().max() * b.abs().max()))

    def component(e):
        return lambda y: Q(y) @ e

    # Its field moves positions by the fundamental field, and Poisson brackets follow those of the algebra.
    assert_close(hamiltonian_field(component(a))(z)[..., :d], group.vector_field(a, q), 4, scale=size)
    bracket = poisson_bracket(component(a), component(b))(z)
    assert_close(bracket, component(group.bracket(a, b))(z), 4, scale=size)
    # Equivariance under the lifted action: momenta move by the inverse transpose of the derivative of the action.
    g = group.exp(c)
    jacobian = torch.func.vmap(torch.func.jacfwd(lambda y: group.act(g, y)))(q)  # (5, d, d)
    lifted = torch.cat([group.act(g, q), torch.linalg.solve(jacobian.mT, p.unsqueeze(-1)).squeeze(-1)], -1)
    expected = Q(z) @ torch.linalg.inv(group.adjoint(g))
    assert_close(Q(lifted), expected, 16, scale=1 + float(lifted.abs().max()) ** 2)  # two inverses, of condition 4
    # The same, given as an action of one's own.
    assert_close(momentum_map(group, lambda g, y: group.act(g, y))(z), Q(z), 8, scale=size)


def test_momentum_of_an_action_of_ones_own():
    """Rotations of the plane on two bodies stored as (x1, y1, x2, y2), and on the unit mass of an angle."""
    z = draw(5, 8)
    G = SO2()  # noqa: N806

    def turn(g, q):
        return G.act(g, q.unflatten(-1, (2, 2))).flatten(-2)

    q, p = z.unflatten(-1, (2, 2, 2)).unbind(1)
    expected = (q[..., 0] * p[..., 1] - q[..., 1] * p[..., 0]).sum(-1, keepdim=True)
    assert_close(momentum_map(G, turn)(z), expected, 8, scale=4)
    angle = momentum_map(G, lambda g, q: q + G.log(g))(z[:, :2])  # the angle itself is a position
    assert_close(angle, z[:, 1:2], 2)
    with pytest.raises(ValueError, match=r"keeps the shape of the positions, \(5, 4\), got \(5, 2\)"):
        momentum_map(G, lambda g, q: G.act(g, q[..., :2]))(z)
    with pytest.raises(ValueError, match="expected points"):
        momentum_map(SO3())(z)
    with pytest.raises(ValueError, match="equally many"):
        momentum_map(SO3())(z[:, :5])
    with pytest.raises(ValueError, match="expected H to give one value a state"):
        conservation_defect(lambda y: y, momentum_map(G, turn), z)
    with pytest.raises(ValueError, match="expected Q to give values for each state"):
        conservation_defect(lambda y: y.square().sum(-1), lambda y: y.sum(), z)


# Every function under every transform, and both default dtypes

Q = momentum_map(SO2())
STATE_FUNCTIONS = {
    "jvp_along": lambda z: jvp_along(energy, z, network(z))[1],
    "jvp_along several": lambda z: jvp_along(energy, z, torch.stack([z, network(z), z]), chunk_size=2)[1].sum(0),
    "jet": lambda z: jet(energy, z, [network(z), z], order=2)[1].sum(0),
    "lie_derivative": lambda z: lie_derivative(network, z, lambda y: y.sin(), lambda y: 2 * y),
    "lie_bracket": lie_bracket(hamiltonian_field(energy), network),
    "hamiltonian_field": hamiltonian_field(energy),
    "poisson_bracket": poisson_bracket(energy, double_pendulum),
    "lagrangian_field": lagrangian_field(double_pendulum),
    "lagrangian_field energy": lagrangian_field(double_pendulum).energy,
    "momentum_map": Q,
    "momentum_map of an action": momentum_map(SE2(), lambda g, q: SE2().act(g, q)),
    "conservation_defect": lambda z: conservation_defect(double_pendulum_energy, Q, z),
}


@pytest.mark.parametrize(
    ("dtype", "default"),
    [(torch.float32, torch.float32), (torch.float32, torch.float64), (torch.float64, torch.float32)],
)
@pytest.mark.parametrize("name", STATE_FUNCTIONS)
def test_transforms_and_dtypes(name, dtype, default):
    f, z, v = STATE_FUNCTIONS[name], draw(3, 4, dtype=dtype), draw(3, 4, seed=1, dtype=dtype)
    before = torch.get_default_dtype()
    torch.set_default_dtype(default)
    try:
        expected = f(z)
        size = 1 + float(expected.abs().max())
        assert_close(torch.func.vmap(f)(z), expected, 16, scale=size)
        assert_close(f(z[0]), expected[0], 16, scale=size)
        value, along = torch.func.jvp(f, (z,), (v,))
        assert_close(value, expected, 4, scale=size)
        cotangent = torch.ones_like(expected)
        slope = torch.func.grad(lambda y: f(y).sum())(z)
        assert along.dtype == slope.dtype == dtype
        steep = 1 + float((slope * v).abs().sum())
        assert_close((slope * v).sum(), (cotangent * along).sum(), 8, scale=steep)  # forward and reverse agree
    finally:
        torch.set_default_dtype(before)
    assert f(z[:0]).shape == (0, *expected.shape[1:])


@pytest.mark.parametrize("name", STATE_FUNCTIONS)
def test_compiled_whole(name):
    torch._dynamo.reset()
    z = draw(3, 4)
    compiled = torch.compile(STATE_FUNCTIONS[name], fullgraph=True, backend="eager")
    expected = STATE_FUNCTIONS[name](z)
    assert_close(compiled(z), expected, 4, scale=1 + float(expected.abs().max()))


def test_forward_mode_of_a_number_keeps_the_dtype():
    """Half the sum of squares, a tensor without axes: torch's own derivative of it is float64."""
    x = draw(4, dtype=torch.float32)

    def f(y):
        return 0.5 * y.square().sum()

    assert jvp_along(f, x, x)[1].dtype == torch.float32
    assert jvp_along(f, x, torch.stack([x, x]))[1].dtype == torch.float32
    assert jet(f, x, x, order=3)[1].dtype == torch.float32
    assert jet(lambda y: 0.5 * y.sin(), x[0], [x[1], x[2]], order=3)[1].dtype == torch.float32
    assert poisson_bracket(f, f)(x).dtype == torch.float32
    assert lie_derivative(f, x, lambda y: y, lambda y: y).dtype == torch.float32


# --- what is right or refused, whatever the operators, dtypes and layouts ---

_LIBRARY = torch.library.Library("lie_tests", "FRAGMENT")
_LIBRARY.define("square_of_cpu(Tensor x) -> Tensor")
_LIBRARY.impl("square_of_cpu", lambda x: x * x, "CPU")
_LIBRARY.define("square_of_parts(Tensor x) -> Tensor")
_LIBRARY.impl("square_of_parts", lambda x: x * x, "CompositeImplicitAutograd")
_LIBRARY.define("count_of(Tensor x) -> Tensor")
_LIBRARY.impl("count_of", lambda x: torch.tensor(x.numel()), "CPU")


@torch.library.custom_op("lie_tests::square_with_backward", mutates_args=())
def square_with_backward(x: torch.Tensor) -> torch.Tensor:
    return x * x


square_with_backward.register_autograd(
    lambda ctx, g: 2.0 * ctx.saved_tensors[0] * g,
    setup_context=lambda ctx, inputs, output: ctx.save_for_backward(*inputs),
)


@torch.library.custom_op("lie_tests::square_alone", mutates_args=())
def square_alone(x: torch.Tensor) -> torch.Tensor:
    return x * x


DROPS_TANGENTS = {
    "square_of_cpu": torch.ops.lie_tests.square_of_cpu,
    "square_with_backward": square_with_backward,
    "square_alone": square_alone,
}


@pytest.mark.parametrize("name", DROPS_TANGENTS)
def test_an_operator_without_a_forward_mode_formula_is_refused_and_not_zero(name):
    f, x = DROPS_TANGENTS[name], torch.tensor([1.0, 2.0, 3.0, 4.0])
    assert not torch.func.jvp(f, (x,), (x,))[1].any()  # torch's own answer for the derivative 2 x^2
    energy = lambda z: f(z).sum(-1)  # noqa: E731
    attempts = [
        lambda: jvp_along(f, x, x),
        lambda: jvp_along(lambda y: 3.0 * f(y.sin()) + y, x, torch.stack([x, x])),
        lambda: jvp_along(lambda y: f(torch.func.vmap(torch.sin)(y)), x, x),
        lambda: lie_derivative(f, x, lambda y: y),
        lambda: lie_bracket(f, torch.sin)(x),
        lambda: jet(f, x, x, order=2),
        lambda: poisson_bracket(energy, lambda z: z[..., 0])(x),
        lambda: jvp_along(lambda y: torch.func.jvp(f, (y,), (y,))[0], x, x),
    ]
    if name == "square_of_cpu":  # torch.func.grad is silently 0 too; of the other two torch says what is missing
        attempts += [lambda: hamiltonian_field(energy)(x), lambda: lagrangian_field(energy)(x)]
        attempts += [lambda: poisson_bracket(lambda z: z[..., 0], energy)(x)]
    for attempt in attempts:
        with pytest.raises(ValueError, match=f"got lie_tests::{name}.*, which has none"):
            attempt()


def test_foreign_operators_that_keep_tangents_or_have_none_are_not_refused():
    x = torch.tensor([1.0, 2.0])
    torch.testing.assert_close(jvp_along(torch.ops.lie_tests.square_of_parts, x, x)[1], 2 * x * x, rtol=0, atol=0)
    torch.testing.assert_close(jvp_along(lambda y: y * square_alone(torch.ones(2)), x, x)[1], x, rtol=0, atol=0)
    torch.testing.assert_close(jvp_along(lambda y: y * torch.ops.lie_tests.count_of(y), x, x)[1], 2 * x, rtol=0, atol=0)
    with torch.no_grad():
        torch.testing.assert_close(jvp_along(lambda y: y * square_alone(y.detach()), x, x)[1], x**3, rtol=0, atol=0)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32], ids=str)
def test_mechanics_in_low_precision_empty_expanded_and_with_gradients(dtype):
    H = lambda z: 0.5 * z[..., 2:].square().sum(-1) - z[..., :2].cos().sum(-1)  # noqa: E731
    L = lambda z: 0.5 * z[..., 2:].square().sum(-1) + z[..., :2].cos().sum(-1)  # noqa: E731
    z = torch.tensor([[0.3, -1.2, 0.5, 2.0], [1.0, 0.0, -0.7, 0.1]]).to(dtype)
    exact = torch.cat([z.double()[:, 2:], -z.double()[:, :2].sin()], dim=-1)  # both are the pendulum's equations
    for field in (hamiltonian_field(H), lagrangian_field(L)):
        # One rounding of a sine, one of the sum.
        assert (field(z).double() - exact).abs().max() <= 2.0 * torch.finfo(dtype).eps
        assert field(z).dtype == dtype and field(z[:0]).shape == (0, 4)
        assert torch.equal(field(z[:1].expand(3, 4)), field(z[:1]).expand(3, 4))
        assert torch.equal(field(z.mT.contiguous().mT), field(z))
        assert torch.isnan(lagrangian_field(L, check=False)(z * torch.nan)).any()
        start = z.clone().requires_grad_()
        (slope,) = torch.autograd.grad(field(start).sum(), start)
        assert (slope.double() - torch.cat([-z.double()[:, :2].cos(), torch.ones(2, 2)], -1)).abs().max() <= (
            2.0 * torch.finfo(dtype).eps
        )
    bracket = poisson_bracket(H, lambda z: z[..., 2])  # {H, p} = dH/dq
    assert (bracket(z[:1].expand(3, 4)).double() - z.double()[0, 0].sin()).abs().max() <= torch.finfo(dtype).eps
    wide = z[:1].expand(3, 4)
    assert torch.equal(lie_bracket(torch.sin, torch.cos)(wide)[1], lie_bracket(torch.sin, torch.cos)(wide[0].clone()))


def test_constant_functions_have_zero_derivatives():
    z = torch.ones(3, 4)
    constant = lambda z: torch.zeros(z.shape[:-1])  # noqa: E731
    assert not hamiltonian_field(constant)(z).any() and not poisson_bracket(constant, constant)(z).any()
    assert not jvp_along(lambda x: torch.ones(2), z, z)[1].any()
    assert not lie_derivative(lambda x: torch.ones(2), z, lambda x: x).any()
    assert not jet(lambda x: torch.ones(2), z, z, order=2)[1].any()
    with pytest.raises(ValueError, match="positive definite mass matrix"):
        lagrangian_field(constant)(z)


@pytest.mark.parametrize(
    ("attempt", "message"),
    [
        (lambda z: hamiltonian_field(lambda z: z)(z), r"H to give one value a state, shape \(3,\)"),
        (lambda z: hamiltonian_field(lambda z: z.sum())(z), r"H to give one value a state, shape \(3,\)"),
        (lambda z: hamiltonian_field(lambda z: 1.0)(z), "value of H as a tensor"),
        (lambda z: hamiltonian_field(lambda z: z.sum(-1))(z.long()), "floating-point states"),
        (lambda z: hamiltonian_field(lambda z: z.sum(-1))(z.tolist()), "the state as a tensor"),
        (lambda z: poisson_bracket(lambda z: z.sum(-1), lambda z: z.sum(-1))(z.cfloat()), "floating-point states"),
        (lambda z: lagrangian_field(lambda z: z.sum(-1))(z.to(torch.float8_e5m2)), "floating-point states"),
        (lambda z: lie_bracket(torch.sin, torch.cos)(z.cfloat()), "floating-point points"),
        (lambda z: lie_bracket(lambda x: x.double(), torch.cos)(z), "field X to give a tensor of torch.float32"),
        (lambda z: lie_bracket(lambda x: None, torch.cos)(z), "map to tensors|field X"),
        (lambda z: lie_derivative(torch.sin, z, lambda x: x, lambda x: x.double()), "field_out to give a tensor of"),
        (lambda z: lie_derivative(torch.sin, z, lambda x: None), "expected tensors for a point and its tangent"),
        (lambda z: jvp_along(torch.sin, z, z.to("meta")), "one device, got cpu and meta"),
        (lambda z: jvp_along(torch.sin, [1.0], [1.0]), "expected tensors for a point"),
        (lambda z: jvp_along(lambda x: 1.0, z, z), "expected a map to tensors, got float"),
    ],
)
def test_wrong_fields_and_points_are_refused_by_name(attempt, message):
    with pytest.raises((ValueError, TypeError), match=message):
        attempt(torch.ones(3, 4))
