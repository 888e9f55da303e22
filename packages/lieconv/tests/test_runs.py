"""Runs of the command on disk: they travel without their data, are refused early, and are never silently wrong."""

from __future__ import annotations

import json
import math
import resource
import shutil
import sys

import numpy as np
import pytest
import torch
from lie.run import UserError, output_directory
from lieconv.cli import main
from lieconv.data import load_npz

TINY = ["--channels", "8", "--num-layers", "1", "--batch-size", "8", "--epochs", "2"]


@pytest.fixture(autouse=True)
def no_bytecode(monkeypatch):
    """Write no bytecode: where the size of files is bounded, Python writes it cut short, without an error."""
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    monkeypatch.setenv("PYTHONDONTWRITEBYTECODE", "1")


def arrays(S=20, N=5, d=2, C=1, classes=2):
    rng = np.random.default_rng(0)
    return {"coords": rng.normal(size=(S, N, d)), "values": np.ones((S, N, C)), "labels": np.arange(S) % classes}


@pytest.fixture
def data(tmp_path):
    np.savez(tmp_path / "data.npz", **arrays())
    return tmp_path / "data.npz"


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("trained")
    np.savez(folder / "data.npz", **arrays())
    assert main(["train", "--data", str(folder / "data.npz"), *TINY, "--out", str(folder / "run")]) == 0
    return folder / "run"


def run(capsys, *argv):
    capsys.readouterr()
    code = main([str(a) for a in argv])
    error = [line for line in capsys.readouterr().err.splitlines() if "error:" in line]
    assert len(error) == (1 if code else 0), error
    return code, error[0] if error else ""


def fails(capsys, *argv) -> str:
    code, error = run(capsys, *argv)
    assert code == 2
    return error


def test_a_run_is_evaluated_and_predicts_without_its_data_file(trained, tmp_path, capsys):
    away = tmp_path / "away"
    shutil.copytree(trained, away)
    (trained.parent / "data.npz").rename(tmp_path / "moved.npz")
    try:
        expected = json.loads((away / "metrics.json").read_text())
        assert run(capsys, "evaluate", away)[0] == 0
        again = json.loads((away / "evaluation" / "metrics.json").read_text())
        for key in ("accuracy_upright", "accuracy_rotated", "rotation_change", "test_sets"):
            assert again[key] == expected[key]
        unlabelled = {key: value[:1] for key, value in arrays().items() if key != "labels"}
        np.savez(tmp_path / "one.npz", **unlabelled)
        assert run(capsys, "predict", away, "--input", tmp_path / "one.npz")[0] == 0
        assert "accuracy_against_labels" not in json.loads((away / "predictions" / "metrics.json").read_text())
        assert run(capsys, "predict", away, "--input", tmp_path / "moved.npz")[0] == 0
        assert "accuracy_against_labels" in json.loads((away / "predictions" / "metrics.json").read_text())
        np.savez(tmp_path / "other.npz", **(arrays() | {"coords": np.zeros((20, 5, 2))}))
        error = fails(capsys, "train", "--resume", away, "--data", tmp_path / "other.npz")
        assert "holds other point sets" in error
        assert run(capsys, "train", "--resume", away, "--data", tmp_path / "moved.npz")[0] == 0
        assert "the run in" in fails(
            capsys, "train", "--resume", away, "--epochs", "3", "--data", tmp_path / "moved.npz"
        )
        np.savez(away / "test_sets.npz", **arrays(S=4))
        assert "others than those" in fails(capsys, "evaluate", away)
    finally:
        (tmp_path / "moved.npz").rename(trained.parent / "data.npz")


@pytest.mark.parametrize("kind", [np.uint8, np.uint16, np.uint32, np.uint64, np.int8, ">i4"])
def test_labels_of_each_integer_type_are_the_same(tmp_path, kind):
    np.savez(tmp_path / "a.npz", **(arrays() | {"labels": (np.arange(20) % 3).astype(kind)}))
    assert torch.equal(load_npz(tmp_path / "a.npz").labels, torch.arange(20) % 3)


