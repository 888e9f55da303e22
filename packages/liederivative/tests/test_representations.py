"""Actions beyond images and layouts beyond maps: gradients, groups, colours, volumes, fields, several parts."""

from __future__ import annotations

import math

import pytest
import torch
from lie.groups import SE2, SE3, SO2, SO3, Heisenberg, Product, RxSO2, RxSQ, Sim2, Sim3, T
from lie.testing import check_group
from liederivative import (
    Colours,
    Element,
    Images,
    Joint,
    Points,
    Sequences,
    Tokens,
    VectorFields,
    VectorGrid,
    Vectors,
    Videos,
    Volumes,
    Windows,
    lee,
    lie_derivative,
    lie_derivatives,
)
from liederivative.actions import GENERATORS, GRADIENTS, NCHW, Domain
from torch import nn

GROUPS = [T(2), T(3), SO2(), RxSO2(), RxSQ(), SE2(), SO3(), SE3(), Sim2(), Sim3(), Heisenberg(), Product(SO2(), T(1))]


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


# --- derivatives along an axis ---


def test_the_spectral_derivative_is_exact_for_band_limited_values():
    n = 12
    i = torch.arange(n, dtype=torch.float64)
    for k in range(n - 1):  # every frequency below pi of the reflected signal
        w = math.pi * k / (n - 1)
        found = GRADIENTS["spectral"](torch.cos(w * i)[None].expand(3, n), 1)
        torch.testing.assert_close(found[2], -w * torch.sin(w * i), rtol=0, atol=1e-13)  # rounding of numbers up to pi
        # The central difference sees sin(w) instead of w: that is how much one differs from the other.
        central = GRADIENTS["central"](torch.cos(w * i), 0)
        torch.testing.assert_close(central, -math.sin(w) * torch.sin(w * i), rtol=0, atol=1e-13)


def test_one_sided_differences_are_those_of_bilinear_interpolation_and_their_mean_is_central():
    image = normal(2, 5, 7)
    forward, backward = GRADIENTS["bilinear-forward"](image, -1), GRADIENTS["bilinear-backward"](image, -1)
    torch.testing.assert_close((forward + backward) / 2, GRADIENTS["central"](image, -1))
    # The published way: a bilinear sampler moved by a step less than a pixel, reflecting at the border.
    step = 1e-3
    padded = nn.functional.pad(image[None], (1, 1, 0, 0), mode="reflect")[0]
    torch.testing.assert_close(forward, ((1 - step) * image + step * padded[..., 2:] - image) / step, atol=1e-9, rtol=0)
    torch.testing.assert_close(
        backward, (image - (1 - step) * image - step * padded[..., :-2]) / step, atol=1e-9, rtol=0
    )


@pytest.mark.parametrize("gradient", GRADIENTS)
def test_every_gradient_enters_input_and_output_alike(gradient):
    x, mix = normal(2, 3, 6, 9), nn.Conv2d(3, 2, 1, bias=False).double()
    for name in GENERATORS:
        L = lie_derivative(mix, x, name, action=Images(gradient), output="NCHW")
        assert L.abs().max() < 1e-12  # a pixelwise linear map commutes with all of them
    with pytest.raises(ValueError, match="unknown image gradient 'spectrl': did you mean 'spectral'"):
        lie_derivative(mix, x, "rotate", action=Images("spectrl"), output="NCHW")


# --- groups on points and vectors ---


@pytest.mark.parametrize("group", GROUPS, ids=repr)
def test_points_and_vectors_move_as_the_group_acts(group):
    check_group(group)
    d = group.point_dim or group.matrix_dim
    if isinstance(group, SE3 | Sim3 | T):
        d = group.matrix_dim - 1
    x, y = normal(4, 5, d), normal(4, 5, d, seed=1)
    basis = torch.eye(group.dim, dtype=torch.float64)
    moved, turned = Points(group).tangents(x, basis), Vectors(group).tangents(x, basis)
    assert moved.shape == turned.shape == (group.dim, 4, 5, d)
    step = 1e-6
    for a, along, linear in zip(basis, moved, turned, strict=True):
        there, back = group.exp(step * a), group.exp(-step * a)
        # Second order in the step, over values of order 1; rounding 1e-16 / 1e-6.
        torch.testing.assert_close(along, (group.act(there, x) - group.act(back, x)) / (2 * step), atol=1e-8, rtol=0)
        difference = (group.act(there, x) - group.act(there, y)) - (group.act(back, x) - group.act(back, y))
        torch.testing.assert_close(
            linear - Vectors(group).tangents(y, a[None])[0], difference / (2 * step), atol=1e-8, rtol=0
        )
    for name in Points(group).generators:
        distances = lie_derivative(lambda p: p, x, name, action=Points(group), output=Points(group))
        assert (distances == 0).all()


