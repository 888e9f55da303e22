"""Memory, projection, transforms and checks of the groups: outputs are their own, wrong inputs are refused by name."""

from __future__ import annotations

import re

import numpy as np
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
from scipy.linalg import polar
from scipy.optimize import minimize
from scipy.spatial.transform import Rotation


class Motions(LieGroup):
    """Rigid motions from exp and log alone: everything else is the base class's."""

    dim, matrix_dim, point_dim = 6, 4, 3

    def exp(self, a):
        return SE3().exp(a)

    def log(self, g):
        return SE3().log(g)


GROUPS = [
    *(T(1), T(2), SO2(), RxSO2(), RxSQ(), SE2(), SO3(), SE3(), Sim2(), Sim3(), Heisenberg(), Trivial(1), Trivial(3)),
    *(Product(SO3(), T(2)), Product(Trivial(1), SO2()), Subgroup(SE3(), (2, 3, 4, 5)), Subgroup(T(2), (0,))),
    Motions(),
]
each_group = pytest.mark.parametrize("group", GROUPS, ids=repr)


def arguments(group: LieGroup, *batch: int, dtype: torch.dtype = torch.float64) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    a, b = 0.4 * torch.randn(2, *batch, group.dim, generator=generator, dtype=torch.float64).to(dtype)
    d = group.point_dim or group.matrix_dim
    x = torch.randn(*batch, d, generator=generator, dtype=torch.float64).to(dtype)
    return {"a": a, "b": b, "g": group.exp(a), "h": group.exp(b), "x": x}


def verbs(group: LieGroup) -> dict:
    """Each verb that returns tensors, as a function of the named arguments."""
    seed = torch.Generator().manual_seed
    return {
        "exp": lambda a: group.exp(a),
        "log": lambda g: group.log(g),
        "hat": lambda a: group.hat(a),
        "vee": lambda g: group.vee(g),
        "bracket": lambda a, b: group.bracket(a, b),
        "adjoint": lambda g: group.adjoint(g),
        "left_jacobian": lambda a: group.left_jacobian(a),
        "right_jacobian": lambda a: group.right_jacobian(a),
        "left_jacobian_inverse": lambda a: group.left_jacobian_inverse(a),
        "right_jacobian_inverse": lambda a: group.right_jacobian_inverse(a),
        "bch": lambda a, b: group.bch(a, b, 1),
        "inverse": lambda g: group.inverse(g),
        "normalise": lambda g: group.normalise(g),
        "relative": lambda g, h: group.relative(g, h),
        "pairwise": lambda g, h: group.pairwise(g, h),
        "distance": lambda g, h: group.distance(g, h),
        "interpolate": lambda g, h: group.interpolate(g, h, 0.0),
        "geodesic": lambda g, a: group.geodesic(g, a, 0.0),
        "mean": lambda g: group.mean(g[..., :1, :, :]),
        "act": lambda g, x: group.act(g, x),
        "vector_field": lambda a, x: group.vector_field(a, x),
        "lift": lambda x: group.lift(x, generator=seed(0)),
        "lift samples": lambda x: group.lift(x, 3, generator=seed(0)),
        "orbit_origin": lambda x: group.orbit_origin(group.lift(x, generator=seed(0))[1]),
        "generators": lambda: group.generators(dtype=torch.float64),
    }


def call(verb, values: dict[str, torch.Tensor]) -> tuple[torch.Tensor, ...]:
    names = verb.__code__.co_varnames[: verb.__code__.co_argcount]
    result = verb(**{name: values[name] for name in names})
    return result if isinstance(result, tuple) else (result,)


@each_group
@pytest.mark.parametrize("dtype", [torch.float64, torch.float16], ids=str)
def test_what_a_verb_returns_may_be_written_to(group, dtype):
    for name, verb in verbs(group).items():
        values = arguments(group, 4, dtype=dtype)
        before = {key: value.clone() for key, value in values.items()}
        fresh = [result.clone() for result in call(verb, values)]
        for result in call(verb, values):
            if result.numel():
                result.fill_(7.0)  # raises where entries of the result share memory
        assert all(torch.equal(values[key], before[key]) for key in values), name
        assert all(torch.equal(a, b) for a, b in zip(call(verb, values), fresh, strict=True)), f"{name}, its constants"


