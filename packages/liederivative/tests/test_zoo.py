"""timm models by name: seeded weights, local files, and what goes wrong with either."""

from __future__ import annotations

import os
import pickle
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from lie.run import save_weights
from liederivative.images import sample_photographs
from liederivative.zoo import check_model_names, load_checkpoint_file, load_model, weights_checksum
from safetensors.torch import save_file
from torch import nn

SMALL = "test_resnet"  # timm's own test model: 0.5 M parameters, 160 px


def test_random_weights_are_a_function_of_the_seed_and_leave_the_global_state_alone():
    state = torch.get_rng_state()
    first, again, other = (load_model(SMALL, seed=seed) for seed in (0, 0, 1))
    assert torch.equal(torch.get_rng_state(), state)
    assert first.weights.sha256 == again.weights.sha256 != other.weights.sha256
    assert first.weights.kind == "random"
    assert not first.module.training


def test_the_checksum_sees_every_bit():
    net = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2))
    before = weights_checksum(net)
    with torch.no_grad():
        weight = next(net.parameters())
        weight[0, 0] = torch.nextafter(weight[0, 0], torch.tensor(9.0))
    assert weights_checksum(net) != before


def test_preprocessing_is_that_of_the_model():
    model = load_model(SMALL, image_size=64)
    photographs = [photograph.image for photograph in sample_photographs()[:2]]
    images = model.images(photographs)
    assert images.shape == (2, 3, 64, 64)
    # Independent: resize the shorter side to 64 / crop_pct, cut the middle, normalise.
    from torchvision.transforms import functional as F

    short = int(64 / model.preprocessing["crop_pct"])
    modes = {"bicubic": F.InterpolationMode.BICUBIC, "bilinear": F.InterpolationMode.BILINEAR}
    resized: Any = F.resize(cast(Any, photographs[0]), [short], modes[model.preprocessing["interpolation"]])
    expected = F.to_tensor(cast(Any, F.center_crop(resized, [64, 64])))
    mean, std = (torch.tensor(model.preprocessing[key])[:, None, None] for key in ("mean", "std"))
    torch.testing.assert_close(images[0], (expected - mean) / std, rtol=0, atol=1e-6)


def test_models_that_depend_on_the_resolution_are_built_for_it():
    model = load_model("vit_tiny_patch16_224", image_size=64)
    assert model.module(torch.zeros(1, 3, 64, 64)).shape == (1, 1000)


@pytest.mark.parametrize("form", ["safetensors", "bare", "state_dict", "model", "module."])
def test_local_weights_come_back_bit_for_bit(form, tmp_path):
    source = load_model(SMALL, seed=3)
    state = source.module.state_dict()
    if form == "safetensors":
        path = tmp_path / "weights.safetensors"
        save_weights(path, source.module)
    else:
        path = tmp_path / "weights.pth"
        if form == "module.":
            state = {f"module.{name}": tensor for name, tensor in state.items()}
        torch.save({"epoch": 7, form: state} if form in ("state_dict", "model") else state, path)
    loaded = load_model(SMALL, seed=0, checkpoint=path)
    assert loaded.weights.kind == "checkpoint"
    assert loaded.weights.sha256 == source.weights.sha256


def test_another_head_is_declared(tmp_path):
    source = load_model(SMALL, seed=3, num_classes=10)
    save_weights(tmp_path / "ten.safetensors", source.module)
    loaded = load_model(SMALL, checkpoint=tmp_path / "ten.safetensors", num_classes=10)
    assert loaded.num_classes == 10
    with pytest.raises(ValueError, match=r"do not fit.*got \(10"):
        load_model(SMALL, checkpoint=tmp_path / "ten.safetensors")


class Harmful:
    """Would run code if it were unpickled."""

    def __reduce__(self):
        return os.mkdir, ("harm",)


def bad_file(kind: str, folder: Path) -> Path:
    good = load_model(SMALL).module
    path = folder / f"{kind}.{'safetensors' if kind.endswith('st') else 'pth'}"
    if kind in ("truncated", "truncated_st"):
        if kind == "truncated_st":
            save_weights(path, good)
        else:
            torch.save(good.state_dict(), path)
        path.write_bytes(path.read_bytes()[:-2000])
    elif kind in ("foreign", "foreign_st"):
        path.write_bytes(b"GIF89a, in truth" * 50)
    elif kind == "empty":
        path.write_bytes(b"")
    elif kind == "harmful":
        path.write_bytes(pickle.dumps(Harmful()))
    elif kind == "whole_module":
        torch.save(nn.Linear(2, 2), path)
    elif kind == "numbers":
        torch.save({"epoch": 3}, path)
    elif kind == "renamed":
        torch.save({name.replace("conv", "konv"): tensor for name, tensor in good.state_dict().items()}, path)
    elif kind == "reshaped":
        torch.save({name: tensor.new_zeros(*tensor.shape, 2) for name, tensor in good.state_dict().items()}, path)
    elif kind == "nan":
        state = {name: tensor * float("nan") if tensor.is_floating_point() else tensor
                 for name, tensor in good.state_dict().items()}  # fmt: skip
        torch.save(state, path)
    return path


