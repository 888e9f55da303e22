"""Pictures one after the other into a file: GIF by Pillow, MP4 (H.264) by the ffmpeg of imageio-ffmpeg."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain, islice
from pathlib import Path
from typing import Any

import numpy as np
from lie.run import UserError
from PIL import Image


def write_gif(path: Path, pictures: Iterator[Image.Image], fps: int) -> None:
    """An endless GIF; all frames share the 256 colours of the first few and the last of them."""
    first = list(islice(pictures, 8))
    sheet = Image.new("RGB", (first[0].width, first[0].height * 2))
    sheet.paste(first[0], (0, 0))
    sheet.paste(first[-1], (0, first[0].height))
    palette = sheet.quantize(255, method=Image.Quantize.MEDIANCUT)

    def indexed() -> Iterator[Image.Image]:
        for picture in chain(first, pictures):
            yield picture.quantize(palette=palette, dither=Image.Dither.NONE)

    frames = indexed()
    start = next(frames)
    # Hundredths of a second; most players show what is shorter than 2 slowly.
    start.save(path, format="GIF", save_all=True, append_images=frames, duration=max(20, round(1000 / fps)), loop=0,
               optimize=False)  # fmt: skip


def write_mp4(path: Path, pictures: Iterator[Image.Image], fps: int) -> None:
    """H.264 in yuv420p, which every player knows."""
    library = check_mp4()
    first = next(pictures)
    writer = library.write_frames(
        str(path), first.size, fps=fps, codec="libx264", quality=8, macro_block_size=2, ffmpeg_log_level="error"
    )
    writer.send(None)
    count = 0
    try:
        for picture in chain([first], pictures):
            writer.send(np.ascontiguousarray(picture).tobytes())
            count += 1
    except OSError as error:
        raise UserError(f"ffmpeg could not write the film: {error}; try a .gif or .html file") from None
    finally:
        writer.close()
    # ffmpeg ends without a word where the disk is full.
    try:
        written, _ = library.count_frames_and_secs(str(path))
    except (RuntimeError, OSError):
        written = 0
    if written != count:
        raise OSError(f"ffmpeg wrote {written} of {count} frames; is the disk full?")


def check_mp4() -> Any:
    """``imageio_ffmpeg``.

    Raises:
        UserError: names the extra that brings it.
    """
    try:
        import imageio_ffmpeg  # pyright: ignore[reportMissingImports]

        imageio_ffmpeg.get_ffmpeg_exe()
    except (ImportError, RuntimeError) as error:
        raise UserError(
            f"MP4 needs imageio-ffmpeg, which is not here ({error}): pip install 'chnn[mp4]' or pip install "
            "imageio-ffmpeg, or write a .gif or .html file"
        ) from None
    return imageio_ffmpeg
