"""Sweeps: selection, records, failures, dead workers, kills and resumption, two dask workers, errors."""

from __future__ import annotations

import contextlib
import csv
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import timm
from lie.run import UserError
from liederivative import lee
from liederivative.cli import main
from liederivative.images import sample_photographs
from liederivative.sweep import Sweep, Task, families, measure_task, read_records, run_sweep, select_models
from liederivative.sweep.selection import PAPER, family_of
from liederivative.zoo import current_name, load_model

QUICK = ["--image-size", "64", "--limit", "2", "--generators", "translate_x", "rotate", "--device", "cpu"]
FAILS = "vit_small_patch14_dinov2"  # no classifier head


def task(name: str, **options: Any) -> Task:
    photographs = sample_photographs()[:1]
    settings = {"generators": ("rotate",), "image_size": 64, "threads": 1} | options
    return Task(name, "f", "sample", 1, tuple(photo.sha256 for photo in photographs), **settings)


# --- which models ---


def test_globs_families_lists_and_exclusions(tmp_path):
    assert select_models(["vgg1[16]", "vgg11"]) == ("vgg11", "vgg16")
    assert select_models(["vgg*"], exclude=["*_bn"]) == ("vgg11", "vgg13", "vgg16", "vgg19")
    assert set(select_models([], family=["vgg", "selecsls"])) == set(
        timm.list_models(module="vgg") + timm.list_models(module="selecsls")
    )
    assert select_models(["resnet18.a1_in1k", "resnet18"]) == ("resnet18.a1_in1k", "resnet18")
    tagged = select_models(["resnet18.*"])
    assert tagged
    assert all(name.startswith("resnet18.") for name in tagged)
    (tmp_path / "list.txt").write_text("# the paper's\nvgg11  # small\n\nvgg13*\n")
    assert select_models([f"@{tmp_path}/list.txt"]) == ("vgg11", "vgg13", "vgg13_bn")
    assert len(select_models(["*"])) == len(timm.list_models())
    published = select_models(["mixer_*"], pretrained=True)
    assert "mixer_s32_224" not in published  # known to timm, never published
    assert "mixer_b16_224" in published


def test_the_papers_models_are_still_there_and_renamed_ones_found():
    listed = [line for line in PAPER.read_text().splitlines() if line and not line.startswith("#")]
    assert len(set(listed)) == len(listed) == 480
    chosen = select_models(["@paper"])
    # Several published names are now one architecture with one tag.
    assert set(chosen) == {current_name(name) for name in listed}
    assert len(chosen) >= 470
    assert all(timm.is_model(name) and name.partition(".")[0] in timm.list_models() for name in chosen)
    assert select_models(["ig_resnext101_32x8d"]) == ("resnext101_32x8d.fb_wsl_ig1b_ft_in1k",)
    assert family_of("ig_resnext101_32x8d") == "resnet"
    assert set(chosen) - set(select_models(["@paper"], pretrained=True)) == {"mixnet_xxl"}  # never published


def test_every_model_has_one_family():
    assert sum(len(members) for members in families().values()) == len(timm.list_models())
    assert family_of("resnet18.a1_in1k") == "resnet"
    assert family_of("deit_tiny_patch16_224") == "deit"


@pytest.mark.parametrize(
    ("arguments", "options", "message"),
    [
        (["resnet81"], {}, "unknown timm model 'resnet81': did you mean"),
        (["resnot*"], {}, "no timm model matches 'resnot\\*'; did you mean one like resnet"),
        ([], {"family": ["convnexts"]}, "unknown timm family 'convnexts': did you mean 'convnext'"),
        ([], {}, "at least one timm model, got none from nothing"),
        (["vgg11"], {"exclude": ["v*"]}, "at least one timm model, got none from vgg11"),
        (["@no/such/file"], {}, "cannot read the list of models no/such/file"),
        (["mixer_s32_224"], {"pretrained": True}, "no pretrained weights of mixer_s32_224"),
    ],
)
def test_selections_that_name_nothing(arguments, options, message):
    with pytest.raises(UserError, match=message):
        select_models(arguments, **options)


