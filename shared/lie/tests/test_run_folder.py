"""Folders of runs: typed configurations, locks, full disks, damaged checkpoints and logs; one line for each."""

from __future__ import annotations

import dataclasses
import errno
import json
import logging
import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec
import pytest
import torch
from lie.run import (
    Count,
    NonNegative,
    Positive,
    RunFlags,
    RunFolder,
    RunLog,
    Seed,
    UserError,
    WriteError,
    atomic_path,
    check_resumable,
    load_checkpoint,
    load_config,
    load_model,
    load_run,
    load_weights,
    output_directory,
    run_command,
    save_checkpoint,
    save_weights,
    seeded_generator,
    validate,
    write_json,
)
from safetensors.torch import load_file
from torch import nn


@dataclasses.dataclass(frozen=True)
class Config:
    """Of a tiny run."""

    steps: Count = 6
    rate: Positive = 0.1
    decay: NonNegative = 0.0
    kind: Literal["a", "b"] = "a"
    sizes: tuple[Annotated[int, msgspec.Meta(ge=1, le=9)], ...] = (1, 2)
    name: str | None = None
    parameters: dict[str, Any] = dataclasses.field(default_factory=dict)
    seed: Seed = 0


GOOD = {"steps": 3, "rate": 1, "decay": 0.5, "kind": "b", "sizes": [3, 4], "name": None, "parameters": {"x": [1.5]},
        "seed": 2**63 - 1}  # fmt: skip


def test_a_configuration_comes_back_with_its_types():
    config = validate(Config, GOOD, "config.json")
    assert config == Config(3, 1.0, 0.5, "b", (3, 4), None, {"x": [1.5]}, 2**63 - 1)
    assert isinstance(config.rate, float) and isinstance(config.sizes, tuple)
    assert validate(Config, json.loads(json.dumps(dataclasses.asdict(config))), "") == config


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("steps", "x", "expected steps in config.json to be a whole number from 1 to 1000000, got 'x'"),
        ("steps", True, "whole number from 1 to 1000000, got True"),
        ("steps", 2.0, "got 2.0"),
        ("steps", 0, "got 0"),
        ("steps", 10**30, "from 1 to 1000000, got 1000000000000000000000000000000"),
        ("rate", 0, "a number above 0, got 0"),
        ("rate", math.nan, "got nan"),
        ("rate", math.inf, "to be finite, got inf"),
        ("rate", 10**400, "a number above 0, got"),
        ("decay", -1e-9, "a number of at least 0"),
        ("kind", "c", "one of a, b, got 'c'"),
        ("kind", ["a"], "one of a, b"),
        ("sizes", [1, 10], "a list, each a whole number from 1 to 9"),
        ("sizes", None, "a list"),
        ("name", 3, "text or null, got 3"),
        ("parameters", [], "an object"),
        ("parameters", {"x": math.nan}, "finite"),
        ("seed", 2**63, "from 0 to 2^63 - 1, got 9223372036854775808"),
        ("seed", {"a": "b" * 1000}, "..."),
    ],
)
def test_a_value_of_another_type_or_out_of_range_is_named(field, value, message):
    with pytest.raises(UserError) as caught:
        validate(Config, {**GOOD, field: value}, "config.json")
    assert message in str(caught.value) and field in str(caught.value)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 300


@pytest.mark.parametrize("value", [None, [], 3, {}, {"a": 1}, {**GOOD, "more": 1}, {"steps": 1}])
def test_other_fields_are_refused(value):
    with pytest.raises(UserError, match="the fields steps, rate"):
        validate(Config, value, "config.json")


