"""The rules of this repository that no linter knows; standard library only.

1. Arrows point down: a package imports no sibling, the core imports no package, and inside a member a
   room imports no room above it (`ROOMS_ABOVE`).
2. ``poetry.lock`` holds one version per name: two of one nvidia library make ``import torch`` crash.
3. No file names a path or a host of the machine it was written on.

Run it at the root; it prints one line per violation and exits with 1 if there is one.
"""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import tomllib
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

CORE = "lie"
FOLDERS = {
    "lie": "shared/lie",
    "lieconv": "packages/lieconv",
    "liederivative": "packages/liederivative",
    "chnn": "packages/chnn",
}

CHNN_ABOVE = ("systems", "simulation", "models", "training", "evaluation", "animation", "storage", "analysis", "cli")
# Room -> rooms of the same member that stand above it and that it therefore never imports.
ROOMS_ABOVE: dict[str, tuple[str, ...]] = {
    "lie.groups": ("autodiff", "integrators", "testing"),
    "lie.autodiff": ("integrators", "testing"),
    "lie.integrators": ("testing",),
    "lie.run": ("groups", "autodiff", "integrators", "testing"),
    "lieconv.geometry": ("nn", "models", "data", "training", "cli"),
    "lieconv.nn": ("models", "data", "training", "cli"),
    "lieconv.models": ("data", "training", "cli"),
    "lieconv.data": ("nn", "models", "training", "cli"),
    "lieconv.training": ("cli",),
    "liederivative.actions": ("derivative", "metrics", "zoo", "sweep", "report", "cli"),
    "liederivative.derivative": ("metrics", "zoo", "sweep", "report", "cli"),
    "liederivative.metrics": ("zoo", "sweep", "report", "cli"),
    "chnn.mechanics": CHNN_ABOVE,
    "chnn.formats": CHNN_ABOVE,
    "chnn.models": ("systems", "simulation", "training", "evaluation", "animation", "storage", "analysis", "cli"),
    "chnn.systems": ("models", "training", "evaluation", "animation", "storage", "analysis", "cli"),
    "chnn.animation": ("storage", "analysis", "cli"),
    "chnn.storage": ("analysis", "cli"),
}

# A path below a folder that only one machine has, or an address of this or a private network.
# The lookbehind leaves URLs, relative paths and longer names alone.
LOCAL = re.compile(
    r"(?<![\w.~>}/-])/(?:home|root|Users|work|tmp|mnt|opt|private|scratch)/[\w.-]+"
    r"|file:///\w"
    r"|https?://(?:localhost|127\.|10\.|192\.168\.|[\w.-]+\.(?:internal|local|lan)\b)"
)
TEXT = {".py", ".md", ".toml", ".lock", ".yml", ".yaml", ".json", ".txt", ".cfg", ".sh", ".css", ".html", ""}


def imported_modules(source: str, module: str) -> Iterator[tuple[int, str]]:
    """Line and full name of everything that ``source``, the text of ``module``, imports.

    Relative imports are resolved, ``from a import b`` counts as ``a.b``, and so do ``import_module`` and
    ``__import__`` of a literal name.
    """
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            package = module.split(".")[: -node.level] if node.level else []
            base = ".".join([*package, *([node.module] if node.module else [])])
            yield from ((node.lineno, f"{base}.{alias.name}") for alias in node.names)
        elif isinstance(node, ast.Call) and node.args and isinstance(node.args[0], ast.Constant):
            function = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            if function in {"import_module", "__import__", "importorskip"} and isinstance(node.args[0].value, str):
                yield node.lineno, node.args[0].value


def import_violations(root: Path) -> list[str]:
    """Imports of a sibling, of a package by the core, and of a room by one that stands below it."""
    found = []
    for member, folder in FOLDERS.items():
        others = set(FOLDERS) - {member, CORE}
        for path in sorted((root / folder).rglob("*.py")):
            where = path.relative_to(root).as_posix()
            module = _module_name(path, root / folder)
            for line, name in imported_modules(path.read_text(encoding="utf-8"), module):
                top, *rooms = name.split(".")
                if top in others:
                    kind = "the core knows no package" if member == CORE else "a package knows no sibling"
                    found.append(f"{where}:{line}: imports {name}: {kind}")
                room = ".".join(module.split(".")[:2])
                if top == member and rooms and rooms[0] in ROOMS_ABOVE.get(room, ()):
                    found.append(f"{where}:{line}: imports {name}, which stands above {room}")
    return found


def _module_name(path: Path, folder: Path) -> str:
    """Dotted name of a file below ``src``, with ``__init__`` as last part; '' for tests, examples, benchmarks."""
    source = folder / "src"
    return ".".join(path.relative_to(source).with_suffix("").parts) if path.is_relative_to(source) else ""


def lock_violations(lock: Path) -> list[str]:
    """Names that the lock holds in more than one version."""
    packages = tomllib.loads(lock.read_text(encoding="utf-8"))["package"]
    versions = Counter(package["name"] for package in packages)
    return [f"{lock.name}: {count} versions of {name}, expected one" for name, count in versions.items() if count > 1]


def path_violations(root: Path, names: list[str]) -> list[str]:
    """Lines of the text files ``names`` below ``root`` that hold a path or a host of one machine."""
    found = []
    for name in names:
        path = root / name
        if path.suffix not in TEXT or not path.is_file():
            continue
        for number, line in enumerate(path.read_text(encoding="utf-8", errors="replace").splitlines(), start=1):
            if match := LOCAL.search(line):
                found.append(f"{name}:{number}: names the local path or host {match[0]!r}")
    return found


def tracked(root: Path) -> list[str]:
    """Files that git tracks or would add."""
    command = ["git", "-C", str(root), "ls-files", "--cached", "--others", "--exclude-standard"]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()


def main() -> int:
    """Check this repository; 1 if anything is wrong."""
    root = Path(__file__).resolve().parents[1]
    # The patterns themselves, and the tests that show them at work, would be found.
    own = {"integration_tests/check_architecture.py", "integration_tests/test_tooling.py"}
    names = [name for name in tracked(root) if name not in own]
    found = [*import_violations(root), *lock_violations(root / "poetry.lock"), *path_violations(root, names)]
    print("\n".join(found) if found else f"architecture: {len(names)} files, no violation")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
