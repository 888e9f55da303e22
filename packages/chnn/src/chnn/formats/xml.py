"""XML as elements that know their line, from files that may be hostile.

A document type is refused by `defusedxml`, and with it every entity: nothing expands and nothing is fetched. A `Budget`
bounds size and number of elements of a file together with those it includes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from io import BytesIO
from itertools import islice
from pathlib import Path
from typing import Any, NoReturn, TypeVar
from xml.sax import SAXParseException
from xml.sax.handler import ContentHandler
from xml.sax.xmlreader import InputSource

from defusedxml.common import DefusedXmlException
from defusedxml.sax import make_parser
from lie.run import UserError, regular_file, unknown_name

LARGEST_FILE = 16 * 2**20  # bytes, with all that is included; robots have some 100 kB
MOST_ELEMENTS = 100_000  # with all that is included; robots have some 1000. One takes about 600 bytes
_DEEPEST = 200  # elements within one another; keeps readers that recurse within Python's stack
_MOST_ATTRIBUTES = 200  # of one element; the formats define fewer than 50
_SHOWN = 60  # characters of a name or value in an error
_MOST_NAMES = 200  # among which an error looks for the nearest
FARTHEST = 1e9
"""Metres; coordinates beyond leave no digits for the joints of a robot in float64."""
LARGEST_NUMBER = 1e30
"""Numbers beyond this are refused: products of three or four of them leave float64."""

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
        name = f' name="{shortened(self.attributes["name"])}"' if "name" in self.attributes else ""
        return f"{self.file}:{self.line}: <{shortened(self.tag)}{name}>"

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
        self,
        name: str,
        count: int | None = None,
        default: Sequence[float] | None = None,
        least: int = 1,
        *,
        most: float = LARGEST_NUMBER,
    ) -> list[float] | None:
        """The finite numbers of an attribute, ``count`` of them where it is given, none beyond ``most``.

        Raises:
            UserError: for another count, or anything that is not such a number.
        """
        text = self.attributes.get(name)
        if text is None:
            return None if default is None else list(default)
        shown = shortened(text)
        if count is not None and len(text) > 1000 * count:
            self.fail(f'expects {count} numbers in {name}=, got "{shown}"')
        try:
            if "_" in text:  # which Python reads as part of a number, and no other reader of these files
                raise ValueError
            values = [float(word) for word in text.split()]
        except ValueError:
            self.fail(f'expects numbers in {name}=, got "{shown}"')
        if not all(map(math.isfinite, values)):
            self.fail(f'expects finite numbers in {name}=, got "{shown}"')
        if max(map(abs, values), default=0.0) > most:
            self.fail(f'expects numbers of at most {most:g} in {name}=, got "{shown}"')
        if (count is not None and len(values) != count) or len(values) < least:
            self.fail(f'expects {count or f"at least {least}"} numbers in {name}=, got {len(values)}: "{shown}"')
        return values

    def number(self, name: str, default: float) -> float:
        """One finite number, or the default."""
        values = self.numbers(name, 1, [default])
        assert values is not None
        return values[0]

    def place(self, name: str, default: Sequence[float] | None = (0.0, 0.0, 0.0), *, ends: int = 1) -> list[float]:
        """Three coordinates for each of the ``ends``, m, each of at most `FARTHEST`; [] without attribute and default.

        Raises:
            UserError: for other counts and for numbers beyond.
        """
        return self.numbers(name, 3 * ends, default, most=FARTHEST) or []

    def unknown(self, kind: str, name: str, known: Iterable[str]) -> NoReturn:
        """Raise a `UserError` for a name that nothing has, with the nearest of those ``known``."""
        shown = [shortened(each) for each in islice(known, _MOST_NAMES)]
        near = str(unknown_name(kind, shortened(name), shown)).partition("': ")[2]
        self.fail(f"names the {kind} '{shortened(name)}', which is not there; {near.strip()}")

    def choice(self, name: str, known: Sequence[str], default: str) -> str:
        """A word out of ``known``, or the default."""
        value = self.attributes.get(name, default)
        if value not in known:
            raise UserError(f"{self.where} {unknown_name(f'{name}=', shortened(value), known)}")
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
                raise UserError(f"{self.where} {unknown_name('attribute', shortened(name), attributes or ['none'])}")
        for child in self.children if children is not None else ():
            if child.tag not in (children or ()):
                unknown = unknown_name("element", shortened(child.tag), children or [])
                raise UserError(f"{child.where} in <{self.tag}>: {unknown}")


def shortened(text: str) -> str:
    """A name or value as errors show it: its first characters, none of them beyond ASCII's printable ones or letters.

    >>> shortened("1 " * 1000)
    '1 1 1 1 1 1 1 1 1 1 1 1 1 1 1 1 1 1 1 1 1 1 1 1 1 1 1 1 1 1 ... (2000 characters)'
    """
    shown = "".join(letter if letter.isprintable() else "?" for letter in text[:_SHOWN])
    return shown if len(text) <= _SHOWN else f"{shown}... ({len(text)} characters)"


@dataclass
class Budget:
    """What a file and all that it includes may still take.

    Fields:
        bytes: of the files.
        elements: in them; a file that is included twice counts twice.
    """

    bytes: int = LARGEST_FILE
    elements: int = MOST_ELEMENTS


def read_xml(path: str | Path, budget: Budget | None = None) -> Element:
    """The root element of a file.

    Args:
        path: of the file.
        budget: what it may take, lowered by what it takes; by default 16 MiB and 100,000 elements.

    Raises:
        UserError: for a file that cannot be read, is no XML, is too large or deep, or declares a document type.
    """
    target = Path(path)
    budget = Budget() if budget is None else budget
    if not target.exists() and not target.is_symlink():
        raise UserError(f"no file {path}; give the path of a URDF or MJCF file")
    size = regular_file(target).stat().st_size
    if size > budget.bytes:
        raise UserError(
            f"{path} has {size} bytes; a robot's file and all that it includes may have {LARGEST_FILE}: simplify it"
        )
    try:
        data = target.read_bytes()
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}") from None
    budget.bytes -= len(data)
    return parse_xml(data, target.name, budget)


def parse_xml(data: bytes, file: str, budget: Budget | None = None) -> Element:
    """The root element of a text; ``file`` is its name in errors."""
    reader = _Reader(file, Budget() if budget is None else budget)
    parser = make_parser()
    parser.forbid_dtd = True
    parser.setContentHandler(reader)
    source = InputSource()
    source.setByteStream(BytesIO(data))
    try:
        parser.parse(source)
    except SAXParseException as error:
        raise UserError(f"{file}:{error.getLineNumber()}: is not well-formed XML: {error.getMessage()}") from None
    except DefusedXmlException:
        raise UserError(
            f"{file}:{reader.line}: declares a document type or an entity, which is refused because "
            "entities can expand without bound and read other files; remove <!DOCTYPE ...>"
        ) from None
    except UserError:
        raise
    except (ValueError, LookupError) as error:
        raise UserError(
            f"{file}:1: cannot be read as XML: {shortened(str(error))}; write it in UTF-8"
        ) from None  # an encoding that nobody knows, or one of several bytes
    assert reader.root is not None  # the parser refuses a text without an element
    return reader.root


class _Reader(ContentHandler):
    """Makes elements of the parser's events."""

    def __init__(self, file: str, budget: Budget) -> None:
        super().__init__()
        self.file, self.budget = file, budget
        self.root: Element | None = None
        self.stack: list[Element] = []
        self.locator: Any = None

    @property
    def line(self) -> int:
        """Where the parser stands."""
        return self.locator.getLineNumber() or 1 if self.locator else 1

    def setDocumentLocator(self, locator: Any) -> None:  # noqa: N802 (the parser's name)
        self.locator = locator

    def startElement(self, name: str, attrs: Any) -> None:  # noqa: N802 (the parser's name)
        element = Element(name, dict(attrs.items()), self.file, self.line)
        self.budget.elements -= 1
        if self.budget.elements < 0:
            element.fail(f"is one of more than {MOST_ELEMENTS} elements, with those included; simplify the file")
        if len(self.stack) >= _DEEPEST:
            element.fail(f"lies deeper than {_DEEPEST} elements; flatten the file")
        if len(element.attributes) > _MOST_ATTRIBUTES:
            element.fail(f"has {len(element.attributes)} attributes, at most {_MOST_ATTRIBUTES} are read")
        if self.stack:
            self.stack[-1].children.append(element)
        else:
            self.root = element
        self.stack.append(element)

    def endElement(self, name: str) -> None:  # noqa: N802 (the parser's name)
        self.stack.pop()
