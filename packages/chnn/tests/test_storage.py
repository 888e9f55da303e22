"""Runs on disk: the same bits however they are cut, killed and resumed; read back; and every kind of bad folder."""

from __future__ import annotations

import errno
import importlib.util
import json
import logging
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from chnn.cli import main
from chnn.mechanics import Assembly
from chnn.storage import Settings, load_run, simulate_run
from chnn.storage.checksums import append_sum, read_sealed, write_sealed
from chnn.storage.settings import initial_states
from chnn.systems import SYSTEMS, System, system_by_name
from lie.run import UserError

BASE = Settings("chain-pendulum", {"links": 2}, trajectories=150, dt=0.1, horizon=0.5)


def files(folder):
    """Names and bytes of the files that must not depend on how a run went; metrics hold seconds."""
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.name != "metrics.json"}


def run(folder, settings=BASE):
    folder.mkdir(exist_ok=True)
    simulate_run(settings, folder)
    return folder


KILLS = """
import os, signal, sys, threading, time
from pathlib import Path
from chnn.storage import Settings, simulate_run
from tqdm import tqdm
tqdm.set_lock(threading.RLock())  # by default one shared between processes, which the killed one may hold
tqdm.monitor_interval = 0
for kind in sys.argv[2:]:
    settings = Settings("chain-pendulum", {"links": 2}, trajectories=600, dt=0.02, horizon=1.0, format=kind, shard=50)
    whole, cut = Path(sys.argv[1], kind, "whole"), Path(sys.argv[1], kind, "cut")
    whole.mkdir(parents=True), cut.mkdir()
    settings.build().simulate(settings.build().sample(8), settings.times)  # the kernel is loaded
    began = time.process_time()
    simulate_run(settings, whole)
    part = (time.process_time() - began) / 8
    kills = 0
    while kills < 20 and not (cut / "metrics.json").exists():
        child = os.fork()
        if child == 0:
            # Ends the process at once, after processor time, which no load of the machine stretches; another each time.
            signal.setitimer(signal.ITIMER_PROF, part * (0.5 + (kills * 0.618) % 1))
            simulate_run(settings, cut)
            os._exit(0)
        for _ in range(6000):  # a minute; a signal of processor time never comes to a child that waits
            if os.waitpid(child, os.WNOHANG)[0]:
                break
            time.sleep(0.01)
        else:
            os.kill(child, signal.SIGKILL), os.waitpid(child, 0)
            sys.exit("a child hangs")
        kills += 1
    simulate_run(settings, cut)
    print(kills)
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="processes are killed after a fork")
def test_killed_anywhere_and_resumed_has_the_same_bits(tmp_path):
    kinds = ["npz", *(["parquet"] if importlib.util.find_spec("pyarrow") else [])]
    command = [sys.executable, "-c", KILLS, str(tmp_path), *kinds]
    # One thread: a child that is forked after the parent has used a second one waits for it for ever.
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    ended = subprocess.run(command, capture_output=True, text=True, check=False, timeout=200, env=environment)
    assert ended.returncode == 0, ended.stderr
    assert min(map(int, ended.stdout.split())) >= 2
    for kind in kinds:
        whole, cut = files(tmp_path / kind / "whole"), files(tmp_path / kind / "cut")
        assert len(whole) == 12 + 3 and whole == cut  # no file of a killed process is left over either


def test_resume_redoes_nothing_that_is_whole(tmp_path, monkeypatch):
    settings = replace(BASE, shard=50)
    whole = run(tmp_path / "run", settings)
    before = {path: path.stat().st_mtime_ns for path in whole.glob("trajectories*")}
    lost, damaged, kept = sorted(before)
    bits = files(whole)
    lost.unlink()
    damaged.write_bytes(damaged.read_bytes()[:-30])
    (whole / "metrics.json").unlink()
    simulated = []
    simulate = System.simulate
    monkeypatch.setattr(
        System, "simulate", lambda s, z0, *a, **k: simulated.append(len(z0)) or simulate(s, z0, *a, **k)
    )
    simulate_run(settings, whole)
    assert simulated == [50, 50] and files(whole) == bits
    assert kept.stat().st_mtime_ns == before[kept]
    assert json.loads((whole / "metrics.json").read_text())["trajectories_before_resume"] == 50


def test_a_trajectory_depends_on_the_seed_and_its_number_only(tmp_path):
    reference = load_run(run(tmp_path / "whole")).z
    drawn = initial_states(system_by_name("chain-pendulum", links=2), 0, range(150))
    # Projected once more, which moves them by rounding.
    torch.testing.assert_close(reference[:, 0], drawn, rtol=0.0, atol=1e-14)
    for shard, count in [(7, 20), (64, 150), (1, 3)]:
        other = run(tmp_path / f"{shard}", replace(BASE, shard=shard, trajectories=count))
        assert torch.equal(load_run(other).z, reference[:count])
    assert not torch.equal(load_run(run(tmp_path / "seed", replace(BASE, seed=1))).z, reference)
    # Neither blocks of 64 nor trajectories in a block start alike.
    assert len(torch.unique(reference[:, 0].flatten(1), dim=0)) == 150


@pytest.mark.parametrize("name", SYSTEMS)
def test_initial_states_of_every_system_are_their_own_in_any_cut(name):
    system = system_by_name(name)
    whole = initial_states(system, 3, range(70))
    assert torch.equal(initial_states(system, 3, range(62, 67)), whole[62:67])
    assert float(system.constraints(whole).abs().max() if system.constraints(whole).numel() else 0) < 1e-13


@pytest.mark.parametrize("kind", ["npz", "parquet"])
def test_read_back(tmp_path, kind):
    if kind == "parquet":
        pytest.importorskip("pyarrow")
    back = load_run(run(tmp_path / "run", replace(BASE, format=kind, shard=40)))
    assert len(back) == 150 and back.seed == 0 and back.parameters["links"] == 2
    assert back.system.name == "chain-pendulum" and torch.equal(back.t, 0.1 * torch.arange(6).double())
    z = back.z
    # The same numbers as without a disk: the compiled path takes the same steps in any batch.
    assert torch.equal(z, back.system.simulate(z[:, 0], back.t, 1e-10))
    assert torch.equal(torch.cat(list(back.shards())), z)
    assert torch.equal(back[137], z[137]) and torch.equal(back[-1], z[-1]) and torch.equal(back[150:], z[150:])
    for some in (slice(30, 90), slice(None, None, 11), slice(100, 20, -7)):
        assert torch.equal(back[some], z[range(150)[some]])
    with pytest.raises(IndexError, match="below 150"):
        back[150]
    drift = (back.system.energy(z) - back.system.energy(z[:, :1])).abs().amax(1) / back.system.energy_scale(z[:, 0])
    # Sums of the same terms in batches of another size differ by rounding, of some 1e-16 of the energy.
    np.testing.assert_allclose(back.drifts().energy_drift, drift, atol=1e-14)
    assert back.metrics["energy_drift_max"] == back.drifts().energy_drift.max()
    lines = (back.path / "drifts.csv").read_text().splitlines()
    assert len(lines) == 151 and float(lines[8].split(",")[1]) == pytest.approx(float(drift[7]), abs=1e-14)


def test_parquet_is_a_table_with_units(tmp_path):
    parquet = pytest.importorskip("pyarrow.parquet")
    settings = Settings("cart-pole", {}, trajectories=3, dt=0.1, horizon=0.2, format="parquet")
    back = load_run(run(tmp_path / "run", settings))
    table = parquet.read_table(tmp_path / "run" / "trajectories.parquet")
    assert table.column_names[:8] == ["trajectory", "t", "cart.x", "cart.y", "pole.x", "pole.y", "pole.tip1.x",
                                      "pole.tip1.y"]  # fmt: skip
    units = [field.metadata[b"unit"] for field in table.schema if field.name != "trajectory"]
    assert units == [b"s", *6 * [b"m"], *6 * [b"m/s"]]
    assert table["trajectory"].to_pylist() == [0, 0, 0, 1, 1, 1, 2, 2, 2]
    assert table["pole.vx"].to_numpy()[4] == float(back.z[1, 1, 1, 1, 0])


def test_a_system_of_your_own(tmp_path):
    world = Assembly(2)
    upper, lower = world.point("upper", 1.0, position=(0.0, -1.0)), world.point("lower", 1.0, position=(0.0, -2.0))
    world.tether(upper, (0, 0), 1.0)  # the chain of two, whose kernel is there
    world.distance(upper, lower, 1.0)
    world.gravity()
    own = System(world.build("pendulum"))
    tmp_path.joinpath("run").mkdir()
    simulate_run(replace(BASE, system="pendulum", parameters={}, trajectories=4), tmp_path / "run", system=own)
    assert load_run(tmp_path / "run", system=own).z.shape == (4, 6, 2, 2, 2)
    with pytest.raises(UserError, match="unknown system 'pendulum'"):
        load_run(tmp_path / "run")


def test_a_full_disk_keeps_what_is_whole(tmp_path, monkeypatch, fails):
    arguments = ["chain-pendulum", "--links", "2", "--trajectories", "150", "--dt", "0.1", "--horizon", "0.5",
                 "--shard", "50", "--no-animation"]  # fmt: skip
    assert main(["simulate", *arguments, "--out", str(tmp_path / "whole")]) == 0
    save, calls = np.savez, []

    def full(*args, **kwargs):
        calls.append(1)
        if len(calls) == 2:
            raise OSError(errno.ENOSPC, "No space left on device")
        save(*args, **kwargs)

    monkeypatch.setattr(np, "savez", full)
    message = fails("simulate", *arguments, "--out", tmp_path / "cut")
    assert "the disk is full" in message and "--resume" in message
    assert "not finished" in fails("animate", tmp_path / "cut")
    assert len(list((tmp_path / "cut").glob("*.npz"))) == 1
    monkeypatch.setattr(np, "savez", save)
    assert main(["simulate", "--resume", str(tmp_path / "cut"), "--no-animation"]) == 0
    assert files(tmp_path / "cut") == files(tmp_path / "whole")
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=1000))
    assert "GiB free" in fails("simulate", *arguments, "--out", tmp_path / "none")
    assert not (tmp_path / "none").exists()


def test_trajectories_that_stop_early(tmp_path, monkeypatch, capsys, fails):
    from chnn.simulation import IntegrationError

    simulate = System.simulate

    def stops(self, z0, t, *args, **kwargs):
        z = simulate(self, z0, t, *args, **kwargs)
        z[1, 3:] = torch.nan
        raise IntegrationError("the step size underflowed", "end earlier", time=0.25, step_size=1e-17, samples=[1],
                               reached=z)  # fmt: skip

    monkeypatch.setattr(System, "simulate", stops)
    arguments = ["chain-pendulum", "--links", "2", "--trajectories", "6", "--shard", "4", "--no-animation"]
    message = fails("simulate", *arguments, "--out", tmp_path / "stop")
    assert "trajectory 1:" in message and "0.25" in message and "--failures keep" in message
    assert main(["simulate", *arguments, "--failures", "keep", "--out", str(tmp_path / "keep")]) == 0
    assert "stopped early" in capsys.readouterr().out
    back = load_run(tmp_path / "keep")
    assert back.metrics["failed"] == 2 and back.metrics["energy_drift_max"] < 1e-8
    bad = torch.isnan(back.z).flatten(1).any(1)
    assert bad.tolist() == [False, True, False, False, False, True]


def test_resume_goes_by_its_own_settings(tmp_path, fails, caplog):
    folder = tmp_path / "run"
    arguments = ["--trajectories", "3", "--horizon", "0.1", "--dt", "0.05", "--links", "2", "--no-animation"]
    assert main(["simulate", "chain-pendulum", *arguments, "--out", str(folder)]) == 0
    for flags, message in [
        (["--rtol", "1e-5"], "has rtol 1e-10, got --rtol 1e-05"),
        (["rope"], "has system 'chain-pendulum', got SYSTEM 'rope'"),
        (["--links", "3"], "has links 2, got --links 3"),
        (["--set", "links=3"], "leave out --set"),
        (["--out", tmp_path / "other"], "either SYSTEM and --out RUN"),
    ]:
        assert message in fails("simulate", "--resume", folder, *flags)
    assert main(["simulate", "chain-pendulum", "--resume", str(folder), *arguments]) == 0  # the same said again
    assert "already holds a run" in fails("simulate", "chain-pendulum", "--out", folder)
    with pytest.raises(UserError, match=r"other settings: trajectories is 3, got 4"):
        simulate_run(replace(load_run(folder).settings, trajectories=4), folder)
    stored = read_sealed(folder / "run.json", "")
    stored["versions"]["torch"] = "1.0"
    write_sealed(folder / "run.json", stored)
    with caplog.at_level(logging.WARNING):
        assert main(["simulate", "--resume", str(folder), "--no-animation"]) == 0
    assert "another torch" in caplog.text


def test_damaged_folders_are_one_line(tmp_path, fails, monkeypatch):
    folder = run(tmp_path / "run", replace(BASE, shard=80))
    assert "does not exist" in fails("simulate", "--resume", tmp_path / "none")
    (tmp_path / "empty").mkdir()
    assert "is this the folder of a run?" in fails("simulate", "--resume", tmp_path / "empty")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "trajectories.npz").write_bytes(b"x")
    assert "of no run that can go on" in fails("simulate", "rotor", "--out", tmp_path / "other")
    last = folder / "trajectories-00001-of-00002.npz"
    good = last.read_bytes()
    middle = len(good) // 2
    for content in (good[:-100], b"text", good[:middle] + bytes([good[middle] ^ 1]) + good[middle + 1 :]):
        last.write_bytes(content)
        with pytest.raises(UserError, match=r"damaged or cut short.*--resume"):
            load_run(folder)[149]
    np.savez(last, z=np.zeros((70, 6, 2, 2, 2), dtype=np.float32))
    append_sum(last)
    with pytest.raises(UserError, match="does not fit its run"):
        load_run(folder)[149]
    last.unlink()
    assert "is missing; make it again" in fails("animate", folder)
    stored = read_sealed(folder / "run.json", "")
    for change, message in [
        ({"settings": {}}, "holds no settings"),
        ({"settings": {**stored["settings"], "rtol": "low"}}, "expected rtol in the settings in"),
        ({"settings": {**stored["settings"], "system": "robe"}}, "did you mean 'rope'"),
        ({"settings": {**stored["settings"], "parameters": {"linx": 1}}}, "no parameter linx; did you mean links?"),
    ]:
        write_sealed(folder / "run.json", {**stored, **change})
        assert message in fails("simulate", "--resume", folder)
    (folder / "run.json").write_text("{")
    message = fails("simulate", "--resume", folder)
    assert "as JSON" in message and "make the run again in another --out" in message


def test_bad_settings_are_one_line_and_leave_nothing(tmp_path, fails, monkeypatch):
    out = tmp_path / "out"
    for flags, message in [
        (["--format", "parket"], "did you mean 'parquet'"),
        (["--animation", "gf"], "did you mean 'gif'"),
        (["--failures", "go"], "known: keep, stop"),
        (["--shard", "0"], "--shard to be a whole number"),
        (["--dt", "nan"], "expected --dt to be a number above 0, got nan"),
        (["--dt", "1e-9"], "give a larger --dt"),
        (["--trajectories", "10000000000"], "GiB free"),
        (["--seed", "9223372036854775808"], "--seed to be a whole number from 0 to 2^63 - 1"),
    ]:
        assert message in fails("simulate", "chain-pendulum", *flags, "--out", out)
        assert not out.exists(), flags
    assert "expected a SYSTEM" in fails("simulate", "--out", out)
    assert "either SYSTEM and --out RUN" in fails("simulate", "rope")
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    assert "chnn[parquet]" in fails("simulate", "rope", "--format", "parquet", "--out", out)
    assert not out.exists()


def test_what_a_killed_process_left_half_written_goes_away(tmp_path):
    settings = Settings("chain-pendulum", {"links": 1}, trajectories=3, dt=0.1, horizon=0.5)
    simulate_run(settings, tmp_path)
    whole = {path.name for path in tmp_path.iterdir()}
    for name in whole:
        path = Path(name)
        (tmp_path / f".{path.stem}-x1y2z3{path.suffix}").write_text("cut sho")
    simulate_run(settings, tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == whole


def test_a_run_that_goes_on_draws_what_it_was_started_with(tmp_path, monkeypatch):
    folder = tmp_path / "run"
    flags = ["--trajectories", "2", "--horizon", "0.2"]
    for kinds in (["html"], ["none"]):
        assert main(["simulate", "rotor", *flags, "--animation", *kinds, "--out", str(folder)]) == 0
        for drawn in [*folder.glob("animation.*"), folder / "metrics.json"]:
            drawn.unlink()
        assert main(["simulate", "--resume", str(folder)]) == 0
        assert [path.suffix[1:] for path in folder.glob("animation.*")] == [kind for kind in kinds if kind != "none"]
        shutil.rmtree(folder)


def test_a_run_from_python_makes_its_folder(tmp_path):
    simulate_run(replace(BASE, trajectories=1), tmp_path / "deep" / "run")
    assert len(load_run(tmp_path / "deep" / "run")) == 1
    (tmp_path / "file").write_text("x")
    with pytest.raises(UserError, match=r"cannot write to .*file"):
        simulate_run(BASE, tmp_path / "file" / "run")


def test_parameters_are_named_as_python_has_them():
    with pytest.raises(UserError, match=r"rotor has no parameter mss; did you mean mass\?; it has mass, moments"):
        Settings("rotor", {"mss": 2}, trajectories=1, dt=0.1, horizon=1.0).build()


def bits(run):
    """All that a run says: states, drifts, metrics and settings."""
    return run.z.numpy().tobytes(), *(getattr(run.drifts(), name).tobytes() for name in (
        "energy_drift", "position_violation", "velocity_violation")), run.metrics, run.settings  # fmt: skip


@pytest.mark.parametrize("kind", ["npz", "parquet"])
def test_every_flipped_bit_is_refused_or_harmless_and_resume_makes_the_same_bits_again(tmp_path, kind, fails):
    if kind == "parquet":
        pytest.importorskip("pyarrow")
    folder = run(tmp_path / "run", replace(BASE, format=kind, trajectories=9, shard=3))
    good = files(folder)
    whole = bits(load_run(folder))
    generator = np.random.default_rng(0)
    names = sorted([*good, "metrics.json"])
    assert len(names) == 3 + 4
    for name in names:
        path = folder / name
        data = path.read_bytes()
        for place in generator.integers(0, 8 * len(data), 30).tolist():
            flipped = bytearray(data)
            flipped[place // 8] ^= 1 << place % 8
            path.write_bytes(flipped)
            said = ""
            try:
                harmless = bits(load_run(folder)) == whole
            except UserError as error:
                said = str(error)
            assert len(said.splitlines()) == 1 if said else harmless, (name, place)
        path.write_bytes(flipped)
        if name == "run.json":  # which says what the run is: nothing can make it again
            assert "restore the file as it was" in fails("simulate", "--resume", folder)
            path.write_bytes(data)
            continue
        assert main(["simulate", "--resume", str(folder), "--no-animation"]) == 0
        again = bits(load_run(folder))
        assert files(folder) == good and again[:4] == whole[:4], name
        whole = again  # of which the metrics hold other seconds


def test_the_checksums_are_those_of_the_usual_program(tmp_path):
    folder = run(tmp_path / "run", replace(BASE, trajectories=9, shard=3))
    if shutil.which("sha256sum") is None:
        pytest.skip("no sha256sum")
    checked = subprocess.run(["sha256sum", "--check", "--strict", "SHA256SUMS"], cwd=folder, capture_output=True,
                             text=True, check=False)  # fmt: skip
    assert checked.returncode == 0 and checked.stdout.count("OK") == 4, checked.stderr


def test_parquet_pages_have_checksums_for_other_readers(tmp_path):
    parquet = pytest.importorskip("pyarrow.parquet")
    folder = run(tmp_path / "run", replace(BASE, format="parquet", trajectories=9))
    path = folder / "trajectories.parquet"
    data = bytearray(path.read_bytes())
    column = parquet.ParquetFile(path).metadata.row_group(0).column(3)
    data[column.data_page_offset + column.total_compressed_size - 5] ^= 4  # in the last values of a page
    path.write_bytes(data)
    with pytest.raises(OSError, match=r"CRC|checksum"):
        parquet.read_table(path, page_checksum_verification=True)


def test_a_file_with_trajectories_takes_no_more_memory_than_it_should(tmp_path):
    parquet = pytest.importorskip("pyarrow.parquet")
    import pyarrow as pa

    folder = run(tmp_path / "run", replace(BASE, format="parquet", trajectories=9))
    path = folder / "trajectories.parquet"
    names = parquet.read_schema(path).names
    many = pa.table({name: np.zeros(10**6) for name in names})
    parquet.write_table(many, path, compression="zstd")
    append_sum(path)
    with pytest.raises(UserError, match="1000000 rows of 10 columns, expected 54 of 10"):
        load_run(folder)[0]
    other = run(tmp_path / "npz", replace(BASE, trajectories=9)) / "trajectories.npz"
    np.savez_compressed(other, z=np.zeros(10**7))
    append_sum(other)
    with pytest.raises(UserError, match="its arrays take 80000128 bytes, at most 3712"):
        load_run(other.parent)[0]
    (other.parent / "trajectories.npz").unlink()
    (other.parent / "trajectories.npz").symlink_to("/dev/zero")
    with pytest.raises(UserError, match="a device or a pipe"):
        load_run(other.parent)[0]
