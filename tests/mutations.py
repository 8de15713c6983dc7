"""Seeded corruptions of real clips, and a verdict on what the reader makes of a corrupted file."""

from __future__ import annotations

import random
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from clipvid.errors import VideoError
from clipvid.video.decode import probe, read

KINDS = ("bit flips", "truncation", "header edit", "zeroed block", "moved block")
CLIPS = (
    "videos/cleaning_pool_part0.mp4",
    "videos/dog_in_snow.mp4",
    "videos/paper_rot90.mp4",
    "videos/pelicans.avi",
    "videos/asl_eat.mkv",
    "videos/classroom.gif",
    "videos/bear_odd_size.webm",
    "videos_formats/h265_frame_numbers.mp4",
    "videos_formats/vp9_10bit.webm",
    "videos_formats/fragmented.mp4",
    "videos_formats/av1_test_card.mkv",
    "videos_formats/theora_ogg_named.mkv",
)


def mutated(data: bytes, kind: str, rng: random.Random) -> bytes:
    """Return the bytes of a file after one corruption."""
    out = bytearray(data)
    if kind == "bit flips":
        for _ in range(rng.choice((1, 3, 10, 60))):
            out[rng.randrange(len(out))] ^= 1 << rng.randrange(8)
    elif kind == "truncation":
        del out[rng.randrange(1, len(out)) :]
    elif kind == "header edit":  # the index of an MP4 may be at its end
        start = 0 if rng.random() < 0.6 else max(0, len(out) - 4096)
        for _ in range(rng.choice((1, 2, 8))):
            at = start + rng.randrange(min(2048, len(out)))
            out[min(at, len(out) - 1)] = rng.choice((0, 255, 127, 128, rng.randrange(256)))
    else:
        size = rng.randrange(16, max(17, len(out) // 8))
        at = rng.randrange(len(out) - size)
        if kind == "zeroed block":
            out[at : at + size] = bytes(size)
        else:
            block = out[at : at + size]
            del out[at : at + size]
            to = rng.randrange(len(out))
            out[to:to] = block
    return bytes(out)


class TooLong(BaseException):
    """Raised when reading exceeds its time limit.

    It derives from BaseException, so that no handler on the way takes it for an error of the file.
    """


@contextmanager
def within(seconds: int) -> Iterator[None]:
    """Raise TooLong in the block after this many seconds."""

    def stop(*_: object) -> None:
        raise TooLong

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def outcome(path: Path, original: torch.Tensor, indices: list[int], *, seconds: int = 10) -> str:
    """Read frames of a damaged file and return a verdict; `original` holds the same frames of the intact file.

    Acceptable verdicts are "refused", "right" (every frame is unchanged) and "other" (a picture differs, and no
    decoder can notice). Failures are "crash: ...", "hang", "zeros" (an empty frame, though no original frame is empty)
    and "stale" (a frame equals its predecessor, unlike in the original).
    """
    began = time.monotonic()
    try:
        with within(seconds):
            probe(path)
            frames = read(path, indices)
    except VideoError:
        return "refused"
    except TooLong:
        return "hang"
    except Exception as error:
        return f"crash: {type(error).__name__}: {error}"
    if time.monotonic() - began > seconds:
        return "hang"
    if frames.shape == original.shape and torch.equal(frames, original):
        return "right"
    for frame in frames:
        if frame.float().std() < 0.5 and all(intact.float().std() > 2 for intact in original):
            return "zeros"
    for i in range(1, len(frames)):
        same = frames.shape == original.shape and torch.equal(original[i], original[i - 1])
        if torch.equal(frames[i], frames[i - 1]) and not same:
            return "stale"
    return "other"
