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
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from jaxtyping import UInt8
from torch import Tensor

from clipvid.errors import VideoError
from clipvid.video import _files
from clipvid.video._frames import Choice, Fit, Keep, Shown, VideoInfo, check_pixels, in_range, stacked

if TYPE_CHECKING:
    from PIL.Image import Image

BACKEND = "pillow"
SUFFIXES = frozenset({".bmp", ".jpeg", ".jpg", ".png", ".ppm", ".tif", ".tiff", ".webp"})
"""Suffixes, in lower case, of files that are read as pictures."""


def are(path: str | Path) -> bool:
    """Whether a path is for this file to read: a picture by its name, or a folder."""
    return Path(path).suffix.lower() in SUFFIXES or os.path.isdir(path)  # which says no to impossible names


def probe(path: str | Path) -> VideoInfo:
    """How many pictures there are and the size of the first; every one is opened, none is decoded."""
    files, sizes, kinds = listed(path), [], []
    for file in files:
        with _opened(file) as picture:
            turned = picture.getexif().get(0x0112, 1) >= 5  # EXIF orientation: 5 to 8 swap the sides
            sizes.append(picture.size[::-1] if turned else picture.size)
            kinds.append((picture.format or "").lower())
    return VideoInfo(
        path=Path(path),
        frames=len(files),
        fps=0.0,
        duration=0.0,
        height=sizes[0][1],
        width=sizes[0][0],
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
    files = listed(path)
    wanted = choice.of((0.0,) * len(files))
    in_range(wanted, path=path, frames=len(files), backend=BACKEND)
    pictures = {}
    for index in sorted(set(wanted)):
        picture = _decoded(files[index])
        pictures[index] = picture if fit is None else fit(picture)
    return stacked(pictures, wanted, path=path, backend=BACKEND)


def stream(path: str | Path, keep: Keep, *, fit: Fit | None = None) -> Iterator[Shown]:
    """The pictures that `keep` keeps, one after another; it gets None for a time, which pictures have not."""
    for index, file in enumerate(listed(path)):
        if keep(index, None):
            picture = _decoded(file)
            yield Shown(index, None, picture if fit is None else fit(picture))


def listed(path: str | Path) -> list[Path]:
    """The picture itself, or the pictures of a folder in the order of their numbers."""
    if not Path(path).is_dir():
        return [Path(_files.checked(path, backend=BACKEND))]
    files = [f for f in Path(path).iterdir() if f.suffix.lower() in SUFFIXES and not f.name.startswith(".")]
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


def _opened(file: Path) -> Image:
    import PIL.Image

    refused = partial(VideoError, file, backend=BACKEND)
    try:
        picture = PIL.Image.open(_files.checked(file, backend=BACKEND))
    except PIL.Image.DecompressionBombError as error:
        raise refused(f"too many pixels ({error})") from error
    except (OSError, ValueError, SyntaxError) as error:
        reason = _files.why_not_a_video(str(file)) or "not a picture that Pillow can open"
        raise refused(reason) from error
    if (count := getattr(picture, "n_frames", 1)) > 1:
        picture.close()
        raise refused(f"{count} pictures in one file; make a video or a folder of it")
    try:
        check_pixels(*picture.size, path=file, backend=BACKEND)
    except VideoError:
        picture.close()
        raise
    return picture


def _decoded(file: Path) -> UInt8[Tensor, "3 h w"]:
    """The upright picture in 8 bits, left channels-last in memory."""
    import PIL.ImageOps

    with _opened(file) as picture:
        try:
            upright = PIL.ImageOps.exif_transpose(picture)
            if upright.mode == "F":
                raise VideoError(file, "its values are floating-point numbers of unknown range", backend=BACKEND)
            if upright.mode.startswith("I"):  # 16 bits, which Pillow would clip at 255 instead of scaling
                grey = np.asarray(upright).astype(np.int64)
                pixels = np.repeat((grey >> 8).clip(0, 255).astype(np.uint8)[..., None], 3, axis=-1)
            else:
                pixels = np.array(upright.convert("RGB"))
        except (OSError, ValueError, SyntaxError, EOFError) as error:
            raise VideoError(file, f"damaged or cut off: {error}", backend=BACKEND) from error
    return torch.from_numpy(pixels).permute(2, 0, 1)  # (3, H, W)
