"""Damaged files: whatever is done to a real clip, reading it gives its frames or an error, soon; never stale ones."""

from __future__ import annotations

import random
from collections import Counter
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from mutations import CLIPS, KINDS, mutated, outcome

from clipvid.errors import VideoError
from clipvid.video.decode import probe, read


def corruptions(data: Path, folder: Path, numbers: range) -> Counter:
    """What came of each of the corruptions, by kind."""
    found: Counter = Counter()
    whole: dict[str, tuple[list[int], torch.Tensor]] = {}
    for number in numbers:
        clip, kind = CLIPS[number % len(CLIPS)], KINDS[number // len(CLIPS) % len(KINDS)]
        source = data / clip
        if clip not in whole:
            total = probe(source).frames
            wanted = sorted(random.Random(clip).sample(range(total), min(8, total)))
            whole[clip] = wanted, read(source, wanted)
        path = folder / source.name
        path.write_bytes(mutated(source.read_bytes(), kind, random.Random(number)))
        wanted, original = whole[clip]
        found[kind, outcome(path, original, wanted)] += 1
    return found


GOOD = {"refused", "right", "other"}


def test_sixty_corruptions_crash_nothing_and_give_no_stale_frame(shared_data, tmp_path):
    found = corruptions(shared_data, tmp_path, range(60))
    assert {result for _, result in found} <= GOOD, found
    assert sum(n for (_, result), n in found.items() if result == "refused") >= 30


@pytest.mark.slow
def test_five_hundred_corruptions_crash_nothing_and_give_no_stale_frame(shared_data, tmp_path):
    found = corruptions(shared_data, tmp_path, range(500))
    for kind in KINDS:
        print(kind, {result: n for (of, result), n in sorted(found.items()) if of == kind})
    assert {result for _, result in found} <= GOOD, found


def test_the_outcomes_tell_zeros_stale_frames_and_crashes_apart(tmp_path, write_video, monkeypatch):
    """The judge itself: each thing that must not be is told when it is there."""
    rng = np.random.default_rng(0)
    path = write_video(tmp_path / "clip.mp4", rng.integers(0, 256, (6, 48, 64, 3), dtype=np.uint8))
    wanted = [0, 2, 4]
    true = read(path, wanted)

    def when_read(result) -> str:
        monkeypatch.setattr("mutations.read", lambda *_: result() if callable(result) else result)
        return outcome(path, true, wanted, seconds=1)

    def crash() -> torch.Tensor:
        raise KeyError("x")

    def hang() -> torch.Tensor:
        while True:
            pass

    blank = true.clone()
    blank[1] = 0
    assert when_read(true) == "right"
    assert when_read(true ^ 8) == "other"
    assert when_read(blank) == "zeros"
    assert when_read(true[[0, 0, 2]]) == "stale"
    assert when_read(crash).startswith("crash: KeyError")
    assert when_read(hang) == "hang"


def test_a_gif_cut_inside_a_picture_is_refused(tmp_path):
    path = tmp_path / "clip.gif"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("gif", rate=10)
        stream.width, stream.height, stream.pix_fmt = 40, 30, "rgb8"
        for level in range(5):
            picture = np.random.default_rng(level).integers(0, 256, (30, 40, 3), dtype=np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24").reformat(format="rgb8")))
        container.mux(stream.encode())
    whole = path.read_bytes()
    assert probe(path).frames == 5
    path.write_bytes(whole[:-1])  # only the mark of the end is missing
    assert probe(path).frames == 5
    for part in (0.3, 0.7, 0.99):
        path.write_bytes(whole[: int(part * len(whole))])
        with pytest.raises(VideoError, match="cut off: the file ends in the middle of a picture"):
            read(path, [0])
