"""Corrupted files: reading a damaged clip gives its frames or an error within seconds, and never stale frames."""

from __future__ import annotations

import random
import time
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from mutations import CLIPS, KINDS, mutated, outcome

from clipvid.errors import VideoError
from clipvid.video.decode import probe, read


def corruptions(data: Path, folder: Path, numbers: Iterable[int]) -> Counter:
    """Return the number of corruptions by kind and outcome."""
    counts: Counter = Counter()
    originals: dict[str, tuple[list[int], torch.Tensor]] = {}
    for number in numbers:
        clip, kind = CLIPS[number % len(CLIPS)], KINDS[number // len(CLIPS) % len(KINDS)]
        source = data / clip
        if clip not in originals:
            total = probe(source).frames
            indices = sorted(random.Random(clip).sample(range(total), min(8, total)))
            originals[clip] = indices, read(source, indices)
        path = folder / source.name
        path.write_bytes(mutated(source.read_bytes(), kind, random.Random(number)))
        indices, original = originals[clip]
        counts[kind, outcome(path, original, indices)] += 1
    return counts


GOOD = {"refused", "right", "other"}


def test_24_corruptions_cause_no_crash_and_no_stale_frame(shared_data, tmp_path):
    """Each clip gets two kinds of damage, and each kind occurs in four clips or more."""
    clips = range(len(CLIPS))
    numbers = [clip + len(CLIPS) * ((clip + shift) % len(KINDS)) for shift in (0, 2) for clip in clips]
    counts = corruptions(shared_data, tmp_path, numbers)
    assert {kind for kind, _ in counts} == set(KINDS)
    assert {result for _, result in counts} <= GOOD, counts
    assert sum(n for (_, result), n in counts.items() if result == "refused") >= 12


@pytest.mark.slow
def test_500_corruptions_cause_no_crash_and_no_stale_frame(shared_data, tmp_path):
    counts = corruptions(shared_data, tmp_path, range(500))
    for kind in KINDS:
        print(kind, {result: n for (corruption, result), n in sorted(counts.items()) if corruption == kind})
    assert {result for _, result in counts} <= GOOD, counts


def test_outcome_distinguishes_zeros_stale_frames_crashes_and_hangs(tmp_path, write_video, monkeypatch):
    """Check the oracle itself: it must detect each forbidden outcome."""
    rng = np.random.default_rng(0)
    path = write_video(tmp_path / "clip.mp4", rng.integers(0, 256, (6, 48, 64, 3), dtype=np.uint8))
    indices = [0, 2, 4]
    true = read(path, indices)

    def outcome_of(result) -> str:
        monkeypatch.setattr("mutations.read", lambda *_: result() if callable(result) else result)
        return outcome(path, true, indices, seconds=1)

    def crash() -> torch.Tensor:
        raise KeyError("x")

    def hang() -> torch.Tensor:
        while True:
            time.sleep(0.01)

    blank = true.clone()
    blank[1] = 0
    assert outcome_of(true) == "right"
    assert outcome_of(true ^ 8) == "other"
    assert outcome_of(blank) == "zeros"
    assert outcome_of(true[[0, 0, 2]]) == "stale"
    assert outcome_of(crash).startswith("crash: KeyError")
    assert outcome_of(hang) == "hang"


def test_a_gif_cut_inside_a_frame_is_refused(tmp_path):
    path = tmp_path / "clip.gif"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("gif", rate=10)
        stream.width, stream.height, stream.pix_fmt = 40, 30, "rgb8"
        for level in range(5):
            picture = np.random.default_rng(level).integers(0, 256, (30, 40, 3), dtype=np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24").reformat(format="rgb8")))
        container.mux(stream.encode())
    intact = path.read_bytes()
    assert probe(path).frames == 5
    path.write_bytes(intact[:-1])  # only the trailer byte is missing
    assert probe(path).frames == 5
    for part in (0.3, 0.7, 0.99):
        path.write_bytes(intact[: int(part * len(intact))])
        with pytest.raises(VideoError, match="cut off: the file ends in the middle of a picture"):
            read(path, [0])
