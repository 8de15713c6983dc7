"""Speed of each decoder and the files it accepts, with clipvid's own sampling: clips of 12 frames, and full videos.

    python benchmarks/decode.py                     # real videos if available; writes benchmarks/results/decode.json
    python benchmarks/decode.py --videos FOLDER     # custom videos

Every file is read with every decoder, taking turns. Frames of clips are resized to 224 pixels as for a model; those of
full videos are converted to RGB and dropped. Rates are over the files that all decoders accept, so no decoder gains by
refusing slow files; the accepted share is over all files. decord and torchcodec are checked against PyAV at the first
read of a file, which these rates include; `compare_with_decord` compares later reads with decord itself. Without real
videos, clips of MotionShapes are rendered and read. A decoder that cannot be loaded is left out, with the reason.
"""

from __future__ import annotations

import argparse
import math
import time
from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial
from importlib.metadata import version
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

from cells import COMMIT, machine, write_json
from torch import Tensor

from clipvid.data.files import discover
from clipvid.data.motion_shapes import write_dataset
from clipvid.errors import MissingExtraError, VideoError
from clipvid.registry import DECODERS
from clipvid.video.backends.base import decoder_threads
from clipvid.video.backends.verdicts import memory
from clipvid.video.decode import read, read_video
from clipvid.video.sampling import sample
from clipvid.video.transforms import VideoTransform

RESULTS = Path(__file__).parent / "results" / "decode.json"
REAL = Path(__file__).parents[2] / "shared" / "data" / "videos"
PACKAGES = {"pyav": "av", "decord": "decord", "torchcodec": "torchcodec"}
FRAMES = 12
Times = dict[Path, tuple[float, int]]
"""Seconds and number of frames of each file that was read."""


def dropped(frame: Tensor) -> Tensor:
    """Return one pixel of a frame, so that the frame itself can be freed."""
    return frame[..., :1, :1].clone()


def timed(call: Callable[[], Any]) -> tuple[float, int]:
    """Return the seconds of a call and the number of frames that it returned."""
    start = time.perf_counter()
    frames = len(call())
    return time.perf_counter() - start, frames


def loadable(path: Path) -> tuple[list[str], dict[str, str]]:
    """Return the decoders that can be loaded, and the reasons why others cannot."""
    loaded, missing = [], {}
    for backend in DECODERS:
        try:
            read_video(path, 1, backend=backend)
        except MissingExtraError as error:
            missing[backend] = str(error)
            continue
        except VideoError:
            pass  # the decoder can be loaded, but refuses this file
        loaded.append(backend)
    return loaded, missing


def read_all(
    paths: Sequence[Path], backends: Sequence[str], reader: Callable[..., Tensor]
) -> tuple[dict[str, Times], dict[str, Counter[str]]]:
    """Return the times of each file with each decoder, and the number of refusals of each decoder by reason."""
    times: dict[str, Times] = {backend: {} for backend in backends}
    refused: dict[str, Counter[str]] = {backend: Counter() for backend in backends}
    for path in paths:
        path.read_bytes()  # later reads come from the page cache
        for backend in backends:
            try:
                times[backend][path] = timed(partial(reader, path, backend=backend))
            except VideoError as error:
                refused[backend][error.reason] += 1
    return times, refused


def common(times: dict[str, Times]) -> set[Path]:
    """Return the files that all decoders read."""
    return set.intersection(*(set(files) for files in times.values()))


def rate(times: Times, paths: set[Path], *, clips: bool) -> float:
    """Return clips per second, or frames per second."""
    seconds = sum(times[path][0] for path in paths)
    return (len(paths) if clips else sum(times[path][1] for path in paths)) / seconds


def compare_with_decord(paths: Sequence[Path], *, rounds: int = 3) -> dict[str, float]:
    """Compare reading a clip through clipvid with decord alone: the same indices, opened and read in turns.

    The fastest of `rounds` counts for each file; a ratio above 1 means that clipvid is slower. The probe is the extra
    time of the first read of a file, or of the first read after it changed.
    """
    import decord

    choose, ratios, probes, sums = partial(sample, "uniform", frames=FRAMES), [], [], [0.0, 0.0]

    def alone(path: Path) -> Any:
        reader = decord.VideoReader(str(path), ctx=decord.cpu(0), num_threads=decoder_threads())
        return reader.get_batch(choose(len(reader))).asnumpy()

    for path in paths:
        memory.cache_clear()
        through = partial(read, path, choose, backend="decord")
        first, seconds = timed(through)[0], [math.inf, math.inf]
        for _ in range(rounds):
            for way, call in enumerate((partial(alone, path), through)):
                seconds[way] = min(seconds[way], timed(call)[0])
        ratios.append(seconds[1] / seconds[0])
        probes.append(max(0.0, first - seconds[1]))
        sums = [total + one for total, one in zip(sums, seconds, strict=True)]
    return {
        "files": len(paths),
        "median_ratio": median(ratios),
        "ratio_of_sums": sums[1] / sums[0],
        "median_probe_seconds": median(probes),
    }


def measure(paths: Sequence[Path], *, full_videos: int) -> dict[str, Any]:
    """Measure all decoders on these files: one clip of each, and the first `full_videos` files in full."""
    backends, missing = loadable(paths[0])
    fit = VideoTransform(size=224).fit
    clips, refused = read_all(paths, backends, partial(read_video, frames=FRAMES, fit=fit))
    shared = sorted(common(clips))
    full, _ = read_all(shared[:full_videos], backends, partial(read, fit=dropped))
    rows = {
        backend: {
            "version": version(PACKAGES[backend]),
            "clips_per_second": rate(clips[backend], set(shared), clips=True),
            "full_videos_frames_per_second": rate(full[backend], common(full), clips=False),
            "accepted_share": len(clips[backend]) / len(paths),
            "refused": dict(refused[backend].most_common()),
        }
        for backend in backends
    }
    counts = {"files": len(paths), "compared": len(shared), "full_videos": len(common(full))}
    vs_decord = {"vs_decord": compare_with_decord(sorted(clips["decord"]))} if "decord" in backends else {}
    return {**counts, "decoders": rows, **vs_decord, "absent": missing}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--videos", type=Path, help="folder of custom videos")
    parser.add_argument("--full-videos", type=int, default=8, help="number of videos decoded in full")
    parser.add_argument("--out", type=Path, default=RESULTS)
    args = parser.parse_args()
    with TemporaryDirectory() as folder:
        source, kind = args.videos or REAL, "custom" if args.videos else "real"
        if not args.videos and not REAL.is_dir():
            print(f"no real videos in {REAL}; clips of MotionShapes are rendered instead, or give --videos FOLDER")
            source, kind = Path(folder), "rendered"
            write_dataset(source, "test", 40)
        paths = list(discover(source).clips)
        if not paths:
            parser.error(f"no videos in {source}; give a folder of videos")
        result = {
            "command": "python benchmarks/decode.py",
            "videos": kind,
            "frames": FRAMES,
            **measure(paths, full_videos=args.full_videos),
        }
    write_json(args.out, {**result, "commit": COMMIT, **machine()})
    print(result)


if __name__ == "__main__":
    main()
