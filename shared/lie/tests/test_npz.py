"""npz files are read right, or refused in one line before memory is taken: damaged, hostile and foreign ones."""

from __future__ import annotations

import io
import os
import struct
import tracemalloc
import zipfile

import numpy as np
import pytest
from lie.run import UserError, read_npz, regular_file

ARRAYS = {
    "x": np.arange(6.0).reshape(2, 3),
    "labels": np.array([3, 1], dtype=np.uint16),
    "mask": np.array([[True, False, True]]),
    "fortran": np.asfortranarray(np.arange(12, dtype=np.int32).reshape(3, 4)),
    "big_endian": np.array([1.5, -2.0], dtype=">f4"),
    "complex": np.array([1j, 2.0], dtype=np.complex64),
    "scalar": np.array(7),
    "empty": np.empty((0, 5)),
}


def npy(array, version=None) -> bytes:
    file = io.BytesIO()
    np.lib.format.write_array(file, array, version=version, allow_pickle=True)
    return file.getvalue()


def header(text: str, version: int = 1) -> bytes:
    return b"\x93NUMPY" + bytes([version, 0]) + struct.pack("<H" if version == 1 else "<I", len(text)) + text.encode()


def zipped(path, members: dict[str, bytes], method=zipfile.ZIP_STORED):
    with zipfile.ZipFile(path, "w", method) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return path


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_arrays_are_those_of_numpy(tmp_path, save):
    save(tmp_path / "a.npz", **ARRAYS)
    arrays = read_npz(tmp_path / "a.npz")
    assert arrays.keys() == ARRAYS.keys()
    for name, expected in np.load(tmp_path / "a.npz").items():
        assert arrays[name].shape == expected.shape and np.array_equal(arrays[name], expected)
        assert arrays[name].dtype == expected.dtype.newbyteorder("=") and arrays[name].flags.writeable
    assert read_npz(tmp_path / "a.npz", ["x", "none"]).keys() == {"x"}
    path = zipped(tmp_path / "b.npz", {"x.npy": npy(ARRAYS["x"], (2, 0))})
    assert np.array_equal(read_npz(path)["x"], ARRAYS["x"])


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_a_damaged_byte_is_an_error_or_changes_nothing(tmp_path, save):
    path = tmp_path / "a.npz"
    save(path, x=ARRAYS["x"], labels=ARRAYS["labels"])
    good, rng = path.read_bytes(), np.random.default_rng(0)
    refused = 0
    for place in range(len(good)):
        flipped = bytearray(good)
        flipped[place] ^= 1 << int(rng.integers(8))
        path.write_bytes(flipped)
        try:
            arrays = read_npz(path)
        except UserError:
            refused += 1
        else:  # a time stamp, a permission, a version
            assert arrays.keys() == {"x", "labels"}
            assert np.array_equal(arrays["x"], ARRAYS["x"]) and np.array_equal(arrays["labels"], ARRAYS["labels"])
    assert refused > len(good) / 2
    for length in range(0, len(good), 7):
        path.write_bytes(good[:length])
        with pytest.raises(UserError, match="not a whole npz file"):
            read_npz(path)


