"""The commands from end to end in tiny settings, resuming, and every kind of bad input."""

from __future__ import annotations

import importlib
import json

import numpy as np
import pytest
import torch
from chnn.cli import main
from lie.run import RunFolder
from PIL import Image

TINY = ["--trajectories", "8", "--test-trajectories", "3", "--horizon", "0.3", "--steps", "6", "--batch-size", "4",
        "--hidden", "8"]  # fmt: skip


def metrics(folder):
    return json.loads((folder / "metrics.json").read_text())


@pytest.mark.parametrize(
    "system",
    [["coupled-pendulum", "--bobs", "2"], ["rotor"], ["four-bar", "--set", "crank=0.3"],
     ["bead", "--set", "surface=torus"]],
    ids=lambda system: system[0],
)  # fmt: skip
def test_simulate(tmp_path, system, capsys):
    out = tmp_path / "deep" / "run"
    assert main(["simulate", *system, "--trajectories", "2", "--horizon", "0.2", "--animation", "gif", "html", "--out",
                 str(out)]) == 0  # fmt: skip
    assert "relative energy drift" in capsys.readouterr().out
    result = metrics(out)
    assert result["energy_drift_max"] < 1e-9 and result["position_violation_max"] < 1e-14
    assert result["seed"] == 0 and "torch" in result["versions"] and result["system"] == system[0]
    assert result["parameters"].get("gravity", 9.81) == 9.81
    with np.load(out / "trajectories.npz", allow_pickle=False) as file:
        assert file["z"].shape[:3] == (2, len(file["t"]), 2) and file["z"].dtype == np.float64
    assert Image.open(out / "animation.gif").n_frames == 6  # 0.2 s at 25 a second, both ends
    names = ["SHA256SUMS", "animation.gif", "animation.html", "drifts.csv", "metrics.json", "run.json",
             "trajectories.npz"]  # fmt: skip
    assert sorted(path.name for path in out.iterdir()) == names
    if system[0] != "rotor":
        return
    assert main(["animate", str(out), "--trajectory", "1", "--size", "40", "--out", str(tmp_path / "drawn")]) == 0
    assert Image.open(tmp_path / "drawn" / "animation.gif").size == (40, 40)
    film = tmp_path / "films" / "a.html"
    assert main(["animate", str(out), "--speed", "0.5", "--out", str(film)]) == 0
    assert '"frames":11' in film.read_text() and list(film.parent.iterdir()) == [film]


@pytest.mark.parametrize("model", ["chnn", "clnn", "hnn"])
def test_train_and_evaluate_bit_for_bit(tmp_path, model):
    out = tmp_path / "run"
    assert main(["train", "chain-pendulum", "--links", "2", "--model", model, *TINY, "--out", str(out)]) == 0
    assert main(["evaluate", str(out)]) == 0
    first, again = metrics(out), metrics(out / "evaluation")
    for key in ("rollout_error", "rollout_error_median", "energy_error", "constraint_violation", "curves"):
        assert first[key] == again[key]
    assert (out / "errors.png").stat().st_size > 1000
    assert [json.loads(line)["step"] for line in (out / "train.jsonl").read_text().splitlines()] == [6]
    if model == "chnn":
        assert main(["animate", str(out), "--animation", "html"]) == 0
        assert '"ghost":"' in (out / "animation" / "animation.html").read_text()


def test_an_interrupted_run_resumes_bit_for_bit(tmp_path, monkeypatch, capsys, fails):
    # `import chnn.training.train as ...` would give the function of that name.
    module = importlib.import_module("chnn.training.train")

    monkeypatch.setattr(module, "CHECKPOINT_EVERY", 2)
    command = ["train", "chain-pendulum", "--links", "1", *TINY]
    assert main([*command, "--out", str(tmp_path / "whole")]) == 0
    save, calls = RunFolder.save, []

    def interrupt(*args):
        save(*args)
        calls.append(args)
        if len(calls) == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr(RunFolder, "save", interrupt)
    assert main([*command, "--out", str(tmp_path / "cut")]) == 130
    assert "--resume" in capsys.readouterr().err
    assert "not finished" in fails("evaluate", tmp_path / "cut")
    monkeypatch.setattr(RunFolder, "save", save)
    for flags, message in [
        (["--links", "2"], "has links 1, got --links 2"),
        (["--set", "links=2"], "leave out --set"),
        (["--file", "arm.xml"], "has file None, got --file"),
        (["--bobs", "2"], "has bobs None, got --bobs 2"),
        (["--ignore", "limits"], "has ignore None, got --ignore"),
        (["--steps", "7"], "has steps 6, got --steps 7"),
        (["rotor"], "has system 'chain-pendulum', got SYSTEM 'rotor'"),
    ]:
        assert message in fails("train", "--resume", tmp_path / "cut", *flags)
    assert main(["train", "chain-pendulum", "--links", "1", "--resume", str(tmp_path / "cut")]) == 0
    whole, cut = ((tmp_path / name / "model.safetensors").read_bytes() for name in ("whole", "cut"))
    assert whole == cut
    assert metrics(tmp_path / "whole")["rollout_error"] == metrics(tmp_path / "cut")["rollout_error"]


