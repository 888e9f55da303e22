"""Runs of the commands on disk: bounds of flags, types of files, full disks, one writer; one line for each."""

from __future__ import annotations

import json
import math
import resource
import shutil
import subprocess
import sys
import time

import pytest
import torch
from chnn.cli import main
from chnn.storage import Settings, load_run, simulate_run
from chnn.storage.checksums import read_sealed, write_sealed
from chnn.systems import system_by_name
from lie.run import UserError

TINY = ["--trajectories", "4", "--test-trajectories", "2", "--horizon", "0.3", "--steps", "4", "--batch-size", "4",
        "--hidden", "8"]  # fmt: skip


@pytest.fixture(autouse=True)
def no_bytecode(monkeypatch):
    """Write no bytecode: where the size of files is bounded, Python writes it cut short, without an error."""
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    monkeypatch.setenv("PYTHONDONTWRITEBYTECODE", "1")


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("trained") / "run"
    assert main(["train", "chain-pendulum", "--links", "1", *TINY, "--out", str(folder)]) == 0
    return folder


@pytest.fixture(scope="module")
def simulated(tmp_path_factory):
    folder = tmp_path_factory.mktemp("simulated") / "run"
    simulate_run(Settings("chain-pendulum", {"links": 1}, trajectories=3, dt=0.1, horizon=0.5), folder)
    return folder


BOUNDS = [
    (["--links", "1000000"], "--links to be a whole number from 1 to 1000, got 1000000"),
    (["--set", "links=1000000"], "at most 1000"),
    (["--set", "links=true"], "a whole number for links"),
    (["--set", "links=[1]"], "a whole number for links"),
    (["--set", "links=" + "9" * 400], "links"),
    (["--set", "masses=" + "[" * 5000], "masses"),
    (["--set", "masses=[1e999,1]"], "masses"),
    (["--set", "masses=[null,1]"], "expected finite numbers for masses"),
    (["--masses", "nan", "1"], "--masses to be"),
    (["--masses", *["1"] * 1001], "at most 1000 values for masses"),
    (["--seed", "9" * 22], "--seed to be a whole number from 0 to 2^63 - 1"),
    (["--dt", "1e-320", "--horizon", "1e300"], "at most 100000000 output times"),
    (["--dt", "1e-320"], "at most 100000000 output times"),
    (["--horizon", "1e300"], "at most 100000000 output times"),
    (["--horizon", "inf"], "--horizon"),
    (["--device", "meta"], "meta"),
]
TRAIN = [
    (["--horizon", "100000", "--trajectories", "1000000"], "GiB, at most 16 are possible"),
    (["--horizon", "100000", "--test-trajectories", "1000000"], "GiB, at most 16 are possible"),
    (["--hidden", "1000000"], "--hidden"),
    (["--hidden", "10000", "--depth", "1000"], "at most 1e+08 parameters"),
    (["--depth", "0"], "--depth"),
    (["--batch-size", "1000000000"], "--batch-size"),
    (["--steps", "-5"], "--steps"),
    (["--chunk", "1000000000"], "--chunk"),
    (["--learning-rate", "inf"], "--learning-rate"),
    (["--weight-decay", "nan"], "--weight-decay"),
]
SIMULATE = [
    (["--rtol", "1e-300"], "--rtol to be a number of at least 1e-15 and below 1"),
    (["--trajectories", "1" + "0" * 30], "--trajectories"),
    (["--shard", "-1"], "--shard"),
    (["--spring-constant", "inf"], "--spring-constant"),
]
ANALYSE = [
    (["--rtol", "0"], "--rtol"),
    (["--trajectories", "0"], "--trajectories"),
    (["--trajectories", "1000000", "--horizon", "1000000"], "GiB, at most 16 are possible"),
    (["--exponents", "-1"], "--exponents"),
    (["--every", "nan"], "--every"),
    (["--transient", "inf"], "--transient"),
]


