"""Long videos: embeddings of windows that slide over a video of any length, each frame encoded by the tower once.

A branch that reads pixels instead of taps runs its own stem for every window.

Contract: a model and a video in, windows out batch by batch, in constant memory: frames are decoded, encoded and
forgotten as soon as the last window that holds them is done. A window is what `encode_video` gives for its frames.
Knows nothing of data sets, captions or search.
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
"""Windows that are given out together. Not fewer: a caller who keeps them would keep many small pieces of memory
between the large ones that come and go, and the allocator could not use those again (1 MiB lost for 8 windows)."""


@runtime_checkable
class WindowEncoder(Protocol):
    """The interface that sliding windows need from a model; VideoCLIP has it."""

    transform: VideoTransform

    @property
    def device(self) -> torch.device: ...
    def reads(self, video: Tensor, *, mask: Tensor | None = None) -> Taps | Pixels: ...
    def encode_video(
        self, video: Tensor | Taps | Pixels, *, normalize: bool = True, mask: Tensor | None = None
    ) -> Tensor: ...


@dataclass(frozen=True, eq=False)
class Windows:
    """Some windows of a video, in order of time."""

    video: Float[Tensor, "n e"]
    """Their embeddings, L2-normalised unless asked otherwise."""
    frames: Int[Tensor, "n t"]
    """The frames of each, counted from 0 in the video; a window longer than the video repeats the last one."""
    starts: Float[Tensor, " n"]
    """Seconds at which their first frames are shown; NaN for pictures, whose times nothing tells."""
    ends: Float[Tensor, " n"]
    """Seconds at which their last frames are shown."""

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
    normalize: bool = True,
) -> Iterator[Windows]:
    """Embed all windows of `window` frames of a video, `stride` frames apart, the last one ending with the video.

    Args:
        frames: number, seconds and picture of every frame in order (`video.decode.stream`).
        tower_batch_size: frames that the tower encodes at once.
        batch_size: windows that the branch reads at once.
        precision: as for evaluation.

    A video with fewer frames than a window gives one, its padding masked. Raises ValueError for wrong numbers at once,
    VideoError for a file that cannot be read to its end.

    >>> found = list(model.encode_windows("match.mp4", window=8, fps=4))                       # doctest: +SKIP
    >>> best = (torch.cat([w.video for w in found]) @ model.encode_text("a goal").T).argmax()  # doctest: +SKIP
    """
    for name, value in (
        ("window", window),
        ("stride", stride),
        ("tower_batch_size", tower_batch_size),
        ("batch_size", batch_size),
    ):
        if value < 1:
            raise ValueError(f"{name} starts at 1, got {value}")
    return _windows(
        model,
        _chunks(model, frames, tower_batch_size=tower_batch_size, precision=precision),
        window=window,
        stride=stride,
        batch_size=batch_size,
        precision=precision,
        normalize=normalize,
    )


@dataclass(frozen=True)
class _Stretch:
    """Consecutive frames: what the branch reads of them, as one clip (1, T, ...), their numbers and times."""

    read: Taps | Pixels
    index: Int[Tensor, " t"]
    time: Float[Tensor, " t"]

    def __len__(self) -> int:
        return len(self.index)

    def then(self, other: _Stretch) -> _Stretch:
        read = _joined(self.read, other.read)
        return _Stretch(read, torch.cat([self.index, other.index]), torch.cat([self.time, other.time]))

    def without(self, n: int) -> _Stretch:
        """Drop the first `n` frames and free their memory."""
        return _Stretch(_map(self.read, lambda t: t[:, n:].clone()), self.index[n:], self.time[n:])


def _chunks(
    model: WindowEncoder, frames: Iterator[tuple[int, float | None, Tensor]], *, tower_batch_size: int, precision: str
) -> Iterator[_Stretch]:
    """The video as the tower reads it, some frames at a time."""
    for shown in _batched(frames, tower_batch_size):
        numbers, times, pictures = zip(*shown, strict=True)
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
    held: _Stretch | None = None
    base, seen, done = 0, 0, 0  # frames dropped from `held`, frames that came, start of the next window

    block = _Block(window)

    def encoded(starts: list[int], *, length: int) -> Iterator[Windows]:
        assert held is not None
        for some in _batched(starts, batch_size):
            rows = torch.tensor(some)[:, None] - base + torch.arange(window)  # (n, T)
            mask = None if length >= window else (rows < length)
            rows = rows.clamp(max=len(held) - 1)
            source = _map(held.read, lambda t, rows=rows: t[0, rows.to(t.device)])
            source = source if mask is None else replace(source, mask=mask.to(model.device))
            with inference(model, precision):
                video = model.encode_video(source, normalize=normalize).float().cpu()
            yield from block.add(video, held.index[rows], held.time[rows[:, 0]], held.time[rows[:, -1]])

    for part in parts:
        held = part if held is None else held.then(part)
        seen += len(part)
        starts = list(range(done, seen - window + 1, stride))
        yield from encoded(starts, length=window)
        done += stride * len(starts)
        free = min(done, seen - window) - base  # the last window may begin before the next by stride
        if free > 0:
            held, base = held.without(free), base + free
    if held is None:
        return
    if seen < window:
        yield from encoded([0], length=seen)
    elif done - stride != seen - window:
        yield from encoded([seen - window], length=window)
    yield from block.rest()


class _Block:
    """Buffer of finished windows, in memory reserved for a full block."""

    def __init__(self, window: int) -> None:
        self.window, self.used = window, 0
        self.whole: Windows | None = None

    def add(self, video: Tensor, frames: Tensor, starts: Tensor, ends: Tensor) -> Iterator[Windows]:
        """Add windows; yield the block when it is full."""
        taken = 0
        while taken < len(video):
            if self.whole is None:
                numbers, seconds = frames.new_empty(BLOCK, self.window), starts.new_empty(BLOCK)
                self.whole = Windows(video.new_empty(BLOCK, video.shape[1]), numbers, seconds, seconds.clone())
            some = slice(taken, taken + min(len(video) - taken, BLOCK - self.used))
            here = slice(self.used, self.used + some.stop - some.start)
            whole = self.whole
            for kept, new in zip(
                (whole.video, whole.frames, whole.starts, whole.ends), (video, frames, starts, ends), strict=True
            ):
                kept[here] = new[some]
            taken, self.used = some.stop, here.stop
            if self.used == BLOCK:
                yield from self.rest()

    def rest(self) -> Iterator[Windows]:
        """Yield the windows left in the block."""
        if self.whole is not None:
            n, whole = self.used, self.whole
            self.whole, self.used = None, 0
            yield Windows(whole.video[:n], whole.frames[:n], whole.starts[:n], whole.ends[:n])


def _batched(items: Iterable[T], n: int) -> Iterator[list[T]]:
    items = iter(items)
    while batch := list(islice(items, n)):
        yield batch


def _map(read: Taps | Pixels, change: Callable[[Tensor], Tensor]) -> Taps | Pixels:
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
