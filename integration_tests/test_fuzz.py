"""Damaged and hostile input of every command ends with 0 or with one line and 2: a seeded sample, and 10,000 cases.

No traceback, no more than 20 s and 2 GiB, nothing half-written, and no program is run.
"""

from __future__ import annotations

import importlib.util
import json
import os
import random
import shutil
import stat
import struct
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

HERE = Path(__file__).parent / "fuzz"
SECONDS, MEBIBYTES = 20, 2048  # that a case may take
SAMPLE = 10  # cases of every run of the tests; the seed is fixed

spec = importlib.util.spec_from_file_location("mutations", HERE / "mutations.py")
assert spec is not None and spec.loader is not None
mutations = importlib.util.module_from_spec(spec)
spec.loader.exec_module(mutations)

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="cases run in forks")

URDF = (
    '<robot name="r"><link name="world"/><link name="a"><inertial><origin xyz="0 0 -.1"/><mass value="1"/><inertia '
    'ixx=".1" iyy=".1" izz=".1" ixy="0" ixz="0" iyz="0"/></inertial><visual><geometry><mesh filename="mesh.stl"/>'
    '</geometry></visual><visual><geometry><box size=".1 .1 .1"/></geometry></visual></link><joint name="j" '
    'type="continuous"><parent link="world"/><child link="a"/><origin xyz="0 0 1" rpy="0 0 .1"/><axis xyz="0 1 0"/>'
    '<dynamics damping=".1"/></joint></robot>'
)
MJCF = (
    '<mujoco model="m"><compiler angle="radian"/><option gravity="0 0 -9"/><default><geom density="100"/><default '
    'class="c"><joint damping=".1"/></default></default><asset><mesh name="m" file="mesh.obj" scale="1 1 2"/></asset>'
    '<worldbody><geom type="plane" size="1 1 1" contype="0" conaffinity="0"/><body name="a" pos="0 0 1"><joint '
    'class="c" axis="0 1 0"/><geom type="capsule" fromto="0 0 0 0 0 -.5" size=".05"/><body name="b" pos="0 0 -.5" '
    'euler="0 .1 0"><joint type="ball"/><geom type="mesh" mesh="m"/><geom type="box" size=".1 .1 .1" pos="0 0 -.1"/>'
    "</body></body></worldbody></mujoco>"
)
CORNERS = np.array([[0, 0, 0], [0.1, 0, 0], [0, 0.1, 0], [0, 0, 0.1]])
FACES = [(0, 2, 1), (0, 1, 3), (1, 2, 3), (0, 3, 2)]
QUICK = ["--trajectories", "2", "--horizon", "0.2", "--dt", "0.1", "--no-animation"]
CHNN = ["--trajectories", "4", "--test-trajectories", "2", "--horizon", "0.3", "--steps", "4", "--batch-size", "4",
        "--hidden", "8"]  # fmt: skip
CONV = ["--channels", "8", "--num-layers", "1", "--batch-size", "8", "--epochs", "2", "--device", "cpu"]
MEASURE = ["--image-size", "64", "--limit", "1", "--device", "cpu"]
SWEEP = ["--backend", "serial", "--generators", "rotate", "--device", "cpu"]
REPORT = ["report", "swept", "--accuracies", "accuracies.csv", "--out", "new"]
ANALYSE = ["--trajectories", "1", "--horizon", "0.2", "--every", "0.1", "--exponents", "1", "--device", "cpu"]


class Server:
    """The process in whose forks the cases run."""

    def __init__(self, trap: Path) -> None:
        paths = f"{trap}{os.pathsep}{os.environ['PATH']}"
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "PATH": paths, "HF_HUB_OFFLINE": "1"}
        self.process = subprocess.Popen(
            [sys.executable, str(HERE / "server.py")], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
            env=environment, stderr=subprocess.DEVNULL,
        )  # fmt: skip

    def run(self, program: str, argv: list[str], folder: Path, seconds: float = SECONDS) -> dict:
        """The outcome of one command."""
        assert self.process.stdin is not None and self.process.stdout is not None
        case = {"program": program, "argv": argv, "folder": str(folder), "seconds": seconds}
        self.process.stdin.write(json.dumps(case) + "\n")
        self.process.stdin.flush()
        return json.loads(self.process.stdout.readline())


