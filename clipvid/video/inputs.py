"""Videos as callers have them: paths, file URLs, bytes and binary files become local files, arrays become clips.

Contract: `local_file` gives a path that every decoder can open, for a file in memory a private temporary one that is
always deleted; `as_clips` gives a tensor (B, T, 3, H, W), uint8 or float. An input of unclear meaning raises ValueError
with its shape or type, what is allowed and what to do. Knows nothing of decoders or models.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence, Set
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, BinaryIO, Protocol, TypeGuard, runtime_checkable
from urllib.request import url2pathname

import numpy as np
import torch
from torch import Tensor

from clipvid.errors import VideoError
from clipvid.video.container import sniff

BLOCK = 1 << 20
"""Bytes that are copied at a time from a file object."""
LAYOUTS = "(T, H, W, 3) or (T, 3, H, W) for one clip, (B, T, H, W, 3) or (B, T, 3, H, W) for several"
"""Layouts of arrays, for messages."""


@runtime_checkable
class BinaryFile(Protocol):
    """An open binary file, such as io.BytesIO or the result of `open(path, "rb")`."""

    def read(self, size: int = -1, /) -> bytes: ...


VideoSource = str | os.PathLike[str] | bytes | bytearray | memoryview | BinaryFile
"""One encoded video: a path, a file:// URL, the bytes of a file, or an open binary file."""


def is_source(video: object) -> TypeGuard[VideoSource]:
    """Return True for an encoded video, False for arrays, lists and anything else."""
    return isinstance(video, str | os.PathLike | bytes | bytearray | memoryview | BinaryFile)


def describe_source(source: VideoSource) -> str:
    """Return a path as it is, and a short description of a video in memory, for messages and tables."""
    if isinstance(source, str | os.PathLike):
        return os.fspath(source)
    if isinstance(source, bytes | bytearray | memoryview):
        return f"<{memoryview(source).nbytes} bytes>"
    name = getattr(source, "name", None)
    return f"<file {name}>" if isinstance(name, str) else f"<{type(source).__name__}>"


@contextmanager
def local_file(source: VideoSource) -> Iterator[str | Path]:
    """Yield a path from which `source` can be read during the block.

    A path is yielded unchanged and a file:// URL as the path that it names. Bytes and file objects are written to a
    temporary file, which only this user can read and which is deleted after the block; a file object that can seek
    is read from its start, and its position restored. A VideoError about the temporary file names the source instead.

    Raises ValueError for a URL of another machine, and for a file object that is closed or opened as text.
    """
    if isinstance(source, str | os.PathLike):
        yield _local_path(source)
        return
    with TemporaryDirectory(prefix="clipvid-") as folder:
        draft = Path(folder, "video")
        with open(draft, "wb") as target:
            _copy(source, target)
        path = draft.rename(draft.with_suffix(_suffix(source, draft)))
        try:
            yield path
        except VideoError as error:
            if error.path != path:
                raise
            raise VideoError(describe_source(source), error.reason, backend=error.backend) from error.__cause__


def _local_path(path: str | os.PathLike[str]) -> str | Path:
    if not isinstance(path, str):
        return Path(path)
    if not path.lower().startswith("file://"):
        return path
    host, slash, rest = path[len("file://") :].partition("/")
    if host.lower() not in ("", "localhost") or not slash:
        raise ValueError(f"path must be a file URL of this machine, file:///folder/name, got {path!r}; give a path")
    return Path(url2pathname(f"/{rest}"))  # decodes percent signs, too


def _copy(source: bytes | bytearray | memoryview | BinaryFile, target: BinaryIO) -> None:
    """Write the bytes of `source`; a file object that can seek is read from its start and put back."""
    if isinstance(source, bytes | bytearray | memoryview):
        target.write(source)
        return
    file: Any = source
    if getattr(file, "closed", False):
        raise ValueError(f"the file object must be open, got the closed {describe_source(source)}; open it again")
    seekable = bool(getattr(file, "seekable", bool)())
    position = file.tell() if seekable else 0
    if seekable:
        file.seek(0)
    try:
        while block := file.read(BLOCK):
            if isinstance(block, str):
                raise ValueError(
                    f"the file object must be binary, got {describe_source(source)}, which reads text; open it with "
                    "mode 'rb'"
                )
            target.write(block)
    finally:
        if seekable:
            file.seek(position)


def _suffix(source: object, path: Path) -> str:
    """Return the file extension that a file object's name has, or that a picture's first bytes ask for."""
    name = getattr(source, "name", None)
    if isinstance(name, str) and re.fullmatch(r"\.\w{1,8}", suffix := Path(name).suffix):
        return suffix
    with open(path, "rb") as file:
        head = file.read(12)
    kinds = [kind for magic, kind in sniff.PICTURES.items() if head.startswith(magic)]
    webp = head[:4] == b"RIFF" and head[8:] == b"WEBP"
    return f".{kinds[0].lower()}" if kinds else ".webp" if webp else ""


