"""Files are whole or absent, checkpoints come back bit for bit, mistakes are one line."""

from __future__ import annotations

import dataclasses
import json
import math

import pytest
import torch
from lie.run import (
    RunLog,
    UserError,
    atomic_path,
    check_finite,
    load_checkpoint,
    load_weights,
    output_directory,
    print_table,
    provenance,
    read_json,
    resolve_device,
    run_command,
    save_checkpoint,
    save_weights,
    seeded_generator,
    unknown_name,
    write_json,
)
from safetensors.torch import save_file
from torch import nn


def test_atomic_path_leaves_the_old_file_and_no_rubbish(tmp_path):
    target = tmp_path / "a.json"
    write_json(target, {"x": 1})
    with pytest.raises(RuntimeError), atomic_path(target) as temporary:
        temporary.write_text("half")
        raise RuntimeError
    with pytest.raises(ValueError, match="Out of range"):
        write_json(target, {"x": math.nan})
    assert read_json(target) == {"x": 1}
    assert [path.name for path in tmp_path.iterdir()] == ["a.json"]


def test_output_directory(tmp_path):
    with pytest.raises(RuntimeError), output_directory(tmp_path / "a" / "b"):
        raise RuntimeError
    assert not (tmp_path / "a").exists()
    with output_directory(tmp_path / "a" / "b") as out:
        (out / "file").touch()
    with pytest.raises(RuntimeError), output_directory(tmp_path / "a" / "b"):
        raise RuntimeError
    assert (tmp_path / "a" / "b" / "file").exists()
    for bad in (tmp_path / "a" / "b" / "file", tmp_path / "a" / "b" / "file" / "c", "/proc/none"):
        with pytest.raises(UserError, match="cannot write to --out"), output_directory(bad):
            pass


def test_checkpoint_round_trip_and_resume_of_an_optimiser(tmp_path):
    def run(model, optimizer, schedule, generator, steps):
        for _ in range(steps):
            x = torch.randn(4, 3, generator=generator)
            optimizer.zero_grad()
            model(x).square().sum().backward()
            optimizer.step()
            schedule.step()

    def fresh():
        torch.manual_seed(0)
        model = nn.Linear(3, 2)
        optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
        return model, optimizer, torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 10), seeded_generator(1)

    whole = fresh()
    run(*whole, 6)
    first = fresh()
    run(*first, 3)
    tree = {"model": dict(first[0].state_dict()), "optimizer": first[1].state_dict(),
            "schedule": first[2].state_dict(), "generator": first[3].get_state(),
            "misc": (1, [2.5, None, True, "é"])}  # fmt: skip
    save_checkpoint(tmp_path / "c.safetensors", tree)
    loaded = load_checkpoint(tmp_path / "c.safetensors")
    assert loaded["misc"] == tree["misc"]
    second = fresh()
    for part, key in zip(second[:3], ("model", "optimizer", "schedule"), strict=True):
        part.load_state_dict(loaded[key])
    second[3].set_state(loaded["generator"])
    run(*second, 3)
    assert torch.equal(second[0].weight, whole[0].weight)
    with pytest.raises(TypeError, match="expected tensors"):
        save_checkpoint(tmp_path / "d.safetensors", {"x": object()})
    assert not (tmp_path / "d.safetensors").exists()


def test_broken_checkpoints_are_one_clear_error(tmp_path):
    good = tmp_path / "good.safetensors"
    save_weights(good, nn.Linear(3, 2), {"format": "test"})
    assert load_weights(good, nn.Linear(3, 2)) == {"format": "test"}
    truncated = tmp_path / "truncated.safetensors"
    truncated.write_bytes(good.read_bytes()[:-5])
    for path, message in [(tmp_path / "no", "does not exist"), (truncated, "not a whole safetensors"),
                          (_text(tmp_path), "not a whole safetensors")]:  # fmt: skip
        with pytest.raises(UserError, match=message):
            load_weights(path, nn.Linear(3, 2))
        with pytest.raises(UserError, match=message):
            load_checkpoint(path)
    with pytest.raises(UserError, match="another program"):
        load_checkpoint(good)
    with pytest.raises(UserError, match=r"expected weight of shape \(2, 4\), got \(2, 3\)"):
        load_weights(good, nn.Linear(4, 2))
    with pytest.raises(UserError, match=r"lacks \['0.bias', '0.weight'\] and has unknown \['bias', 'weight'\]"):
        load_weights(good, nn.Sequential(nn.Linear(3, 2)))
    save_file({"weight": torch.full((2, 3), math.nan), "bias": torch.zeros(2)}, tmp_path / "nan.safetensors")
    with pytest.raises(UserError, match="NaN"):
        load_weights(tmp_path / "nan.safetensors", nn.Linear(3, 2))
    save_file({"0": torch.zeros(1)}, tmp_path / "odd.safetensors", metadata={"tree": '{"tensor": "7"}'})
    with pytest.raises(UserError, match="damaged"):
        load_checkpoint(tmp_path / "odd.safetensors")