@pytest.fixture(scope="module")
def trap(tmp_path_factory):
    """A folder of programs that image and film libraries start; each leaves a mark when it is run."""
    folder = tmp_path_factory.mktemp("trap")
    for name in ("gs", "ghostscript", "convert", "display", "xdg-open"):
        (folder / name).write_text(f"#!/bin/sh\ntouch '{folder}/sprung'\n")
        (folder / name).chmod(stat.S_IRWXU)
    return folder


@pytest.fixture(scope="module")
def server(trap):
    started = Server(trap)
    yield started
    assert started.process.stdin is not None
    started.process.stdin.close()
    started.process.wait(10)


@pytest.fixture(scope="module")
def corpus(server, tmp_path_factory):
    """Small files of every kind that the commands read."""
    from PIL import Image

    base = tmp_path_factory.mktemp("corpus")
    (base / "robot.urdf").write_text(URDF)
    (base / "robot.xml").write_text(MJCF)
    lines = [f"v {x} {y} {z}" for x, y, z in CORNERS] + [f"f {a + 1} {b + 1} {c + 1}" for a, b, c in FACES]
    (base / "mesh.obj").write_text("\n".join(lines))
    facets = b"".join(struct.pack("<12fH", 0, 0, 0, *CORNERS[list(face)].ravel(), 0) for face in FACES)
    (base / "mesh.stl").write_bytes(b"\0" * 80 + struct.pack("<I", len(FACES)) + facets)
    rng = np.random.default_rng(0)
    sets = {"coords": rng.normal(size=(20, 6, 2)), "values": np.ones((20, 6, 1)), "labels": np.arange(20) % 2,
            "mask": np.ones((20, 6), dtype=bool)}  # fmt: skip
    np.savez(base / "sets.npz", **sets)
    np.savez_compressed(base / "packed.npz", **sets)
    (base / "accuracies.csv").write_text("model,top1,top5\ntest_resnet,61.5,82.25\nresnet18,71.5,90\n")
    (base / "images").mkdir()
    picture = Image.fromarray(rng.integers(0, 255, (70, 80, 3), dtype=np.uint8))
    for suffix in ("png", "jpg", "bmp", "gif", "tiff", "webp"):
        picture.save(base / "images" / f"a.{suffix}")
    for program, argv in (
        ("chnn", ["simulate", "chain-pendulum", "--links", "2", *QUICK, "--out", "npz"]),
        ("chnn", ["simulate", "chain-pendulum", *QUICK, "--format", "parquet", "--out", "parquet"]),
        ("chnn", ["simulate", "--file", "robot.urdf", *QUICK, "--out", "robot"]),
        ("chnn", ["train", "chain-pendulum", "--links", "1", *CHNN, "--out", "chnn"]),
        ("lieconv", ["train", "--data", "sets.npz", *CONV, "--out", "conv"]),
        ("liederivative", ["measure", "test_resnet", *MEASURE, "--out", "measured"]),
        ("liederivative", ["sweep", "test_resnet", *MEASURE, *SWEEP, "--out", "swept"]),
    ):
        answer = server.run(program, argv, base, 300)
        assert answer["code"] == 0, answer["stderr"]
    return base


