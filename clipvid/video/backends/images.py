"""Pictures read as videos: a picture is a video of one frame, a folder has one frame per picture. Wraps Pillow.

Contract: the same functions as the video decoders, used whichever backend is selected. Pictures of a folder are
ordered by the numbers in their names; a missing number is an error, because it would shift the index of every later
frame. The frame rate is unknown: frames have no times, and selecting by seconds is an error. Transparency is dropped,
as in videos.
"""

from __future__ import annotations

import mimetypes
import os
import re
from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from jaxtyping import UInt8
from torch import Tensor

from clipvid.errors import VideoError
from clipvid.video.backends.base import Choice, Clock, Fit, Keep, Shown, VideoInfo, in_range, stacked
from clipvid.video.backends.limits import PIXELS, check_clip, check_pixels, pixel_limit
from clipvid.video.container import sniff
from clipvid.video.container.times import FrameTimes
from clipvid.video.picture_files import SUFFIXES, in_frame_order, pictures_in

if TYPE_CHECKING:
    from PIL.Image import Image

BACKEND = "pillow"
FORMATS = ("BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")
"""Pillow's formats that are tried, whatever a file is named; others hand the file to other programs, as EPS does."""
STRIP = 256
"""Rows that are converted to RGB at a time, which bounds the memory of the conversion."""


def handles(path: str | Path) -> bool:
    """Return True if this module, not a video decoder, reads `path`: a folder, or a file named like a picture."""
    return Path(path).suffix.lower() in SUFFIXES or os.path.isdir(path)  # isdir returns False for invalid names.


def probe(path: str | Path) -> VideoInfo:
    """Return the number of pictures, and the size and format of the first; every picture is decoded."""
    files = listed(path)
    sizes, kinds = zip(*(_decoded(file)[1:] for file in files), strict=True)
    return VideoInfo(
        path=Path(path),
        frames=len(files),
        fps=0.0,
        duration=0.0,
        height=sizes[0][0],
        width=sizes[0][1],
        codec=kinds[0],
        rotation=0,
        times=(0.0,) * len(files),
    )


def read(path: str | Path, choice: Choice, *, fit: Fit | None = None) -> UInt8[Tensor, "t 3 h w"]:
    """Return the selected pictures, upright, as uint8 (T, 3, H, W); only these are opened."""
    if choice.by_time:
        raise VideoError(
            path, "pictures have no times; leave out start and end, or encode them as a video", backend=BACKEND
        )
    clock, files = Clock(path, choice.time_limit, backend=BACKEND), listed(path)
    indices = choice.of(FrameTimes((0.0,) * len(files), 0.0))  # without by_time, only the number of times matters
    in_range(indices, path=path, frames=len(files), backend=BACKEND)
    pictures = {}
    for index in sorted(set(indices)):
        clock.check()
        picture = _decoded(files[index]).pixels
        pictures[index] = picture if fit is None else fit(picture)
        check_clip(pictures[index], frames=len(indices), path=path, backend=BACKEND)
    return stacked(pictures, indices, path=path, backend=BACKEND)


def stream(path: str | Path, keep: Keep, *, fit: Fit | None = None) -> Iterator[Shown]:
    """Yield the pictures selected by `keep`, one at a time; `keep` gets the index and None for the time."""
    for index, file in enumerate(listed(path)):
        if keep(index, None):
            picture = _decoded(file).pixels
            yield Shown(index, None, picture if fit is None else fit(picture))


def listed(path: str | Path) -> list[Path]:
    """Return the picture itself, or the pictures of a folder in the order of their numbers."""
    if not Path(path).is_dir():
        return [Path(sniff.checked(path, backend=BACKEND))]
    files = pictures_in(Path(path))
    if not files:
        reason = "a folder without pictures; give a video file, or a folder of numbered pictures"
        videos = (f for f in Path(path).iterdir() if (mimetypes.guess_type(f.name)[0] or "").startswith("video/"))
        if video := next(videos, None):
            reason = f'a folder of videos; give a list of its files: sorted(Path(folder).glob("*{video.suffix}"))'
        raise VideoError(path, reason, backend=BACKEND)
    if len(files) == 1:
        return files
    numbered = {file: re.findall(r"\d+", file.stem)[-1:] for file in files}
    if unnumbered := sorted(file.name for file, number in numbered.items() if not number):
        raise VideoError(
            path, f"pictures of a video need numbers in their names, {unnumbered[0]} has none", backend=BACKEND
        )
    ordered = in_frame_order(files)
    _check_numbers(path, ordered, [int(numbered[file][0]) for file in ordered])
    return ordered