def test_bad_input_is_one_line_and_leaves_nothing(tmp_path, fails):
    out = tmp_path / "out"
    cases = [
        (["simulate", "chain-pendulm", "--out", out], "did you mean 'chain-pendulum'"),
        (["train", "chain-pendulum", "--model", "hmm", "--out", out], "did you mean"),
        (
            ["simulate", "chain-pendulum", "--links", "0", "--out", out],
            "--links to be a whole number from 1 to",
        ),
        (["simulate", "chain-pendulum", "--bobs", "3", "--out", out], "no parameter --bobs; it has --links"),
        (["simulate", "bead", "--set", "surface=tours", "--out", out], "did you mean 'torus'"),
        (["simulate", "bead", "--set", "mass", "--out", out], "NAME=VALUE"),
        (["simulate", "bead", "--set", "mass=heavy", "--out", out], "expected a number for mass, got 'heavy'"),
        (["simulate", "four-bar", "--set", "crank=9", "--out", out], "impossible constraints"),
        (["simulate", "chain-pendulum", "--masses", "1", "-2", "--out", out], "got -2 for body 1"),
        (["simulate", "chain-pendulum", "--dt", "-1", "--out", out], "--dt"),
        (["simulate", "chain-pendulum", "--rtol", "0", "--out", out], "--rtol to be a number"),
        (["simulate", "chain-pendulum", "--trajectories", "0", "--out", out], "--trajectories to be a whole number"),
        (["simulate", "chain-pendulum", "--seed", "-1", "--out", out], "--seed"),
        (["simulate", "chain-pendulum", "--device", "toaster", "--out", out], "toaster"),
        (["train", "satellite", "--model", "hnn", "--out", out], "no angles for --model hnn"),
        (["train", "chain-pendulum"], "--out DIR"),
        (["train", "chain-pendulum", "--steps", "0", "--out", out], "--steps to be a whole number"),
        (["train", "chain-pendulum", "--chunk", "100000", "--out", out], "--chunk between 2 and"),
        (["train", "chain-pendulum", "--dtype", "half", "--out", out], "('float32', 'float64')"),
        (["train", "chain-pendulum", "--learning-rate", "nan", "--out", out], "--learning-rate"),
        (["evaluate", tmp_path / "none"], "does not exist"),
        (["animate", tmp_path / "none"], "does not exist"),
        (["animate", tmp_path / "none", "--animation", "mov"], "unknown kind of animation 'mov'"),
        (["animate", tmp_path / "none", "--out", tmp_path / "a.avi"], "ends in .gif, .mp4 or .html, or a folder"),
        (["simulate", "rope", "--set", "lenght=2", "--out", out], "did you mean --set length=?"),
        (
            ["simulate", "rope", "--set", "links=5.5", "--out", out],
            "a whole number for links of rope, got 5.5",
        ),
        (
            ["simulate", "rotor", "--set", "mss=1", "--out", out],
            "--set mss=; did you mean --set mass=?; it has --set mass=",
        ),
        (["simulate", "robt", "--out", out], "known: bead, cart-pole"),
        (["analyse", "robot", "--out", out], "a robot needs a file: chnn simulate --file"),
        (["animate", tmp_path / "none", "--out", tmp_path / "a.mp3"], "ends in .gif, .mp4 or .html, or a folder"),
        (["animate", tmp_path / "none", "--out", tmp_path / "a.v1"], "none: the folder does not exist"),
        (["simulate", "satellite", "--links", "4", "--out", out], "it has none"),
        (["animate", tmp_path / "none", "--fps", "0"], "--fps to be a whole number from 1 to 1000"),
        (["trian"], "did you mean 'train'"),
    ]
    for argv, message in cases:
        assert message in fails(*argv), argv
        assert not out.exists(), argv
    (tmp_path / "file").write_text("x")
    assert "cannot write" in fails("simulate", "chain-pendulum", "--out", tmp_path / "file" / "run")


def test_broken_runs_are_one_line(tmp_path, fails):
    run = tmp_path / "run"
    assert main(["train", "chain-pendulum", "--links", "1", *TINY, "--out", str(run)]) == 0
    assert "already holds a run" in fails("train", "chain-pendulum", *TINY, "--out", run)
    weights = run / "model.safetensors"
    good = weights.read_bytes()
    for content, message in [(good[:-8], "not a whole safetensors"), (b"text", "not a whole safetensors")]:
        weights.write_bytes(content)
        assert message in fails("evaluate", run)
    from safetensors.torch import save_file

    save_file({"other": torch.zeros(2)}, weights)
    assert "do not fit CHNN" in fails("evaluate", run)
    weights.unlink()
    assert "not finished" in fails("evaluate", run)
    (run / "checkpoint.safetensors").write_bytes(good)
    assert "another program" in fails("train", "--resume", run)
    (run / "config.json").write_text('{"config": {"a": 1}}')
    assert "not of a chnn training run" in fails("evaluate", run)
    (run / "config.json").write_text("{")
    assert "as JSON" in fails("evaluate", run)


@pytest.mark.parametrize("command", [[], ["simulate"], ["train"], ["evaluate"], ["animate"]])
def test_help_teaches(command, capsys):
    with pytest.raises(SystemExit) as stop:
        main([*command, "--help"])
    assert stop.value.code == 0
    assert "Example: chnn" in capsys.readouterr().out


@pytest.mark.slow
def test_chnn_beats_hnn_on_the_same_data_and_budget(tmp_path):
    errors = {}
    for model in ("chnn", "hnn"):
        assert main(["train", "chain-pendulum", "--links", "2", "--model", model, "--steps", "1000", "--out",
                     str(tmp_path / model)]) == 0  # fmt: skip
        errors[model] = metrics(tmp_path / model)["rollout_error"]
    assert errors["hnn"] > 3 * errors["chnn"]
