"""Pictures as videos: one picture is a video of one frame, a folder of pictures one of as many. The owner of Pillow.

Contract: as the decoders in _frames.py, and the same whatever backend was asked for. A folder's pictures come in the
order of the numbers in their names; a number that is missing is an error, since every frame after it would be another.
Nothing says how fast such a video ran, so its times are unknown and a part in seconds cannot be taken. Transparency is
dropped, as in videos.
"""

from __future__ import annotations

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
from clipvid.video.backends.base import Choice, Clock, Fit, Keep, Shown, VideoInfo, check_pixels, in_range, stacked
from clipvid.video.container import sniff

if TYPE_CHECKING:
    from PIL.Image import Image

BACKEND = "pillow"
SUFFIXES = frozenset({".bmp", ".jpeg", ".jpg", ".png", ".ppm", ".tif", ".tiff", ".webp"})
"""Suffixes, in lower case, of files that are read as pictures."""


def are(path: str | Path) -> bool:
    """Whether a path is for this file to read: a picture by its name, or a folder."""
    return Path(path).suffix.lower() in SUFFIXES or os.path.isdir(path)  # which says no to impossible names


def probe(path: str | Path) -> VideoInfo:
    """How many pictures there are and the size of the first; every one is decoded."""
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
    """The chosen pictures, upright; only these are opened."""
    if choice.by_time:
        raise VideoError(
            path, "pictures have no times; leave out start and end, or make a video of them", backend=BACKEND
        )
    clock, files = Clock(path, choice.time_limit, backend=BACKEND), listed(path)
    wanted = choice.of((0.0,) * len(files))
    in_range(wanted, path=path, frames=len(files), backend=BACKEND)
    pictures = {}
    for index in sorted(set(wanted)):
        clock.check()
        picture = _decoded(files[index]).pixels
        pictures[index] = picture if fit is None else fit(picture)
    return stacked(pictures, wanted, path=path, backend=BACKEND)


def stream(path: str | Path, keep: Keep, *, fit: Fit | None = None) -> Iterator[Shown]:
    """The pictures that `keep` keeps, one after another; it gets None for a time, which pictures have not."""
    for index, file in enumerate(listed(path)):
        if keep(index, None):
            picture = _decoded(file).pixels
            yield Shown(index, None, picture if fit is None else fit(picture))


def pictures_in(folder: Path) -> list[Path]:
    """The pictures that lie directly in `folder`, sorted by name, without the hidden ones."""
    return sorted(f for f in folder.iterdir() if f.suffix.lower() in SUFFIXES and not f.name.startswith("."))


def listed(path: str | Path) -> list[Path]:
    """The picture itself, or the pictures of a folder in the order of their numbers."""
    if not Path(path).is_dir():
        return [Path(sniff.checked(path, backend=BACKEND))]
    files = pictures_in(Path(path))
    if not files:
        raise VideoError(path, "a directory without pictures, and no video file", backend=BACKEND)
    if len(files) == 1:
        return files
    numbered = {file: re.findall(r"\d+", file.stem)[-1:] for file in files}
    if bare := sorted(file.name for file, number in numbered.items() if not number):
        raise VideoError(path, f"pictures of a video need numbers in their names, {bare[0]} has none", backend=BACKEND)
    order = sorted(files, key=lambda file: int(numbered[file][0]))
    _check_numbers(path, order, [int(numbered[file][0]) for file in order])
    return order


def _check_numbers(path: str | Path, files: Sequence[Path], numbers: Sequence[int]) -> None:
    """VideoError where a number comes twice or the steps between numbers differ."""
    step = min((after - before for before, after in pairwise(numbers) if after > before), default=1)
    for (first, second), (before, after) in zip(pairwise(files), pairwise(numbers), strict=True):
        if after == before:
            raise VideoError(path, f"{first.name} and {second.name} have one number", backend=BACKEND)
        if after - before != step:
            reason = f"between {first.name} and {second.name} pictures are missing (elsewhere numbers rise by {step})"
            raise VideoError(path, reason, backend=BACKEND)


class _Decoded(NamedTuple):
    pixels: UInt8[Tensor, "3 h w"]
    size: tuple[int, int]
    """Height and width, upright."""
    kind: str


def _decoded(file: Path) -> _Decoded:
    """The upright picture in 8 bits, left channels-last in memory."""
    import PIL.Image
    import PIL.ImageOps

    sniff.checked(file, backend=BACKEND)
    opened = False
    try:
        with PIL.Image.open(file) as picture:
            opened = True
            check_pixels(*picture.size, path=file, backend=BACKEND)
            if (count := getattr(picture, "n_frames", 1)) > 1:
                raise VideoError(file, f"{count} pictures in one file; make a video or a folder of it", backend=BACKEND)
            kind = (picture.format or "").lower()
            pixels = _in_8_bits(file, PIL.ImageOps.exif_transpose(picture), kind)
    except VideoError:
        raise
    except Exception as error:  # of damaged files Pillow raises nearly every kind
        reason = f"damaged or cut off: {error}" if opened else sniff.why_not_a_video(str(file))
        raise VideoError(file, reason or f"not a picture that Pillow can open ({error})", backend=BACKEND) from error
    rgb = torch.from_numpy(pixels).permute(2, 0, 1)  # (3, H, W)
    return _Decoded(rgb, (rgb.shape[1], rgb.shape[2]), kind)


def _in_8_bits(file: Path, picture: Image, kind: str) -> np.ndarray:
    """RGB (H, W, 3). Pillow would clip deeper values at 255 instead of scaling them."""
    deep = picture.mode.startswith("I;16") or (picture.mode == "I" and kind == "png")
    if picture.mode in ("I", "F") and not deep:
        raise VideoError(file, f"its values are {picture.mode}, numbers of unknown range", backend=BACKEND)
    if not deep:
        return np.array(picture.convert("RGB"))
    grey = (np.asarray(picture).astype(np.int64) >> 8).clip(0, 255).astype(np.uint8)
    return np.repeat(grey[..., None], 3, axis=-1)
