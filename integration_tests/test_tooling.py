"""The repository's own checks catch what they are there for, and the demonstration's page stands alone."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parents[1]


def load(name: str) -> ModuleType:
    path = ROOT / name
    spec = importlib.util.spec_from_file_location(f"tooling_{path.stem}", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up there
    spec.loader.exec_module(module)
    return module


architecture = load("integration_tests/check_architecture.py")
check = load("docs/check.py")
demo = load("integration_tests/demo.py")


def write(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return path


# --- imports point down ---

MEMBERS = {"lie": "shared/lie", **{name: f"packages/{name}" for name in ("lieconv", "liederivative", "chnn")}}


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """A repository with the four members, each an empty package."""
    for name, folder in MEMBERS.items():
        write(tmp_path / folder / "pyproject.toml", f'[project]\nname = "{name}"\n')
        write(tmp_path / folder / "src" / name / "__init__.py", "")
    return tmp_path


@pytest.mark.parametrize(
    ("file", "line"),
    [
        ("packages/lieconv/src/lieconv/models/a.py", "import chnn"),
        ("packages/lieconv/src/lieconv/models/a.py", "import chnn.systems as s"),
        ("packages/lieconv/src/lieconv/models/a.py", "from liederivative.actions import rotate"),
        ("packages/lieconv/src/lieconv/models/a.py", "def f():\n    from chnn import models"),
        ("packages/chnn/src/chnn/a.py", "import importlib\nimportlib.import_module('lieconv.nn')"),
        ("packages/chnn/src/chnn/a.py", "__import__('lieconv')"),
        ("packages/chnn/tests/test_a.py", "import pytest\npytest.importorskip('lieconv')"),
        ("packages/chnn/examples/a.py", "import lieconv"),
        ("shared/lie/src/lie/groups/a.py", "import lieconv"),
        ("shared/lie/tests/test_a.py", "from chnn.systems import ChainPendulum"),
    ],
)
def test_an_import_of_a_sibling_is_an_error(repository: Path, file: str, line: str) -> None:
    write(repository / file, f"{line}\n")
    (violation,) = architecture.import_violations(repository)
    assert violation.startswith(f"{file}:{len(line.splitlines())}: imports ")


@pytest.mark.parametrize(
    ("file", "line"),
    [
        ("packages/lieconv/src/lieconv/models/a.py", "from lie.groups import SE2\nfrom lieconv.nn import LieConv"),
        ("packages/lieconv/src/lieconv/models/a.py", "import torch, chnnlike\ntext = 'import chnn'"),
        ("packages/lieconv/src/lieconv/nn/a.py", "from ..geometry import frames\nfrom . import conv"),
    ],
)
def test_an_import_of_the_core_is_allowed(repository: Path, file: str, line: str) -> None:
    write(repository / file, f"{line}\n")
    assert architecture.import_violations(repository) == []


def test_a_new_package_is_a_member(repository: Path) -> None:
    write(repository / "packages/fourth/pyproject.toml", '[project]\nname = "fourth"\n')
    write(repository / "packages/fourth/src/fourth/__init__.py", "import chnn\n")
    names = [member.name for member in architecture.members(repository)]
    assert names == ["lie", "chnn", "fourth", "lieconv", "liederivative"]
    (violation,) = architecture.import_violations(repository)
    assert "fourth/__init__.py:1: imports chnn: a package imports no sibling" in violation


def test_a_member_that_a_list_lacks_is_an_error(repository: Path) -> None:
    for name in ("pyproject.toml", "mkdocs.yml"):
        shutil.copy(ROOT / name, repository)
    core = repository / "shared/lie/pyproject.toml"
    core.write_text(core.read_text(encoding="utf-8").replace('"lie"', '"lie-core"'), encoding="utf-8")
    assert architecture.unlisted_members(repository) == []
    write(repository / "packages/fourth/pyproject.toml", '[project]\nname = "fourth"\n')
    write(repository / "packages/fourth/src/fourth/__init__.py", "")
    violations = architecture.unlisted_members(repository)
    assert len(violations) == 6  # one a list
    assert all(violation.startswith("packages/fourth: fourth is missing in ") for violation in violations)


def test_a_folder_without_a_package_is_an_error(repository: Path) -> None:
    write(repository / "packages/fourth/pyproject.toml", '[project]\nname = "fourth"\n')
    with pytest.raises(ValueError, match="expected one package in packages/fourth/src, got none"):
        architecture.members(repository)


def lint_imports(root: Path) -> subprocess.CompletedProcess[str]:
    """Run import-linter over the sources below ``root``, which precede the installed members on the path."""
    sources = os.pathsep.join(str(root / folder / "src") for folder in MEMBERS.values())
    environment = {**os.environ, "PYTHONPATH": sources}
    command = [str(Path(sys.executable).with_name("lint-imports")), "--no-cache"]
    return subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the members' sources and of the configuration of import-linter."""
    root = tmp_path_factory.mktemp("sources")
    for folder in MEMBERS.values():
        ignore = shutil.ignore_patterns("__pycache__")
        shutil.copytree(ROOT / folder / "src", root / folder / "src", ignore=ignore)
    shutil.copy(ROOT / "pyproject.toml", root)
    return root


