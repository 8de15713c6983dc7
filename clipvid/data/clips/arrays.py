"""Clips in memory: uint8 arrays (T, H, W, 3) that are compared by their pixels.

Contract: numpy arrays or tensors of any size and length in; numpy arrays that share their memory out. Does not import
torch, so that a process which lists or renders clips starts in a tenth of the time. Knows nothing of files.
"""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Iterable, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, TypeAlias, TypeGuard

import numpy as np
from jaxtyping import UInt8

from clipvid.config import checks
from clipvid.data.clips.labels import as_text, is_missing

if TYPE_CHECKING:
    from torch import Tensor

Frames: TypeAlias = "np.ndarray | Tensor"
"""Frames of one clip: numpy or torch, uint8, (T, H, W, 3) or (T, 3, H, W)."""

Labels: TypeAlias = "Sequence[int | str | float | None] | np.ndarray | Tensor"
"""A class name or number per clip; None or NaN for a clip without a class."""


class ArrayClip:
    """Frames of one clip in memory; two are equal if their sizes and pixels are.

    Held as a numpy array: pickling one for a loader's process needs no file descriptor, as a tensor would.
    """

    def __init__(self, frames: UInt8[np.ndarray, "t h w 3"]) -> None:
        self.frames = frames

    def __len__(self) -> int:
        return len(self.frames)

    def __repr__(self) -> str:
        count, height, width, _ = self.frames.shape
        return f"ArrayClip({count} frames of {width}x{height})"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, ArrayClip) and (self is other or self.content == other.content)

    def __hash__(self) -> int:
        return hash(self.content)

    @cached_property
    def content(self) -> str:
        """SHA-256 of sizes and pixels, which identifies the clip in a cache; computed once."""
        digest = hashlib.sha256(repr(self.frames.shape).encode())
        for frame in self.frames:
            digest.update(np.ascontiguousarray(frame).data)
        return digest.hexdigest()


def array_clips(clips: Iterable[Frames]) -> list[ArrayClip]:
    """Return the clips as arrays (T, H, W, 3) that share the memory of those given.

    Raise ValueError, with the position of the clip, for another type, shape or dtype.
    """
    if _is_array(clips) and len(clips.shape) != 5:
        raise ValueError(
            f"clips must be a sequence of arrays (T, H, W, 3), or one array with a leading axis of clips, got one of "
            f"shape {tuple(clips.shape)}; put a single clip into a list"
        )
    checks.of_type("clips", clips, Iterable, must="a sequence of arrays", advice="put a single clip into a list")
    return [ArrayClip(_channels_last(clip, f"clip {index}")) for index, clip in enumerate(clips)]


def as_texts(labels: Labels) -> list[str | None]:
    """Return labels as the text that an annotation file would have, None for missing ones."""
    values = labels.tolist() if _is_array(labels) else labels
    return [None if is_missing(label) else as_text(label) for label in values]


def captions_of(entry: str | Sequence[str], name: str) -> tuple[str, ...]:
    """Return the captions of the clip `name`; raise ValueError for an entry that is neither a text nor a list."""
    if isinstance(entry, str):
        return (entry,)
    must, advice = "a text or a list of texts", "give () for a clip without captions"
    return tuple(checks.texts(f"{name}: captions", entry, must=must, advice=advice))


def _channels_last(clip: Frames, name: str) -> UInt8[np.ndarray, "t h w 3"]:
    if not _is_array(clip):
        raise ValueError(
            f"{name} must be a numpy array or torch tensor, got {type(clip).__name__}; clipvid.open_dataset reads files"
        )
    if str(clip.dtype).removeprefix("torch.") != "uint8":
        raise ValueError(f"{name} must be uint8 with values 0 to 255, got {clip.dtype}; scale and round it first")
    frames = clip if isinstance(clip, np.ndarray) else clip.detach().cpu().numpy()
    is_last, is_second = (frames.ndim == 4 and frames.shape[axis] == 3 for axis in (-1, 1))
    if is_last == is_second or 0 in frames.shape:
        both = "; the axis of channels is ambiguous in frames of 3 pixels" if is_last and is_second else ""
        raise ValueError(
            f"{name} must be (T, H, W, 3) or (T, 3, H, W) with at least one frame, got {tuple(frames.shape)}{both}"
        )
    return frames if is_last else frames.transpose(0, 2, 3, 1)


def _is_array(value: object) -> TypeGuard[Frames]:
    """Return True for a numpy array or a torch tensor; where torch was never imported, no value is a tensor."""
    torch = sys.modules.get("torch")
    return isinstance(value, np.ndarray) or (torch is not None and isinstance(value, torch.Tensor))
