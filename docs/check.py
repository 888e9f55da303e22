"""What the site generator does not see: links outside ``docs/``, and public names without a docstring.

1. Every relative link in a Markdown file of the repository leads to a file, and its anchor to a heading.
2. Every name in an ``__all__`` of the four members has a docstring, and so have the public methods and
   properties of the classes among them; a method may inherit it from the class it overrides.
3. Every package with an ``__all__`` stands on a page of the reference.

The sources are read, not imported. Prints one line per finding and exits with 1 if there is one.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from pathlib import Path

import griffe

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "integration_tests"))  # where `members` is

from members import members  # noqa: E402

FENCE = re.compile(r"^( {0,3})(`{3,}|~{3,})[^\n]*\n.*?^ {0,3}\2[`~]*\s*?$", re.MULTILINE | re.DOTALL)
CODE = re.compile(r"(`+).+?\1", re.DOTALL)
LINK = re.compile(
    r"\[[^\]]*\]\(\s*<?([^)\s>]+)>?(?:\s+\"[^\"]*\")?\s*\)|^ {0,3}\[[^\]]+\]:\s*<?(\S+?)>?\s*$", re.MULTILINE
)
HEADING = re.compile(r"^ {0,3}#{1,6}\s+(.+?)\s*#*\s*$", re.MULTILINE)


def link_violations(root: Path, pages: list[Path]) -> list[str]:
    """Links of ``pages`` that lead to no file below ``root``, or to no heading of the file they name."""
    found = []
    for page in pages:
        text = page.read_text(encoding="utf-8")
        prose = CODE.sub(_blank, FENCE.sub(_blank, text))
        for match in LINK.finditer(prose):
            link = match[1] or match[2]
            if re.match(r"[a-z][a-z0-9+.-]*:", link):
                continue
            where = f"{page.relative_to(root).as_posix()}:{prose.count(chr(10), 0, match.start()) + 1}"
            name, _, anchor = link.partition("#")
            target = (page.parent / name).resolve() if name else page
            if not target.is_relative_to(root) or not target.exists():
                found.append(f"{where}: the link {link} leads to no file")
            elif anchor and target.suffix == ".md" and anchor not in anchors(target.read_text(encoding="utf-8")):
                found.append(f"{where}: the link {link} leads to no heading of {target.name}")
    return found


def anchors(text: str) -> set[str]:
    """Anchors of the headings in a Markdown text, numbered where they repeat, and those given as ``{#name}``."""
    names: set[str] = set()
    for heading in HEADING.findall(FENCE.sub(_blank, text)):
        if explicit := re.search(r"\{[^}]*#([\w.-]+)[^}]*\}\s*$", heading):
            names.add(explicit[1])
            continue
        plain = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading).replace("`", "")
        slug = re.sub(r"[\s]", "-", re.sub(r"[^\w\s-]", "", plain).strip().lower())
        count = 0
        while (name := f"{slug}-{count}" if count else slug) in names:
            count += 1
        names.add(name)
    return names


def _blank(match: re.Match[str]) -> str:
    """As many empty lines as the match has, so that line numbers stay."""
    return "\n" * match[0].count("\n")


def load(sources: dict[str, Path]) -> dict[str, griffe.Module]:
    """The named packages as griffe reads them from ``sources``; each folder holds one."""
    loader = griffe.GriffeLoader(search_paths=list(sources.values()))
    for name in sources:
        loader.load(name)
    loader.resolve_aliases(implicit=True)
    return {name: loader.modules_collection[name] for name in sources}


def modules(module: griffe.Module) -> Iterator[griffe.Module]:
    """``module`` and everything below it."""
    yield module
    for child in module.modules.values():
        if not child.is_alias:
            yield from modules(child)


def docstring_violations(packages: dict[str, griffe.Module]) -> list[str]:
    """Public names without a docstring, and names in an ``__all__`` that do not exist."""
    found = set()
    for package in packages.values():
        for module in modules(package):
            for name in map(str, module.exports or ()):
                path = f"{module.path}.{name}"
                if name not in module.members:
                    # A package's __all__ may name a submodule that it never imports by name.
                    found.add(f"{path} is in __all__ and does not exist")
                    continue
                target = _final(module[name])
                if target is not None:
                    found.update(_undocumented(target))
    return sorted(found)


def _final(member: griffe.Object | griffe.Alias) -> griffe.Object | None:
    """What ``member`` stands for; None if that lies in a library of others."""
    if not isinstance(member, griffe.Alias):
        return member
    try:
        target = member.final_target
    except (griffe.AliasResolutionError, griffe.CyclicAliasError):
        return None
    return target if isinstance(target, griffe.Object) else None


def _undocumented(target: griffe.Object) -> Iterator[str]:
    if target.is_attribute:  # a constant: its name and value are its documentation
        return
    if not target.has_docstring:
        yield f"{_where(target)}: {target.path} has no docstring"
    if isinstance(target, griffe.Class):
        for name, member in target.members.items():
            public = not name.startswith("_") and isinstance(member, griffe.Function | griffe.Attribute)
            # A field of a dataclass is described under it or in the class; only what is written as a function counts.
            written = isinstance(member, griffe.Function) or "property" in member.labels
            if public and written and not member.has_docstring and not _inherited(target, name):
                yield f"{_where(member)}: {member.path} has no docstring"


def _inherited(owner: griffe.Class, name: str) -> bool:
    """Whether a base class of ours documents the method ``name``."""
    return any(name in base.members and base.members[name].has_docstring for base in owner.mro())


def _where(target: griffe.Object | griffe.Alias) -> str:
    path = target.filepath
    return f"{path.name if isinstance(path, Path) else target.path}:{target.lineno}"


def reference_violations(packages: dict[str, griffe.Module], reference: Path) -> list[str]:
    """Packages with an ``__all__`` that no page of ``reference`` shows."""
    shown = set()
    for page in reference.glob("*.md"):
        shown.update(re.findall(r"^::: ([\w.]+)\s*$", page.read_text(encoding="utf-8"), re.MULTILINE))
    public = [
        module.path
        for package in packages.values()
        for module in modules(package)
        if module.is_init_module and module.exports
    ]
    return [f"{path} stands on no page of docs/{reference.name}/" for path in public if path not in shown]


def markdown_pages(root: Path) -> list[Path]:
    """The Markdown files of this repository: beside, above and inside the members, and in ``docs``."""
    folders = [root, root / "shared/lie", *sorted((root / "packages").iterdir())]
    return [page for folder in folders for page in sorted(folder.glob("*.md"))] + sorted((root / "docs").rglob("*.md"))


def main() -> int:
    """Check this repository; 1 if anything is wrong."""
    pages = markdown_pages(ROOT)
    packages = load({member.name: ROOT / member.folder / "src" for member in members(ROOT)})
    found = [
        *link_violations(ROOT, pages),
        *docstring_violations(packages),
        *reference_violations(packages, ROOT / "docs/reference"),
    ]
    names = sum(len(module.exports or ()) for package in packages.values() for module in modules(package))
    print("\n".join(found) if found else f"documentation: {len(pages)} pages, {names} public names, nothing missing")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