def test_the_layers_are_kept(sources: Path) -> None:
    done = lint_imports(sources)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize(
    ("file", "line", "message"),
    [
        ("shared/lie/src/lie/groups/names.py", "from lie.testing import check_group", "lie.groups -> lie.testing"),
        ("shared/lie/src/lie/run/seeds.py", "from lie import groups", "lie.run -> lie.groups"),
        ("packages/lieconv/src/lieconv/geometry/cloud.py", "from ..nn import conv", "lieconv.geometry -> lieconv.nn"),
        (
            "packages/liederivative/src/liederivative/actions/colours.py",
            "def late():\n    from liederivative.layerwise import decompose",
            "liederivative.actions -> liederivative.layerwise",
        ),
        (
            "packages/chnn/src/chnn/simulation/graph.py",
            "from chnn.systems import System",
            "chnn.simulation -> chnn.systems",
        ),
        (
            "packages/chnn/src/chnn/mechanics/bodies.py",
            "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from chnn.models import CHNN",
            "chnn.mechanics -> chnn.models",
        ),
        ("packages/chnn/src/chnn/newcomer/__init__.py", "", "newcomer"),
    ],
)
def test_an_upward_import_is_an_error(sources: Path, file: str, line: str, message: str) -> None:
    path = sources / file
    before = path.read_text(encoding="utf-8") if path.exists() else None
    write(path, f"{before or ''}\n{line}\n")
    try:
        done = lint_imports(sources)
    finally:
        if before is None:
            shutil.rmtree(path.parent)
        else:
            path.write_text(before, encoding="utf-8")
    assert done.returncode == 1
    assert message in done.stdout.replace(" is not allowed to import ", " -> ")


def test_two_versions_of_one_name_in_the_lock_are_found(tmp_path: Path) -> None:
    entry = '[[package]]\nname = "{}"\nversion = "{}"\n'
    lock = write(tmp_path / "poetry.lock", entry.format("a", "1") + entry.format("b", "1") + entry.format("a", "2"))
    assert architecture.lock_violations(lock) == ["poetry.lock: 2 versions of a, expected one"]


@pytest.mark.parametrize(
    "line",
    [
        "path = '/home/ann/data'",
        "see file:///x/y",
        "(/tmp/run1)",
        "index: http://localhost:80",
        "https://pypi.corp.internal/x",
    ],
)
def test_a_local_path_is_found(tmp_path: Path, line: str) -> None:
    write(tmp_path / "a.md", f"first\n{line}\n")
    (found,) = architecture.path_violations(tmp_path, ["a.md"])
    assert found.startswith("a.md:2: ")


@pytest.mark.parametrize(
    "line",
    [
        "runs/home/se2",
        "https://example.org/home/page",
        "~/opt/lie",
        "#!/usr/bin/env bash",
        "git+file://$PWD",
        "../tmp/x",
    ],
)
def test_what_only_looks_like_one_is_not(tmp_path: Path, line: str) -> None:
    write(tmp_path / "a.md", f"{line}\n")
    assert architecture.path_violations(tmp_path, ["a.md"]) == []


# --- one package alone ---


def alone(present: str, absent: str) -> subprocess.CompletedProcess[str]:
    script = str(ROOT / "integration_tests/check_alone.py")
    return subprocess.run([sys.executable, "-I", script, present, absent], capture_output=True, text=True, check=False)