# --- the command ---


@pytest.fixture(scope="module")
def swept(tmp_path_factory):
    out = tmp_path_factory.mktemp("sweep") / "deep" / "run"
    names = ["test_resnet", FAILS, "test_vit"]
    assert main(["sweep", *names, *QUICK, "--backend", "serial", "--threads", "1", "--out", str(out)]) == 0
    return out


def test_each_model_has_a_whole_record(swept):
    records = read_records(swept)
    assert sorted(records) == sorted(["test_resnet", FAILS, "test_vit"])
    model = load_model("test_resnet", seed=0, image_size=64)
    images = model.images([photo.image for photo in sample_photographs()[:2]])
    errors = lee(model.module, images, ["translate_x", "rotate"], probabilities=True)
    record = records["test_resnet"]
    assert record["status"] == "ok"
    assert record["family"] == "resnet"
    assert record["seed"] == 0
    assert {"torch", "timm", "liederivative", "python"} <= record["versions"].keys()
    assert record["result"]["weights"]["sha256"] == model.weights.sha256
    for index, name in enumerate(("translate_x", "rotate")):
        numbers = record["result"]["generators"][name]
        # The same computation in another process; only the order of summation may differ.
        assert numbers["mean_squared"]["per_image"] == pytest.approx(errors.squared[index].tolist(), rel=1e-4)


def test_a_failure_is_recorded_and_the_sweep_goes_on(swept):
    record = read_records(swept)[FAILS]
    assert record["status"] == "failed"
    assert "has no classifier head" in record["error"]["message"]
    assert record["error"]["type"] == "UserError"
    found = json.loads((swept / "metrics.json").read_text())
    assert found["measured"] == 2
    assert list(found["failed"]) == [FAILS]
    assert list(found["models"]) == ["test_resnet", "test_vit"]
    rows = list(csv.DictReader((swept / "results.csv").open()))
    assert [row["model"] for row in rows] == ["test_resnet", FAILS, "test_vit"]
    assert float(rows[0]["rotate_mean_squared"]) == found["models"]["test_resnet"]["rotate_mean_squared"] > 0
    assert rows[1]["rotate_mean_squared"] == ""
    assert "classifier head" in rows[1]["error"]


def test_resuming_a_finished_sweep_measures_nothing(swept, monkeypatch, capfd):
    from liederivative.sweep import runner

    monkeypatch.setattr(runner, "open_executor", lambda *_: pytest.fail("a worker was started"))
    before = {path: path.read_bytes() for path in (swept / "models").iterdir()}
    (swept / "metrics.json").unlink()
    assert main(["sweep", "--resume", str(swept), "--workers", "3"]) == 0
    assert {path: path.read_bytes() for path in (swept / "models").iterdir()} == before
    assert (swept / "metrics.json").exists()
    assert "kept: 3 of 3" in capfd.readouterr().err


def test_a_folder_that_holds_a_sweep_is_not_overwritten(swept, capfd):
    before = sorted(path.name for path in (swept / "models").iterdir())
    assert main(["sweep", "test_resnet", *QUICK, "--out", str(swept)]) == 2
    assert "already holds a run; resume it with --resume" in capfd.readouterr().err
    assert sorted(path.name for path in (swept / "models").iterdir()) == before
    assert main(["sweep", "--resume", str(swept), "--seed", "4"]) == 2
    assert "was swept with seed=0, got 4" in capfd.readouterr().err


