"""What each decoder reads and how fast, with clipvid's own sampling: clips of 12 frames, and whole videos.

    python benchmarks/decode.py                     # real videos where they are; writes benchmarks/results/decode.json
    python benchmarks/decode.py --videos FOLDER     # one's own

Every file is read with every decoder in turn. The frames of clips are fitted to 224 pixels as for a model; those of
whole videos become RGB and are dropped. Rates are over the files that all decoders accept, so that none is quick by
refusing what is slow; the share each accepts is over all. Without real videos the clips of MotionShapes are rendered
and read. A decoder that cannot be loaded is left out, with the reason.
"""

from __future__ import annotations

import argparse
import time
from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from cells import COMMIT, machine, write_json
from torch import Tensor

from clipvid.data.files import find_clips
from clipvid.data.shapes import write_dataset
from clipvid.errors import MissingExtraError, VideoError
from clipvid.video.decode import BACKENDS, read, read_video
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


def timed(call: Callable[[], Tensor]) -> tuple[float, int]:
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
            f"clips of {FRAMES} a second": rate(clips[backend], set(shared), clips=True),
            "frames a second, whole videos": rate(full[backend], common(full), clips=False),
            "share of files accepted": len(clips[backend]) / len(paths),
            "refused": dict(refused[backend].most_common()),
        }
        for backend in backends
    }
    counts = {"files": len(paths), "compared": len(shared), "whole": len(common(full))}
    return {**counts, "decoders": rows, "absent": missing}


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