@each_group
def test_writing_to_a_result_does_not_change_gradients(group):
    for name, verb in verbs(group).items():
        slopes = []
        for write in (False, True):
            values = {key: value.detach().requires_grad_() for key, value in arguments(group, 4).items()}
            first = call(verb, values)
            if write:
                with torch.no_grad():
                    for result in first:
                        result.mul_(0.0)
            total = sum(result.square().sum() for result in call(verb, values))
            inputs = [value for value in values.values() if value.numel()]
            if isinstance(total, torch.Tensor) and total.requires_grad and inputs:
                slopes.append(torch.autograd.grad(total, inputs, allow_unused=True))
        for pair in zip(*slopes, strict=True):
            assert pair[0] is None or torch.equal(*pair), name


@each_group
def test_strided_and_expanded_inputs_and_empty_batches(group):
    for name, verb in verbs(group).items():
        values = arguments(group, 3, 4)
        expected = call(verb, values)
        strided = {key: value.movedim(-1, 0).contiguous().movedim(0, -1) for key, value in values.items()}
        wide = {key: torch.cat([value, value], -1)[..., : value.shape[-1]] for key, value in values.items()}
        for other in (strided, wide):
            for got, want in zip(call(verb, other), expected, strict=True):
                # Another order of summation: a few roundings of numbers of size 1 to 10.
                torch.testing.assert_close(got, want, rtol=1e-13, atol=1e-13, msg=name)
        single = {key: value[:1, :1] for key, value in values.items()}
        repeated = {key: value.expand(3, 4, *value.shape[2:]) for key, value in single.items()}
        for got, want in zip(
            call(verb, repeated), call(verb, {k: v.contiguous() for k, v in repeated.items()}), strict=True
        ):
            torch.testing.assert_close(got, want, rtol=1e-13, atol=1e-13, msg=name)
        if name != "mean":  # which is not defined for no elements
            empty = call(verb, {key: value[:0] for key, value in values.items()})
            assert name == "generators" or all(result.shape[0] == 0 for result in empty), name


# --- the nearest element ---


@pytest.mark.parametrize("condition", [1.0, 10.0, 1e3, 1e6])
def test_normalise_is_scipys_polar_decomposition(condition):
    random = np.random.default_rng(0)
    for d, group in ((2, SO2()), (3, SO3())):
        for _ in range(20):
            u, _, v = np.linalg.svd(random.normal(size=(d, d)))
            matrix = u @ np.diag(np.geomspace(1.0, 1.0 / condition, d)) @ v * 10.0 ** random.uniform(-30, 30)
            if np.linalg.det(u @ v) < 0:
                matrix = -matrix if d == 3 else matrix[::-1].copy()
            R = polar(matrix)[0]  # noqa: N806
            got = group.normalise(torch.from_numpy(matrix)).numpy()
            # The rotation changes by eps / (sum of the two smallest singular values) with a rounding of the matrix.
            np.testing.assert_allclose(got, R, atol=1e-14 * condition, rtol=0)
            motion = np.eye(d + 1)
            motion[:d, :d], motion[:d, d] = matrix, 3.0
            rigid = {2: SE2(), 3: SE3()}[d].normalise(torch.from_numpy(motion)).numpy()
            np.testing.assert_allclose(rigid[:d, :d], R, atol=1e-14 * condition, rtol=0)
            assert (rigid[:d, d] == 3.0).all() and (rigid[d] == motion[d]).all()


def test_normalise_of_a_multiple_is_the_rotation_also_in_single_precision():
    R = Rotation.from_rotvec([0.4, -2.0, 1.5]).as_matrix()  # noqa: N806
    random = np.random.default_rng(3)
    for condition in (10.0, 100.0):
        u, _, v = np.linalg.svd(random.normal(size=(50, 3, 3)))
        matrix = u * [1.0, 1.0 / condition, 1.0 / condition] @ v * np.sign(np.linalg.det(u @ v))[:, None, None]
        single = torch.tensor(matrix, dtype=torch.float32)
        exact = np.stack([polar(m)[0] for m in single.double().numpy()])
        # The condition of the problem is 1 over the sum of the two smallest singular values; a dozen roundings.
        np.testing.assert_allclose(SO3().normalise(single).numpy(), exact, atol=6 * 1.2e-7 * condition)
    for scale in (2.0, 1e-18, 3e18, 1.01):
        got = SO3().normalise(torch.tensor(scale * R, dtype=torch.float32))
        np.testing.assert_allclose(got.numpy(), R, atol=4e-7)  # three roundings of entries of size 1
    assert torch.equal(SO3().normalise(2.0 * torch.eye(3)), torch.eye(3))


