"""Photographs: those that ship inside scikit-learn and scikit-image, or a folder of the user's.

Files are untrusted input. Pillow chooses a decoder by a file's content, whatever its name, and some of its decoders run
other programs (EPS runs Ghostscript). So only the raster formats of `FORMATS` are ever opened, within the bounds
`MAX_BYTES` and `MAX_PIXELS`. An image that has no single conversion to 8-bit RGB (transparent pixels, several frames,
samples without a fixed range) is refused.
"""

from __future__ import annotations

import hashlib
import io
import warnings
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

FORMATS = ("AVIF", "BMP", "GIF", "JPEG", "JPEG2000", "MPO", "PNG", "PPM", "TIFF", "WEBP")
"""Pillow's names of the formats that are opened, where it is built with them. No other program decodes them."""

MAX_PIXELS = 2**26
"""Largest width times height, 8192 x 8192: 0.2 GB as RGB. A file of a few kB can announce any size."""

MAX_BYTES = 2**29
"""Largest file, 0.5 GB: `MAX_PIXELS` without compression at 8 bytes a pixel."""

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

    Images are the files with a suffix of `FORMATS`; other files and what is no regular file (a named pipe, a device, a
    link without a target) are passed over and logged, folders and hidden files are passed over. Images come upright
    (EXIF orientation), 16-bit samples are scaled to 8 bits, and CMYK is converted without colour management.

    Raises:
        UserError: if the folder is missing or has no image, or an image in it is damaged, too large, of another format
            than its suffix tells, has transparent pixels or several frames, or samples without a fixed range.
    """
    from PIL import Image

    folder = Path(folder)
    if not folder.is_dir():
        raise UserError(f"expected a folder of images, or 'sample', got {folder}: no such folder")
    entries = sorted(path for path in folder.iterdir() if not path.name.startswith(".") and not path.is_dir())
    Image.init()  # without it, few of the suffixes are registered
    suffixes = {suffix for suffix, name in Image.registered_extensions().items() if name in FORMATS}
    paths = [path for path in entries if path.suffix.lower() in suffixes and path.is_file()]
    readable = set(paths)
    others = [path.name for path in entries if path not in readable]
    passed = f"{', '.join(others[:3])}{' ...' if len(others) > 3 else ''}"
    if not paths:
        raise UserError(
            f"no image in the folder {folder}{f' (only {passed})' if others else ''}; give a folder with at least one"
        )
    if others:
        _log.warning("passed over in %s, not images by their suffix, or no regular files: %s", folder, passed)
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
    try:
        size = path.stat().st_size
        if size > MAX_BYTES:
            raise UserError(f"expected an image of at most {MAX_BYTES} bytes, got {path} with {size}; make it smaller")
        content = path.read_bytes()
    except FileNotFoundError:
        raise UserError(f"no image {path}") from None
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}") from None
    # The checksum and the picture are those of the same bytes, also if the file is replaced meanwhile.
    return Photograph(path.name, _decoded(content, path), hashlib.sha256(content).hexdigest())


def _decoded(content: bytes, path: Path) -> Image:
    """The picture in a file's bytes, upright, as 8-bit RGB."""
    from PIL import Image, ImageOps

    Image.init()
    formats = [name for name in FORMATS if name in Image.OPEN]
    try:
        with warnings.catch_warnings():
            # The bound on the size is checked below.
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            with Image.open(io.BytesIO(content), formats=formats) as image:
                width, height = image.size
                if width * height > MAX_PIXELS:
                    raise Image.DecompressionBombError(f"{width} x {height}")
                # The further pictures of a JPEG (MPO) are previews and depth maps, not frames.
                if getattr(image, "is_animated", False) and image.format not in ("JPEG", "MPO"):
                    raise UserError(f"expected one picture, got {path} with several frames; save the one you mean")
                image.load()  # decodes the whole file, so that a truncated one fails here
                scaled = _has_16_bits(image)
                return _as_rgb(ImageOps.exif_transpose(image), scaled, path)
    except UserError:
        raise
    except Image.UnidentifiedImageError:
        raise UserError(
            f"expected an image, got {path}, which is in none of the formats {', '.join(formats)}; "
            "remove it from the folder or convert it"
        ) from None
    except Image.DecompressionBombError:
        raise UserError(
            f"expected an image of at most {MAX_PIXELS} pixels, got {path} with more; make it smaller"
        ) from None
    except MemoryError:
        raise UserError(f"not enough memory to decode {path}; make the image smaller") from None
    except Exception as error:  # decoders raise almost anything on damaged files
        raise UserError(
            f"expected an image, got {path}, which cannot be read as one ({type(error).__name__}); "
            "remove it from the folder or mend it"
        ) from None


def _has_16_bits(image: Image) -> bool:
    """Whether the samples run from 0, black, to 65535, white."""
    if image.format == "TIFF":
        tags = getattr(image, "tag_v2", {})
        bits, black_is_zero = tags.get(258), tags.get(262) == 1  # BitsPerSample, PhotometricInterpretation
        return image.mode.startswith("I;16") and bits == (16,) and black_is_zero
    # Pillow gives those of PNG, PPM and JPEG 2000 in this range, whatever the number of bits.
    return image.mode.startswith("I;16") or (image.mode == "I" and image.format in ("PNG", "PPM"))


def _as_rgb(image: Image, has_16_bits: bool, path: Path) -> Image:
    """The decoded ``image`` in mode RGB.

    Raises:
        UserError: if its pixels have no single value there.
    """
    if image.has_transparency_data:
        if image.convert("RGBA").getchannel("A").getextrema()[0] != 255:
            raise UserError(
                f"expected an opaque image, got {path} with transparent pixels, whose colour depends on the "
                "background; flatten it onto one"
            )
        return image.convert("RGBA").convert("RGB")
    if has_16_bits:
        # Pillow would clip these samples at 255.
        import numpy as np
        from PIL import Image

        samples = np.asarray(image).astype(np.int64)
        return Image.fromarray(((samples * 255 + 32767) // 65535).astype(np.uint8)).convert("RGB")
    if image.mode == "F" or image.mode.startswith("I"):
        raise UserError(
            f"expected unsigned samples of 8 or 16 bits, got {path} with others (mode {image.mode!r}), whose range is "
            "not known; convert it"
        )
    return image.convert("RGB")