@pytest.mark.skipif(os.name != "posix", reason="needs SIGKILL")
@pytest.mark.parametrize(
    "moments",
    [("models/test_resnet.json",), pytest.param(("config.json", "models/test_vit.json"), marks=pytest.mark.slow)],
)
def test_a_killed_sweep_goes_on_and_redoes_nothing(moments, tmp_path):
    out, names = tmp_path / "run", ["test_resnet", "test_vit", "test_convnext"]
    arguments = [*names, *QUICK, "--workers", "1", "--threads", "1", "--out", str(out)]
    kept: dict[Path, bytes] = {}
    for moment in moments:  # the sweep's own process is killed once this file is there; its workers are not
        with (tmp_path / "log").open("w") as log:
            process = subprocess.Popen(
                [sys.executable, "-m", "liederivative.cli", "sweep", *arguments], stdout=log, stderr=log
            )
        deadline = time.monotonic() + 900  # of a machine that has no time for us; seconds are usual
        while not (out / moment).exists() and time.monotonic() < deadline and process.poll() is None:
            time.sleep(0.01)
        children = _children(process.pid)
        process.send_signal(signal.SIGKILL)
        process.wait()
        assert (out / moment).exists(), (tmp_path / "log").read_text()
        while any(map(_alive, children)):  # workers end by themselves
            assert time.monotonic() < deadline
            time.sleep(0.1)
        assert not (out / "metrics.json").exists()
        for path in (out / "models").glob("[!.]*.json"):
            assert json.loads(path.read_text())["status"] == "ok"  # whole, not half
            assert kept.setdefault(path, path.read_bytes()) == path.read_bytes()
        arguments = ["--resume", str(out)]
    assert kept
    assert main(["sweep", *arguments, "--backend", "serial"]) == 0
    for path, content in kept.items():
        assert path.read_bytes() == content  # with its time: not measured again
    assert list(json.loads((out / "metrics.json").read_text())["models"]) == names


def _children(pid: int) -> list[int]:
    found = subprocess.run(["ps", "-o", "pid=", "--ppid", str(pid)], capture_output=True, text=True).stdout
    return [int(word) for word in found.split()]


def _alive(pid: int) -> bool:
    state = subprocess.run(["ps", "-o", "stat=", "-p", str(pid)], capture_output=True, text=True).stdout.strip()
    return bool(state) and not state.startswith("Z")


# --- workers ---


def in_a_program_of_its_own(what: str, folder: Path, deadline: float = 600) -> dict[str, Any]:
    """What ``workers.py`` finds; a hang is a failure with its output, and leaves no process behind."""
    log = folder / "log"
    with log.open("w") as output:
        process = subprocess.Popen(
            [sys.executable, str(Path(__file__).with_name("workers.py")), what, str(folder)],
            stdin=subprocess.DEVNULL, stdout=output, stderr=output, start_new_session=os.name == "posix",
        )  # fmt: skip
    try:
        code = process.wait(deadline)
    except subprocess.TimeoutExpired:
        pytest.fail(f"{what} did not end within {deadline:g} s:\n{log.read_text()}")
    finally:
        if os.name == "posix":
            with contextlib.suppress(ProcessLookupError):  # all have ended, as they should
                os.killpg(process.pid, signal.SIGKILL)
        else:
            process.kill()
        process.wait()
    assert code == 0, log.read_text()
    return json.loads((folder / "found.json").read_text())


def test_a_worker_that_dies_costs_its_model_only(tmp_path):
    found = in_a_program_of_its_own("dying", tmp_path)
    records = found["records"]
    names = ["test_convnext", "test_efficientnet", "test_resnet", "test_vit"]
    assert sorted(found["seen"]) == names
    assert {name: record["status"] for name, record in records.items()} == {
        "test_resnet": "ok", "test_vit": "failed", "test_convnext": "ok", "test_efficientnet": "ok",
    }  # fmt: skip
    assert "the worker died" in records["test_vit"]["error"]["message"]
    assert records["test_resnet"]["result"]["process"] != found["process"]
    # The worker's results are no measurements, which `read_records` would refuse: their files are counted.
    assert sorted(path.stem for path in (tmp_path / "models").glob("*.json")) == names


