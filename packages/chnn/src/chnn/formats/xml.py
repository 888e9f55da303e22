"""XML as elements that know their line, from files that may be hostile.

A document type is refused, and with it every entity: nothing expands and nothing is fetched. Size and
depth are bounded.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NoReturn, TypeVar
from xml.parsers import expat

from lie.run import UserError, unknown_name

LARGEST_FILE = 64 * 2**20  # bytes; robots have some 100 kB
_DEEPEST = 200  # elements within one another; keeps readers that recurse within Python's stack

T = TypeVar("T")


@dataclass
class Element:
    """An element: tag, attributes and children in order, and where it stands."""

    tag: str
    attributes: dict[str, str]
    file: str
    line: int
    children: list[Element] = field(default_factory=list)

    @property
    def where(self) -> str:
        """File, line, tag and name, as errors show them."""
        name = f' name="{self.attributes["name"]}"' if "name" in self.attributes else ""
        return f"{self.file}:{self.line}: <{self.tag}{name}>"

    def fail(self, message: str) -> NoReturn:
        """Raise a `UserError` that begins with where the element stands."""
        raise UserError(f"{self.where} {message}")

    def while_reading(self, read: Callable[[Path], T], path: Path) -> T:
        """What ``read`` finds at a path that the element names; its errors begin with where the element stands."""
        try:
            return read(path)
        except UserError as error:
            raise UserError(f"{self.where} {error}") from None

    def get(self, name: str, default: str | None = None) -> str | None:
        """An attribute, or the default."""
        return self.attributes.get(name, default)

    def need(self, name: str) -> str:
        """An attribute that must be there."""
        if not self.attributes.get(name):
            self.fail(f"needs the attribute {name}=")
        return self.attributes[name]

    def all(self, *tags: str) -> Iterator[Element]:
        """Children with one of these tags."""
        return (child for child in self.children if child.tag in tags)

    def one(self, tag: str) -> Element | None:
        """The only child with this tag, or None.

        Raises:
            UserError: for two of them.
        """
        found = list(self.all(tag))
        if len(found) > 1:
            found[1].fail(f"stands twice in {self.where}; keep one")
        return found[0] if found else None

    def numbers(
        self, name: str, count: int | None = None, default: Sequence[float] | None = None, least: int = 1
    ) -> list[float] | None:
        """The finite numbers of an attribute, ``count`` of them where it is given.

        Raises:
            UserError: for another count, or anything that is not a finite number.
        """
        text = self.attributes.get(name)
        if text is None:
            return None if default is None else list(default)
        try:
            values = [float(word) for word in text.split()]
        except ValueError:
            self.fail(f'expects numbers in {name}=, got "{text}"')
        if not all(map(math.isfinite, values)):
            self.fail(f'expects finite numbers in {name}=, got "{text}"')
        if (count is not None and len(values) != count) or len(values) < least:
            self.fail(f'expects {count or f"at least {least}"} numbers in {name}=, got {len(values)}: "{text}"')
        return values

    def number(self, name: str, default: float) -> float:
        """One finite number, or the default."""
        values = self.numbers(name, 1, [default])
        assert values is not None
        return values[0]

    def choice(self, name: str, known: Sequence[str], default: str) -> str:
        """A word out of ``known``, or the default."""
        value = self.attributes.get(name, default)
        if value not in known:
            raise UserError(f"{self.where} {unknown_name(f'{name}=', value, known)}")
        return value

    def flag(self, name: str, default: bool) -> bool:
        """True or false."""
        return self.choice(name, ("true", "false"), "true" if default else "false") == "true"

    def only(self, attributes: Sequence[str] = (), children: Sequence[str] | None = None) -> None:
        """Check that it has no attributes and children but these; None allows any children.

        Raises:
            UserError: names the first other one and the nearest that is known.
        """
        for name in self.attributes:
            if name not in attributes:
                raise UserError(f"{self.where} {unknown_name('attribute', name, attributes or ['none'])}")
        for child in self.children if children is not None else ():
            if child.tag not in (children or ()):
                raise UserError(f"{child.where} in <{self.tag}>: {unknown_name('element', child.tag, children or [])}")


def read_xml(path: str | Path) -> Element:
    """The root element of a file.

    Raises:
        UserError: for a file that cannot be read, is no XML, is too large or deep, or declares a document type.
    """
    target = Path(path)
    try:
        if target.stat().st_size > LARGEST_FILE:
            raise UserError(f"expected a file of at most {LARGEST_FILE} bytes, {path} has {target.stat().st_size}")
        data = target.read_bytes()
    except FileNotFoundError:
        raise UserError(f"no file {path}; give the path of a URDF or MJCF file") from None
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}") from None
    return parse_xml(data, target.name)


def parse_xml(data: bytes, file: str) -> Element:
    """The root element of a text; ``file`` is its name in errors."""
    parser = expat.ParserCreate()
    stack: list[Element] = []
    roots: list[Element] = []

    def start(tag: str, attributes: dict[str, str]) -> None:
        element = Element(tag, attributes, file, parser.CurrentLineNumber)
        if len(stack) >= _DEEPEST:
            element.fail(f"lies deeper than {_DEEPEST} elements; flatten the file")
        (stack[-1].children if stack else roots).append(element)
        stack.append(element)

    def refuse(*_: object) -> None:
        raise UserError(
            f"{file}:{parser.CurrentLineNumber}: declares a document type or an entity, which is refused because "
            "entities can expand without bound and read other files; remove <!DOCTYPE ...>"
        )

    parser.StartElementHandler = start
    parser.EndElementHandler = lambda _: stack.pop()
    parser.StartDoctypeDeclHandler = refuse
    parser.EntityDeclHandler = refuse
    try:
        parser.Parse(data, True)
    except expat.ExpatError as error:
        raise UserError(f"{file}:{error.lineno}: is not well-formed XML: {expat.ErrorString(error.code)}") from None
    except ValueError as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"{file}: cannot be read as XML: {error}") from None  # an encoding nobody knows
    return roots[0]