def test_invariant_and_covariant_functions_of_points():
    x, group = normal(3, 6, 3), SE3()
    for name in Points(group).generators:
        flat = lie_derivative(
            lambda p: (p[:, None] - p[:, :, None]).square().sum(-1).flatten(1), x, name, action=Points(group)
        )
        assert flat.abs().max() < 1e-12
        forces = lie_derivative(
            lambda p: p - p.mean(1, keepdim=True), x, name, action=Points(group), output=Vectors(group)
        )
        assert forces.abs().max() < 1e-14
    # The first coordinate alone turns into the others: d/dt of x under rotate_z is -y.
    L = lie_derivative(lambda p: p[..., 0], x, "rotate_z", action=Points(group), output="invariant")
    torch.testing.assert_close(L, -x[..., 1])
    screw = Element("screw", (0.0, 0.0, 1.0, 0.0, 0.0, 2.0))
    L = lie_derivative(lambda p: p[..., 2], x, screw, action=Points(group), output="invariant")
    torch.testing.assert_close(L, torch.full_like(L, 2.0))


def test_molecules_have_positions_that_move_and_features_that_do_not():
    x = {"positions": normal(2, 5, 3), "charges": normal(2, 5), "numbers": torch.ones(2, 5, dtype=torch.long)}
    action = Joint({"positions": Points(SE3()), "charges": None, "numbers": None})

    def dipole(molecule):
        assert molecule["numbers"].dtype == torch.long
        centred = molecule["positions"] - molecule["positions"].mean(1, keepdim=True)
        return (molecule["charges"][..., None] * centred).sum(1)

    for name in action.generators:
        assert lie_derivative(dipole, x, name, action=action, output=Vectors(SE3())).abs().max() < 1e-14
    turning = lie_derivative(dipole, x, "rotate_x", action=action)  # as if the dipole were a label
    torch.testing.assert_close(turning[:, 2], dipole(x)[:, 1])
    pair = lie_derivative(lambda p, q: (p * q[..., None]).sum(1), (x["positions"], x["charges"]), "translate_x",
                          action=Joint((Points(SE3()), None)))  # fmt: skip
    torch.testing.assert_close(pair[:, 0], x["charges"].sum(1))
    with pytest.raises(ValueError, match=r"expected an input with the parts \['positions', 'charges', 'numbers'\]"):
        lie_derivative(dipole, {"positions": x["positions"]}, "rotate_x", action=action)
    with pytest.raises(ValueError, match="equally many samples"):
        lie_derivative(dipole, {**x, "charges": normal(3, 5)}, "rotate_x", action=action)


# --- grids of one and three axes, vectors on grids, windows ---