BAD_FILES = {
    "missing": "does not exist",
    "truncated": "truncated, foreign",
    "truncated_st": "truncated or of another kind",
    "foreign": "truncated, foreign",
    "foreign_st": "truncated or of another kind",
    "empty": "truncated, foreign",
    "harmful": "pickled objects, which are never loaded; save",
    "whole_module": "pickled objects, which are never loaded; save",
    "numbers": "holds no state dict",
    "renamed": "do not fit.*has unknown",
    "reshaped": "do not fit.*of shape",
    "nan": "holds NaN or infinity",
}


@pytest.mark.parametrize("kind", BAD_FILES)
def test_a_bad_file_is_one_clear_line_and_changes_nothing(kind, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path, module = bad_file(kind, tmp_path), load_model(SMALL).module
    before = weights_checksum(module)
    with pytest.raises(ValueError, match=BAD_FILES[kind]) as error:
        load_checkpoint_file(path, module)
    assert "\n" not in str(error.value)
    assert path.name in str(error.value)
    assert weights_checksum(module) == before
    assert not (tmp_path / "harm").exists()


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
def test_the_prefix_of_data_parallel_training_is_taken_off(suffix, tmp_path):
    trained, path = load_model(SMALL, seed=1).module, tmp_path / f"weights{suffix}"
    state = {f"module.{name}": tensor for name, tensor in trained.state_dict().items()}
    save_file(state, path) if suffix == ".safetensors" else torch.save(state, path)
    module = load_model(SMALL).module
    assert weights_checksum(module) != weights_checksum(trained)
    load_checkpoint_file(path, module)
    assert weights_checksum(module) == weights_checksum(trained)
    with pytest.raises(ValueError, match="do not fit resnet18:"):
        load_model("resnet18", checkpoint=str(path))


def test_a_real_checkpoint_of_another_network_does_not_fit():
    data = os.environ.get("LIE_TEST_DATA")
    files = sorted(Path(data, "cifar10_resnet20").glob("*.th")) if data else []
    if not files:
        pytest.skip("LIE_TEST_DATA holds no cifar10_resnet20")
    with pytest.raises(ValueError, match="do not fit ResNet"):
        load_checkpoint_file(files[0], load_model("resnet18").module)


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["resnet81"], "unknown timm model 'resnet81': did you mean"),
        (["resnet18.bogus"], r"did you mean 'resnet18'.*known: resnet18, resnet18\.a1_in1k"),
        (["hf-hub:someone/resnet18"], "unknown timm model"),
        (["resnet18", "resnet18"], "resnet18 more than once"),
        ([], "at least one timm model name"),
    ],
)
def test_names_are_checked_without_building_anything(names, message):
    with pytest.raises(ValueError, match=message):
        check_model_names(names)
    check_model_names(["resnet18", "resnet18.a1_in1k"])


def test_pretrained_weights_that_cannot_be_had_are_one_clear_line(monkeypatch, tmp_path):
    with pytest.raises(ValueError, match="timm has no pretrained weights of mixer_s32_224"):
        load_model("mixer_s32_224", pretrained=True)
    with pytest.raises(ValueError, match="expected --pretrained alone"):
        load_model(SMALL, pretrained=True, num_classes=10)
    # No network and an empty cache, whatever this machine has.
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(ValueError, match="cannot get the pretrained weights of resnet18") as error:
        load_model("resnet18", pretrained=True)
    assert "\n" not in str(error.value)


def test_what_timm_cannot_build_is_one_clear_line():
    with pytest.raises(ValueError, match="at least 2 pixels"):
        load_model(SMALL, image_size=1)
    with pytest.raises(ValueError, match="at least one class, got 0"):
        load_model(SMALL, num_classes=0)
    with pytest.raises(ValueError, match=r"timm cannot build pit_ti_224 with \{'img_size': 5\}: "):
        load_model("pit_ti_224", image_size=5)


def test_files_from_before_batch_normalisation_counted_its_batches(tmp_path):
    model = load_model(SMALL, seed=0).module
    state = {name: tensor for name, tensor in model.state_dict().items() if not name.endswith("num_batches_tracked")}
    assert len(state) < len(model.state_dict())
    torch.save(state, tmp_path / "old.pth")
    other = load_model(SMALL, seed=1).module
    load_checkpoint_file(tmp_path / "old.pth", other)
    assert weights_checksum(other) == weights_checksum(model)
