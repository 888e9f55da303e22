"""The distributions of this repository, read from their folders; standard library only.

A member is a folder below ``shared/`` or ``packages/`` with a ``pyproject.toml``. The core is the one below
``shared/``. Sessions, checks and documentation take their lists from here, so that a new package is known to all of
them as soon as its folder exists.
"""

from __future__ import annotations

import tomllib
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Member:
    """One distribution of this repository."""

    root: Path
    """Root of the repository."""
    folder: str
    """Folder below the root, with forward slashes."""
    name: str
    """Import name, and the name of the session's parameter."""
    is_core: bool
    """Whether this is the core, which imports no other member."""

    @cached_property
    def project(self) -> dict[str, Any]:
        """The ``[project]`` table of the member's ``pyproject.toml``."""
        return _manifest(self.root / self.folder)["project"]

    @property
    def distribution(self) -> str:
        """Name under which pip knows the member."""
        return self.project["name"]

    @property
    def extras(self) -> dict[str, list[str]]:
        """Requirements of each extra that the member declares."""
        return self.project.get("optional-dependencies", {})

    @property
    def smoke_test(self) -> str:
        """Python code that does something real with an installed copy, from ``[tool.repository]``."""
        return _manifest(self.root / self.folder)["tool"]["repository"]["smoke-test"]


def members(root: Path) -> tuple[Member, ...]:
    """The members of the repository at ``root``, the core first.

    Raises:
        ValueError: if ``src/`` of a member does not hold exactly one package, or there is not exactly one core.
    """
    manifests = [*sorted(root.glob("shared/*/pyproject.toml")), *sorted(root.glob("packages/*/pyproject.toml"))]
    listed = []
    for manifest in manifests:
        packages = sorted(path.parent.name for path in manifest.parent.glob("src/*/__init__.py"))
        folder = manifest.parent.relative_to(root).as_posix()
        if len(packages) != 1:
            raise ValueError(f"expected one package in {folder}/src, got {packages or 'none'}")
        listed.append(Member(root, folder, packages[0], folder.startswith("shared/")))
    if sum(member.is_core for member in listed) != 1:
        raise ValueError(f"expected one core below shared/, got {[m.folder for m in listed if m.is_core] or 'none'}")
    return tuple(listed)


def _manifest(folder: Path) -> dict[str, Any]:
    return tomllib.loads((folder / "pyproject.toml").read_text(encoding="utf-8"))
