"""The rules of this repository that no linter knows; standard library only.

1. A package imports no sibling, and the core imports no package, in tests, examples and benchmarks too. The order of
   the subpackages inside a member is import-linter's to check (``[tool.importlinter]`` in ``pyproject.toml``).
2. Every member stands in each list of members that has to be written by hand (`unlisted_members`).
3. ``poetry.lock`` holds one version per name: two of one nvidia library make ``import torch`` crash.
4. No file names a path or a host of the machine it was written on.

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

sys.path.insert(0, str(Path(__file__).parent))  # tests load this file without its folder on the path

from members import members

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
    """Imports of a sibling by a package, and of a package by the core."""
    violations = []
    listed = members(root)
    for member in listed:
        forbidden = {other.name for other in listed if other != member and not other.is_core}
        reason = "the core imports no package" if member.is_core else "a package imports no sibling"
        for path in sorted((root / member.folder).rglob("*.py")):
            where = path.relative_to(root).as_posix()
            module = _module_name(path, root / member.folder)
            for line, name in imported_modules(path.read_text(encoding="utf-8"), module):
                if name.split(".")[0] in forbidden:
                    violations.append(f"{where}:{line}: imports {name}: {reason}")
    return violations


def unlisted_members(root: Path) -> list[str]:
    """Lists of members in ``pyproject.toml`` and ``mkdocs.yml`` that lack a member."""
    tool = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))["tool"]
    site = (root / "mkdocs.yml").read_text(encoding="utf-8")
    contracts = tool["importlinter"]["contracts"]
    ordered = {container for contract in contracts for container in contract.get("containers", ())}
    violations = []
    for member in members(root):
        source = f"{member.folder}/src"
        lists = {
            "[tool.poetry.dependencies] of pyproject.toml": member.distribution in tool["poetry"]["dependencies"],
            "[tool.pyright] include of pyproject.toml": source in tool["pyright"]["include"],
            "[tool.coverage.run] source_pkgs of pyproject.toml": member.name in tool["coverage"]["run"]["source_pkgs"],
            "[tool.importlinter] root_packages of pyproject.toml": member.name in tool["importlinter"]["root_packages"],
            "the containers of [[tool.importlinter.contracts]] of pyproject.toml": member.name in ordered,
            "the paths of mkdocstrings in mkdocs.yml": re.search(rf"[\[ ]{re.escape(source)}[],\s]", site) is not None,
        }
        violations += [
            f"{member.folder}: {member.name} is missing in {where}"
            for where, is_listed in lists.items()
            if not is_listed
        ]
    return violations


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
    violations = []
    for name in names:
        path = root / name
        if path.suffix not in TEXT or not path.is_file():
            continue
        for number, line in enumerate(path.read_text(encoding="utf-8", errors="replace").splitlines(), start=1):
            if match := LOCAL.search(line):
                violations.append(f"{name}:{number}: names the local path or host {match[0]!r}")
    return violations


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
    violations = [
        *import_violations(root),
        *unlisted_members(root),
        *lock_violations(root / "poetry.lock"),
        *path_violations(root, names),
    ]
    print("\n".join(violations) if violations else f"architecture: {len(names)} files, no violation")
    return 1 if violations else 0


if __name__ == "__main__":
    sys.exit(main())
