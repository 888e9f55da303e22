"""Folders of measurements: bounds of flags, types of files, full disks; one line for each."""

from __future__ import annotations

import json
import math
import resource
import shutil
import sys

import pytest
from lie.run import UserError
from liederivative.cli import main
from liederivative.sweep.records import check_record, kept_record, read_records

SMALL = "test_vit"
QUICK = ["--image-size", "64", "--limit", "1", "--generators", "rotate", "--device", "cpu"]


@pytest.fixture(autouse=True)
def no_bytecode(monkeypatch):
    """Write no bytecode: where the size of files is bounded, Python writes it cut short, without an error."""
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    monkeypatch.setenv("PYTHONDONTWRITEBYTECODE", "1")


@pytest.fixture
def fails(capsys):
    def run(*argv):
        capsys.readouterr()
        assert main([str(a) for a in argv]) == 2
        lines = [line for line in capsys.readouterr().err.splitlines() if "error:" in line]
        assert len(lines) == 1
        return lines[0]

    return run


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    folder = tmp_path_factory.mktemp("measured") / "run"
    assert main(["measure", SMALL, *QUICK, "--out", str(folder)]) == 0
    return folder


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["measure", SMALL, "--image-size", "100000"], "--image-size to be a whole number from 2 to 4096, got 100000"),
        (["measure", SMALL, "--num-classes", "1000000"], "--num-classes to be a whole number from 0 to 100000"),
        (["measure", SMALL, "--seed", "9" * 22], "--seed to be a whole number from 0 to 2^63 - 1"),
        (["measure", SMALL, "--seed", "-1"], "--seed"),
        (["measure", SMALL, "--limit", "-1"], "--limit"),
        (["measure", SMALL, "--batch-size", "1" + "0" * 12], "--batch-size"),
        (["measure", SMALL, "--tangents-per-pass", "0"], "--tangents-per-pass"),
        (["measure", SMALL, "--device", "meta"], "meta"),
        (["layers", SMALL, "--image-size", "100000"], "--image-size"),
        (["layers", SMALL, "--num-classes", "1000000000"], "--num-classes"),
        (["layers", SMALL, "--show", "0"], "--show"),
        (["layers", SMALL, "--device", "meta"], "meta"),
        (["sweep", SMALL, "--image-size", "100000"], "--image-size"),
        (["sweep", SMALL, "--workers", "1000000"], "--workers"),
        (["sweep", SMALL, "--threads", "-1"], "--threads"),
        (["sweep", SMALL, "--device", "meta"], "meta"),
        (["aliasing", "relu", "--size", "1000000000"], "--size"),
        (["aliasing", "relu", "--fine", "1000000"], "--fine"),
        (["aliasing", "relu", "--size", "65536", "--signals", "1000000"], "at most 67108864 samples"),
        (["aliasing", "relu", "--band-limits", "nan"], "--band-limits"),
        (["aliasing", "relu", "--band-limits", "0.5", "2"], "--band-limits"),
        (["aliasing", "relu", "--seed", "-1"], "--seed"),
    ],
)
def test_flags_out_of_bounds_are_one_line(tmp_path, fails, argv, message):
    assert message in fails(*argv, "--out", tmp_path / "out")
    assert not (tmp_path / "out").exists()


VALUES = ("x", None, [], {}, True, 1.5, -1, 10**30, [1], {"a": 1})


def test_settings_of_another_type_are_one_line(measured, tmp_path, fails):
    shutil.copytree(measured, tmp_path / "run")
    path = tmp_path / "run" / "config.json"
    good = json.loads(path.read_text())
    for field in good:
        for value in VALUES:
            changed = {**good, field: value}
            if field in ("out", "resume") or (value is None and field in ("limit", "checkpoint", "num_classes")):
                continue
            if value in (True, "x", [], None) and field in ("pretrained", "logits", "models", "images", "generators",
                                                            "device", "image_size"):  # fmt: skip
                continue  # of the right type: another measurement
            path.write_text(json.dumps(changed))
            fails("measure", "--resume", tmp_path / "run")


