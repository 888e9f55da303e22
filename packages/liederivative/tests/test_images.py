"""Photographs: the sample, folders, and files that are none."""

from __future__ import annotations

import contextlib
import hashlib
import io
import os
import struct
import zlib

import liederivative.images.photographs as photographs_module
import numpy as np
import pytest
from liederivative.images import folder_photographs, load_photographs, sample_photographs
from PIL import Image


def picture(path, mode="RGB"):
    Image.fromarray(np.arange(20 * 30 * 3, dtype=np.uint8).reshape(20, 30, 3)).convert(mode).save(path)


def test_the_sample_is_eight_real_photographs_from_the_installed_packages():
    photographs = sample_photographs()
    assert [photograph.name for photograph in photographs] == [
        "china.jpg", "flower.jpg",
        "astronaut.png", "chelsea.png", "coffee.png", "hubble_deep_field.jpg", "motorcycle_left.png", "rocket.jpg",
    ]  # fmt: skip
    from skimage import data
    from sklearn.datasets import load_sample_image

    assert np.array_equal(np.asarray(photographs[0].image), load_sample_image("china.jpg"))
    assert np.array_equal(np.asarray(photographs[2].image), data.astronaut())
    for photograph in photographs:
        assert photograph.image.mode == "RGB"
        assert min(photograph.image.size) >= 224
        assert np.asarray(photograph.image).std() > 10  # a picture, not a blank


def test_a_folder_is_read_in_order_as_rgb(tmp_path):
    picture(tmp_path / "b.png")
    picture(tmp_path / "a.jpg", "L")
    picture(tmp_path / "c.gif", "P")
    (tmp_path / ".hidden").write_text("no image")
    (tmp_path / "below").mkdir()
    photographs = folder_photographs(tmp_path)
    assert [photograph.name for photograph in photographs] == ["a.jpg", "b.png", "c.gif"]
    assert {photograph.image.mode for photograph in photographs} == {"RGB"}
    assert photographs[1].sha256 == hashlib.sha256((tmp_path / "b.png").read_bytes()).hexdigest()
    assert [photograph.name for photograph in load_photographs(str(tmp_path), 2)] == ["a.jpg", "b.png"]


