"""Photographs: the sample, folders, and files that are none."""

from __future__ import annotations

import hashlib

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