def meaningless():
    good = arrays()
    masked = np.ones((20, 5), bool)
    masked[3] = False
    return {
        "masked": (good | {"mask": masked}, "set 3 with all of them masked"),
        "no sets": (arrays(S=0), "at least two point sets"),
        "no points": (arrays(N=0), "of at least one point"),
        "no features": (arrays(C=0), "at least one feature"),
        "one class": (arrays(classes=1), "at least two classes"),
        "complex": (good | {"coords": good["coords"] * 1j}, "expected real coords"),
        "complex values": (good | {"values": good["values"] * 1j}, "expected real values"),
        "line": (arrays(d=1), "points of the plane or of space"),
        "five dimensions": (arrays(d=5), "points of the plane or of space"),
        "too large": (good | {"coords": good["coords"] * 1e300}, "expected finite coords"),
        "kilometres as nanometres": (good | {"coords": good["coords"] * 1e16}, "coords of at most 1e+06"),
        "large features": (good | {"values": good["values"] * 1e30}, "values of at most 1e+06"),
        "a million classes": (good | {"labels": good["labels"] * 1_000_000}, "labels below 10000"),
        "1e9 classes": (good | {"labels": good["labels"] * 1_000_000_000}, "labels below 10000"),
        "2^63 classes": (good | {"labels": good["labels"].astype(np.uint64) * np.uint64(2**63)}, "labels below 10000"),
        "booleans": (good | {"labels": good["labels"] == 1}, "expected integer labels"),
        "flat": (good | {"coords": good["coords"][0]}, "expected coords (S, N, d)"),
        "text": (good | {"labels": good["labels"].astype(str)}, "holds no numbers"),
    }


@pytest.mark.parametrize("name", meaningless())
@pytest.mark.parametrize("group", ["trivial", "se2"])
def test_meaningless_data_are_refused_before_training(tmp_path, capsys, name, group):
    content, message = meaningless()[name]
    np.savez(tmp_path / "a.npz", **content)
    error = fails(capsys, "train", "--data", tmp_path / "a.npz", "--group", group, *TINY, "--out", tmp_path / "run")
    assert message in error and not (tmp_path / "run").exists()


def test_more_neighbours_than_points(data, tmp_path, capsys):
    error = fails(capsys, "train", "--data", data, "--num-neighbors", "6", *TINY, "--out", tmp_path / "run")
    assert "at most the 5 points of a set, got 6" in error
    assert run(capsys, "train", "--data", data, *TINY, "--out", tmp_path / "run")[0] == 0
    assert json.loads((tmp_path / "run" / "config.json").read_text())["config"]["num_neighbors"] == 5


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--channels", "100000"], "--channels"),
        (["--channels", "4096", "--num-layers", "200", "--bottleneck", "1"], "at most 1e+08 parameters"),
        (["--num-layers", "1000000"], "--num-layers"),
        (["--num-samples", "1000000", "--lift", "sampled"], "--num-samples"),
        (["--epochs", "1000000000000"], "--epochs"),
        (["--batch-size", "-1"], "--batch-size"),
        (["--num-neighbors", "1000000"], "--num-neighbors"),
        (["--bottleneck", "100"], "at most the 8 --channels"),
        (["--learning-rate", "1e38"], "above 0 and at most 1000"),
        (["--learning-rate", "nan"], "--learning-rate"),
        (["--learning-rate", "inf"], "--learning-rate"),
        (["--weight-decay", "inf"], "--weight-decay"),
        (["--seed", "9" * 22], "--seed to be a whole number from 0 to 2^63 - 1"),
        (["--device", "meta"], "meta"),
        (["--data", "/dev/zero"], "unknown data set"),
        (["--data", "/dev/zero.npz"], "no file"),
    ],
)
def test_flags_out_of_bounds_are_one_line(data, tmp_path, capsys, flags, message):
    argv = ["train", "--data", data, *TINY, *flags, "--out", tmp_path / "run"]
    assert message in fails(capsys, *argv)
    assert not (tmp_path / "run").exists()


def test_a_run_that_diverges_gives_way(data, tmp_path, capsys, monkeypatch):
    argv = ["train", "--data", data, *TINY, "--out", tmp_path / "run"]

    def diverge(self, *args):
        with torch.no_grad():
            self.param_groups[0]["params"][0].fill_(math.inf)

    with monkeypatch.context() as patched:  # no learning rate that is accepted diverges for sure
        patched.setattr(torch.optim.AdamW, "step", diverge)
        error = fails(capsys, *argv)
    assert "finite" in error and "smaller --learning-rate" in error
    assert "diverged" in fails(capsys, "train", "--resume", tmp_path / "run")
    assert "diverged" in fails(capsys, "evaluate", tmp_path / "run")
    assert run(capsys, *argv)[0] == 0
    assert run(capsys, "evaluate", tmp_path / "run")[0] == 0