def changes(record):
    """Paths into a record of a model that a report reads, and values that do not belong there."""
    result = record["result"]
    places = [("result",), *(("result", key) for key in ("weights", "parameters", "method", "seconds", "generators"))]
    places += [("result", "weights", "kind"), ("result", "preprocessing"), ("result", "preprocessing", "input_size")]
    places += [("result", "generators", next(iter(result["generators"])), *more)
               for more in ((), ("mean_squared",), ("mean_squared", "mean"), ("mean_absolute", "mean"))]  # fmt: skip
    return places


def test_records_of_another_type_are_one_line(measured, tmp_path, fails, capsys):
    shutil.copytree(measured, tmp_path / "run")
    path = tmp_path / "run" / "models" / f"{SMALL}.json"
    good = json.loads(path.read_text())
    assert check_record(good, path) == good
    for place in changes(good):
        for value in ("x", None, [], {}, True, -1.5 if place[-1] == "parameters" else [1, "x"]):
            changed = json.loads(json.dumps(good))
            node = changed
            for key in place[:-1]:
                node = node[key]
            node[place[-1]] = value
            if value == "x" and place[-1] in ("kind", "method"):
                continue
            path.write_text(json.dumps(changed))
            with pytest.raises(UserError, match="is not the result of a model") as caught:
                read_records(tmp_path / "run")
            assert "\n" not in str(caught.value)
    for text in ("[]", "3", "{", "{}", '{"status": "ok"}', '{"status": "failed"}',
                 json.dumps({**good, "status": "well"}), json.dumps({**good, "layers": {"rotate": [{"share": 1}]}}),
                 "[" * 100_000, '{"result": NaN}', '{"result": {"seconds": 1e999}}'):  # fmt: skip
        path.write_text(text)
        fails("report", tmp_path / "run")
        # A sweep or a measurement that goes on makes it again.
        assert kept_record(tmp_path / "run", SMALL, good["fingerprint"], retry_failed=False) is None
    assert main(["measure", "--resume", str(tmp_path / "run")]) == 0
    assert "it is measured again" in capsys.readouterr().err
    again = json.loads(path.read_text())
    for measure in ("mean_squared", "mean_absolute"):
        before, after = (r["result"]["generators"]["rotate"][measure]["mean"] for r in (good, again))
        assert math.isclose(before, after, rel_tol=1e-6)  # the same numbers up to float32


@pytest.mark.parametrize(
    "argv",
    [
        ["measure", SMALL, *QUICK],
        ["layers", SMALL, *QUICK],
        ["sweep", SMALL, *QUICK, "--backend", "serial"],
        ["aliasing", "relu", "--size", "32", "--signals", "4"],
    ],
    ids=lambda argv: argv[0],
)
@pytest.mark.parametrize("size", [10, 1500])
def test_a_full_disk_is_one_line_and_the_run_goes_on(tmp_path, fails, argv, size):
    """Files bounded at a size: what a full disk does, without a disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        error = fails(*argv, "--out", tmp_path / "run")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert "cannot write" in error
    assert not list(tmp_path.rglob(".*"))
    if "--resume" in error:
        assert main([argv[0], "--resume", str(tmp_path / "run")]) == 0
    elif argv[0] in ("measure", "sweep"):
        assert not (tmp_path / "run" / "config.json").exists()
        assert main([*argv, "--out", str(tmp_path / "run")]) == 0


def test_a_full_disk_is_one_line_for_a_report(measured, tmp_path, fails):
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))
    try:
        assert "cannot write" in fails("report", measured, "--out", tmp_path / "report")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert not list(tmp_path.rglob(".*"))


def test_devices_and_folders_are_no_lists_and_no_tables(measured, tmp_path, fails):
    for path in ("/dev/zero", tmp_path):
        assert "expected a file" in fails("sweep", f"@{path}", "--out", tmp_path / "out")
        assert "expected a file" in fails("report", measured, "--accuracies", path, "--out", tmp_path / "out")
    assert not (tmp_path / "out").exists()
