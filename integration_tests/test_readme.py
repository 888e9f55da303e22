"""What the READMEs say is true: their Python runs, and the commands they name exist with the flags they name.

The blocks of a page in ``docs/`` run one after the other.
"""

from __future__ import annotations

import functools
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
READMES = [
    "README.md",
    "shared/lie/README.md",
    *sorted(page.relative_to(ROOT).as_posix() for page in ROOT.glob("packages/*/README.md")),
]
PAGES = sorted(page.relative_to(ROOT).as_posix() for page in (ROOT / "docs").rglob("*.md"))
COMMANDS = {"lieconv", "liederivative", "chnn"}


def blocks(readme: str, *languages: str) -> Iterator[tuple[int, str]]:
    """Line and text of the fenced blocks of ``readme`` in ``languages``."""
    text = (ROOT / readme).read_text(encoding="utf-8")
    for match in re.finditer(r"^```(\w+)[^\n]*\n(.*?)^```", text, re.MULTILINE | re.DOTALL):
        if match[1] in languages:
            yield text.count("\n", 0, match.start()) + 1, match[2]


PYTHON = [pytest.param(code, id=f"{readme}:{line}") for readme in READMES for line, code in blocks(readme, "python")]
ON_PAGES = [
    pytest.param(page, "\n".join(code), id=page)
    for page in PAGES
    if (code := [code for _, code in blocks(page, "python")])
]


def test_every_readme_has_an_example() -> None:
    assert {str(case.id).split(":")[0] for case in PYTHON} == set(READMES)


@pytest.mark.parametrize("code", PYTHON)
def test_python_runs(code: str, tmp_path: Path) -> None:
    environment = {**os.environ, "MPLBACKEND": "agg"}
    command = [sys.executable, "-W", "error::DeprecationWarning:__main__", "-c", code]
    done = subprocess.run(
        command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(("page", "code"), ON_PAGES)
def test_page_runs(page: str, code: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MPLBACKEND", "agg")
    monkeypatch.chdir(tmp_path)
    exec(compile(code, page, "exec"), {"__name__": "__main__"})  # in this process: an import of torch takes seconds


def test_pictures_of_the_first_page_are_drawn(tmp_path: Path) -> None:
    names = ["pendulum.svg", "motions.jpg"]
    command = [sys.executable, str(ROOT / "docs/pictures/draw.py"), *names, "--out", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    assert all((tmp_path / name).stat().st_size > 10_000 for name in names)


def command_lines(readme: str) -> Iterator[str]:
    """The commands of ``readme``, each on one line, prompts and output of ``console`` blocks left out."""
    for _, text in blocks(readme, "console", "bash", "sh", "shell"):
        prompted = re.search(r"^\$ ", text, re.MULTILINE) is not None
        for line in text.replace("\\\n", " ").splitlines():
            if not line.strip() or line.startswith("#") or (prompted and not line.startswith("$ ")):
                continue
            for command in line.removeprefix("$ ").split("&&"):
                yield command.strip()


LINES = [
    pytest.param(line, id=f"{readme}: {line}") for readme in READMES for line in dict.fromkeys(command_lines(readme))
]


@functools.cache
def help_of(*command: str) -> str:
    program = str(Path(sys.executable).with_name(command[0]))
    environment = {**os.environ, "COLUMNS": "200", "NO_COLOR": "1"}
    done = subprocess.run(
        [program, *command[1:], "--help"], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, f"{' '.join(command)} --help: {done.stderr}"
    return done.stdout


@pytest.mark.parametrize("line", LINES)
def test_command_exists(line: str) -> None:
    words = shlex.split(line, comments=True)
    if words[0] == "pip" or words[:3] == ["python", "-m", "pip"]:
        for word in words:
            folder = word.partition("#subdirectory=")[2] or (word.partition("[")[0] if word.startswith("./") else "")
            assert not folder or (ROOT / folder / "pyproject.toml").is_file(), f"no distribution in {folder}"
    elif words[0] == "nox":
        text = (ROOT / "noxfile.py").read_text(encoding="utf-8")
        sessions = set(re.findall(r"^def (\w+)\(session: nox.Session(?:, member: Member)?\)", text, re.MULTILINE))
        asked = words[words.index("-s") + 1 :] if "-s" in words else []
        for session in asked[: asked.index("--") if "--" in asked else None]:
            assert session.partition("(")[0] in sessions, f"no session {session}"
    elif words[0] in COMMANDS:
        subcommand = words[1] if len(words) > 1 and not words[1].startswith("-") else None
        shown = help_of(words[0], *([subcommand] if subcommand else []))
        for word in words[1:]:
            if word.startswith("--") and word != "--help":
                flag = word.partition("=")[0]
                assert re.search(rf"{re.escape(flag)}(?![\w-])", shown), f"{words[0]} {subcommand} has no {flag}"
    else:
        assert words[0] in {"git", "cd", "pytest", "python", "torchrun"}, f"no known command {words[0]}"