@pytest.mark.parametrize(
    ("command", "flags", "message"),
    [("simulate", *case) for case in BOUNDS + SIMULATE]
    + [("train", *case) for case in BOUNDS + TRAIN]
    + [("analyse", *case) for case in [case for case in BOUNDS if "--dt" not in case[0]] + ANALYSE],
)
def test_flags_out_of_bounds_are_one_line_before_time_is_spent(tmp_path, fails, command, flags, message):
    start = time.process_time()
    assert message in fails(command, "chain-pendulum", *flags, "--out", tmp_path / "out")
    assert not (tmp_path / "out").exists()
    assert time.process_time() - start < 20


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--size", "100000"], "--size to be a whole number from 1 to 4096"),
        (["--fps", "1000000"], "--fps"),
        (["--speed", "nan"], "--speed"),
        (["--speed", "0"], "--speed"),
        (["--trajectory", "-1"], "--trajectory"),
        (["--trajectory", "1000000"], "--trajectory below"),
        (["--seed", "-1"], "--seed"),
        (["--device", "meta"], "meta"),
    ],
)
def test_flags_of_films_out_of_bounds_are_one_line(simulated, trained, tmp_path, fails, flags, message):
    for run in (simulated, trained):
        assert message in fails("animate", run, *flags, "--out", tmp_path / "out")
        assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("chain-pendulum", {"links": "x"}),
        ("chain-pendulum", {"links": 10**6}),
        ("chain-pendulum", {"links": 2, "masses": "12"}),
        ("chain-pendulum", {"beams": "no"}),
        ("coupled-pendulum", {"bobs": 10**9}),
        ("magnet-pendulum", {"magnets": 10**9}),
        ("magnet-pendulum", {"dipole": math.nan}),
        ("rope", {"links": True}),
        ("rotor", {"moments": {"x": 1}}),
        ("cart-pole", {"damping": math.inf}),
    ],
)
def test_parameters_that_no_system_takes(name, parameters):
    with pytest.raises(UserError) as caught:
        system_by_name(name, **parameters)
    assert next(reversed(parameters)) in str(caught.value)


FOR_PEOPLE = ("parameters", "units", "versions", "seed", "shards", "shard_trajectories", "system", "animation")
"""Entries of run.json of which only the type is verified."""
VALUES = ("x", None, [], {}, True, 1.5, -1, 0, 10**30, [1, "x"], {"a": 1}, math.pi * 1e300)


@pytest.mark.parametrize("field", ["system", "parameters", "model", "trajectories", "test_trajectories", "chunk", "dt",
                                   "horizon", "steps", "batch_size", "learning_rate", "weight_decay", "hidden",
                                   "depth", "dtype", "seed"])  # fmt: skip
def test_a_configuration_with_values_of_another_type_is_one_line(trained, tmp_path, fails, field):
    """Also values of the right type: the weights and the checkpoint name the configuration that they are of."""
    good = json.loads((trained / "config.json").read_text())
    shutil.copytree(trained, tmp_path / "run")
    for value in VALUES:
        changed = json.loads(json.dumps(good))
        changed["config"][field] = value
        if changed == good:
            continue
        (tmp_path / "run" / "config.json").write_text(json.dumps(changed))
        fails("evaluate", tmp_path / "run")
        fails("train", "--resume", tmp_path / "run")
    del changed["config"][field]
    (tmp_path / "run" / "config.json").write_text(json.dumps(changed))
    assert f"lacks {field}" in fails("evaluate", tmp_path / "run")


def test_a_run_file_with_values_of_another_type_is_one_line(simulated, tmp_path, fails):
    good = read_sealed(simulated / "run.json", "")
    shutil.copytree(simulated, tmp_path / "run")
    path = tmp_path / "run" / "run.json"
    refused = 0
    for place in [(), *((key,) for key in good), *(("settings", key) for key in good["settings"])]:
        for value in VALUES:
            changed = json.loads(json.dumps(good))
            node = changed
            for key in place[:-1]:
                node = node[key]
            if place:
                node[place[-1]] = value
            else:
                changed = value
            if isinstance(changed, dict):
                write_sealed(path, changed)  # as one who means harm would
            else:
                path.write_text(json.dumps(changed))
            if place and place[0] in FOR_PEOPLE:
                try:
                    load_run(tmp_path / "run")
                except UserError:
                    refused += 1
                continue
            if place == ("settings", "rtol") or place[-1:] in (("seed",), ("device",)):
                continue
            if place[-1:] == ("shard",) and value is None:
                continue
            refused += 1
            fails("animate", tmp_path / "run", "--out", tmp_path / "film.html")
    assert refused > 200
    for place, value in ((("settings", "rtol"), 1.5), (("settings", "seed"), "x"), (("settings", "device"), 3)):
        changed = json.loads(json.dumps(good))
        changed[place[0]][place[1]] = value
        write_sealed(path, changed)
        assert place[1] in fails("simulate", "--resume", tmp_path / "run")


def test_metrics_of_another_kind_are_one_line(simulated, tmp_path, fails):
    shutil.copytree(simulated, tmp_path / "run")
    (tmp_path / "run" / "metrics.json").write_text("[]")
    assert "metrics.json holds no checksum of itself" in fails("animate", tmp_path / "run")


