"""The example and the README's Python run as they stand."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]


def test_own_model():
    run = subprocess.run(
        [sys.executable, str(ROOT / "examples" / "own_model.py"), "--epochs", "1"], capture_output=True, text=True
    )
    assert run.returncode == 0, run.stderr
    assert run.stdout.count("LEE translate_x") == 2
    assert "shape (4, 32, 6, 6)" in run.stdout


def test_lee_during_training(tmp_path):
    command = [sys.executable, str(ROOT / "examples" / "lee_during_training.py")]
    arguments = ["--steps", "4", "--every", "2", "--watch", "4", "--out", str(tmp_path / "run")]
    run = subprocess.run([*command, *arguments], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    found = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert len(found["runs"]) == 4
    assert [point["step"] for point in found["histories"]["ViT, moved digits"]] == [0, 2, 4]
    assert (tmp_path / "run" / "lee_over_steps.png").stat().st_size > 10_000


def test_the_python_of_the_readme_runs():
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), re.DOTALL)
    assert blocks
    for block in blocks:
        exec(compile(block, "README.md", "exec"), {})