@pytest.mark.parametrize("action", [Volumes(), Videos(), Sequences()], ids=lambda a: type(a).__name__)
def test_affine_fields_on_other_grids_are_exact_for_quadratics(action):
    space = (5, 6, 7)[-len(action.axes) :]
    grids = torch.meshgrid(*(torch.linspace(-1, 1, n, dtype=torch.float64) for n in space), indexing="ij")[::-1]
    value = 1 + sum((i + 1) * g + 0.5 * g * g for i, g in enumerate(grids))
    value = value + grids[0] * grids[-1]
    x = value.expand(1, 1, *space)
    slopes = [(i + 1) + g for i, g in enumerate(grids)]
    slopes[0] = slopes[0] + grids[-1]
    slopes[-1] = slopes[-1] + grids[0]
    inside = tuple(slice(1, -1) for _ in space)
    place = {a: i for i, a in enumerate(action.axes)}
    for name, element in action.generators.items():
        found = action.tangents(x, torch.tensor([element.coefficients], dtype=torch.float64))[0, 0, 0]
        kind, _, letters = name.partition("_")
        if kind == "saturate":
            expected = value
        elif kind == "scale":
            expected = -sum(g * s for g, s in zip(grids, slopes, strict=True))
        elif kind == "translate":
            expected = slopes[place[letters]]
        elif kind == "stretch":
            expected = grids[place[letters]] * slopes[place[letters]]
        elif kind == "shear":
            expected = grids[place[letters[1]]] * slopes[place[letters[0]]]
        else:
            a, b = (place[letters] + 1) % 3, (place[letters] + 2) % 3
            expected = grids[b] * slopes[a] - grids[a] * slopes[b]
        torch.testing.assert_close(found[inside], expected[inside], rtol=0, atol=1e-13)
    pointwise = {3: "NCDHW", 1: "NCT"}[len(space)]
    net = {3: nn.Conv3d, 1: nn.Conv1d}[len(space)](1, 2, 1, bias=False).double()
    for name in action.generators:
        assert lie_derivative(net, x, name, action=action, output=pointwise).abs().max() < 1e-13
    with pytest.raises(ValueError, match="spatial axes for outputs of layout"):  # of an image, from another grid
        lie_derivative(lambda x: x.flatten(2)[..., None], x, "saturate", action=action, output="NCHW")


def test_time_shifts_of_sequences():
    x = torch.sin(torch.linspace(0, 6, 200, dtype=torch.float64)).expand(2, 1, -1)
    L = lie_derivative(lambda s: s[..., 50:150].mean(-1), x, "translate_t", action=Sequences())
    # Half the length, 99.5 samples, per unit: the mean of a derivative is the difference of the ends.
    expected = (x[..., 150] + x[..., 149] - x[..., 50] - x[..., 49]) / 2 / 100 * 99.5
    torch.testing.assert_close(L, expected)
    assert lie_derivative(lambda s: s.mT, x, "translate_t", action=Sequences(), output="NTC").abs().max() == 0


def test_vectors_on_a_grid_are_carried_and_turned():
    H, W = 9, 13
    r, c = torch.meshgrid(torch.arange(H).double(), torch.arange(W).double(), indexing="ij")
    image = (0.3 * c * c - 0.2 * r * c + r)[None, None]

    class ContravariantGradient(nn.Module):  # J grad I: area-preserving flows carry it along as a vector field
        def forward(self, x):
            dx = (x[..., 1:-1, 2:] - x[..., 1:-1, :-2]) / 2
            dy = (x[..., 2:, 1:-1] - x[..., :-2, 1:-1]) / 2
            return nn.functional.pad(torch.cat([dy, -dx], 1), (1, 1, 1, 1))

    inside = (..., slice(2, -2), slice(2, -2))
    for name in ("translate_x", "translate_y", "rotate", "shear_x", "shear_y", "hyperbolic"):
        L = lie_derivative(ContravariantGradient(), image, name, output=VectorGrid())
        naive = lie_derivative(ContravariantGradient(), image, name, output="NCHW")
        assert L[inside].abs().max() < 1e-11, name  # exact for quadratics, up to rounding
        if not name.startswith("translate"):
            assert naive[inside].abs().max() > 0.1


def test_windows_move_across_their_borders():
    x = normal(2, 3, 8, 12)
    cut = x.view(2, 3, 2, 4, 3, 4).permute(0, 2, 4, 3, 5, 1).reshape(12, 16, 3)
    layout = Windows(windows=(2, 3), size=(4, 4))
    moved = layout.tangents(cut, torch.eye(7, dtype=torch.float64), (8, 12))
    whole = NCHW().tangents(x, torch.eye(7, dtype=torch.float64), (8, 12))
    back = moved.view(7, 2, 2, 3, 4, 4, 3).permute(0, 1, 6, 2, 4, 3, 5).reshape(7, 2, 3, 8, 12)
    assert torch.equal(back, whole)
    with pytest.raises(ValueError, match="rows and columns of windows"):
        Windows((3, 3), (4, 4)).tangents(cut, torch.eye(7, dtype=torch.float64), (8, 12))


