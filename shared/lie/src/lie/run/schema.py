"""Types and bounds of flags and of run files, said once: in the annotations of a frozen dataclass.

A field such as ``epochs: Annotated[int, msgspec.Meta(ge=1, le=1000)] = 15`` is a flag for tyro, a bound that
`check_flags` verifies on the command line, and a type that `validate` verifies in a file. `msgspec` does the work;
the errors name the field, what is expected and the value, on one line.
"""

from __future__ import annotations

import math
import types
from collections.abc import Callable
from dataclasses import fields
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

import msgspec

from lie.run.errors import UserError

T = TypeVar("T")

Seed = Annotated[int, msgspec.Meta(ge=0, le=2**63 - 1)]
"""Seed of a generator: what both torch and numpy take."""
Count = Annotated[int, msgspec.Meta(ge=1, le=1_000_000)]
"""Number of things, where no smaller bound is known."""
Positive = Annotated[float, msgspec.Meta(gt=0.0)]
"""Finite number above 0."""
NonNegative = Annotated[float, msgspec.Meta(ge=0.0)]
"""Finite number of at least 0."""
LearningRate = Annotated[float, msgspec.Meta(gt=0.0, le=1000.0)]
"""Of an optimiser. Above the bound no training converges, and torch's own arithmetic of steps overflows."""
WeightDecay = Annotated[float, msgspec.Meta(ge=0.0, le=1000.0)]
"""Of an optimiser."""


def validate(kind: type[T], value: Any, where: str) -> T:
    """The dataclass ``kind`` from a JSON object with exactly its fields.

    Args:
        kind: a dataclass whose fields msgspec knows: numbers, text, `Literal`, lists, mappings, None.
        value: what the file holds, as JSON gave it.
        where: names the file in errors.

    Raises:
        UserError: names the field, what is expected, and the value.

    >>> from dataclasses import dataclass
    >>> @dataclass(frozen=True)
    ... class Config:
    ...     epochs: Annotated[int, msgspec.Meta(ge=1, le=1000)] = 15
    >>> validate(Config, {"epochs": 3}, "config.json")
    Config(epochs=3)
    >>> validate(Config, {"epochs": "x"}, "config.json")
    Traceback (most recent call last):
    lie.run.errors.UserError: expected epochs in config.json to be a whole number from 1 to 1000, got 'x'
    """
    hints = _hints(kind)
    if not isinstance(value, dict):
        raise UserError(f"{where} holds no object with the fields {', '.join(hints)}")
    missing, extra = hints.keys() - value.keys(), value.keys() - hints.keys()
    if missing or extra:
        parts = [
            f"{what} {', '.join(sorted(map(str, names))[:5])}"
            for what, names in (("lacks", missing), ("has an unknown field", extra))
            if names
        ]
        raise UserError(f"{where} {' and '.join(parts)}; expected the fields {', '.join(hints)}"[:500])
    converted = {name: check_value(value[name], hint, f"{name} in {where}") for name, hint in hints.items()}
    try:
        return kind(**converted)
    except UserError as error:  # of fields that do not fit each other
        raise UserError(f"{where}: {error}") from None


def check_flags(command: Any) -> None:
    """Verify the annotated bounds of a command's fields, and that its numbers are finite.

    Raises:
        UserError: names the flag, the bound and the value.
    """
    for name, hint in _hints(type(command)).items():
        value = getattr(command, name)
        if value is not None and _bounded(hint):
            check_value(value, _without_none(hint), "--" + name.replace("_", "-"))


def check_value(value: Any, hint: Any, label: str) -> Any:
    """``value`` converted to the type ``hint`` without coercion: a list to a tuple, a whole number to a float.

    Raises:
        UserError: names ``label``, what is expected, and the value; also for NaN and infinity.
    """
    try:
        converted = msgspec.convert(value, hint, strict=True)
    except (msgspec.ValidationError, RecursionError):
        raise UserError(f"expected {label} to be {_described(hint)}, got {_shown(value)}") from None
    if not _finite(converted):
        raise UserError(f"expected {label} to be finite, got {_shown(value)}")
    return converted


def _hints(kind: type[Any]) -> dict[str, Any]:
    """Field name to annotation, `Annotated` included."""
    hints = get_type_hints(kind, include_extras=True)
    return {field.name: hints[field.name] for field in fields(kind)}


def _bounded(hint: Any) -> bool:
    """Whether an annotation holds a bound of msgspec or a number: other types are the parser's affair."""
    if hint is float or (
        get_origin(hint) is Annotated and any(isinstance(m, msgspec.Meta) for m in get_args(hint)[1:])
    ):
        return True
    return get_origin(hint) in (tuple, Union, types.UnionType) and any(
        map(_bounded, (part for part in get_args(hint) if part not in (Ellipsis, type(None))))
    )


def _without_none(hint: Any) -> Any:
    """An annotation without the None that stands for a flag that was not given."""
    if get_origin(hint) not in (Union, types.UnionType):
        return hint
    return Union[tuple(part for part in get_args(hint) if part is not type(None))]  # noqa: UP007


def _finite(value: Any) -> bool:
    if isinstance(value, float):
        return math.isfinite(value)
    if isinstance(value, dict):
        return all(map(_finite, value.values()))
    return not isinstance(value, list | tuple) or all(map(_finite, value))


_NAMES: dict[Any, str] = {int: "a whole number", float: "a number", str: "text", bool: "true or false"}


def _described(hint: Any) -> str:
    """A type in words, with its bounds."""
    origin, arguments = get_origin(hint), list(get_args(hint))
    if origin is Annotated:
        bounds = [m for m in arguments[1:] if isinstance(m, msgspec.Meta)]
        return " ".join([_described(arguments[0]), *(text for meta in bounds if (text := _range(meta)))])
    if origin is Literal:
        return "one of " + ", ".join(map(str, arguments))
    if origin in (Union, types.UnionType):
        return " or ".join("null" if part is type(None) else _described(part) for part in arguments)
    if origin in (tuple, list):
        several = len(arguments) < 2 or arguments[1] is Ellipsis
        each = _described(arguments[0])
        return f"a list, each {each}" if several else f"a list of {len(arguments)}, each {each}"
    if hint is dict or origin is dict:
        return "an object"
    return _NAMES.get(hint, getattr(hint, "__name__", str(hint)))


_SAID: tuple[tuple[str, Callable[[str], str]], ...] = (
    ("gt", "above {}".format),
    ("ge", "of at least {}".format),
    ("lt", "below {}".format),
    ("le", "at most {}".format),
)


def _range(meta: msgspec.Meta) -> str:
    if meta.ge is not None and meta.le is not None:
        return f"from {_number(meta.ge)} to {_number(meta.le)}"
    parts = [say(_number(bound)) for name, say in _SAID if (bound := getattr(meta, name)) is not None]
    return " and ".join(parts)


def _number(bound: float) -> str:
    if bound == 2**63 - 1:
        return "2^63 - 1"
    return str(bound) if isinstance(bound, int) else f"{bound:g}"


def _shown(value: Any) -> str:
    try:
        text = repr(value)
    except (RecursionError, ValueError):  # deeper, or with more digits, than Python prints
        return f"a {type(value).__name__}"
    return text if len(text) <= 60 else text[:57] + "..."