def test_an_importable_sibling_is_found() -> None:
    assert alone("json,email", "no_such_package").returncode == 0
    done = alone("json", "no_such_package,email")
    assert done.returncode == 1
    assert "email can be imported beside json" in done.stderr
    assert alone("no_such_package", "neither_this").returncode != 0


# --- documentation ---


def test_a_broken_link_is_found(tmp_path: Path) -> None:
    write(tmp_path / "docs/other.md", "# One heading\n\n## Another: `code` (1)\n")
    page = write(
        tmp_path / "README.md",
        "[good](docs/other.md) [good](docs/other.md#another-code-1) [good](#title) [out](https://example.org)\n"
        "# Title\n```\n[not a link](nowhere.md)\n```\n`[nor this](nowhere.md)`\n"
        "[bad](docs/missing.md)\n[bad](docs/other.md#two)\n[bad](#nowhere)\n[bad](../outside.md)\n\n"
        "[bad]: docs/gone.md\n",
    )
    write(tmp_path.parent / "outside.md", "")
    assert check.link_violations(tmp_path, [page]) == [
        "README.md:7: the link docs/missing.md leads to no file",
        "README.md:8: the link docs/other.md#two leads to no heading of other.md",
        "README.md:9: the link #nowhere leads to no heading of README.md",
        "README.md:10: the link ../outside.md leads to no file",
        "README.md:12: the link docs/gone.md leads to no file",
    ]


def test_a_missing_docstring_is_found(tmp_path: Path) -> None:
    write(
        tmp_path / "src/pack/__init__.py",
        '"""A package."""\nfrom pack.room import Base, Child, bare, said\n'
        '__all__ = ["LIMIT", "Base", "Child", "bare", "gone", "said"]\nLIMIT = 3\n',
    )
    write(
        tmp_path / "src/pack/room.py",
        "class Base:\n"
        '    """A class."""\n'
        "    field: int = 0\n"
        '    def law(self):\n        """Documented here."""\n'
        "    def _private(self): ...\n"
        "class Child(Base):\n"
        '    """Another."""\n'
        "    def law(self): ...\n"
        "    def bare_method(self): ...\n"
        "    @property\n    def bare_property(self): ...\n"
        "def bare(): ...\n"
        'def said():\n    """Said."""\n'
        "def unlisted(): ...\n",
    )
    packages = check.load({"pack": tmp_path / "src"})
    found = {line.split(": ")[-1] for line in check.docstring_violations(packages)}
    assert found == {
        "pack.room.bare has no docstring",
        "pack.room.Child.bare_method has no docstring",
        "pack.room.Child.bare_property has no docstring",
        "pack.gone is in __all__ and does not exist",
    }
    assert check.reference_violations(packages, tmp_path) == [f"pack stands on no page of docs/{tmp_path.name}/"]
    write(tmp_path / "pack.md", "# Reference\n\n::: pack\n")
    assert check.reference_violations(packages, tmp_path) == []


def test_docstrings_become_markdown() -> None:
    docstrings = load("docs/docstrings.py")
    text = "One :math:`a^*`.\n\n.. math::\n    x &= y \\\\\n    z &= w\n\nThen:\n\n    >>> f()\n    3\n\nLast.\n"
    markdown = docstrings.to_markdown(text)
    inline, block = (math[1] for math in re.finditer(r"<math[^>]*>(.*?)</math>", markdown))
    assert inline == "<mrow><msup><mi>a</mi><mo>&#x0002A;</mo></msup></mrow>"
    assert block.count("<mtr>") == 2
    outline = re.sub(r"<math.*?</math>", "FORMULA", markdown)
    example = "    ```pycon\n    >>> f()\n    3\n    ```\n"
    assert outline == f'One FORMULA.\n\n<div class="formula">FORMULA</div>\n\nThen:\n\n{example}\nLast.\n'


# --- the page of the demonstration ---

PIXEL = bytes.fromhex(
    "89504e470d0a1a0a0000000d4948445200000001000000010806000000"
    "1f15c4890000000d49444154789c626001000000ffff03000006000557bfabd40000000049454e44ae426082"
)


