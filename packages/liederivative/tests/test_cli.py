"""The command from end to end: results, resuming, and one line for what the user can mend."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from lie.run import save_weights
from liederivative import GENERATORS, lee
from liederivative.cli import main
from liederivative.images import sample_photographs
from liederivative.zoo import load_model
from PIL import Image

SMALL, SMALL_VIT = "test_resnet", "test_vit"  # timm's own test models
QUICK = ["--image-size", "64", "--limit", "2"]


def metrics(folder: Path) -> dict:
    return json.loads((folder / "metrics.json").read_text())


def fails(capfd, out: Path, *arguments: str) -> str:
    """The line on stderr of a command that must exit with 2 and leave no ``out`` behind."""
    assert main([*arguments, "--out", str(out)]) == 2
    captured = capfd.readouterr()
    lines = [line for line in captured.err.splitlines() if "error:" in line]
    assert len(lines) == 1
    assert lines[0].startswith("liederivative: error: ")
    assert "Traceback" not in captured.err
    assert not out.exists()
    return lines[0]


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    out = tmp_path_factory.mktemp("run") / "deep" / "run"
    assert main(["measure", SMALL, SMALL_VIT, *QUICK, "--out", str(out), "--device", "cpu"]) == 0
    return out


def test_measure_writes_what_the_library_finds(finished):
    found = metrics(finished)
    assert list(found["models"]) == [SMALL, SMALL_VIT]
    assert found["quantity"] == "softmax probabilities"
    assert found["seed"] == 0
    assert found["configuration"]["image_size"] == 64
    assert {"torch", "timm", "liederivative"} <= found["versions"].keys()
    assert [image["name"] for image in found["images"]] == ["china.jpg", "flower.jpg"]
    model = load_model(SMALL, seed=0, image_size=64)
    images = model.images([photograph.image for photograph in sample_photographs()[:2]])
    errors = lee(model.module, images, probabilities=True)
    record = found["models"][SMALL]
    assert record["weights"] == {"kind": "random", "source": "seed 0", "sha256": model.weights.sha256}
    assert record["method"] == "fused rules"
    assert list(record["generators"]) == list(GENERATORS)
    for index, numbers in enumerate(record["generators"].values()):
        for measure, values in (("mean_absolute", errors.absolute), ("mean_squared", errors.squared)):
            # The same computation, up to the threads' order of summation.
            assert numbers[measure]["per_image"] == pytest.approx(values[index].tolist(), rel=1e-4)
            assert numbers[measure]["mean"] == pytest.approx(float(values[index].mean()), rel=1e-4)
            spread = float(values[index].std()) / 2**0.5
            assert numbers[measure]["standard_error"] == pytest.approx(spread, rel=1e-2)
        assert numbers["mean_absolute"]["mean"] > 0
    assert Image.open(finished / "lee.png").size[0] > 500
    assert sorted(path.name for path in finished.iterdir()) == ["config.json", "lee.png", "metrics.json", "models"]


def test_the_table_names_models_and_generators(tmp_path, capfd, monkeypatch):
    monkeypatch.setenv("COLUMNS", "150")
    arguments = ["measure", SMALL, *QUICK, "--generators", "rotate", "scale", "--logits", "--limit", "1"]
    assert main([*arguments, "--out", str(tmp_path)]) == 0
    printed = capfd.readouterr().out
    for expected in ("rotate", "scale", SMALL, "outputs", "random weights (seed 0)", "say nothing about trained"):
        assert expected in printed
    assert "translate_x" not in printed
    record = metrics(tmp_path)["models"][SMALL]["generators"]
    assert list(record) == ["rotate", "scale"]
    assert record["rotate"]["mean_squared"]["standard_error"] is None


def test_same_seed_same_result_and_weights_from_a_file(finished, tmp_path):
    save_weights(tmp_path / "weights.safetensors", load_model(SMALL, seed=0).module)
    weights = ["--checkpoint", str(tmp_path / "weights.safetensors"), "--seed", "5"]
    assert main(["measure", SMALL, *QUICK, *weights, "--out", str(tmp_path / "run"), "--device", "cpu"]) == 0
    one, other = metrics(finished)["models"][SMALL], metrics(tmp_path / "run")["models"][SMALL]
    assert other["weights"]["kind"] == "checkpoint"
    assert one["weights"]["sha256"] == other["weights"]["sha256"]
    assert one["generators"] == other["generators"]


def test_a_killed_run_goes_on_where_it_was(tmp_path):
    out = tmp_path / "run"
    command = [sys.executable, "-m", "liederivative.cli", "measure"]
    names = [SMALL, SMALL_VIT, "test_convnext"]
    process = subprocess.Popen(
        [*command, *names, *QUICK, "--out", str(out), "--device", "cpu"],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    first = out / "models" / f"{SMALL}.json"
    deadline = time.monotonic() + 900  # of a machine that has no time for us; seconds are usual
    while not first.exists() and time.monotonic() < deadline and process.poll() is None:
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL if os.name == "posix" else signal.SIGTERM)
    process.wait()
    assert first.exists()
    assert not (out / "metrics.json").exists()
    kept = first.read_bytes()
    assert main(["measure", "--resume", str(out)]) == 0
    assert first.read_bytes() == kept  # with its seconds: not measured again
    assert list(metrics(out)["models"]) == names


def test_resuming_measures_what_is_missing_and_what_no_longer_fits(finished, tmp_path, capfd):
    import shutil

    out = tmp_path / "run"
    shutil.copytree(finished, out)
    (out / "metrics.json").unlink()
    (out / "models" / f"{SMALL_VIT}.json").unlink()
    stale = json.loads((out / "models" / f"{SMALL}.json").read_text())
    stale["fingerprint"] = "that of other images"
    stale["result"]["generators"] = {}
    (out / "models" / f"{SMALL}.json").write_text(json.dumps(stale))
    assert main(["measure", "--resume", str(out), "--batch-size", "1"]) == 0
    assert "kept: none" in capfd.readouterr().err
    one, other = metrics(finished), metrics(out)
    for name in (SMALL, SMALL_VIT):
        for generator in GENERATORS:
            number, before = (run["models"][name]["generators"][generator]["mean_squared"] for run in (other, one))
            assert number["mean"] == pytest.approx(before["mean"], rel=1e-3)  # batches of 1 instead of 2
    assert main(["measure", "--resume", str(out), "--seed", "3"]) == 2
    assert "was run with seed=0, got 3" in capfd.readouterr().err
    assert main(["measure", "--resume", str(tmp_path / "nowhere")]) == 2
    assert "is this the folder of a run" in capfd.readouterr().err
    (out / "config.json").write_text('{"command": "sweep"}')
    assert main(["measure", "--resume", str(out)]) == 2
    assert "not that of a measure run" in capfd.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["resnet81"], "unknown timm model 'resnet81': did you mean"),
        ([], "at least one timm model name"),
        ([SMALL, "--generators", "rotatoin"], "unknown generator 'rotatoin': did you mean 'rotate'"),
        ([SMALL, "--images", "no/such/folder"], "no such folder"),
        ([SMALL, "--limit", "0"], "--limit to be a whole number"),
        ([SMALL, "--device", "warp"], "device 'warp' is not available"),
        ([SMALL, "--dtype", "float16"], "invalid choice 'float16'"),
        ([SMALL, "--batch-size", "0"], "--batch-size"),
        ([SMALL, "--checkpoint", "no.safetensors"], "no checkpoint at no.safetensors"),
        ([SMALL, SMALL_VIT, "--checkpoint", "no.safetensors"], "expected one model with --checkpoint, got 2"),
        ([SMALL, "--checkpoint", "x", "--pretrained"], "no checkpoint at x"),
        (["mixer_s32_224", "--pretrained"], "no pretrained weights of mixer_s32_224"),
        (["vit_small_patch14_dinov2", "--image-size", "28", "--limit", "1"], "no classifier head.*--logits"),
        (["vgg11", "--image-size", "8", "--limit", "1"], "vgg11 at 8 x 8 pixels: "),
    ],
)
def test_bad_arguments(arguments, message, tmp_path, capfd):
    import re

    assert re.search(message, fails(capfd, tmp_path / "out", "measure", *arguments))


def test_an_unknown_command_names_the_nearest(tmp_path, capfd):
    assert "unknown command 'mesure': did you mean 'measure'" in fails(capfd, tmp_path / "out", "mesure", SMALL)


def test_a_folder_with_a_file_that_is_no_image(tmp_path, capfd):
    folder = tmp_path / "images"
    folder.mkdir()
    assert "no image in the folder" in fails(capfd, tmp_path / "out", "measure", SMALL, "--images", str(folder))
    (folder / "notes.txt").write_text("no image")
    assert "only notes.txt" in fails(capfd, tmp_path / "out", "measure", SMALL, "--images", str(folder))
    (folder / "notes.png").write_text("no image")
    line = fails(capfd, tmp_path / "out", "measure", SMALL, "--images", str(folder))
    assert "notes.png" in line
    assert "remove it from the folder" in line


def test_bad_weights(tmp_path, capfd):
    path = tmp_path / "weights.pth"
    path.write_bytes(b"not a checkpoint")
    line = fails(capfd, tmp_path / "out", "measure", SMALL, *QUICK, "--checkpoint", str(path))
    assert "is not a whole PyTorch file" in line
    state = load_model(SMALL).module.state_dict()
    torch.save({name: tensor for name, tensor in state.items() if "conv1" not in name}, path)
    assert "the file lacks" in fails(capfd, tmp_path / "out", "measure", SMALL, *QUICK, "--checkpoint", str(path))


def test_outputs_that_are_not_finite_leave_nothing_behind(tmp_path, capfd):
    state = load_model(SMALL).module.state_dict()
    # Finite weights whose products are not: the file is fine, the model is not.
    torch.save(
        {n: torch.full_like(t, 1e38) if n.endswith("fc.weight") else t for n, t in state.items()}, tmp_path / "w.pth"
    )
    line = fails(capfd, tmp_path / "out", "measure", SMALL, *QUICK, "--checkpoint", str(tmp_path / "w.pth"))
    assert "expected finite outputs of the model" in line


def test_an_unwritable_folder_is_refused(tmp_path, capfd):
    (tmp_path / "file").write_text("in the way")
    assert main(["measure", SMALL, *QUICK, "--out", str(tmp_path / "file" / "run")]) == 2
    assert "cannot write to --out" in capfd.readouterr().err


def test_help_shows_an_example(capfd):
    with pytest.raises(SystemExit) as stop:
        main(["measure", "--help"])
    assert stop.value.code == 0
    assert "liederivative measure resnet18" in " ".join(capfd.readouterr().out.split())
