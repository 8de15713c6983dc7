"""Long videos: embeddings of windows that slide over a video of any length; the tower encodes each frame once.

A branch that reads pixels instead of taps runs its stem for every window.

Contract: a model and a video in, windows out batch by batch, in constant memory: frames are decoded, encoded and
released after the last window that contains them. The embedding of a window equals `encode_video` of its frames. Knows
nothing of data sets, captions or search.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from itertools import islice
from typing import Protocol, TypeVar, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor

from clipvid.models.backbone.taps import Pixels, Taps
from clipvid.runtime.inference import inference
from clipvid.video.transforms import VideoTransform

T = TypeVar("T")
BLOCK = 256
"""Windows that are yielded together. With fewer, a caller that stores them would hold many small pieces of memory
between large temporary ones, which the allocator could then not reuse (1 MiB lost for 8 windows)."""


@runtime_checkable
class WindowEncoder(Protocol):
    """The interface that sliding windows need from a model; VideoCLIP has it."""

    transform: VideoTransform

    @property
    def device(self) -> torch.device: ...
    def reads(self, video: Tensor, *, mask: Tensor | None = None) -> Taps | Pixels: ...
    def encode_video(
        self, video: Tensor | Taps | Pixels, *, normalize: bool = False, mask: Tensor | None = None
    ) -> Tensor: ...


@dataclass(frozen=True, eq=False)
class Windows:
    """Consecutive windows of a video, in temporal order."""

    video: Float[Tensor, "n e"]
    """Embeddings, L2-normalised unless `normalize` was False."""
    frames: Int[Tensor, "n t"]
    """Frame indices of each window, from 0; a window longer than the video repeats the last one."""
    starts: Float[Tensor, " n"]
    """Times of the first frames, in seconds; NaN for pictures, which have no times."""
    ends: Float[Tensor, " n"]
    """Times of the last frames, in seconds; NaN for pictures."""

    def __len__(self) -> int:
        return len(self.video)


def encode_windows(
    model: WindowEncoder,
    frames: Iterator[tuple[int, float | None, Tensor]],
    *,
    window: int = 12,
    stride: int = 1,
    tower_batch_size: int = 32,
    batch_size: int = 8,
    precision: str = "auto",
    normalize: bool = False,
) -> Iterator[Windows]:
    """Yield embeddings of all windows of `window` frames, `stride` frames apart; the last one ends with the video.

    Args:
        frames: index, seconds and picture of every frame in order (`video.decode.stream`).
        tower_batch_size: frames per batch of the tower.
        batch_size: windows per batch of the branch.
        precision: as for evaluation.

    A video shorter than a window gives one window, with its padding masked. Raises ValueError for wrong numbers at the
    call, and VideoError during iteration for a file that cannot be read to its end.

    >>> windows = list(model.encode_windows("match.mp4", window=8, fps=4))                       # doctest: +SKIP
    >>> best = (torch.cat([w.video for w in windows]) @ model.encode_text("a goal").T).argmax()  # doctest: +SKIP
    """
    for name, value in (
        ("window", window),
        ("stride", stride),
        ("tower_batch_size", tower_batch_size),
        ("batch_size", batch_size),
    ):
        if value < 1:
            raise ValueError(f"{name} must be an integer >= 1, got {value}; raise it to 1 or more")
    return _windows(
        model,
        _encoded_stretches(model, frames, tower_batch_size=tower_batch_size, precision=precision),
        window=window,
        stride=stride,
        batch_size=batch_size,
        precision=precision,
        normalize=normalize,
    )


@dataclass(frozen=True)
class _Stretch:
    """Consecutive frames as one clip (1, T, ...) of branch inputs, with their indices and times."""

    read: Taps | Pixels
    index: Int[Tensor, " t"]
    time: Float[Tensor, " t"]

    def __len__(self) -> int:
        return len(self.index)

    def then(self, other: _Stretch) -> _Stretch:
        """Append a following stretch."""
        read = _joined(self.read, other.read)
        return _Stretch(read, torch.cat([self.index, other.index]), torch.cat([self.time, other.time]))

    def without(self, n: int) -> _Stretch:
        """Drop the first `n` frames and free their memory."""
        return _Stretch(_map(self.read, lambda t: t[:, n:].clone()), self.index[n:], self.time[n:])


def _encoded_stretches(
    model: WindowEncoder, frames: Iterator[tuple[int, float | None, Tensor]], *, tower_batch_size: int, precision: str
) -> Iterator[_Stretch]:
    """Yield the branch's inputs of a video, `tower_batch_size` frames at a time."""
    for batch in _batched(frames, tower_batch_size):
        numbers, times, pictures = zip(*batch, strict=True)
        with inference(model, precision):
            read = model.reads(torch.stack(pictures)[None])
        seconds = [float("nan") if time is None else time for time in times]
        yield _Stretch(read, torch.tensor(numbers), torch.tensor(seconds, dtype=torch.float64))