# --- colours, flows and fields ---


def test_colours_are_the_derivatives_of_torchvision():
    from torchvision.transforms.v2 import functional as tv

    mean, std = (0.5, 0.4, 0.3), (0.2, 0.25, 0.3)
    raw = torch.rand(2, 3, 6, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) * 0.6 + 0.2
    x = tv.normalize(raw, mean, std)
    action, step = Colours(mean, std), 1e-6
    for name, adjust in {
        "brightness": tv.adjust_brightness,
        "contrast": tv.adjust_contrast,
        "saturation": tv.adjust_saturation,
    }.items():
        row = torch.tensor([action.generators[name].coefficients], dtype=torch.float64)
        reference = tv.normalize(adjust(raw, 1 + step), mean, std) - tv.normalize(adjust(raw, 1 - step), mean, std)
        # torchvision rounds its grey weights to four digits, and so do we.
        torch.testing.assert_close(action.tangents(x, row)[0], reference / (2 * step), rtol=1e-6, atol=1e-7)
    hue = action.tangents(x, torch.tensor([[1.0, 0, 0, 0]], dtype=torch.float64))[0] * x.new_tensor(std).view(3, 1, 1)
    assert (hue.sum(1).abs() < 1e-12).all()  # luminance along grey is kept
    assert ((hue * raw).sum(1).abs() < 1e-12).all()  # and so is the length
    grey = lie_derivative(lambda i: i.mean(1).flatten(1), raw, "hue", action=Colours())
    assert grey.abs().max() < 1e-12
    with pytest.raises(ValueError, match=r"\(B, 3, H, W\)"):
        lie_derivative(lambda i: i, raw[:, :2], "hue", action=Colours())


def test_a_flow_of_ones_own_moves_images_and_their_maps():
    own = Images(flows={"swirl": lambda X, Y: (Y * X * X, -X * Y * Y), "turn": lambda X, Y: (Y, -X)})
    x = normal(2, 3, 8, 10)
    mix = nn.Conv2d(3, 2, 1, bias=False).double()
    found = lie_derivatives(mix, x, ["swirl", "turn", "rotate", "saturate"], action=own, output="NCHW")
    assert found.derivatives.abs().max() < 1e-12
    first = lie_derivatives(lambda i: i[..., 2:5].mean(dim=(2, 3)), x, ["turn", "rotate", "swirl"], action=own)
    torch.testing.assert_close(first.derivatives[0], first.derivatives[1])
    assert (first.derivatives[2] - first.derivatives[0]).abs().max() > 1e-2


def test_vector_fields_of_ones_own():
    fields = VectorFields({"grow": lambda z: z, "spin": lambda z: torch.stack([-z[..., 1], z[..., 0]], -1)})
    z = normal(5, 2)
    for name in ("grow", "spin"):
        assert lie_derivative(lambda z: 2 * z, z, name, action=fields, output=fields).abs().max() < 1e-15
    L = lie_derivative(lambda z: z.square(), z, "grow", action=fields, output=fields)
    torch.testing.assert_close(L, z.square())  # degree two in place of one
    own = lie_derivative(lambda z: z.square(), z, "grow", action=fields, output=lambda v, a: 2 * a[:, :1, None] * v)
    assert own.abs().max() < 1e-15
    with pytest.raises(ValueError, match="to give a velocity of shape"):
        lie_derivative(lambda z: z, z, "bad", action=VectorFields({"bad": lambda z: z[:1]}), output="invariant")
    both = VectorFields({"bad": lambda z: z[:1], "grow": lambda z: z})
    torch.testing.assert_close(lie_derivative(lambda z: z, z, "grow", action=both, output="invariant"), z)
    for flow, got in ((lambda X, Y: X, "got Tensor"), (lambda X, Y: (X, Y, X), "got 3 parts")):
        with pytest.raises(ValueError, match=rf"flow 'swirl' to return \(u, v\).*{got}"):
            lee(lambda x: x.mean((2, 3)), torch.ones(1, 1, 4, 4), "swirl", action=Images(flows={"swirl": flow}))
    with pytest.raises(ValueError, match="did you mean 'spectral'"):
        Images(gradient="spectrl")
    with pytest.raises(ValueError, match=r"got \(4, 64, 2\)"):
        lee(lambda x: x.mean(1), torch.ones(4, 64, 2), action=Points(SE3()), output="invariant")
    with pytest.raises(ValueError, match="output's velocities to have shape"):
        lie_derivative(lambda z: z, z, "grow", action=fields, output=lambda v, a: v)


