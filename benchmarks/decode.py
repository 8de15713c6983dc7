"""What each decoder reads and how fast, with clipvid's own sampling: clips of 12 frames, and whole videos.

    python benchmarks/decode.py                     # real videos where they are; writes benchmarks/results/decode.json
    python benchmarks/decode.py --videos FOLDER     # one's own

Every file is read with every decoder in turn. The frames of clips are fitted to 224 pixels as for a model; those of
whole videos become RGB and are dropped. Rates are over the files that all decoders accept, so that none is quick by
refusing what is slow; the share each accepts is over all. decord and torchcodec probe a file at its first read, and
these rates include it; `beside_decord` measures later reads by turns with decord itself. Without real videos the clips
of MotionShapes are rendered and read. A decoder that cannot be loaded is left out, with the reason.
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

from clipvid.data.files import find_clips
from clipvid.data.motion_shapes import write_dataset
from clipvid.errors import MissingExtraError, VideoError
from clipvid.video.backends.base import decoder_threads
from clipvid.video.backends.verdicts import memory
from clipvid.video.decode import BACKENDS, read, read_video
from clipvid.video.sampling import sample
from clipvid.video.transforms import VideoTransform

RESULTS = Path(__file__).parent / "results" / "decode.json"
REAL = Path(__file__).parents[2] / "shared" / "data" / "videos"
PACKAGES = {"pyav": "av", "decord": "decord", "torchcodec": "torchcodec"}
FRAMES = 12
Times = dict[Path, tuple[float, int]]
"""Of each file that was read, seconds and frames."""


def dropped(frame: Tensor) -> Tensor:
    """A corner of a frame, which stands for all of it."""
    return frame[..., :1, :1].clone()


def timed(call: Callable[[], Any]) -> tuple[float, int]:
    start = time.perf_counter()
    frames = len(call())
    return time.perf_counter() - start, frames


def loadable(path: Path) -> tuple[list[str], dict[str, str]]:
    """The decoders that work here, and why others do not."""
    found, missing = [], {}
    for backend in BACKENDS:
        try:
            read_video(path, 1, backend=backend)
        except MissingExtraError as error:
            missing[backend] = str(error)
            continue
        except VideoError:
            pass  # it runs, though not on this file
        found.append(backend)
    return found, missing


def read_all(
    paths: Sequence[Path], backends: Sequence[str], reader: Callable[..., Tensor]
) -> tuple[dict[str, Times], dict[str, Counter[str]]]:
    """Each file with each decoder, and how often each decoder refused one for a reason."""
    times: dict[str, Times] = {backend: {} for backend in backends}
    refused: dict[str, Counter[str]] = {backend: Counter() for backend in backends}
    for path in paths:
        path.read_bytes()  # from here on it comes from memory
        for backend in backends:
            try:
                times[backend][path] = timed(partial(reader, path, backend=backend))
            except VideoError as error:
                refused[backend][error.reason] += 1
    return times, refused


def common(times: dict[str, Times]) -> set[Path]:
    """The files that all decoders read."""
    return set.intersection(*(set(some) for some in times.values()))


def rate(times: Times, paths: set[Path], *, clips: bool) -> float:
    """Clips, or frames, a second."""
    seconds = sum(times[path][0] for path in paths)
    return (len(paths) if clips else sum(times[path][1] for path in paths)) / seconds


def beside_decord(paths: Sequence[Path], *, rounds: int = 3) -> dict[str, float]:
    """Seconds of a clip's frames through clipvid against decord alone: the same indices, opened and read by turns.

    Of each file the fastest of `rounds` counts; ratios are above 1 where clipvid is slower. The probe is what the first
    read, or the first after a change of the file, takes longer.
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
        "median of ratios": median(ratios),
        "ratio of sums": sums[1] / sums[0],
        "median seconds of the probe": median(probes),
    }


def measure(paths: Sequence[Path], *, whole: int) -> dict[str, Any]:
    """All decoders on these files: a clip of each, and the first `whole` in full."""
    backends, missing = loadable(paths[0])
    fit = VideoTransform(size=224).fit
    clips, refused = read_all(paths, backends, partial(read_video, frames=FRAMES, fit=fit))
    shared = sorted(common(clips))
    full, _ = read_all(shared[:whole], backends, partial(read, fit=dropped))
    rows = {
        backend: {
            "version": version(PACKAGES[backend]),
            f"clips ({FRAMES} frames) per second": rate(clips[backend], set(shared), clips=True),
            "frames per second, full videos": rate(full[backend], common(full), clips=False),
            "share of files accepted": len(clips[backend]) / len(paths),
            "refused": dict(refused[backend].most_common()),
        }
        for backend in backends
    }
    counts = {"files": len(paths), "compared": len(shared), "whole": len(common(full))}
    beside = {"beside decord itself": beside_decord(sorted(clips["decord"]))} if "decord" in backends else {}
    return {**counts, "decoders": rows, **beside, "absent": missing}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--videos", type=Path, help="folder of one's own videos")
    parser.add_argument("--whole", type=int, default=8, help="how many videos are decoded in full")
    parser.add_argument("--out", type=Path, default=RESULTS)
    args = parser.parse_args()
    with TemporaryDirectory() as folder:
        place, kind = args.videos or REAL, "one's own" if args.videos else "real"
        if not args.videos and not REAL.is_dir():
            print(f"no real videos in {REAL}, so clips of MotionShapes are rendered; give --videos for one's own")
            place, kind = Path(folder), "rendered"
            write_dataset(place, "test", 40)
        paths = find_clips(place)
        if not paths:
            parser.error(f"no videos in {place}; give a folder of videos")
        found = {"command": "python benchmarks/decode.py", "videos": kind, **measure(paths, whole=args.whole)}
    write_json(args.out, {**found, "commit": COMMIT, **machine()})
    print(found)


if __name__ == "__main__":
    main()
