"""Trained against untrained networks, on real weights; the callback in a training loop."""

from __future__ import annotations

import copy
import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from lie.run import UserError
from liederivative import GENERATORS, lee, lie_derivative
from liederivative.actions import image_tangents
from liederivative.images import sample_photographs
from liederivative.metrics import transform_image
from liederivative.plots import plot_histories
from liederivative.training import LEETracker
from liederivative.zoo import load_checkpoint_file
from PIL import Image
from torch import Tensor, nn

# --- a published CIFAR-10 network ---

needs_weights = pytest.mark.skipif("LIE_TEST_DATA" not in os.environ, reason="needs real weights under LIE_TEST_DATA")


class Block(nn.Module):
    """Two 3 x 3 convolutions around an identity that is subsampled and padded with zero channels."""

    def __init__(self, channels_in: int, channels: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels_in, channels, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.stride, self.more = stride, channels - channels_in

    def forward(self, x: Tensor) -> Tensor:
        y = self.bn2(self.conv2(torch.relu(self.bn1(self.conv1(x)))))
        skip = x[..., :: self.stride, :: self.stride]
        return torch.relu(y + nn.functional.pad(skip, (0, 0, 0, 0, self.more // 2, self.more // 2)))


class ResNet20(nn.Module):
    """He et al. 2016, section 4.2: three stages of three blocks, 16, 32 and 64 channels."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, 16, 3, 1, 1, bias=False), nn.BatchNorm2d(16)
        stages = [(16, 16, 1), (16, 32, 2), (32, 64, 2)]
        for number, (before, channels, stride) in enumerate(stages, start=1):
            blocks = [Block(before, channels, stride), Block(channels, channels, 1), Block(channels, channels, 1)]
            setattr(self, f"layer{number}", nn.Sequential(*blocks))
        self.linear = nn.Linear(64, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.bn1(self.conv1(x)))
        return self.linear(self.layer3(self.layer2(self.layer1(x))).mean(dim=(2, 3)))


def crops() -> Tensor:
    """Each sample photograph's central square at 32 x 32 pixels, normalised as the network was trained; float64."""
    rows = []
    for photo in sample_photographs():
        width, height = photo.image.size
        side = min(width, height)
        left, top = (width - side) // 2, (height - side) // 2
        square = photo.image.crop((left, top, left + side, top + side)).resize((32, 32), Image.Resampling.BOX)
        rows.append(torch.tensor(np.asarray(square), dtype=torch.float64).permute(2, 0, 1) / 255)
    mean, deviation = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    return (torch.stack(rows) - mean[:, None, None]) / deviation[:, None, None]


@pytest.fixture(scope="module")
def resnets() -> tuple[ResNet20, ResNet20]:
    """Trained, and as it was before training."""
    torch.manual_seed(0)
    untrained = ResNet20()
    for module in untrained.modules():  # its authors' initialisation
        if isinstance(module, nn.Conv2d | nn.Linear):
            nn.init.kaiming_normal_(module.weight)
    trained = copy.deepcopy(untrained)
    path = Path(os.environ["LIE_TEST_DATA"]) / "cifar10_resnet20" / "resnet20-12fca82f.th"
    load_checkpoint_file(path, trained)
    return trained.double().eval(), untrained.double().eval()


@needs_weights
def test_the_weights_are_the_published_network(resnets):
    trained, _ = resnets
    assert sum(p.numel() for p in trained.parameters()) == pytest.approx(0.27e6, rel=0.01)
    images = crops()
    with torch.no_grad():
        probabilities = trained(images).softmax(1)
    names = [photo.name for photo in sample_photographs()]
    cat = 3  # of airplane, automobile, bird, cat, ...
    assert int(probabilities[names.index("chelsea.png")].argmax()) == cat  # a cat
    assert float(probabilities.max(1).values.mean()) > 0.5  # sure of itself, unlike random weights


@needs_weights
def test_what_training_did(resnets):
    """Training makes the network deaf to translations among all directions, though its raw error is larger.

    Measured on 64 crops with three initialisations: the translation's derivative, squared, is 0.9 to 1.5 of that along
    a random direction of equal norm before training, and 0.12 to 0.17 after; the relative error under a change of
    contrast falls 4 to 13 times. An untrained network answers alike to all images, so its raw error is small.
    """
    images = crops()
    field = image_tangents(images, torch.tensor([GENERATORS["translate_x"].coefficients], dtype=images.dtype))[0]
    noise = torch.randn(16, *images.shape, generator=torch.Generator().manual_seed(0), dtype=images.dtype)
    noise *= (field.flatten(1).norm(dim=1) / noise.flatten(2).norm(dim=2))[..., None, None, None]
    deafness, saturate, raw = [], [], []
    for net in resnets:
        along = lie_derivative(net, images, "translate_x").square().mean()
        with torch.no_grad():
            random = torch.stack([torch.func.jvp(net, (images,), (v,))[1].square().mean() for v in noise]).mean()
            variance = net(images).var(0).mean()
        deafness.append(float(along / random))
        errors = lee(net, images, ["translate_x", "saturate"])
        saturate.append(errors.mean_squared["saturate"] / float(variance))
        raw.append(errors.mean_squared["translate_x"])
    trained, untrained = deafness
    assert trained < 0.3
    assert 0.5 < untrained < 2.5
    assert saturate[0] < saturate[1] / 3
    assert raw[0] > raw[1]


@needs_weights
@pytest.mark.parametrize("generator", ["translate_x", "rotate", "scale", "saturate"])
def test_the_derivative_of_real_weights_is_that_of_finite_differences(resnets, generator):
    trained, _ = resnets
    images = crops()[:4]
    L = lie_derivative(trained, images, generator)
    step = 1e-9
    with torch.no_grad():
        ends = [trained(transform_image(images, generator, t)) for t in (step, -step)]
    # So small a step, because some of 190,000 pre-activations lie within a longer one of ReLU's kink (1e-6: an error
    # of 1 %); it costs rounding, 1e-14 / 1e-9, of derivatives of order 10.
    torch.testing.assert_close(L, (ends[0] - ends[1]) / (2 * step), rtol=1e-4, atol=1e-4 * float(L.abs().max()))


# --- the callback ---


def small_net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Dropout(0.3), nn.Linear(4 * 36, 3)
    )


def train(net: nn.Module, tracker: LEETracker | None, steps: int = 13) -> list[float]:
    generator = torch.Generator().manual_seed(3)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9)
    losses = []
    for step in range(steps):
        x, y = torch.randn(16, 1, 8, 8, generator=generator), torch.randint(0, 3, (16,), generator=generator)
        loss = nn.functional.cross_entropy(net(x), y)
        optimizer.zero_grad()
        loss.backward()
        if tracker is not None:  # between backward and step: gradients must stay as they are
            tracker(step, loss=loss.item())
        optimizer.step()
        losses.append(loss.item())
    return losses


def watched() -> Tensor:
    return torch.randn(6, 1, 8, 8, generator=torch.Generator().manual_seed(9))


def test_the_training_does_not_notice_the_tracker():
    alone, followed = small_net(), small_net()
    torch.manual_seed(5)  # of dropout
    losses = train(alone, None)
    tracker = LEETracker(followed, watched(), every=4)
    torch.manual_seed(5)
    assert train(followed, tracker) == losses  # bit for bit
    for name, value in alone.state_dict().items():
        assert torch.equal(followed.state_dict()[name], value)
    assert followed.training
    assert [point["step"] for point in tracker.history] == [0, 4, 8, 12]


def test_the_history_is_what_lee_finds():
    net, images = small_net(), watched()
    tracker = LEETracker(net, images, ["rotate", "scale"], every=5, probabilities=True, batch_size=4)
    losses = train(net, tracker, steps=1)
    assert tracker(3) is None
    errors = tracker.measure(7)
    expected = lee(net, images, ["rotate", "scale"], probabilities=True)
    point = tracker.history[-1]
    with torch.no_grad():
        variance = float(net.eval()(images).softmax(1).double().var(0).mean())
    assert point["variance"] == pytest.approx(variance, rel=1e-5)  # float32
    for name in ("rotate", "scale"):
        assert errors.mean_squared[name] == pytest.approx(expected.mean_squared[name], rel=1e-4)  # batches of 4
        numbers = point["generators"][name]
        assert numbers["mean_squared"] == errors.mean_squared[name]
        assert numbers["mean_absolute"] == errors.mean_absolute[name]
        assert numbers["per_variance"] == pytest.approx(errors.mean_squared[name] / variance, rel=1e-5)
    assert tracker.history[0]["values"] == {"loss": losses[0]}
    assert tracker.curve("rotate", "mean_squared") == (
        [0, 7], [p["generators"]["rotate"]["mean_squared"] for p in tracker.history]
    )  # fmt: skip


def test_a_history_is_saved_resumed_and_drawn(tmp_path):
    net = small_net()
    tracker = LEETracker(net, watched(), ("rotate",), every=4)
    train(net, tracker)
    tracker.save(tmp_path / "lee.json")
    other = LEETracker(net, watched(), ("rotate",), every=4)
    other.load(tmp_path / "lee.json")
    assert other.history == tracker.history
    other(8)  # the training went on from a checkpoint before step 8
    assert [point["step"] for point in other.history] == [0, 4, 8]
    tracker.plot(tmp_path / "one.png")
    plot_histories(tmp_path / "two.png", {"a": tracker.history, "b": other.history}, "mean_squared")
    for name in ("one.png", "two.png"):
        picture = Image.open(tmp_path / name).convert("RGB")
        assert len(picture.getcolors(10**6) or []) > 10
    (tmp_path / "lee.json").write_text(json.dumps({"kind": "other"}))
    with pytest.raises(UserError, match=r"unknown measured generator 'scale'.*rotate"):
        tracker.curve("scale")
    with pytest.raises(UserError, match="did you mean 'per_variance'"):
        tracker.curve("rotate", "per_varianc")
    with pytest.raises(UserError, match="no folder"):
        tracker.plot(tmp_path / "missing" / "one.png")
    with pytest.raises(UserError, match="is no history of an LEETracker"):
        other.load(tmp_path / "lee.json")


def test_a_single_image_or_a_constant_net_has_no_relative_error(tmp_path):
    tracker = LEETracker(small_net(), watched()[:1], "rotate")
    tracker(0)
    numbers = tracker.history[0]["generators"]["rotate"]
    assert numbers["per_variance"] is None
    assert numbers["standard_error_squared"] is None
    tracker.save(tmp_path / "lee.json")
    blank = LEETracker(lambda x: x.new_ones(len(x), 2), watched(), "rotate")
    blank(0)
    assert blank.history[0]["generators"]["rotate"] == {
        "mean_absolute": 0.0, "mean_squared": 0.0, "standard_error_squared": 0.0, "per_variance": None,
    }  # fmt: skip
    assert blank.curve("rotate") == ([], [])


def test_errors_of_the_tracker(tmp_path):
    with pytest.raises(UserError, match="every of at least 1 step"):
        LEETracker(small_net(), watched(), every=0)
    with pytest.raises(UserError, match="did you mean 'rotate'"):
        LEETracker(small_net(), watched(), "rotat")(0)
    tracker = LEETracker(small_net(), watched())
    with pytest.raises(UserError, match="call the tracker in the training loop"):
        tracker.plot(tmp_path / "x.png")
    tracker(0)
    with pytest.raises(UserError, match="did you mean 'per_variance'"):
        tracker.plot(tmp_path / "x.png", "per_varianc")


def test_the_example_in_the_docstring():
    import doctest

    from liederivative.training import tracker

    found = doctest.testmod(tracker)
    assert found.attempted > 0
    assert found.failed == 0