def test_a_matrix_without_a_nearest_rotation_gives_nan():
    for group, d in ((SO2(), 2), (SO3(), 3), (RxSO2(), 2)):
        reflection = torch.eye(d, dtype=torch.float64)
        reflection[0, 0] = -1.0
        rank_one = torch.ones(d, d, dtype=torch.float64)
        for matrix in (reflection, 0.0 * reflection, rank_one, torch.full_like(reflection, torch.nan)):
            assert torch.isnan(group.normalise(matrix)).all()
    # Singular values that float32 does not resolve: Newton's iteration gave a reflection for some of these.
    random = np.random.default_rng(1)
    for _ in range(50):
        u, _, v = np.linalg.svd(random.normal(size=(3, 3)))
        matrix = u @ np.diag([1.0, 1e-7, 1e-7]) @ v * np.sign(np.linalg.det(u @ v))
        assert torch.isnan(SO3().normalise(torch.tensor(matrix, dtype=torch.float32))).all()


@pytest.mark.parametrize(("group", "d"), [(RxSO2(), 2), (Sim2(), 2), (Sim3(), 3)], ids=repr)
def test_normalise_of_similarities_is_nearest_in_the_frobenius_norm(group, d):
    random = np.random.default_rng(2)
    matrix = Rotation.random(rng=random).as_matrix()[:d, :d] * 1.7 + 0.3 * random.normal(size=(d, d))
    matrix *= np.sign(np.linalg.det(matrix)) if d == 3 else 1.0
    matrix = matrix[::-1].copy() if np.linalg.det(matrix) < 0 else matrix

    def similarity(p: np.ndarray) -> np.ndarray:
        w = np.array([0.0, 0.0, p[1]]) if d == 2 else p[1:]
        return np.exp(p[0]) * Rotation.from_rotvec(w).as_matrix()[:d, :d]

    starts = random.normal(size=(6, d + (d == 3)))
    best = min(
        (minimize(lambda p: np.square(similarity(p) - matrix).sum(), s, method="BFGS", tol=1e-12) for s in starts),
        key=lambda result: result.fun,
    )
    element = torch.eye(group.matrix_dim, dtype=torch.float64)
    element[:d, :d] = torch.from_numpy(matrix)
    # A minimiser finds the place of a quadratic minimum to the square root of epsilon, times a few.
    np.testing.assert_allclose(group.normalise(element)[:d, :d].numpy(), similarity(best.x), atol=2e-6)


@pytest.mark.parametrize("group", [SO2(), SO3(), SE2(), SE3(), Sim2(), Sim3(), RxSO2()], ids=repr)
def test_normalise_has_the_derivative_of_difference_quotients(group):
    m = group.matrix_dim
    g = group.exp(arguments(group)["a"]) + 0.1 * torch.linspace(-1.0, 1.0, m * m, dtype=torch.float64).view(m, m)
    torch.autograd.gradcheck(group.normalise, (g.clone().requires_grad_(),))
    torch.autograd.gradcheck(group.normalise, (group.exp(arguments(group)["a"]).requires_grad_(),))
    torch.autograd.gradgradcheck(group.normalise, (g.clone().requires_grad_(),))


@each_group
def test_normalise_gives_elements_and_keeps_them(group):
    g = arguments(group, 5)["g"]
    # Three roundings of entries of size up to 2.
    torch.testing.assert_close(group.normalise(g), g, rtol=2e-15, atol=2e-15)
    assert group.contains(group.normalise(g + 1e-9), tolerance=1e-12).all() or isinstance(group, Subgroup | Motions)