@pytest.fixture
def runs(tmp_path: Path) -> dict[str, list]:
    section = []
    for label, accuracy in (("SE(2)", 0.9375), ("<none>", 0.5)):
        folder = tmp_path / label.strip("<>")
        folder.mkdir()
        metrics = {
            "accuracy": accuracy,
            "loss": {"mean": 1.5, "standard_error": 0.25},
            "by_angle": {"0": {"accuracy": 0.25, "count": 1200}, "90": {"accuracy": 0.125, "count": 7}},
            "history": list(range(100)),
            "rollout": {"error": 0.0625, "steps": 3},
            "seed": 77,
            "config": {"width": 88},
            "versions": {"torch": "9.9.9"},
        }
        (folder / "metrics.json").write_text(json.dumps(metrics), encoding="utf-8")
        (folder / "plot_one.png").write_bytes(PIXEL)
        (folder / "movie.gif").write_bytes(b"GIF89a")
        section.append(demo.Run(demo.Job(label, "train --out {out}"), folder, 61.0))
    return {"one": section}


@pytest.fixture
def page(runs: dict[str, list]) -> str:
    section = demo.Section("one", "A title & more", "Some text.", (), demo.scalars)
    return demo.build_report([section], runs)


def test_the_page_refers_to_nothing_outside_it(page: str) -> None:
    sources = re.findall(r'(?:src|href)="([^"]*)"', page)
    assert len(sources) == 1 + 4  # the way to the section, and two figures of two runs
    assert all(source.startswith(("#", "data:image/png;base64,", "data:image/gif;base64,")) for source in sources)
    assert "http" not in page
    assert "url(" not in page


def test_the_page_opens_with_a_picture_of_each_package(runs: dict[str, list]) -> None:
    pictured = demo.Section("one", "A title", "Text.", (), demo.scalars, "plot_one.png", "a plot of one pixel.")
    plain = demo.Section("two", "Another", "Text.", (), demo.scalars)
    page = demo.build_report([pictured, plain], {**runs, "two": runs["one"]})
    opening = page[: page.index("<nav>")]
    assert opening.count("<img ") == 1
    assert "<b>one</b>: a plot of one pixel." in opening


def test_every_package_has_a_picture_on_the_page() -> None:
    packages = {section.name.partition("-")[0] for section in demo.SECTIONS}
    assert {section.name.partition("-")[0] for section in demo.SECTIONS if section.picture} == packages


def test_the_page_shows_the_results(page: str) -> None:
    for text in (
        "A title &amp; more",
        "&lt;none&gt;",
        "<td>0.9375</td><td>0.5</td>",
        "1.5 ± 0.2",
        "100 values",
        "9.9.9",
    ):
        assert text in page
    assert "<none>" not in page
    assert "<tr><td>90</td><td>0.125</td><td>7</td></tr>" in page  # dicts of one shape became one table
    assert "1,200" in page
    assert "1 min 01 s" in page
    assert "SE(2): plot one" in page


def test_the_summary_holds_results_only(runs: dict[str, list]) -> None:
    columns, rows = demo.scalars({run.job.label: run.metrics for run in runs["one"]})
    assert columns == ["", "SE(2)", "<none>"]
    assert ["accuracy", 0.9375, 0.5] in rows
    assert ["rollout: error", 0.0625, 0.0625] in rows
    assert {row[0] for row in rows} == {"accuracy", "loss", "rollout: error", "rollout: steps"}


def test_a_failing_job_ends_the_demonstration_without_a_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = Path(sys.executable).name
    bad = demo.Section("one", "t", "t", (demo.Job("x", f"{program} -c raise\\ SystemExit(2)"),), demo.scalars)
    monkeypatch.setattr(demo, "SECTIONS", (bad,))
    with pytest.raises(SystemExit, match="exit code 2"):
        demo.main(["--out", str(tmp_path)])
    assert not (tmp_path / "report.html").exists()


def test_the_commands_of_the_demonstration_exist() -> None:
    for section in demo.SECTIONS:
        for job in section.jobs:
            program, argument = job.command.split()[:2]
            assert program in {"lieconv", "liederivative", "chnn"} or (
                program == "python" and (ROOT / argument).is_file()
            )
            assert "--out {out}" in job.command