def hostile(folder):
    """Name, file and what the error must say."""
    huge = header("{'descr': '<f8', 'fortran_order': False, 'shape': (1000000, 1000000), }\n")
    encrypted = bytearray(zipped(folder / "e.npz", {"x.npy": npy(ARRAYS["x"])}).read_bytes())
    encrypted[6] |= 1
    encrypted[encrypted.rindex(b"PK\x01\x02") + 8] |= 1
    (folder / "e.npz").write_bytes(encrypted)
    yield "7 TiB", zipped(folder / "h.npz", {"x.npy": huge + b"\0" * 64}), "8000000000000 bytes and has 64"
    yield "encrypted", folder / "e.npz", "encrypted"
    for method in (zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA):
        path = zipped(folder / f"m{method}.npz", {"x.npy": npy(ARRAYS["x"])}, method)
        yield f"method {method}", path, f"method {method}, not by deflation"
    yield "objects", zipped(folder / "o.npz", {"x.npy": npy(np.array([{}]))}), "holds no numbers"
    yield "text", zipped(folder / "t.npz", {"x.npy": npy(np.array(["a"]))}), "holds no numbers"
    yield "records", zipped(folder / "r.npz", {"x.npy": npy(np.zeros(2, "f4,i4"))}), "not of plain numbers"
    yield "another member", zipped(folder / "a.npz", {"x.txt": b"1"}), "'x.txt' is no array"
    yield "no array", zipped(folder / "n.npz", {"x.npy": b"text"}), "no array of numpy's format"
    yield "long header", zipped(folder / "l.npz", {"x.npy": header("(" * 60_000)}), "60000 characters"
    yield "long header 2", zipped(folder / "l2.npz", {"x.npy": header("(" * 60_000, 2)}), "60000 characters"
    yield "deep header", zipped(folder / "d.npz", {"x.npy": header("(" * 1000)}), "not a whole npz file"
    for shape in ("(-1,)", "(10**5,)", "(0, 10**40)", "('a',)", "(True,)"):
        text = f"{{'descr': '<f8', 'fortran_order': False, 'shape': {shape}}}\n".replace("10**40", "1" + "0" * 40)
        yield f"shape {shape}", zipped(folder / f"s{len(shape)}.npz", {"x.npy": header(text)}), "not a whole npz file"
    text = "{'descr': '|b1', 'fortran_order': False, 'shape': (1,)}"
    yield "booleans", zipped(folder / "b.npz", {"x.npy": header(text) + b"\x07"}), "booleans other than 0 and 1"
    many = zipped(folder / "many.npz", {f"{i}.npy": b"" for i in range(10_001)})
    yield "many", many, "10001 arrays"
    zipped(folder / "twice.npz", {"x.npy": npy(ARRAYS["x"])})
    with zipfile.ZipFile(folder / "twice.npz", "a") as archive, pytest.warns(UserWarning, match="Duplicate"):
        archive.writestr("x.npy", npy(ARRAYS["x"]))
    yield "twice", folder / "twice.npz", "twice"


def test_hostile_files_are_one_line_and_take_no_memory(tmp_path):
    for name, path, message in hostile(tmp_path):
        tracemalloc.start()
        with pytest.raises(UserError) as caught:
            read_npz(path)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert message in str(caught.value) and "\n" not in str(caught.value), (name, str(caught.value))
        assert peak < 2**25, name  # the directory of ten thousand members takes 8 MiB


def test_a_small_file_does_not_unpack_to_a_large_one(tmp_path):
    """512 MiB of zeros in 0.5 MiB: refused by the sizes, before any is unpacked; so is more than the caller's bound."""
    text = "{'descr': '|u1', 'fortran_order': False, 'shape': (536870912,)}\n"
    with (
        zipfile.ZipFile(tmp_path / "bomb.npz", "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive,
        archive.open("x.npy", "w", force_zip64=True) as member,
    ):
        member.write(header(text))
        for _ in range(512):
            member.write(bytes(2**20))
    assert (tmp_path / "bomb.npz").stat().st_size < 2**22
    tracemalloc.start()
    with pytest.raises(UserError, match="at most"):
        read_npz(tmp_path / "bomb.npz")
    assert tracemalloc.get_traced_memory()[1] < 2**20
    tracemalloc.stop()
    np.savez(tmp_path / "a.npz", x=np.zeros(1000))
    with pytest.raises(UserError, match="at most 1000 are read"):
        read_npz(tmp_path / "a.npz", max_bytes=1000)
    assert read_npz(tmp_path / "a.npz", [], max_bytes=1000) == {}


def test_folders_devices_pipes_and_missing_files_are_no_files(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    cases = {
        tmp_path: "which is a folder",
        tmp_path / "pipe": "a device or a pipe",
        "/dev/zero": "a device or a pipe",
        tmp_path / "none": "no file",
        "a\0b": "cannot read",
        "x" * 300: "cannot read",
    }
    for path, message in cases.items():
        for read in (regular_file, read_npz):
            with pytest.raises(UserError, match=message):
                read(path)