@pytest.mark.parametrize("kind", ["text", "truncated", "empty"])
def test_a_file_that_is_no_image_is_named(kind, tmp_path):
    picture(tmp_path / "a.png")
    if kind == "truncated":
        picture(tmp_path / "b.png")
        whole = (tmp_path / "b.png").read_bytes()
        (tmp_path / "b.png").write_bytes(whole[: len(whole) // 2])
    else:
        (tmp_path / "b.png").write_text("shopping list" if kind == "text" else "")
    with pytest.raises(ValueError, match=r"expected an image, got .*b\.png") as error:
        load_photographs(str(tmp_path))
    assert "\n" not in str(error.value)


def test_files_that_are_no_images_by_name_are_passed_over_and_said(tmp_path, caplog):
    Image.new("RGB", (4, 4)).save(tmp_path / "a.PNG")
    (tmp_path / "labels.csv").write_text("a,1")
    (photograph,) = folder_photographs(tmp_path)
    assert photograph.name == "a.PNG" and "labels.csv" in caplog.text
    (tmp_path / "a.PNG").unlink()
    with pytest.raises(ValueError, match=r"no image in the folder .* \(only labels.csv\)"):
        folder_photographs(tmp_path)


def test_missing_and_empty_folders(tmp_path):
    with pytest.raises(ValueError, match="no image in the folder"):
        load_photographs(str(tmp_path))
    with pytest.raises(ValueError, match="no such folder"):
        load_photographs(str(tmp_path / "nowhere"))
    with pytest.raises(ValueError, match="at least one image, got 0"):
        load_photographs("sample", 0)


EPS = b"""%!PS-Adobe-3.0 EPSF-3.0
%%BoundingBox: 0 0 4 4
%%EndComments
0 0 4 4 rectfill
showpage
%%EOF
"""


@pytest.mark.parametrize("name", ["x.png", "x.jpg", "x.eps", "x.ps"])
def test_no_image_runs_a_program(name, tmp_path, monkeypatch):
    """Pillow finds Ghostscript on the PATH when it opens an EPS; the tripwire in its place must not be run."""
    wire = tmp_path / "ran"
    folder = tmp_path / "bin"
    folder.mkdir()
    for program in ("gs", "gswin32c", "gswin64c", "djpeg", "cjpeg"):
        (folder / program).write_text(f"#!/bin/sh\ntouch '{wire}'\nexit 0\n")
        (folder / program).chmod(0o755)
    monkeypatch.setenv("PATH", str(folder), prepend=":")
    from PIL import EpsImagePlugin

    monkeypatch.setattr(EpsImagePlugin, "gs_binary", None)  # searched for again, if it is asked for
    with contextlib.suppress(Exception), Image.open(io.BytesIO(EPS)) as image:  # the tripwire works
        image.load()
    assert wire.exists()
    wire.unlink()

    images = tmp_path / "images"
    images.mkdir()
    (images / name).write_bytes(EPS)
    with pytest.raises(ValueError, match=r"no image in the folder|none of the formats") as error:
        load_photographs(str(images))
    assert name in str(error.value) and "\n" not in str(error.value)
    assert not wire.exists()


def stored(path, array, **options):
    image = Image.fromarray(array) if isinstance(array, np.ndarray) else array
    image.save(path, **options)
    (photograph,) = folder_photographs(path.parent)
    return np.asarray(photograph.image)


def test_16_bit_samples_are_scaled(tmp_path):
    samples = np.linspace(0, 65535, 20 * 30).reshape(20, 30).astype(np.uint16)
    right = np.round(samples / 257)[..., None].repeat(3, -1)
    for suffix in ("png", "tif"):
        assert np.array_equal(stored(tmp_path / f"a.{suffix}", samples), right)  # Pillow's own conversion clips at 255
        (tmp_path / f"a.{suffix}").unlink()
    (tmp_path / "a.pgm").write_bytes(b"P5 30 20 65535\n" + samples.astype(">u2").tobytes())
    assert np.array_equal(np.asarray(folder_photographs(tmp_path)[0].image), right)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_photograph_comes_upright(orientation, tmp_path):
    """By the EXIF standard: what the rows and columns of the stored picture are in the scene."""
    upright = np.arange(4 * 6 * 3, dtype=np.uint8).reshape(4, 6, 3)
    stored_as = {
        1: upright, 2: upright[:, ::-1], 3: upright[::-1, ::-1], 4: upright[::-1],
        5: upright.transpose(1, 0, 2), 6: upright.transpose(1, 0, 2)[::-1],
        7: upright.transpose(1, 0, 2)[::-1, ::-1], 8: upright.transpose(1, 0, 2)[:, ::-1],
    }[orientation]  # fmt: skip
    exif = Image.Exif()
    exif[0x0112] = orientation
    assert np.array_equal(stored(tmp_path / "a.png", np.ascontiguousarray(stored_as), exif=exif), upright)


def test_palettes_opaque_alpha_and_cmyk(tmp_path):
    colours = np.array([[[255, 0, 0], [0, 128, 255]]], np.uint8)
    picture = Image.fromarray(colours)
    assert np.array_equal(stored(tmp_path / "a.png", picture.convert("P", palette=Image.Palette.ADAPTIVE)), colours)
    assert np.array_equal(stored(tmp_path / "a.png", np.dstack([colours, np.full((1, 2), 255, np.uint8)])), colours)
    (tmp_path / "a.png").unlink()
    cmyk = np.array([[[0, 51, 102, 25], [255, 0, 0, 0]]], np.uint8)
    light = 1 - cmyk / 255.0
    plain = np.round(255 * light[..., :3] * light[..., 3:])
    found = stored(tmp_path / "a.tif", Image.fromarray(cmyk, "CMYK"))
    assert np.abs(found - plain).max() <= 1  # of two roundings


def test_pictures_without_one_rgb_value_are_refused(tmp_path):
    grey = np.zeros((4, 5), np.uint8)

    def refused(name, reason, image=None, **options):
        path = tmp_path / name
        if image is not None:
            image.save(path, **options)
        with pytest.raises(ValueError, match=reason) as error:
            load_photographs(str(tmp_path))
        assert name in str(error.value) and "\n" not in str(error.value)
        path.unlink()

    refused("a.png", "transparent pixels", Image.fromarray(np.zeros((4, 5, 4), np.uint8)))
    refused("a.gif", "transparent pixels", Image.fromarray(grey).convert("P"), transparency=0)
    frames = [Image.fromarray(grey + 80 * i) for i in range(3)]
    for name in ("a.gif", "a.png", "a.tif", "a.webp"):
        refused(name, "several frames", frames[0], save_all=True, append_images=frames[1:])
    refused("a.tif", "range is not known", Image.fromarray(grey.astype(np.float32)))
    refused("a.tif", "range is not known", Image.fromarray(grey.astype(np.int32)))
    (tmp_path / "b.tif").write_bytes(b"")
    refused("b.tif", "none of the formats")


def test_bounds_on_size(tmp_path, monkeypatch):
    monkeypatch.setattr(photographs_module, "MAX_PIXELS", 100)
    Image.new("RGB", (10, 11)).save(tmp_path / "a.png")
    with pytest.raises(ValueError, match=r"at most 100 pixels, got .*a\.png"):
        load_photographs(str(tmp_path))
    monkeypatch.undo()

    def announced(width, height):  # a header alone: a decoder would take memory for all of it
        header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
        chunks = [(b"IHDR", header), (b"IDAT", zlib.compress(b"\0")), (b"IEND", b"")]
        return b"\x89PNG\r\n\x1a\n" + b"".join(
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
            for kind, data in chunks
        )

    for width, height in ((8192, 8193), (30_000, 30_000), (2**31 - 1, 2**31 - 1)):
        (tmp_path / "a.png").write_bytes(announced(width, height))
        with pytest.raises(ValueError, match=r"pixels, got .*a\.png"):
            load_photographs(str(tmp_path))
    (tmp_path / "a.png").write_bytes(announced(0, 5))
    with pytest.raises(ValueError, match=r"a\.png"):
        load_photographs(str(tmp_path))
    with (tmp_path / "a.png").open("wb") as file:
        file.truncate(2**29 + 1)  # sparse
    with pytest.raises(ValueError, match=r"at most 536870912 bytes, got .*a\.png"):
        load_photographs(str(tmp_path))


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no named pipes on this system")
def test_pipes_devices_and_broken_links_are_passed_over_and_said(tmp_path, caplog):
    picture(tmp_path / "a.png")
    os.mkfifo(tmp_path / "pipe.png")  # reading it would wait for ever
    (tmp_path / "zero.png").symlink_to("/dev/zero")  # this would never end
    (tmp_path / "gone.png").symlink_to(tmp_path / "nowhere.png")
    (tmp_path / "link.png").symlink_to(tmp_path / "a.png")
    assert [photograph.name for photograph in folder_photographs(tmp_path)] == ["a.png", "link.png"]
    assert all(name in caplog.text for name in ("pipe.png", "zero.png", "gone.png"))