def test_a_task_reports_what_it_cannot_do():
    record = measure_task(task("vgg11", image_size=8))
    assert record["status"] == "failed"
    assert "vgg11 at 8 x 8 pixels" in record["error"]["message"]
    record = measure_task(task("test_resnet", dtype="float16"))  # a mistake in our own code would show as this does
    assert record["error"]["type"] == "KeyError"
    assert "Traceback" in record["error"]["traceback"]
    photographs = sample_photographs()[:1]
    other = Task("test_resnet", "f", "sample", 1, ("0" * 64,), ("rotate",))
    assert photographs[0].sha256 != "0" * 64
    assert "are others on this worker" in measure_task(other)["error"]["message"]


def test_two_dask_workers(tmp_path):
    pytest.importorskip("distributed", reason="needs liederivative[dask]")
    found = in_a_program_of_its_own("dask", tmp_path)
    records = found["records"]
    assert sorted({record["process"] for record in records.values()}) == found["processes"]
    assert len(found["processes"]) == 2
    assert {name: record["status"] for name, record in records.items()} == {
        "test_resnet": "ok", "test_vit": "ok", FAILS: "failed", "test_convnext": "ok",
    }  # fmt: skip
    here = measure_task(task("test_resnet"))
    numbers, there = (
        r["result"]["generators"]["rotate"]["mean_squared"]["mean"] for r in (here, records["test_resnet"])
    )
    assert there == pytest.approx(numbers, rel=1e-4)  # the same computation in another process
    assert read_records(tmp_path).keys() == records.keys()


def test_ray_does_the_same(tmp_path):
    pytest.importorskip("ray", reason="needs liederivative[ray]")
    tasks = [task(name) for name in ("test_resnet", FAILS)]
    records = run_sweep(Sweep(tasks, tmp_path, backend="ray", workers=2))
    assert [records[each.name]["status"] for each in tasks] == ["ok", "failed"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["resnet81"], "unknown timm model 'resnet81': did you mean"),
        ([], "at least one timm model"),
        (["test_vit", "--backend", "dusk"], "unknown backend 'dusk': did you mean 'dask'"),
        (["test_vit", "--workers", "0"], "--workers to be a whole number from 1 to 4096"),
        (["test_vit", "--backend", "serial", "--address", "x"], "serial works on this machine alone"),
        (["test_vit", "--address", "tcp://nowhere:1"], "loky works on this machine alone"),
        (["test_vit", "--images", "no/such/folder"], "no such folder"),
        (["test_vit", "--layers", "rotat"], "did you mean 'rotate'"),
        (["test_vit", "--dtype", "half"], "invalid choice 'half'"),
        (["test_vit", "--threads", "0"], "--threads to be a whole number"),
        (["test_vit", "--image-size", "1"], "--image-size to be a whole number from 2 to 4096"),
    ],
)
def test_bad_arguments_leave_nothing_behind(arguments, message, tmp_path, capfd):
    out = tmp_path / "out"
    assert main(["sweep", *arguments, "--out", str(out)]) == 2
    captured = capfd.readouterr().err
    assert captured.count("error:") == 1
    assert message in captured
    assert not out.exists()