@dataclasses.dataclass(frozen=True)
class Work(RunFlags):
    """Work, in ways that fail."""

    steps: Count = 1
    rates: tuple[float, ...] = ()
    limit: float | None = None
    fails: str = ""

    def run(self):
        """Fail as asked."""
        if self.fails == "print":
            print("a result")
        if self.fails == "memory":
            raise MemoryError
        if self.fails == "torch":
            torch.empty(10**17)
        if self.fails == "bug":
            raise RuntimeError("a mistake of ours")
        if self.fails == "disk":
            raise OSError(errno.ENOSPC, "No space left on device", "a.npz")
        if self.fails == "file":
            assert self.out is not None
            with output_directory(self.out) as out:
                write_json(out / "config.json", {})
                with atomic_path(out / "a.npz"):
                    raise OSError(errno.ENOSPC, "No space left on device")
        if self.fails == "lock":
            assert self.out is not None
            with output_directory(self.out):
                print("locked", flush=True)
                time.sleep(60)


def command(capsys, *argv):
    code = run_command("tool", "A tool.", {"work": Work}, ["work", *map(str, argv)])
    error = capsys.readouterr().err
    assert error.count("\n") == (1 if code else 0)
    return code, error


def test_flags_have_the_bounds_of_their_annotations(capsys):
    for argv, message in {
        ("--steps", "0"): "expected --steps to be a whole number from 1 to 1000000, got 0",
        ("--steps", "9" * 22): "from 1 to 1000000, got 9999999999999999999999",
        ("--limit", "nan"): "--limit",
        ("--rates", "1", "inf"): "--rates",
    }.items():
        code, error = command(capsys, *argv)
        assert code == 2 and message in error
    assert command(capsys, "--steps", "1000000", "--limit", "-1e300") == (0, "")


def test_memory_and_disk_are_one_line_and_a_mistake_of_ours_is_not(tmp_path, capsys):
    for fails, message in {
        "memory": "not enough memory",
        "torch": "not enough memory",
        "disk": "a.npz: No space left on device",
    }.items():
        code, error = command(capsys, "--fails", fails, "--out", tmp_path / "none")
        assert code == 2 and message in error and "--resume" not in error
    code, error = command(capsys, "--fails", "file", "--out", tmp_path / "run")
    assert code == 2 and f"cannot write {tmp_path / 'run' / 'a.npz'}: the disk is full" in error
    assert f"resume with tool work --resume {tmp_path / 'run'}" in error
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == ["config.json"]
    with pytest.raises(RuntimeError, match="mistake of ours"):
        command(capsys, "--fails", "bug")
    for argv in ((), ("--out", "a", "--resume", "b")):
        flags = Work(**dict(zip(("out", "resume"), map(Path, argv[1::2]), strict=False)))
        with pytest.raises(UserError, match="either --out DIR"):
            flags.folder()


def limited(body: str, folder: Path, size: int) -> subprocess.CompletedProcess[str]:
    """Run ``body`` in a process whose files may not exceed ``size`` bytes: what a full disk does, without a disk."""
    lines = [
        "import resource, torch, numpy, logging, sys",
        "from pathlib import Path",
        "from lie.run import *",
        "from lie.run.files import writing",
        "sys.dont_write_bytecode = True  # it would be cut short, without an error",
        f"resource.setrlimit(resource.RLIMIT_FSIZE, ({size}, {size}))",
        f"folder = Path({str(folder)!r})",
        "def attempt(write):",
        "    try:",
        "        write()",
        "    except WriteError as error:",
        "        print(error)",
        body,
    ]
    return subprocess.run([sys.executable, "-c", "\n".join(lines)], capture_output=True, text=True, timeout=120)