def test_a_loss_that_overflows_at_the_last_step(data, tmp_path, capsys, monkeypatch):
    """The loss is taken before the step that makes the weights infinite; the checkpoint must not hold them."""
    step, count = torch.optim.AdamW.step, []

    def overflow(self, *args):
        step(self, *args)
        count.append(1)
        if len(count) == 4:  # of 16 sets by 8, twice
            with torch.no_grad():
                self.param_groups[0]["params"][0].fill_(math.inf)

    monkeypatch.setattr(torch.optim.AdamW, "step", overflow)
    error = fails(capsys, "train", "--data", data, *TINY, "--out", tmp_path / "run")
    assert "a weight is not finite after epoch 2" in error
    assert not (tmp_path / "run" / "model.safetensors").exists()


VALUES = {
    "x": "x",
    "null": None,
    "list": [],
    "object": {},
    "true": True,
    "float": 1.5,
    "negative": -1,
    "huge": 10**30,
    "zero": 0,
}
FIELDS = (
    "data",
    "group",
    "lift",
    "num_samples",
    "channels",
    "num_layers",
    "num_neighbors",
    "bottleneck",
    "epochs",
    "batch_size",
    "learning_rate",
    "weight_decay",
    "seed",
)


@pytest.mark.parametrize("field", FIELDS)
def test_a_configuration_with_values_of_another_type_is_one_line(trained, tmp_path, capsys, field):
    good = json.loads((trained / "config.json").read_text())
    shutil.copytree(trained, tmp_path / "run")
    for value in VALUES.values():
        changed = json.loads(json.dumps(good))
        changed["config"][field] = value
        (tmp_path / "run" / "config.json").write_text(json.dumps(changed))
        if changed["config"] == good["config"]:
            continue
        for argv in (["evaluate", tmp_path / "run"], ["train", "--resume", tmp_path / "run"]):
            if (field, value, argv[0]) != ("num_neighbors", None, "train"):  # the default, which is the run's
                assert len(fails(capsys, *argv)) < 700


@pytest.mark.parametrize("field", ["dimension", "features", "classes", "train_sha256", "test_sha256"])
def test_facts_of_the_data_of_another_type_are_one_line(trained, tmp_path, capsys, field):
    good = json.loads((trained / "config.json").read_text())
    shutil.copytree(trained, tmp_path / "run")
    for value in (*VALUES.values(), 5, 3):
        changed = json.loads(json.dumps(good))
        changed["data"][field] = value
        (tmp_path / "run" / "config.json").write_text(json.dumps(changed))
        fails(capsys, "train", "--resume", tmp_path / "run")
        if field != "train_sha256" or not isinstance(value, str):  # which evaluation does not need
            fails(capsys, "evaluate", tmp_path / "run")
    changed["data"] = None
    (tmp_path / "run" / "config.json").write_text(json.dumps(changed))
    fails(capsys, "evaluate", tmp_path / "run")


def test_a_full_disk_is_one_line_and_the_run_goes_on(trained, data, tmp_path, capsys):
    """Files bounded at a size that the configuration fits and the checkpoint does not: what a full disk does."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (5000, hard))
        error = fails(capsys, "train", "--data", data, *TINY, "--out", tmp_path / "run")
        assert "cannot write" in error and f"resume with lieconv train --resume {tmp_path / 'run'}" in error
        resource.setrlimit(resource.RLIMIT_FSIZE, (300, hard))
        for command in (["evaluate", trained], ["predict", trained, "--input", data]):
            assert "cannot write" in fails(capsys, *command, "--out", tmp_path / "out")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert not [path for path in (tmp_path / "run").iterdir() if path.name.startswith(".")]
    assert run(capsys, "train", "--resume", tmp_path / "run")[0] == 0
    assert run(capsys, "train", "--data", data, *TINY, "--out", tmp_path / "whole")[0] == 0
    whole, cut = ((tmp_path / name / "model.safetensors").read_bytes() for name in ("whole", "run"))
    assert whole == cut


def test_one_folder_has_one_writer(trained, data, tmp_path, capsys):
    from threading import Thread

    said = []

    def train():
        try:
            with output_directory(trained):
                pass
        except UserError as error:
            said.append(str(error))

    with output_directory(trained):
        thread = Thread(target=train)
        thread.start()
        thread.join()
    assert said and "another process writes" in said[0]