def kinds(corpus: Path) -> dict[str, tuple[str, str, list[list[str]]]]:
    """By kind of file: the program, the file below the corpus, and the commands that read it."""
    simulate = ["simulate", "--ignore", "contacts", "--no-animation", "--trajectories", "1", "--horizon", ".01", "--dt",
                ".01", "--base", "fixed", "--out", "new", "--file"]  # fmt: skip
    mjcf = [word for word in simulate if word not in ("--base", "fixed")]
    shutil.rmtree(corpus / "new", ignore_errors=True)
    table = {
        "urdf": ("chnn", "robot.urdf", [[*simulate, "robot.urdf"]]),
        "mjcf": ("chnn", "robot.xml", [[*mjcf, "robot.xml"]]),
        "stl": ("chnn", "mesh.stl", [[*simulate, "robot.urdf"]]),
        "obj": ("chnn", "mesh.obj", [[*mjcf, "robot.xml"]]),
        "data": ("lieconv", "sets.npz", [["predict", "conv", "--input", "sets.npz", "--out", "new"],
                                         ["train", "--data", "sets.npz", *CONV, "--out", "new"]]),
        "packed": ("lieconv", "packed.npz", [["predict", "conv", "--input", "packed.npz", "--out", "new"]]),
    }  # fmt: skip
    for folder, resume in (("npz", True), ("parquet", True), ("robot", False)):
        for path in sorted((corpus / folder).iterdir()):
            if path.suffix in (".json", ".npz", ".parquet", ".csv") or path.name == "SHA256SUMS":
                commands = [["animate", folder, "--animation", "html", "--out", "new"]]
                commands += [["simulate", "--resume", folder, "--no-animation"]] if resume else []
                commands += [["analyse", folder, *ANALYSE, "--out", "new"]]
                table[f"{folder}/{path.name}"] = ("chnn", f"{folder}/{path.name}", commands)
    for program, folder in (("chnn", "chnn"), ("lieconv", "conv")):
        for path in sorted((corpus / folder).iterdir()):
            if path.suffix in (".json", ".jsonl", ".safetensors", ".npz"):
                commands = [["train", "--resume", folder], ["evaluate", folder, "--out", "new"]]
                table[f"{folder}/{path.name}"] = (program, f"{folder}/{path.name}", commands)
    images = ["measure", "test_resnet", *MEASURE, "--images", "images", "--out", "new"]
    for path in sorted((corpus / "images").iterdir()):
        table[f"image {path.suffix}"] = ("liederivative", f"images/{path.name}", [images])
    for path in sorted((corpus / "measured").rglob("*.json")):
        name = str(path.relative_to(corpus))
        table[name] = ("liederivative", name, [["measure", "--resume", "measured"], ["report", "measured"]])
    for path in sorted((corpus / "swept").rglob("*")):
        if path.suffix in (".json", ".csv"):
            name = str(path.relative_to(corpus))
            table[name] = ("liederivative", name, [["sweep", "--resume", "swept"], REPORT])
    table["accuracies"] = ("liederivative", "accuracies.csv", [REPORT])
    return table


FLAGS = {
    "chnn": [["simulate", "chain-pendulum", *QUICK, "--links", "2", "--seed", "0", "--rtol", "1e-6", "--out", "new"],
             ["train", "chain-pendulum", "--links", "1", *CHNN, "--seed", "0", "--out", "new"],
             ["animate", "npz", "--trajectory", "0", "--size", "40", "--fps", "5", "--out", "new"],
             ["evaluate", "chnn", "--seed", "0", "--out", "new"],
             ["analyse", "npz", *ANALYSE, "--out", "new"]],
    "lieconv": [["train", "--data", "sets.npz", *CONV, "--group", "se2", "--out", "new"],
                ["predict", "conv", "--input", "sets.npz", "--out", "new"]],
    "liederivative": [["measure", "test_resnet", *MEASURE, "--seed", "0", "--out", "new"],
                      ["sweep", "test_resnet", *MEASURE, *SWEEP, "--out", "new"],
                      REPORT],
}  # fmt: skip
WORDS = ["", "x", "-1", "0", "1e308", "1e-320", "nan", "inf", "1" * 22, "1000000000", "é\n", "..", "/dev/zero",
         "a" * 5000, "--out", "[" * 2000]  # fmt: skip