def test_a_file_that_does_not_fit_is_one_line_and_leaves_the_old_one(tmp_path):
    save_checkpoint(tmp_path / "c.safetensors", {"x": torch.zeros(3)})
    save_weights(tmp_path / "w.safetensors", nn.Linear(2, 2))
    for name in ("a.npz", "b.json", "d.png"):
        (tmp_path / name).write_text("old")
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    body = """
def npz(name):
    with atomic_path(folder / name) as path:
        numpy.savez(path, x=numpy.zeros(10_000))
def picture(name):
    from PIL import Image
    with atomic_path(folder / name) as path:
        Image.effect_noise((200, 200), 50).save(path)
attempt(lambda: save_checkpoint(folder / "c.safetensors", {"x": torch.zeros(10_000)}))
attempt(lambda: save_weights(folder / "w.safetensors", torch.nn.Linear(100, 100)))
attempt(lambda: write_json(folder / "b.json", list(range(10_000))))
attempt(lambda: npz("a.npz"))
attempt(lambda: picture("d.png"))
log = RunLog(folder / "train.jsonl")
attempt(lambda: [log.append({"step": i, "text": "x" * 100}) for i in range(100)])
"""
    result = limited(body, tmp_path, 4096)
    assert result.returncode == 0 and result.stderr == ""
    lines = result.stdout.splitlines()
    assert len(lines) == 6
    for line, name in zip(lines, ("c.safetensors", "w.safetensors", "b.json", "a.npz", "d.png", "train"), strict=True):
        assert line.startswith(f"cannot write {tmp_path / name}")
    log = RunLog(tmp_path / "train.jsonl")
    assert 10 < len(log.read()) < 100  # whole records; the last one was cut
    log.path.unlink()
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_a_folder_has_one_writer(tmp_path, capsys):
    script = "import sys; sys.path.insert(0, sys.argv[1]); from test_run_folder import Work; " \
             "from lie.run import run_command; run_command('tool', '', {'work': Work}, sys.argv[2:])"  # fmt: skip
    argv = [sys.executable, "-c", script, str(Path(__file__).parent), "work", "--fails", "lock", "--out", str(tmp_path)]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None and other.stdout.readline() == "locked\n"
        code, error = command(capsys, "--fails", "lock", "--out", tmp_path)
        assert code == 2 and f"another process writes to {tmp_path}" in error
        with output_directory(tmp_path, lock=False):  # as for a film beside other files
            pass
        os.kill(other.pid, signal.SIGKILL)
    with output_directory(tmp_path), output_directory(tmp_path):  # the lock of a killed process does not stand
        pass
    assert list(tmp_path.iterdir()) == []


def test_two_threads_are_two_writers(tmp_path):
    from threading import Thread

    said = []

    def enter():
        try:
            with output_directory(tmp_path):
                pass
        except UserError as error:
            said.append(str(error))

    with output_directory(tmp_path):
        thread = Thread(target=enter)
        thread.start()
        thread.join()
    assert len(said) == 1 and "another process" in said[0]


def parts(rate=0.1):
    torch.manual_seed(0)
    model = nn.Linear(3, 2)
    optimizer = torch.optim.AdamW(model.parameters(), lr=rate)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 6)
    return {"model": model, "optimizer": optimizer, "schedule": schedule, "order": seeded_generator(1)}


def train(folder, config, until=6, *, resume=False):
    """A tiny training, stopped after ``until`` steps."""
    with RunFolder(folder, config, program="lie-core", resume=resume, facts={"classes": 2}) as run:
        own = parts(config.rate)
        start = run.begin("step", config.steps, **own)
        for step in range(start, until):
            loss = own["model"](torch.randn(4, 3, generator=own["order"])).square().sum()
            own["optimizer"].zero_grad()
            loss.backward()
            own["optimizer"].step()
            own["schedule"].step()
            run.log.append({"step": step + 1, "loss": float(loss.detach())})
            run.save(step + 1)
        if until == config.steps:
            run.finish(own["model"])
    return start