def as_clips(video: object) -> Tensor:
    """Return an array, or a list of arrays, as a contiguous tensor (B, T, 3, H, W), uint8 or float.

    NumPy arrays of any strides and byte order, torch tensors, and objects that NumPy can read (Pillow images) are taken
    in the layouts of `LAYOUTS`. A list of frames (three axes each) is one clip, a list of clips (four axes) a batch.

    Raises ValueError for other types, dtypes and shapes, for no frame, and where colours could be in two axes.
    """
    if not isinstance(video, list | tuple):
        return _channels_first(_tensor(video))
    if not video:
        raise ValueError("video must hold at least one clip, got an empty list; give one path or array, or more")
    items = [_tensor(item) for item in video]
    if len({(item.shape, item.dtype) for item in items}) > 1 or items[0].ndim not in (3, 4):
        kinds = ", ".join(dict.fromkeys(f"{item.dtype} {tuple(item.shape)}" for item in items))
        raise ValueError(
            f"a list of arrays must hold frames (H, W, 3) or clips (T, H, W, 3) of one size and dtype, got {kinds}; "
            "encode clips of different sizes one by one"
        )
    return _channels_first(torch.stack(items))


def _tensor(array: object) -> Tensor:
    """Return an array as a tensor of uint8 or floats, sharing its memory where torch can."""
    if not isinstance(array, Tensor):
        if not hasattr(array, "__array__") and not hasattr(array, "__array_interface__"):  # Pillow has the second
            advice = "convert it with numpy.asarray"
            if isinstance(array, Iterator | Set):
                advice = "make a list of it, with list() or sorted()"
            elif is_source(array):
                advice = "give files and arrays separately"
            raise ValueError(
                "video must be an array or a file (path, bytes, binary file object), or a list of either, got "
                f"{type(array).__name__}; {advice}"
            )
        array = _as_torch(np.asarray(array))
    assert isinstance(array, Tensor)
    if array.dtype != torch.uint8 and not array.is_floating_point():
        raise ValueError(_wrong_dtype(array.dtype))
    return array


def _as_torch(array: np.ndarray) -> Tensor:
    if array.dtype.kind in "OUST":
        raise ValueError(
            f"video must be an array of pixels or a list of paths, got an array of {array.dtype}; give list(paths)"
        )
    if array.dtype != np.uint8 and array.dtype.newbyteorder("=") not in (np.float16, np.float32, np.float64):
        raise ValueError(_wrong_dtype(array.dtype))
    array = np.ascontiguousarray(array, dtype=array.dtype.newbyteorder("="))  # torch has no negative strides
    return torch.from_numpy(array if array.flags.writeable else array.copy())  # torch warns of read-only memory


def _wrong_dtype(dtype: object) -> str:
    return (
        f"video must be uint8 (pixels, 0 to 255) or float (preprocessed frames), got {dtype}; convert pixels with "
        ".astype('uint8') or .to(torch.uint8)"
    )


def _channels_first(video: Tensor) -> Tensor:
    """Return a clip or batch in any layout as a contiguous tensor (B, T, 3, H, W)."""
    shape = tuple(video.shape)
    if video.ndim not in (4, 5):
        hint = "add the axis of frames with video[None]" if video.ndim == 3 else "reshape it"
        raise ValueError(f"video must be {LAYOUTS}, got {shape}; {hint}")
    if 0 in shape:
        raise ValueError(f"video holds no frame, its shape is {shape}; every axis must be at least 1 long")
    first, last = shape[-3] == 3, shape[-1] == 3
    if first and last:
        raise ValueError(
            f"video must have its 3 colours in one axis only, got {shape}, where they may be the last axis or the "
            "third from the end; give frames whose height and width are not 3 pixels"
        )
    if not first and not last:
        raise ValueError(f"video must be {LAYOUTS}, got {shape}; convert grey or RGBA frames to RGB")
    video = video.movedim(-1, -3) if last else video
    return (video if video.ndim == 5 else video[None]).contiguous()


def check_preprocessed(video: Tensor) -> None:
    """Raise ValueError for floats that are not preprocessed frames: NaN or infinite, or pixels in 0..1 or 0..255.

    Normalised frames are negative where they are darker than the mean colour. A constant clip may mean either.
    """
    if not video.is_floating_point() or video.device.type == "meta":
        return
    low, high = (float(bound) for bound in torch.aminmax(video.detach()))
    if not np.isfinite([low, high]).all():
        raise ValueError("video must be finite, got NaN or infinite values; check the frames and their preprocessing")
    advice = "or preprocess each frame with model.preprocess"
    if 0 <= low < high <= 1:
        raise ValueError(
            f"float video must be normalised as the model expects, got values in {low:.3g} to {high:.3g}, which look "
            f"like pixels; multiply by 255 and give uint8, {advice}"
        )
    if low >= 0 and high > 16:
        raise ValueError(
            f"float video must be normalised as the model expects, got values in {low:.3g} to {high:.3g}, which look "
            f"like pixels; convert them to uint8, {advice}"
        )


def split_sources(video: object) -> list[VideoSource]:
    """Return the encoded videos of an input, a single one or a list of them; empty for arrays."""
    if is_source(video):
        return [video]
    if isinstance(video, Sequence) and video and all(map(is_source, video)):
        return list(video)
    return []