def _windows(
    model: WindowEncoder,
    parts: Iterable[_Stretch],
    *,
    window: int,
    stride: int,
    batch_size: int,
    precision: str,
    normalize: bool,
) -> Iterator[Windows]:
    """Cut consecutive stretches into windows and embed them."""
    stretch: _Stretch | None = None
    dropped, total, next_start = 0, 0, 0  # frames removed from `stretch`, frames read, first frame of the next window

    block = _Block(window)

    def encoded(starts: list[int], *, length: int) -> Iterator[Windows]:
        assert stretch is not None
        for batch_starts in _batched(starts, batch_size):
            rows = torch.tensor(batch_starts)[:, None] - dropped + torch.arange(window)  # (n, T)
            mask = None if length >= window else (rows < length)
            rows = rows.clamp(max=len(stretch) - 1)
            source = _map(stretch.read, lambda t, rows=rows: t[0, rows.to(t.device)])
            source = source if mask is None else replace(source, mask=mask.to(model.device))
            with inference(model, precision):
                video = model.encode_video(source, normalize=normalize).float().cpu()
            yield from block.add(video, stretch.index[rows], stretch.time[rows[:, 0]], stretch.time[rows[:, -1]])

    for part in parts:
        stretch = part if stretch is None else stretch.then(part)
        total += len(part)
        starts = list(range(next_start, total - window + 1, stride))
        yield from encoded(starts, length=window)
        next_start += stride * len(starts)
        unused = min(next_start, total - window) - dropped  # the video's last window may start before `next_start`
        if unused > 0:
            stretch, dropped = stretch.without(unused), dropped + unused
    if stretch is None:
        return
    if total < window:
        yield from encoded([0], length=total)
    elif next_start - stride != total - window:
        yield from encoded([total - window], length=window)
    yield from block.rest()


class _Block:
    """Buffer of finished windows, in memory reserved for a full block."""

    def __init__(self, window: int) -> None:
        self.window, self.used = window, 0
        self.buffer: Windows | None = None

    def add(self, video: Tensor, frames: Tensor, starts: Tensor, ends: Tensor) -> Iterator[Windows]:
        """Add windows; yield the block when it is full."""
        taken = 0
        while taken < len(video):
            if self.buffer is None:
                numbers, seconds = frames.new_empty(BLOCK, self.window), starts.new_empty(BLOCK)
                self.buffer = Windows(video.new_empty(BLOCK, video.shape[1]), numbers, seconds, seconds.clone())
            source = slice(taken, taken + min(len(video) - taken, BLOCK - self.used))
            target = slice(self.used, self.used + source.stop - source.start)
            buffer = self.buffer
            for stored, new in zip(
                (buffer.video, buffer.frames, buffer.starts, buffer.ends), (video, frames, starts, ends), strict=True
            ):
                stored[target] = new[source]
            taken, self.used = source.stop, target.stop
            if self.used == BLOCK:
                yield from self.rest()

    def rest(self) -> Iterator[Windows]:
        """Yield the windows left in the block."""
        if self.buffer is not None:
            n, buffer = self.used, self.buffer
            self.buffer, self.used = None, 0
            yield Windows(buffer.video[:n], buffer.frames[:n], buffer.starts[:n], buffer.ends[:n])


def _batched(items: Iterable[T], n: int) -> Iterator[list[T]]:
    """Yield lists of `n` items; the last one may be shorter."""
    items = iter(items)
    while batch := list(islice(items, n)):
        yield batch


def _map(read: Taps | Pixels, change: Callable[[Tensor], Tensor]) -> Taps | Pixels:
    """Apply a function to every tensor of a branch's input."""
    return read.map(change) if isinstance(read, Taps) else Pixels(change(read.video))


def _joined(first: Taps | Pixels, second: Taps | Pixels) -> Taps | Pixels:
    """Concatenate two consecutive stretches of one video."""
    if isinstance(first, Pixels) or isinstance(second, Pixels):
        assert isinstance(first, Pixels)
        assert isinstance(second, Pixels)
        return Pixels(torch.cat([first.video, second.video], dim=1))
    levels = range(len(first.levels))
    return Taps(
        first.levels,
        tuple(torch.cat([first.patches[k], second.patches[k]], dim=1) for k in levels),
        tuple(torch.cat([first.cls[k], second.cls[k]], dim=1) for k in levels) if first.cls else (),
        torch.cat([first.frames, second.frames], dim=1),
    )