def test_a_run_goes_on_bit_for_bit(tmp_path):
    config = Config()
    assert train(tmp_path / "whole", config) == 0
    train(tmp_path / "cut", config, until=3)
    with pytest.raises(UserError, match="not finished; resume with: lie-core train --resume"):
        load_run(tmp_path / "cut", Config, program="lie-core")
    with pytest.raises(UserError, match="already holds a run"):
        train(tmp_path / "cut", config)
    (tmp_path / "cut" / ".checkpoint-x1y2z3.safetensors").write_text("cut sho")  # of a process killed while writing
    assert train(tmp_path / "cut", load_config(tmp_path / "cut", Config, program="lie-core")[0], resume=True) == 3
    for name in ("model.safetensors", "train.jsonl", "config.json"):
        assert (tmp_path / "whole" / name).read_bytes() == (tmp_path / "cut" / name).read_bytes()
    assert not [path for path in (tmp_path / "cut").iterdir() if path.name.startswith(".")]
    loaded, facts = load_run(tmp_path / "cut", Config, program="lie-core")
    assert loaded == config and facts["classes"] == 2
    load_model(tmp_path / "cut", loaded, nn.Linear(3, 2))


def test_a_run_that_diverged_gives_way(tmp_path):
    with RunFolder(tmp_path, Config(), program="lie-core") as run:
        own = parts()
        run.begin("step", 6, **own)
        with torch.no_grad():
            own["model"].weight[0, 0] = math.inf
        with pytest.raises(UserError, match="a weight is not finite after step 1; try a smaller --learning-rate"):
            run.save(1)
    assert not (tmp_path / "checkpoint.safetensors").exists()
    config, facts = load_config(tmp_path, Config, program="lie-core")
    with pytest.raises(UserError, match="begin anew"):
        check_resumable(tmp_path, facts)
    with pytest.raises(UserError, match="diverged"):
        load_run(tmp_path, Config, program="lie-core")
    assert train(tmp_path, config) == 0
    assert load_run(tmp_path, Config, program="lie-core")[0] == config


def test_a_configuration_that_was_changed_is_noticed(tmp_path):
    train(tmp_path / "cut", Config(), until=3)
    with pytest.raises(UserError, match=r"rate was 0.1, is 0.2"):
        train(tmp_path / "cut", Config(rate=0.2), resume=True)
    train(tmp_path / "whole", Config())
    with pytest.raises(UserError, match="seed was 0, is 1"):
        load_model(tmp_path / "whole", Config(seed=1), nn.Linear(3, 2))


