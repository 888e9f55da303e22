"""Photographs: those that ship inside scikit-learn and scikit-image, or a folder of the user's."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from importlib.util import find_spec
from logging import getLogger
from pathlib import Path
from typing import TYPE_CHECKING

from lie.run import UserError

if TYPE_CHECKING:
    from PIL.Image import Image

_SAMPLE = {
    "sklearn": ("datasets/images", ("china.jpg", "flower.jpg")),
    "skimage": (
        "data",
        ("astronaut.png", "chelsea.png", "coffee.png", "hubble_deep_field.jpg", "motorcycle_left.png", "rocket.jpg"),
    ),
}
"""colour photographs inside the wheels of scikit-learn and scikit-image (0.24 and later): nothing is downloaded"""

_log = getLogger(__name__)


@dataclass(frozen=True)
class Photograph:
    """One RGB image and where it comes from."""

    name: str
    image: Image
    sha256: str
    """of the file"""


def sample_photographs() -> list[Photograph]:
    """The eight photographs that ship inside scikit-learn (2) and scikit-image (6).

    Raises:
        UserError: if an installed version does not hold one of them.
    """
    photographs = []
    for package, (folder, names) in _SAMPLE.items():
        spec = find_spec(package)
        if spec is None or not spec.submodule_search_locations:
            raise UserError(f"the sample images ship inside {package}, which is not installed; give --images DIR")
        photographs += [_read(Path(spec.submodule_search_locations[0]) / folder / name) for name in names]
    return photographs


def folder_photographs(folder: str | Path, limit: int | None = None) -> list[Photograph]:
    """The images in ``folder`` (not below), sorted by name, as RGB.

    Images are what Pillow knows by its suffix; a word on the others that were passed over is logged, and none on
    hidden files.

    Raises:
        UserError: if the folder is missing or has no image, or an image in it cannot be read.
    """
    from PIL import Image

    folder = Path(folder)
    if not folder.is_dir():
        raise UserError(f"expected a folder of images, or 'sample', got {folder}: no such folder")
    paths = sorted(path for path in folder.iterdir() if path.is_file() and not path.name.startswith("."))
    known = Image.registered_extensions()
    others = [path.name for path in paths if path.suffix.lower() not in known]
    paths = [path for path in paths if path.suffix.lower() in known]
    passed = f"{', '.join(others[:3])}{' ...' if len(others) > 3 else ''}"
    if not paths:
        raise UserError(
            f"no image in the folder {folder}{f' (only {passed})' if others else ''}; give a folder with at least one"
        )
    if others:
        _log.warning("passed over in %s, not images by their suffix: %s", folder, passed)
    return [_read(path) for path in paths[:limit]]


def load_photographs(source: str, limit: int | None = None) -> list[Photograph]:
    """The photographs of ``"sample"`` or of a folder, at most ``limit`` of them.

    Raises:
        UserError: as above, or for a limit below 1.
    """
    if limit is not None and limit < 1:
        raise UserError(f"expected a limit of at least one image, got {limit}")
    return sample_photographs()[:limit] if source == "sample" else folder_photographs(source, limit)


def _read(path: Path) -> Photograph:
    from PIL import Image

    try:
        with Image.open(path) as image:
            rgb = image.convert("RGB")  # decodes the whole file, so that a truncated one fails here
        checksum = hashlib.sha256(path.read_bytes()).hexdigest()
    except FileNotFoundError:
        raise UserError(f"no image {path}") from None
    except Exception as error:  # decoders raise almost anything on damaged files
        raise UserError(
            f"expected an image, got {path}, which cannot be read as one ({type(error).__name__}); "
            "remove it from the folder or mend it"
        ) from None
    return Photograph(path.name, rgb, checksum)
