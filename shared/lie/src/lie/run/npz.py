"""Arrays of an npz file, read within bounds.

Every size is checked before memory is taken for it: what the zip directory says, what the header of each array says,
and what the file holds must agree, and a small file may not unpack to a large one. The checksum of each array is
verified as it is read, so that a damaged byte is an error or has no effect on the numbers. Nothing is unpickled.
"""

from __future__ import annotations

import math
import os
import re
import struct
import zipfile
import zlib
from collections.abc import Collection
from pathlib import Path
from typing import BinaryIO

import numpy as np

from lie.run.errors import UserError
from lie.run.files import regular_file

MAX_BYTES = 2**32
"""Bytes of all arrays of a file together, unless the caller says otherwise."""
_FREE_BYTES = 2**28  # what any file may unpack to, however small: masks and zeros compress a thousandfold
_MAX_RATIO = 100  # above that, times the size of the file; measured data compress less than 20 times
_MAX_ARRAYS = 10_000
_MAX_HEADER = 1024  # characters; numpy writes 118 for three dimensions
_CHUNK = 2**20
# As numpy and the writers of other languages print it. Numpy's own reader evaluates it as Python, which fails in many
# ways on a damaged one. The L is of Python 2.
_HEADER = re.compile(
    rb"""\s*\{\s*['"]descr['"]:\s*['"]([<>|=]?[a-zA-Z?]\d{0,3})['"],\s*['"]fortran_order['"]:\s*(True|False),\s*"""
    rb"""['"]shape['"]:\s*\(((?:\s*\d{1,20}L?\s*,?)*)\s*\),?\s*\}\s*"""
)

# What zipfile and numpy raise for damaged files, beside their own errors: bad offsets, sizes, names and versions.
_DAMAGE = (zipfile.BadZipFile, zlib.error, struct.error, EOFError, OSError, ValueError, TypeError, KeyError, IndexError,
           OverflowError, RuntimeError, MemoryError, AttributeError)  # fmt: skip


def read_npz(
    path: str | Path, names: Collection[str] | None = None, *, max_bytes: int = MAX_BYTES
) -> dict[str, np.ndarray]:
    """The arrays of an npz file by name: numbers and booleans, in the byte order of this machine.

    Args:
        path: the file.
        names: arrays to read; the others are passed over, and those that the file lacks are absent from the result.
            All by default.
        max_bytes: bound on the bytes of these arrays together. A file below a hundredth of it is also bounded by
            100 times its own size, or 256 MiB where that is more.

    Raises:
        UserError: if the file is missing, no npz file, damaged, encrypted, compressed by another method than
            deflation, or holds arrays of anything but numbers or more than the bound.

    >>> import tempfile
    >>> path = Path(tempfile.mkdtemp()) / "a.npz"
    >>> np.savez_compressed(path, x=np.arange(3), y=np.ones(2))
    >>> read_npz(path, ["x"])
    {'x': array([0, 1, 2])}
    """
    path = regular_file(path)
    bound = min(max_bytes, max(_FREE_BYTES, _MAX_RATIO * path.stat().st_size))
    try:
        with path.open("rb") as file, zipfile.ZipFile(file) as archive:
            entries = _entries(archive, _announced(file))
            chosen = {name: entry for name, entry in entries.items() if names is None or name in names}
            total = sum(entry.file_size for entry in chosen.values())
            if total > bound:
                raise _Refusal(f"its arrays take {total} bytes, at most {bound} are read of a file of this size")
            return {name: _read(archive, entry) for name, entry in chosen.items()}
    except _Refusal as refusal:
        raise UserError(f"{path} is not a whole npz file of plain arrays: {refusal}") from None
    except _DAMAGE as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise UserError(f"{path} is not a whole npz file of plain arrays: {reason}") from None


class _Refusal(Exception):
    """What is wrong with a file, in words."""