# --- transforms whose course depends on values ---


@each_group
def test_mean_under_vmap_and_its_derivatives(group):
    values = arguments(group, 3, 5)
    g, weights = values["g"], torch.linspace(0.1, 1.0, 15, dtype=torch.float64).view(3, 5)
    vmap, mean = torch.func.vmap, group.mean
    rows = torch.stack([mean(g[i], weights[i]) for i in range(3)])
    close = {"rtol": 1e-12, "atol": 1e-12}  # each stops within some roundings of the mean
    torch.testing.assert_close(vmap(mean)(g, weights), rows, **close)
    torch.testing.assert_close(vmap(mean, in_dims=(1, 1))(g.movedim(0, 1), weights.mT), rows, **close)
    torch.testing.assert_close(vmap(mean, in_dims=(None, 0))(g[0], weights)[0], rows[0], **close)
    torch.testing.assert_close(vmap(vmap(mean))(g[:, None], weights[:, None])[:, 0], rows, **close)

    def total(a: torch.Tensor) -> torch.Tensor:
        return (mean(group.exp(a)) * torch.linspace(0.3, 2.0, group.matrix_dim)).sum()

    if group.dim == 0:
        return
    a = values["a"]
    step = 1e-6 * torch.ones_like(a)
    quotient = torch.stack([(total(a[i] + step[i]) - total(a[i] - step[i])) / 2e-6 for i in range(3)])
    for derivative in (torch.func.grad, torch.func.jacfwd, torch.func.jacrev):
        slope = vmap(derivative(total))(a).sum((-1, -2))
        # Central differences: 1e-16 / 1e-6 of rounding, and some of the iteration's end.
        torch.testing.assert_close(slope, quotient, rtol=1e-7, atol=1e-7)
    assert vmap(torch.func.hessian(total))(a).isfinite().all()


def test_mean_under_vmap_still_refuses_what_does_not_settle():
    far = SO2().exp(torch.tensor([[[0.0], [torch.pi]], [[0.0], [0.1]]]))
    far[0, 1] = torch.nan
    with pytest.raises(ValueError, match="did not settle in 64 iterations"):
        torch.func.vmap(SO2().mean)(far)
    with pytest.raises(ValueError, match="weights that are not negative"):
        torch.func.vmap(SO2().mean)(far, -torch.ones(2, 2))


def test_the_numeric_lift_under_vmap_and_its_derivatives():
    group = Motions()
    x = arguments(group, 3, 4)["x"]
    rows = group.lift(x)[0]
    vmap = torch.func.vmap
    for got in (
        vmap(lambda y: group.lift(y)[0])(x),
        vmap(vmap(lambda y: group.lift(y)[0]))(x),
        vmap(lambda y: group.lift(y)[0], in_dims=-1)(x.movedim(0, -1)),
    ):
        assert torch.equal(got, rows)

    def moved(y: torch.Tensor) -> torch.Tensor:  # the identity, whichever element of the coset is taken
        return group.act(group.lift(y)[0], torch.zeros(3, dtype=torch.float64))

    for derivative in (torch.func.jacrev, torch.func.jacfwd):
        identity = vmap(derivative(moved))(x[0])
        torch.testing.assert_close(identity, torch.eye(3).double().expand(4, 3, 3), rtol=0, atol=1e-12)
    assert torch.equal(torch.func.jvp(moved, (x,), (x,))[0], moved(x))


# --- refusals ---