def flags(draw: random.Random) -> tuple[str, list[str]]:
    """A command with one word of its line replaced, removed or doubled."""
    program = draw.choice(sorted(FLAGS))
    argv = list(draw.choice(FLAGS[program]))
    place = draw.randrange(1, len(argv) - 1)  # the folder to write to stays
    argv[place : place + 1] = draw.choice(([draw.choice(WORDS)], [draw.choice(WORDS)], [], [argv[place]] * 2))
    return program, argv


def wrong(program: str, answer: dict, folder: Path, trap: Path) -> str:
    """What is wrong about an outcome, or nothing."""
    said = answer["stderr"]
    if answer["code"] not in (0, 2, 130):
        return f"exit code {answer['code']}"
    if "Traceback" in said:
        return "traceback"
    if answer["code"] == 2 and sum(f"{program}: error: " in line for line in said.splitlines()) != 1:
        return "not one line of error"
    if answer["seconds"] > SECONDS:
        return f"{answer['seconds']:.0f} s"
    if answer["memory"] > MEBIBYTES:
        return f"{answer['memory']} MiB"
    if (trap / "sprung").exists():
        return "a program was run"
    left = [path.name for path in folder.rglob(".*") if path.name != ".lock" and path.is_file()]
    return f"left {left}" if left else ""


def fuzz(server: Server, corpus: Path, trap: Path, folder: Path, count: int, seed: int) -> tuple[Counter, list[str]]:
    """Outcomes by kind, and the failures."""
    draw = random.Random(seed)
    table = kinds(corpus)
    names = [*table, *["flags"] * max(1, len(table) // 6)]
    outcomes: Counter = Counter()
    failures: list[str] = []
    for number in range(count):
        if number % len(names) == 0:
            draw.shuffle(names)
        name = names[number % len(names)]
        case = folder / "case"
        shutil.copytree(corpus, case)
        if name == "flags":
            program, argv = flags(draw)
        else:
            program, file, commands = table[name]
            argv = draw.choice(commands)
            data = (corpus / file).read_bytes()
            (case / file).write_bytes(mutations.mutated(data, file, draw))
            if draw.random() < 0.5:
                sealed(case / file)
        answer = server.run(program, argv, case)
        reason = wrong(program, answer, case, trap)
        outcomes[name, reason or answer["code"]] += 1
        if reason:
            failures.append(f"case {number} ({name}): {reason}; {program} {' '.join(argv)[:300]}: "
                            f"{answer['stderr'].strip()[-600:]}")  # fmt: skip
        shutil.rmtree(case)
    return outcomes, failures


def sealed(path: Path) -> None:
    """Give a damaged file of a simulation the checksum of what it holds, as one who means harm would."""
    from chnn.storage.checksums import SUMS, append_sum, write_sealed

    if not (path.parent / SUMS).exists() or path.name == SUMS:
        return
    if path.name in ("run.json", "metrics.json"):
        try:
            stored = json.loads(path.read_bytes())
            write_sealed(path, {key: value for key, value in stored.items() if key != "sha256"})
        except (ValueError, AttributeError, RecursionError):
            return
    else:
        append_sum(path)


def test_a_sample_of_damaged_input(server, corpus, trap, tmp_path):
    outcomes, failures = fuzz(server, corpus, trap, tmp_path, SAMPLE, seed=0)
    assert not failures, "\n".join(failures)
    assert {code for _, code in outcomes} >= {0, 2}


@pytest.mark.slow
def test_ten_thousand_cases_of_damaged_input(server, corpus, trap, tmp_path):
    count = int(os.environ.get("LIE_FUZZ_CASES", "10000"))
    outcomes, failures = fuzz(server, corpus, trap, tmp_path, count, seed=1)
    for key, number in sorted(outcomes.items(), key=str):
        print(*key, number)
    assert not failures, "\n".join(failures[:50])