def _announced(file: BinaryIO) -> int:
    """How many members the last record of an archive announces."""
    file.seek(-22, os.SEEK_END)
    end = file.read()
    if end[:4] != b"PK\x05\x06":  # as where a comment follows, which no writer of npz files adds
        raise _Refusal("its last 22 bytes are not the end of a zip directory")
    return int.from_bytes(end[10:12], "little")


def _entries(archive: zipfile.ZipFile, announced: int) -> dict[str, zipfile.ZipInfo]:
    """The members of the archive by the name of their array."""
    members = archive.infolist()
    # A damaged length of one entry of the directory can swallow the next one.
    if announced not in (len(members), 0xFFFF):
        raise _Refusal(f"its directory announces {announced} arrays and lists {len(members)}")
    if len(members) > _MAX_ARRAYS:
        raise _Refusal(f"it holds {len(members)} arrays, at most {_MAX_ARRAYS} are read")
    entries: dict[str, zipfile.ZipInfo] = {}
    for entry in members:
        if not entry.filename.endswith(".npy"):
            raise _Refusal(f"its member {entry.filename[:80]!r} is no array")
        name = entry.filename.removesuffix(".npy")
        if name in entries:
            raise _Refusal(f"it holds the array {name[:80]!r} twice")
        if entry.flag_bits & 0x1:
            raise _Refusal(f"its array {name[:80]!r} is encrypted")
        if entry.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise _Refusal(f"its array {name[:80]!r} is compressed by method {entry.compress_type}, not by deflation")
        if entry.compress_type == zipfile.ZIP_STORED and entry.compress_size != entry.file_size:
            raise _Refusal(f"the two sizes of its array {name[:80]!r} differ")
        entries[name] = entry
    return entries


def _read(archive: zipfile.ZipFile, entry: zipfile.ZipInfo) -> np.ndarray:
    """One array, its header checked against the size of its member."""
    with archive.open(entry) as stream:
        start = stream.read(8)
        if start[:6] != b"\x93NUMPY" or start[6:] not in (b"\x01\x00", b"\x02\x00"):
            raise _Refusal(f"its member {entry.filename[:80]!r} is no array of numpy's format 1 or 2")
        first = start[6] == 1
        count = stream.read(2 if first else 4)
        length = int.from_bytes(count, "little")
        if length > _MAX_HEADER:
            raise _Refusal(f"the header of its array {entry.filename[:80]!r} has {length} characters")
        header = stream.read(length)
        match = _HEADER.fullmatch(header)
        if match is None:
            raise _Refusal(f"the header of its array {entry.filename[:80]!r} is not of plain numbers: {header[:100]!r}")
        dtype, fortran_order = np.dtype(match[1].decode()), match[2] == b"True"
        if dtype.kind not in "biufc":
            raise _Refusal(f"its array {entry.filename[:80]!r} holds no numbers, but {dtype}")
        shape = tuple(int(axis) for axis in re.findall(rb"\d+", match[3]))
        # Python's integers: a shape of 7 TiB, or one that overflows, is compared before memory is taken for it.
        expected, size = math.prod(shape) * dtype.itemsize, entry.file_size - len(start) - len(count) - length
        if expected != size:
            raise _Refusal(f"its array {entry.filename[:80]!r} is to take {expected} bytes and has {size}"[:200])
        content = np.empty(size, np.uint8)
        view = content.data
        read = 0
        while read < size:
            part = stream.read(min(_CHUNK, size - read))
            if not part:
                raise _Refusal(f"its array {entry.filename[:80]!r} is cut short")
            view[read : read + len(part)] = part
            read += len(part)
        if stream.read(1):  # also where the checksum of an empty array is verified
            raise _Refusal(f"its array {entry.filename[:80]!r} is longer than its header says")
    if dtype.kind == "b" and size and content.max() > 1:
        raise _Refusal(f"its array {entry.filename[:80]!r} has booleans other than 0 and 1")
    array = content.view(dtype) if size else np.empty(0, dtype)
    array = array.reshape(shape[::-1]).T if fortran_order else array.reshape(shape)
    return array if dtype.isnative else array.astype(dtype.newbyteorder("="))
