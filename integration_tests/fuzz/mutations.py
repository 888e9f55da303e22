"""Seeded damage to files: flipped bits, cuts, splices, extreme numbers, values of another type, deep nesting."""

from __future__ import annotations

import json
import random
import re
from typing import Any

NUMBERS = [b"0", b"-1", b"1e308", b"-1e308", b"1e-320", b"nan", b"inf", b"1e400", b"9223372036854775808", b"1" * 40,
           b"", b"x", b"0x10", b"1_0"]  # fmt: skip
VALUES: list[Any] = [None, True, -1, 0, 1.5, 10**30, 1e308, "x", "", "\0", "a" * 10_000, [], {}, [[]], {"a": 1}]
_NUMBER = re.compile(rb"-?\d+(?:\.\d+)?(?:e[+-]?\d+)?")
_WORD = re.compile(rb"[A-Za-z_]{3,}")


def mutated(data: bytes, name: str, draw: random.Random) -> bytes:
    """The content of a file after one kind of damage, drawn from those that fit its name."""
    kinds = [_flip, _cut, _splice, _zeros, _repeat]
    if name.endswith((".json", ".jsonl")):
        kinds += [_retype] * 5 + [_number] * 2 + [_nest]
    elif name.endswith((".xml", ".urdf", ".obj", ".csv", ".stl")):
        kinds += [_number] * 4 + [_word] * 3 + [_nest]
    return draw.choice(kinds)(data, draw)


def _flip(data: bytes, draw: random.Random) -> bytes:
    changed = bytearray(data)
    for _ in range(draw.choice((1, 1, 1, 8))):
        if changed:
            place = draw.randrange(8 * len(changed))
            changed[place // 8] ^= 1 << place % 8
    return bytes(changed)


def _cut(data: bytes, draw: random.Random) -> bytes:
    return data[: draw.randrange(len(data) + 1)]


def _splice(data: bytes, draw: random.Random) -> bytes:
    a, b, c = (draw.randrange(len(data) + 1) for _ in range(3))
    return data[:a] + data[min(b, c) : max(b, c)] + data[a:]


def _zeros(data: bytes, draw: random.Random) -> bytes:
    a = draw.randrange(len(data) + 1)
    return data[:a] + draw.choice((b"\0", b"\xff")) * 8 + data[a + 8 :]


def _repeat(data: bytes, draw: random.Random) -> bytes:
    return data * draw.choice((0, 2))


def _substitute(pattern: re.Pattern[bytes], data: bytes, words: list[bytes], draw: random.Random) -> bytes:
    places = list(pattern.finditer(data))
    if not places:
        return data + words[0]
    place = draw.choice(places)
    return data[: place.start()] + draw.choice(words) + data[place.end() :]


def _number(data: bytes, draw: random.Random) -> bytes:
    return _substitute(_NUMBER, data, NUMBERS, draw)


def _word(data: bytes, draw: random.Random) -> bytes:
    words = [match[0] for match in _WORD.finditer(data)] or [b"x"]
    return _substitute(_WORD, data, [*words, b"&a;", "é".encode("latin-1"), b"a" * 5000], draw)


def _nest(data: bytes, draw: random.Random) -> bytes:
    depth = draw.choice((100, 1000, 100_000))
    if data[:1] == b"<":
        return b"<mujoco><worldbody>" + b'<body pos="0 0 1">' * depth
    return b"[" * depth + b"]" * depth


def _retype(data: bytes, draw: random.Random) -> bytes:
    """One value of a JSON file, at any depth, replaced, or its entry removed."""
    try:
        value = json.loads(data.splitlines()[-1] if data.count(b"}\n{") else data)
    except ValueError:
        return _flip(data, draw)
    places: list[tuple[Any, Any]] = []

    def collect(node: Any) -> None:
        for key in node if isinstance(node, dict) else range(len(node)) if isinstance(node, list) else ():
            places.append((node, key))
            collect(node[key])

    collect(value)
    if not places:
        return b"null"
    node, key = draw.choice(places)
    if draw.random() < 0.15:
        del node[key]
    else:
        node[key] = draw.choice(VALUES)
    return json.dumps(value).encode()