def test_a_damaged_byte_of_weights_and_checkpoints_is_noticed(tmp_path):
    """Also within a tensor, where safetensors has no checksum of its own."""
    train(tmp_path, Config())
    expected = load_file(tmp_path / "model.safetensors")["weight"]

    def weights(path):
        model = nn.Linear(3, 2)
        load_weights(path, model)
        return model

    for name, load in {"checkpoint.safetensors": load_checkpoint, "model.safetensors": weights}.items():
        path, refused = tmp_path / name, 0
        good = path.read_bytes()
        for place in range(0, len(good), max(1, len(good) // 150)):
            damaged = bytearray(good)
            damaged[place] ^= 4
            path.write_bytes(damaged)
            try:
                loaded = load(path)
            except UserError:
                refused += 1
            else:  # the padding of the header, or the name of the entry that holds the checksum
                model = loaded if name.startswith("model") else None
                assert model is None or torch.equal(model.weight, expected)
                assert model is not None or good[place] == ord(" "), place
        path.write_bytes(good)
        load(path)
        assert refused > 100


def changes():
    """Path into a checkpoint, and a value that does not belong there."""
    return [
        (("done",), value) for value in ("x", None, -1, 7, True, 1.5, 10**400)
    ] + [
        (("config",), value) for value in (None, 3, "{", "[]", '{"steps": 7}')
    ] + [
        (("parts", part), value)
        for part in ("model", "optimizer", "schedule", "order") for value in (None, 3, "x", [], {}, torch.zeros(2))
    ] + [
        (("parts", "model", "weight"), value) for value in (None, torch.zeros(3, 2), torch.zeros(2, 3).int(),
                                                            torch.full((2, 3), math.nan))
    ] + [
        (("parts", "optimizer", "param_groups", 0, key), value)
        for key in ("lr", "betas", "eps", "weight_decay", "params", "amsgrad", "initial_lr")
        for value in ("x", -1.0, [])
    ] + [
        (("parts", "optimizer", "param_groups"), value) for value in ("x", [], [{}], None)
    ] + [
        (("parts", "optimizer", "state"), value) for value in ("x", [], {"x": {}}, {7: {}}, {0: {}}, {0: 3}, {-1: {}})
    ] + [
        (("parts", "optimizer", "state", 0, key), value)
        for key in ("step", "exp_avg", "exp_avg_sq")
        for value in ("x", 1.0, torch.zeros(7), torch.full((2, 3), math.nan))
    ] + [
        (("parts", "schedule", key), value)
        for key in ("T_max", "eta_min", "base_lrs", "last_epoch", "_step_count", "_last_lr")
        for value in ("x", None, -3, [], 10**400)
    ]  # fmt: skip


def test_checkpoints_of_other_types_or_out_of_range_are_one_line(tmp_path):
    """Written with a right checksum: what a stranger may hand on, not damage."""
    train(tmp_path, Config(), until=3)
    path = tmp_path / "checkpoint.safetensors"
    for place, value in changes():
        tree = load_checkpoint(path)
        node = tree
        for key in place[:-1]:
            node = node[key]
        node[place[-1]] = value
        other = tmp_path / "other"
        other.mkdir(exist_ok=True)
        (other / "config.json").write_bytes((tmp_path / "config.json").read_bytes())
        save_checkpoint(other / "checkpoint.safetensors", tree)
        try:
            train(other, Config(), resume=True)
        except UserError as error:
            said = str(error)
        else:
            pytest.fail(f"{place} of {value!r} was taken")
        assert said and "\n" not in said and len(said) < 700, place
        assert not (other / ".lock").exists()


def test_a_damaged_log_does_not_stop_a_run(tmp_path, caplog):
    """Every byte of it, and every one of a few values."""
    train(tmp_path, Config(), until=3)
    log = RunLog(tmp_path / "train.jsonl")
    good = log.path.read_bytes()
    for place in range(len(good)):
        for value in (0, 0xFF, ord("{"), ord("\n"), ord("e")):
            damaged = bytearray(good)
            damaged[place] = value
            log.path.write_bytes(damaged)
            with caplog.at_level(logging.ERROR):
                log.rewind("step", 3)
            assert len(log.read()) >= 1
    log.path.write_bytes(good.replace(b'"step"', b'"stop"', 1))
    with caplog.at_level(logging.WARNING):
        log.rewind("step", 3)
    assert "line 1 is damaged and left out" in caplog.text and len(log.read()) == 2
    log.path.write_bytes(b"[]\n")
    with pytest.raises(UserError, match=r"line 1 of .* is damaged"):
        log.read()
    log.path.unlink()
    log.path.mkdir()
    with pytest.raises(UserError, match="a folder"):
        log.read()
    with pytest.raises(WriteError):
        log.append({})


def test_a_full_disk_behind_standard_output_is_one_line(tmp_path):
    """Linux has a device that is always full."""
    script = "import sys; sys.path.insert(0, sys.argv[1]); from test_run_folder import Work; " \
             "from lie.run import run_command; " \
             "sys.exit(run_command('tool', '', {'work': Work}, sys.argv[2:]))"  # fmt: skip
    if not Path("/dev/full").exists():
        pytest.skip("this system has no device that is always full")
    with Path("/dev/full").open("w") as full:
        argv = [sys.executable, "-c", script, str(Path(__file__).parent), "work", "--fails", "print"]
        result = subprocess.run(argv, stdout=full, stderr=subprocess.PIPE, text=True, timeout=120)
    assert result.returncode == 2
    assert result.stderr == "tool: error: cannot write the output: No space left on device\n"