def test_a_run_that_diverges_gives_way(tmp_path, fails, monkeypatch):
    argv = ["train", "chain-pendulum", "--links", "1", *TINY, "--out", str(tmp_path / "run")]
    step, count = torch.optim.AdamW.step, []

    def overflow(self, *args):
        step(self, *args)
        count.append(1)
        if len(count) == 4:  # after the last loss was taken
            with torch.no_grad():
                self.param_groups[0]["params"][0].fill_(math.inf)

    monkeypatch.setattr(torch.optim.AdamW, "step", overflow)
    assert "a weight is not finite after step 4" in fails(*argv)
    monkeypatch.undo()
    assert "diverged" in fails("train", "--resume", tmp_path / "run")
    assert "diverged" in fails("evaluate", tmp_path / "run")
    assert main(argv) == 0
    assert main(["evaluate", str(tmp_path / "run")]) == 0


@pytest.fixture
def small_files():
    """A bound on the size of files that can be set: what a full disk does, without a disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    yield lambda size: resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


def leftovers(folder):
    return [path.name for path in folder.rglob(".*")]


def test_a_full_disk_is_one_line_and_training_goes_on(tmp_path, fails, small_files):
    argv = ["train", "chain-pendulum", "--links", "1", *TINY, "--out", str(tmp_path / "run")]
    small_files(3000)
    error = fails(*argv)
    assert "cannot write" in error and f"resume with chnn train --resume {tmp_path / 'run'}" in error
    small_files(resource.RLIM_INFINITY)
    assert leftovers(tmp_path) == []
    assert main(["train", "--resume", str(tmp_path / "run")]) == 0
    assert main([*argv[:-1], str(tmp_path / "whole")]) == 0
    whole, cut = ((tmp_path / name / "model.safetensors").read_bytes() for name in ("whole", "run"))
    assert whole == cut


@pytest.mark.parametrize("size", [10, 100, 1000, 2000])
def test_a_full_disk_is_one_line_wherever_a_simulation_meets_it(tmp_path, fails, small_files, size):
    argv = ["simulate", "chain-pendulum", "--trajectories", "3", "--horizon", "0.3", "--animation", "gif", "html"]
    small_files(size)
    assert "cannot write" in fails(*argv, "--out", tmp_path / "run")
    small_files(resource.RLIM_INFINITY)
    assert leftovers(tmp_path) == []
    if (tmp_path / "run").exists():
        assert main(["simulate", "--resume", str(tmp_path / "run")]) == 0
        assert load_run(tmp_path / "run")[0].isfinite().all()


@pytest.mark.parametrize("kind", ["gif", "html", "mp4"])
def test_a_full_disk_is_one_line_for_films(simulated, trained, tmp_path, fails, small_files, kind):
    for run in (simulated, trained):
        small_files(1000)
        error = fails("animate", run, "--animation", kind, "--out", tmp_path / "films")
        assert "cannot write" in error or "could not write" in error
        small_files(resource.RLIM_INFINITY)
        assert leftovers(tmp_path) == []
        assert not list(tmp_path.rglob(f"*.{kind}"))


def test_a_full_disk_is_one_line_for_what_is_measured(trained, tmp_path, fails, small_files):
    small_files(500)
    assert "cannot write" in fails("evaluate", trained, "--out", tmp_path / "evaluation")
    argv = ["analyse", "chain-pendulum", "--horizon", "1", "--exponents", "0", "--trajectories", "2"]
    assert "cannot write" in fails(*argv, "--out", tmp_path / "analysis")
    small_files(resource.RLIM_INFINITY)
    assert leftovers(tmp_path) == []


def test_a_folder_has_one_writer(tmp_path, fails):
    """A simulation from Python holds the folder; the command is refused, and takes it when that process is killed."""
    script = (
        "import sys, time\nfrom lie.run import output_directory\n"
        "with output_directory(sys.argv[1]):\n    print('locked', flush=True)\n    time.sleep(60)"
    )
    argv = [sys.executable, "-c", script, str(tmp_path / "run")]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None and other.stdout.readline() == "locked\n"
        for command in ("simulate", "train", "analyse"):
            error = fails(command, "chain-pendulum", "--out", tmp_path / "run")
            assert "another process writes to" in error
        other.kill()
    settings = Settings("chain-pendulum", {"links": 1}, trajectories=1, dt=0.1, horizon=0.2)
    simulate_run(settings, tmp_path / "run")
    assert leftovers(tmp_path) == []