def _text(folder):
    path = folder / "text.safetensors"
    path.write_text("not a checkpoint")
    return path


def test_tied_weights_are_saved(tmp_path):
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    model[1].weight = model[0].weight
    save_weights(tmp_path / "tied.safetensors", model)
    load_weights(tmp_path / "tied.safetensors", model)


def test_log_rewinds_and_drops_a_cut_line(tmp_path):
    log = RunLog(tmp_path / "log.jsonl")
    for epoch in range(1, 5):
        log.append({"epoch": epoch})
    with log.path.open("a") as file:
        file.write('{"epoch": 5')
    assert len(log.read()) == 4
    log.rewind("epoch", 2)
    assert [record["epoch"] for record in log.read()] == [1, 2]
    assert RunLog(tmp_path / "none").read() == []


def test_names_devices_and_finiteness():
    assert "did you mean 'se2'" in str(unknown_name("group", "se22", ["se2", "trivial"]))
    assert "did you mean" not in str(unknown_name("group", "xyzzy", ["se2", "trivial"]))
    assert resolve_device("cpu").type == "cpu"
    assert resolve_device("auto").type in ("cpu", "cuda", "mps", "xpu")
    for name in ("cuda:99", "toaster"):
        with pytest.raises(UserError, match=name):
            resolve_device(name)
    check_finite("x", torch.ones(3))
    with pytest.raises(UserError, match=r"1 NaN or infinite of 4 values \(first at index \(1, 0\)\)"):
        check_finite("x", torch.tensor([[1.0, 2.0], [math.inf, 0.0]]))
    assert {"python", "torch", "lie-core"} <= provenance().keys()
    assert provenance("no-such-distribution")["no-such-distribution"] == "not installed"
    with pytest.raises(UserError, match="no file"):
        read_json("/nowhere.json")


def test_numbers_of_tables_are_not_broken(capsys):
    print_table("wide", ["a model with a long name", *(f"column {i}" for i in range(12))],
                [["x" * 60, *(1.25e-11 for _ in range(12))]])  # fmt: skip
    assert capsys.readouterr().out.count("1.25e-11") == 12


def test_commands_end_with_the_right_code(capsys):
    @dataclasses.dataclass(frozen=True)
    class Greet:
        """Greet.

        Example: tool greet --name you
        """

        name: str = "you"
        """Whom."""
        often: int = 1
        """How many times."""
        out: str = "here"
        resume: str | None = None

        def run(self):
            if self.name == "nobody":
                raise UserError("expected somebody,\n got nobody")
            if self.name == "ctrl-c":
                raise KeyboardInterrupt
            print(json.dumps({"hello": self.name}))

    def run(*argv):
        code = run_command("tool", "A tool.", {"greet": Greet}, argv)
        return code, capsys.readouterr()

    assert run("greet", "--name", "me")[0] == 0
    code, captured = run("greet", "--name", "nobody")
    assert code == 2 and captured.err == "tool: error: expected somebody, got nobody\n"
    code, captured = run("gret")
    assert code == 2 and "did you mean 'greet'" in captured.err and captured.err.count("\n") == 1
    code, captured = run("greet", "--name", "ctrl-c")
    assert code == 130 and captured.err == "tool: interrupted; resume with: tool greet --resume here\n"
    for argv, message in {
        (): "expected a command, one of greet; see tool --help",
        ("greet", "--often", "x"): "--often: invalid literal for int() with base 10: 'x'",
        ("greet", "--oftn", "2"): "--oftn, 2; did you mean --often?; see tool greet --help",
        ("greet", "--often"): "Missing value for argument '--often'",
    }.items():
        code, captured = run(*argv)
        assert code == 2 and message in captured.err and captured.err.count("\n") == 1, captured.err
    assert run("--version")[1].out == "tool not installed\n"
    with pytest.raises(SystemExit) as stop:
        run("greet", "--help")
    assert stop.value.code == 0 and "Example: tool greet" in capsys.readouterr().out