def refusals(group: LieGroup) -> list:
    """Calls with a wrong argument, and what the error must say."""
    v = arguments(group, 4, dtype=torch.float32)
    a, b, g, h, x = (v[key] for key in "abghx")
    m, shape_a, shape_g = group.matrix_dim, torch.zeros(4, group.dim + 1), torch.zeros(4, group.matrix_dim + 1, 2)
    wrong = [
        (lambda: group.geodesic(g, a, torch.zeros(3)), r"broadcast, got \(4,\) and \(3,\)"),
        (lambda: group.interpolate(g, h, torch.zeros(3)), r"broadcast, got \(4,\) and \(3,\)"),
        (lambda: group.interpolate(g, h, 1j), "real s"),
        (lambda: group.mean(g[0]), r"expected at least one element, shape \(..., N, m, m\)"),
        (lambda: group.mean(g, torch.ones(3)), "expected 4 weights"),
        (lambda: group.mean(g, torch.tensor(1.0)), "expected 4 weights"),
        (lambda: group.mean(g, torch.ones(4, dtype=torch.int64)), "floating-point weights"),
        (lambda: group.mean(g, torch.full((4,), torch.nan)), "weights that are not negative"),
        (lambda: group.mean(g, max_iterations=0), "max_iterations of at least 1"),
        (lambda: group.pairwise(g[0]), "n, "),
        (lambda: group.lift(x, 0), "num_samples of at least 1"),
        (lambda: group.lift(x, 1.5), "num_samples as an integer"),
        (lambda: group.lift(x, 2, generator=0), "expected a torch.Generator"),
        (lambda: group.lift(torch.zeros(4, 9)), r"points of shape \(..., \d\)"),
        (lambda: group.lift(torch.tensor(1.0)), r"points of shape \(..., \d\)"),
        (lambda: group.lift(x.long()), "floating-point points"),
        (lambda: group.lift(x.to(torch.complex64)), "floating-point points"),
        (lambda: group.lift(x.tolist()), "points as a tensor"),
        (lambda: group.sample(-1), "sizes of at least 0"),
        (lambda: group.sample(True), "integer sizes"),
        (lambda: group.sample(2, dtype=torch.int64), "dtype of float16"),
        (lambda: group.sample(2, dtype=torch.complex64), "dtype of float16"),
        (lambda: group.identity(dtype=torch.int32), "dtype of float16"),
        (lambda: group.generators(dtype=torch.int32), "dtype of float16"),
        (lambda: group.act(g, x.long()), "floating-point points|of one dtype"),
        (lambda: group.act(g, x[:3]), r"broadcast, got \(4,\) and \(3,\)"),
        (lambda: group.act(g, torch.zeros(4, 9)), "points of shape"),
        (lambda: group.act(g, x.double()), "one dtype"),
        (lambda: group.vector_field(a, x.double()), "one dtype"),
        (lambda: group.vector_field(a, torch.zeros(4, 9)), "points of shape"),
        (lambda: group.vector_field(a, x.tolist()), "points as a tensor"),
        (lambda: group.vector_field(a, x[:3]), "broadcast"),
        (lambda: group.distance(g, h, torch.zeros(4, 2), torch.zeros(4, 3)), "orbit ids of one length"),
        (lambda: group.distance(g, h, torch.zeros(4, 2).double(), torch.zeros(4, 2).double()), "one dtype"),
        (lambda: group.distance(g, h, torch.zeros(4, 2)), "orbit ids of both"),
        (lambda: group.orbit_origin([1.0]), "orbit ids as a tensor"),
        (lambda: group.orbit_origin(torch.zeros(2, 9).long()), "floating-point orbit ids"),
        (lambda: group.contains(torch.zeros(2)), "expected elements"),
    ]
    if group.orbit_dim is not None:
        wrong.append((lambda: group.orbit_origin(torch.zeros(2, 9)), "orbit ids of shape"))
    of_algebra = ["exp", "hat", "left_jacobian", "right_jacobian", "left_jacobian_inverse", "right_jacobian_inverse"]
    for name in of_algebra:
        verb = getattr(group, name)
        wrong += [
            (lambda verb=verb: verb(shape_a), "algebra coordinates of shape"),
            (lambda verb=verb: verb(a.long()), "floating-point algebra coordinates"),
            (lambda verb=verb: verb(a.to(torch.complex64)), "floating-point algebra coordinates"),
            (lambda verb=verb: verb(a.tolist()), "algebra coordinates as a tensor"),
        ]
    for name in ("log", "vee", "adjoint", "inverse", "normalise", "mean"):
        verb = getattr(group, name)
        wrong += [
            (lambda verb=verb: verb(shape_g), rf"elements of shape \(..., {m}, {m}\)"),
            (lambda verb=verb: verb(g.long()), "floating-point elements"),
            (lambda verb=verb: verb(g.to(torch.complex64)), "floating-point elements"),
            (lambda verb=verb: verb(g.numpy()), "elements as a tensor"),
        ]
    for name in ("relative", "distance", "interpolate"):
        verb = getattr(group, name)
        rest = (0.5,) if name == "interpolate" else ()
        wrong += [
            (lambda verb=verb, rest=rest: verb(g, shape_g, *rest), "elements of shape"),
            (lambda verb=verb, rest=rest: verb(g, h.double(), *rest), "one dtype, got torch.float32 and torch.float64"),
            (lambda verb=verb, rest=rest: verb(g, h[:3], *rest), r"broadcast, got \(4,\) and \(3,\)"),
            (lambda verb=verb, rest=rest: verb(g, h.to("meta"), *rest), "one device, got cpu and meta"),
        ]
    for verb in (group.bracket, group.bch):
        wrong += [
            (lambda verb=verb: verb(a, shape_a), "algebra coordinates of shape"),
            (lambda verb=verb: verb(a, b.double()), "one dtype"),
            (lambda verb=verb: verb(a, b[:3]), "broadcast"),
            (lambda verb=verb: verb(a, b.to("meta")), "one device"),
        ]
    return wrong


