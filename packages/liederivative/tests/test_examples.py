"""The example and the README's Python run as they stand."""

from __future__ import annotations

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


def test_the_python_of_the_readme_runs():
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), re.DOTALL)
    assert blocks
    for block in blocks:
        exec(compile(block, "README.md", "exec"), {})