def _check_numbers(path: str | Path, files: Sequence[Path], numbers: Sequence[int]) -> None:
    """Raise VideoError if a number occurs twice or the steps between the numbers differ."""
    step = min((after - before for before, after in pairwise(numbers) if after > before), default=1)
    for (first, second), (before, after) in zip(pairwise(files), pairwise(numbers), strict=True):
        if after == before:
            raise VideoError(path, f"{first.name} and {second.name} have the same number", backend=BACKEND)
        if after - before != step:
            reason = f"pictures are missing between {first.name} and {second.name} (other numbers rise by {step})"
            raise VideoError(path, reason, backend=BACKEND)


class _Decoded(NamedTuple):
    pixels: UInt8[Tensor, "3 h w"]
    size: tuple[int, int]
    """Height and width, upright."""
    kind: str


def _decoded(file: Path) -> _Decoded:
    """Decode a picture to upright 8-bit RGB, channels-last in memory."""
    import PIL.Image
    import PIL.ImageOps

    sniff.checked(file, backend=BACKEND)
    opened = False
    try:
        with PIL.Image.open(file, formats=FORMATS) as picture:
            opened = True
            check_pixels(*picture.size, path=file, backend=BACKEND)
            if (count := getattr(picture, "n_frames", 1)) > 1:
                raise VideoError(
                    file,
                    f"{count} pictures in one file; convert it to a video or a folder of pictures",
                    backend=BACKEND,
                )
            kind = (picture.format or "").lower()
            PIL.ImageOps.exif_transpose(picture, in_place=True)
            pixels = _in_8_bits(file, picture, kind)
    except VideoError:
        raise
    except PIL.Image.DecompressionBombError as error:  # raised before a picture is open and its size can be read
        reason = (
            f"its pixels exceed the limit of {pixel_limit()} (Pillow: {error}); scale it down, or raise both limits, "
            f"with the environment variable {PIXELS} and with PIL.Image.MAX_IMAGE_PIXELS"
        )
        raise VideoError(file, reason, backend=BACKEND) from error
    except Exception as error:  # Pillow raises nearly any exception for damaged files.
        reason = f"damaged or cut off: {error}" if opened else sniff.why_not_a_video(str(file))
        raise VideoError(file, reason or f"not a picture that Pillow can open ({error})", backend=BACKEND) from error
    rgb = torch.from_numpy(pixels).permute(2, 0, 1)  # (3, H, W)
    return _Decoded(rgb, (rgb.shape[1], rgb.shape[2]), kind)


def _in_8_bits(file: Path, picture: Image, kind: str) -> np.ndarray:
    """Return 8-bit RGB (H, W, 3); 16-bit values are scaled down, because Pillow's own conversion clips them at 255."""
    is_16_bit = picture.mode.startswith("I;16") or (picture.mode == "I" and kind == "png")
    if picture.mode in ("I", "F") and not is_16_bit:
        raise VideoError(
            file,
            f"Pillow's mode {picture.mode} has values of unknown range; convert it to 8 or 16 bits",
            backend=BACKEND,
        )
    width, height = picture.size
    pixels = np.empty((height, width, 3), np.uint8)
    for top in range(0, height, STRIP):
        strip = picture.crop((0, top, width, min(top + STRIP, height)))
        rows = np.asarray(strip if is_16_bit else strip.convert("RGB"))
        pixels[top : top + STRIP] = (rows >> 8)[..., None] if is_16_bit else rows
    return pixels