@each_group
def test_wrong_arguments_are_refused_by_name(group):
    for number, (attempt, message) in enumerate(refusals(group)):
        with pytest.raises((ValueError, TypeError)) as caught:
            attempt()
        text = str(caught.value)
        assert re.search(message, text), (number, message, text)
        assert "\n" not in text


def test_an_axis_with_a_fraction_is_refused_and_not_cut():
    with pytest.raises(TypeError, match="axes as a sequence of integers"):
        Subgroup(SE3(), (2.5, 3))
    with pytest.raises(TypeError, match="axes as a sequence of integers"):
        Subgroup(SE3(), 3)


@each_group
def test_nan_stays_nan(group):
    values = {key: torch.full_like(value, torch.nan) for key, value in arguments(group, 4).items()}
    for name, verb in verbs(group).items():
        if name in ("lift", "lift samples", "orbit_origin", "mean") and (name == "mean" or group.lifts_numerically):
            if group.dim:
                with pytest.raises(ValueError, match=r"did not settle|not transitive"):
                    call(verb, values)
            continue
        results = call(verb, values)
        # The trivial group has one element, an abelian one constant Jacobians, a transitive one a single origin.
        constant = group.dim == 0 or name in ("generators", "orbit_origin")
        if not constant and any(result.numel() for result in results):
            assert any(torch.isnan(result).any() for result in results), name


# --- names of coordinates ---


def test_names_of_coordinates_are_in_the_contracts_order():
    assert SE2().coordinate_names == ("theta", "x", "y")
    assert SE3().coordinate_names == ("wx", "wy", "wz", "x", "y", "z")
    assert RxSO2().coordinate_names == ("log_r", "theta")
    assert (T(2).coordinate_names, T(4).coordinate_names) == (("x", "y"), ("x0", "x1", "x2", "x3"))
    assert Motions().coordinate_names == ("a0", "a1", "a2", "a3", "a4", "a5")
    assert Subgroup(SE3(), (2, 3, 4)).coordinate_names == ("wz", "x", "y")
    assert Product(SE2(), RxSO2()).coordinate_names == ("G.theta", "x", "y", "log_r", "H.theta")
    assert Product(T(1), Product(T(1), SO2())).coordinate_names == ("G.x", "H.x", "theta")


@each_group
def test_each_coordinate_has_a_name_of_its_own_that_says_what_it_moves(group):
    names = group.coordinate_names
    assert len(set(names)) == len(names) == group.dim
    if isinstance(group, Product | Heisenberg | Motions) or group.point_dim not in (2, 3):
        return
    origin = torch.zeros(group.point_dim, dtype=torch.float64)
    for axis, name in enumerate(names):
        velocity = group.vector_field(torch.eye(group.dim, dtype=torch.float64)[axis], origin)
        if name in ("x", "y", "z"):  # a translation moves the origin along its axis, the others keep it
            assert torch.equal(velocity, torch.eye(group.point_dim, dtype=torch.float64)["xyz".index(name)])
        else:
            assert not velocity.any()