def test_bad_images_and_an_unwritable_folder(tmp_path, capfd):
    folder, out = tmp_path / "images", tmp_path / "out"
    folder.mkdir()
    assert main(["sweep", "test_vit", "--images", str(folder), "--out", str(out)]) == 2
    assert "no image in the folder" in capfd.readouterr().err
    (folder / "cut.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    assert main(["sweep", "test_vit", "--images", str(folder), "--out", str(out)]) == 2
    assert "cut.png, which is in none of the formats" in capfd.readouterr().err
    assert not out.exists()
    (tmp_path / "file").write_text("in the way")
    for arguments in (["sweep", "test_vit"], ["report", str(tmp_path / "file")]):
        assert main([*arguments, "--out", str(tmp_path / "file" / "run")]) == 2
        assert capfd.readouterr().err.count("error:") == 1


def test_outputs_that_are_not_finite_name_the_layer(monkeypatch):
    real = timm.create_model

    def broken(*args: Any, **kwargs: Any) -> Any:
        model = real(*args, **kwargs)
        model.fc.weight.data.fill_(1e38)
        return model

    monkeypatch.setattr(timm, "create_model", broken)
    record = measure_task(task("test_resnet"))
    assert record["status"] == "failed"
    assert "come from the layer 'fc'" in record["error"]["message"]


def test_a_cluster_that_does_not_answer(tmp_path, capfd, monkeypatch):
    distributed = pytest.importorskip("distributed", reason="needs liederivative[dask]")
    real = distributed.Client
    monkeypatch.setattr(distributed, "Client", lambda address, timeout: real(address, timeout="1s"))
    out = tmp_path / "out"
    arguments = ["test_vit", *QUICK, "--backend", "dask", "--address", "tcp://127.0.0.1:9", "--out", str(out)]
    assert main(["sweep", *arguments]) == 2
    assert "no dask scheduler answers at tcp://127.0.0.1:9" in capfd.readouterr().err
    assert not out.exists()


def test_read_records_says_what_is_wrong(tmp_path):
    with pytest.raises(UserError, match="no folder"):
        read_records(tmp_path / "nowhere")
    with pytest.raises(UserError, match="no result in"):
        read_records(tmp_path)
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "x.json").write_text("{")
    with pytest.raises(UserError, match="as JSON"):
        read_records(tmp_path)
    (tmp_path / "models" / "x.json").write_text("[]")
    with pytest.raises(UserError, match="is not the result of a model"):
        read_records(tmp_path)


def test_help_shows_an_example(capfd):
    with pytest.raises(SystemExit):
        main(["sweep", "--help"])
    assert "liederivative sweep 'resnet*'" in " ".join(capfd.readouterr().out.split())


def test_a_resumed_sweep_tries_failures_again_only_if_asked(swept, tmp_path):
    import shutil

    out = tmp_path / "run"
    shutil.copytree(swept, out)
    path = out / "models" / "test_vit.json"
    record = json.loads(path.read_text())
    path.write_text(json.dumps({**record, "status": "failed", "error": {"type": "X", "message": "y", "traceback": ""}}))
    kept = (out / "models" / "test_resnet.json").read_bytes()
    assert main(["sweep", "--resume", str(out)]) == 0
    assert read_records(out)["test_vit"]["status"] == "failed"
    assert main(["sweep", "--resume", str(out), "--retry-failed"]) == 0
    again = read_records(out)["test_vit"]
    assert again["status"] == "ok"
    assert again["result"]["generators"] == record["result"]["generators"]
    assert (out / "models" / "test_resnet.json").read_bytes() == kept


def test_layers_of_a_model_stand_in_its_record(tmp_path):
    from liederivative import lie_derivative
    from liederivative.report import depth_curves, layer_type_shares

    record = measure_task(task("test_vit", layers=("rotate",), dtype="float64"))
    rows = record["layers"]["rotate"]
    model = load_model("test_vit", seed=0, image_size=64)
    images = model.images([photo.image for photo in sample_photographs()[:1]]).double()
    L = lie_derivative(model.module.double(), images, "rotate", probabilities=True)
    assert sum(row["share"] for row in rows) == pytest.approx(1, abs=1e-10)  # exact terms, float64
    # The mean square of all terms together is at least that of the total over their number (Cauchy and Schwarz).
    assert sum(row["squared"] for row in rows) >= float(L.square().mean()) / len(rows)
    assert {row["type"] for row in rows} >= {"Conv2d"}
    assert sum(layer_type_shares([record], "rotate")["test_vit"].values()) == pytest.approx(1)
    assert depth_curves([record], "rotate")["test_vit"][-1] == pytest.approx((1.0, 1.0))