# --- outputs of several parts, and what timm says of its features ---


def test_parts_of_an_output_are_selected():
    x = normal(2, 3, 6, 6)
    expected = lie_derivative(lambda x: x.mean(dim=(2, 3)), x, "rotate")
    for structured, select in (
        (lambda x: {"logits": x.mean(dim=(2, 3)), "map": x}, "logits"),
        (lambda x: (x, x.mean(dim=(2, 3))), 1),
        (lambda x: [x.mean(dim=(2, 3))], lambda out: out[0]),
    ):
        assert torch.equal(lie_derivative(structured, x, "rotate", select=select), expected)
    with pytest.raises(ValueError, match=r"part 'logit', got dict with \['logits'\]"):
        lie_derivative(lambda x: {"logits": x}, x, "rotate", select="logit")
    with pytest.raises(ValueError, match="got dict with 'logits'; choose one by select="):
        lie_derivative(lambda x: {"logits": x}, x, "rotate")


@pytest.mark.parametrize(
    ("name", "layout"),
    [
        ("test_resnet", "NCHW()"),
        ("test_vit", "Tokens(grid=(10, 10), prefix=1)"),
        ("swin_tiny_patch4_window7_224", "NHWC()"),
        ("levit_128s", "Tokens(grid=(4, 4), prefix=0)"),
    ],
)
def test_the_metadata_of_timm_declare_the_layout_of_its_features(name, layout):
    import timm
    from liederivative.derivative import declared_layout, evaluation_mode

    model = timm.create_model(name, **({"depths": (1, 1, 1, 1)} if name.startswith("swin") else {}))
    size = timm.get_pretrained_cfg(name).input_size[-2:]
    x = torch.randn(1, 3, *size, generator=torch.Generator().manual_seed(0))
    with evaluation_mode(model), torch.no_grad():
        value = model.forward_features(x)
    found = declared_layout(model.forward_features, value, Domain(size))
    assert repr(found).replace("NCHW(channel_dim=1)", "NCHW()") == layout
    if name.startswith("test"):
        L = lie_derivative(model.forward_features, x, "rotate")
        assert torch.equal(L, lie_derivative(model.forward_features, x, "rotate", output=found))
    with pytest.raises(ValueError, match="cannot be known"):  # not of another callable, whatever its shape
        lie_derivative(lambda x: model.eval().forward_features(x), x, "rotate")


def test_unfit_inputs_are_named_by_their_kind():
    with pytest.raises(ValueError, match=r"expected sequences as a tensor of shape \(B, C, T\), got shape \(2, 3\)"):
        lie_derivative(lambda x: x, normal(2, 3), "translate_t", action=Sequences())
    with pytest.raises(ValueError, match="expected points of shape"):
        lie_derivative(lambda x: x, normal(2, 4), "rotate_x", action=Points(SO3()))
    with pytest.raises(ValueError, match="unknown generator 'rotate_w': did you mean"):
        lie_derivative(lambda x: x, normal(2, 3), "rotate_w", action=Points(SO3()))
    with pytest.raises(ValueError, match="expected 3 coefficients for this action, got 7"):
        lie_derivative(lambda x: x, normal(2, 3), GENERATORS["rotate"], action=Points(SO3()))
    with pytest.raises(ValueError, match="another kind of action"):
        lie_derivative(lambda x: x, normal(2, 3), "rotate_x", action=Points(SO3()), output=Points(SO2()))
    with pytest.raises(ValueError, match="spatial axes"):
        lie_derivative(lambda x: x, normal(2, 9, 3), "rotate_x", action=Points(SO3()), output=Tokens((3, 3)))
