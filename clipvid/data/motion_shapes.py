"""MotionShapes: a small synthetic data set in which only the order of frames determines the caption.

Contract: one coloured shape with a dark dot on its rim moves over a textured background, beside a smaller distractor.
Motions come in pairs, and a clip of a motion is a clip of its partner played backwards (`render(scene.reversed())` is
`render(scene)[::-1]`, bit for bit), so neither a frame nor the unordered set of frames distinguishes the two.
Everything is a pure function of (seed, split, index). Knows nothing of models.
"""

from __future__ import annotations

import csv
import functools
import itertools
import json
import os
import shutil
from collections.abc import Callable, Iterator
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from jaxtyping import UInt8
from numpy import ndarray

from clipvid.data.motion_shapes_drawing import Figure, paint, texture
from clipvid.data.records import Record, VideoDataset
from clipvid.errors import WorkerError
from clipvid.runtime.concurrency import process_pool
from clipvid.runtime.display.progress import progress_bar
from clipvid.runtime.files import atomic_file, remove_leftovers

COLOURS = {
    "red": (215, 25, 30),
    "orange": (250, 135, 15),
    "yellow": (245, 232, 40),
    "green": (25, 150, 45),
    "cyan": (45, 215, 225),
    "blue": (35, 60, 215),
    "purple": (135, 35, 185),
    "pink": (255, 140, 200),
}
SHAPES = ("circle", "square", "triangle", "star", "cross", "ring", "bar", "moon")
SIZES = {"small": 0.15, "large": 0.27}  # radius as a fraction of the geometric mean of the frame's sides
BACKGROUNDS = ("plain", "striped", "checkered", "dotted")
PAIRS = (
    ("moves left", "moves right"),
    ("moves up", "moves down"),
    ("grows", "shrinks"),
    ("turns clockwise", "turns counter-clockwise"),
    ("appears", "disappears"),
)
MOTIONS = tuple(itertools.chain.from_iterable(PAIRS))
SPLITS = ("train", "val", "test")

LOOK = 1  # increment if scenes look different: retrain clipvid-mini; finished folders are then not reused
DEAL = 2  # increment if splits hold different scenes: finished folders are then not reused
_PARTNER = {a: b for pair in PAIRS for a, b in (pair, pair[::-1])}
_OBJECTS = tuple(itertools.product(COLOURS, SHAPES, SIZES, BACKGROUNDS))


def reverse(motion: str) -> str:
    """Return the motion that a clip of `motion` shows when played backwards."""
    if motion not in _PARTNER:
        raise ValueError(f"unknown motion {motion!r}; choose one of {', '.join(MOTIONS)}")
    return _PARTNER[motion]


@dataclass(frozen=True)
class Scene:
    """Content of a clip in words, and the seed of everything else (path, speed, frame size, ...)."""

    colour: str
    shape: str
    size: str
    background: str
    motion: str
    seed: tuple[int, ...] = (0,)

    def __post_init__(self) -> None:
        allowed = {"colour": COLOURS, "shape": SHAPES, "size": SIZES, "background": BACKGROUNDS, "motion": MOTIONS}
        for field, names in allowed.items():
            if getattr(self, field) not in names:
                raise ValueError(f"unknown {field} {getattr(self, field)!r}; choose one of {', '.join(names)}")

    @property
    def caption(self) -> str:
        """Sentence that describes the clip."""
        return f"a {self.size} {self.colour} {self.shape} {self.motion} over a {self.background} background"

    def reversed(self) -> Scene:
        """Return the scene of the same clip played backwards."""
        return replace(self, motion=reverse(self.motion))

    @property
    def fps(self) -> int:
        """Frames per second."""
        return _plan(self).fps


def draw_scene(seed: int, split: str, index: int) -> Scene:
    """Return the scene of clip `index` of a split.

    Clips 2k and 2k+1 share the words for object and background, and their motions are each other's reverse, so the
    reversed caption of a clip is the caption of its neighbour. In `train`, words and motions are random, and clip 2k+1
    is clip 2k played backwards: the same frames in another order. In `val` and `test` the two are sampled independently
    (path, colour shade, speed, ...), motions are balanced over every ten clips, and captions are unique within the
    split, which therefore ends at 5120 clips.
    """
    if split not in SPLITS:
        raise ValueError(f"unknown split {split!r}; choose one of {', '.join(SPLITS)}")
    key = (seed, SPLITS.index(split), index)
    if split == "train":
        key = (*key[:2], index // 2)
        rng = np.random.default_rng((*key, 0))
        words, pair = _OBJECTS[rng.integers(len(_OBJECTS))], PAIRS[rng.integers(len(PAIRS))]
        return Scene(*words, motion=pair[index % 2], seed=key)
    limit = len(_OBJECTS) * len(MOTIONS)
    if not 0 <= index < limit:
        raise ValueError(f"clip {index} of {split} does not exist: captions are unique, so indices end at {limit - 1}")
    group, member = divmod(index, 2)
    row, pair = divmod(group, len(PAIRS))
    return Scene(*_OBJECTS[_deal(key[:2])[pair][row]], motion=PAIRS[pair][member], seed=key)


@functools.lru_cache(maxsize=8)
def _deal(key: tuple[int, int]) -> tuple[tuple[int, ...], ...]:
    """Return a random order of all objects for each pair of motions."""
    rng = np.random.default_rng(key)
    return tuple(tuple(rng.permutation(len(_OBJECTS)).tolist()) for _ in PAIRS)


def render(scene: Scene) -> UInt8[ndarray, "t h w 3"]:
    """Return all frames of a scene, RGB (T, H, W, 3) uint8."""
    plan = _plan(scene)
    frames = _draw(plan, scene.background, np.arange(plan.frames))
    return frames if scene.motion == _motion_pair(scene)[0] else np.ascontiguousarray(frames[::-1])


def render_still(scene: Scene, *, at: float = 0.5) -> UInt8[ndarray, "h w 3"]:
    """Return the frame at fraction `at` (0 first, 1 last) of the clip, RGB (H, W, 3) uint8; draw no other frame."""
    if not 0 <= at <= 1:
        raise ValueError(f"at must be a fraction of the clip in [0, 1], got {at}")
    plan = _plan(scene)
    frame = round(at * (plan.frames - 1))
    frame = frame if scene.motion == _motion_pair(scene)[0] else plan.frames - 1 - frame
    return _draw(plan, scene.background, np.array([frame]))[0]


def _motion_pair(scene: Scene) -> tuple[str, str]:
    return PAIRS[MOTIONS.index(scene.motion) // 2]


# --------------------------------------------------------------------------------------------------- drawing


@dataclass(frozen=True)
class _Plan:
    height: int
    width: int
    frames: int
    fps: int
    figures: tuple[Figure, ...]
    seed: int  # seed of the background


def _plan(scene: Scene) -> _Plan:
    """Sample everything that the words leave open, equal for both motions of a pair."""
    pair = PAIRS.index(_motion_pair(scene))
    rng = np.random.default_rng((*scene.seed, 1))
    side, aspect = rng.uniform(72, 112), rng.uniform(0.8, 1.25) if rng.random() < 0.6 else 1.0
    height, width = (2 * round(side * scale / 2) for scale in (aspect**-0.5, aspect**0.5))
    frames, fps = int(rng.integers(16, 41)), int(rng.integers(10, 31))
    main = _main_figure(scene, pair, frames, height=height, width=width, rng=rng)
    distractor = _distractor(scene, frames, height=height, width=width, rng=rng)
    return _Plan(height, width, frames, fps, (distractor, main), int(rng.integers(2**31)))


def _progress(frames: int, rng: np.random.Generator) -> ndarray:
    """Return the progress of a motion (T,) from 0 to 1: rest, eased motion, rest."""
    start, end = rng.uniform(0, 0.25), rng.uniform(0.75, 1)
    u = np.clip((np.linspace(0, 1, frames) - start) / (end - start), 0, 1)
    ease = rng.uniform(0, 1)
    return (1 - ease) * u + ease * u * u * (3 - 2 * u)


def _main_figure(scene: Scene, pair: int, frames: int, *, height: int, width: int, rng: np.random.Generator) -> Figure:
    """Return the captioned shape, performing the first motion of its pair."""
    size = SIZES[scene.size] * (height * width) ** 0.5 * rng.uniform(0.95, 1.05)
    u, still = _progress(frames, rng), np.ones(frames)
    path = {"x": still, "y": still, "radius": size * still, "angle": rng.uniform(0, 2 * np.pi) * still, "alpha": still}
    if pair == 2:
        path["radius"] = size * rng.uniform(1.22, 1.32) ** (2 * u - 1)  # symmetric about the nominal size
    elif pair == 3:
        path["angle"] = (
            path["angle"] + np.radians(rng.uniform(120, 290)) * u
        )  # y points down, so growing angles turn clockwise
    elif pair == 4:
        path["alpha"] = u
    margin = 0.9 * path["radius"].max()
    for axis, length, is_moving in (("x", width, pair == 0), ("y", height, pair == 1)):
        low, high = margin, length - margin
        if is_moving:
            span = rng.uniform(0.65, 1) * (high - low)
            first = rng.uniform(low, high - span)
            path[axis] = first + span * (1 - u)  # the first motions of the pairs are left and up
        else:
            path[axis] = rng.uniform(low, high) * still
    return Figure(scene.shape, _shade(scene.colour, rng), dot=True, **path)


def _distractor(scene: Scene, frames: int, *, height: int, width: int, rng: np.random.Generator) -> Figure:
    """Return a smaller shape of another colour and form that rests or drifts in any direction."""
    colour = rng.choice([name for name in COLOURS if name != scene.colour])
    shape = rng.choice([name for name in SHAPES if name != scene.shape])
    size = rng.uniform(0.06, 0.08) * (height * width) ** 0.5
    still, u = np.ones(frames), np.linspace(0, 1, frames)
    drift = 0 if rng.random() < 0.5 else rng.uniform(0.1, 0.35)
    heading = rng.uniform(0, 2 * np.pi)
    path = {}
    for axis, length, part in (("x", width, np.cos(heading)), ("y", height, np.sin(heading))):
        span = drift * part * length
        low, high = size + max(0, -span), length - size - max(0, span)
        path[axis] = rng.uniform(low, high) + span * u
    angle = rng.uniform(0, 2 * np.pi) * still
    return Figure(
        str(shape), _shade(str(colour), rng), radius=size * still, angle=angle, alpha=still, dot=False, **path
    )


def _shade(colour: str, rng: np.random.Generator) -> ndarray:
    return np.clip(np.array(COLOURS[colour]) + rng.uniform(-14, 14, 3), 0, 255).astype(np.float32)


def _draw(plan: _Plan, background: str, times: ndarray) -> UInt8[ndarray, "t h w 3"]:
    still = texture(background, plan.height, plan.width, np.random.default_rng(plan.seed))
    frames = np.repeat(still[None], len(times), axis=0)
    for figure in plan.figures:
        paint(frames, figure.at(times))
    return frames


# ---------------------------------------------------------------------------------------------------- writing


def write_clip(path: str | Path, frames: UInt8[ndarray, "t h w 3"], *, fps: int) -> None:
    """Encode RGB frames as H.264 in mp4, finely enough that coding artefacts do not reveal the order of frames."""
    import av

    with atomic_file(path) as draft, av.open(str(draft), "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=fps)
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt = "yuv420p"
        stream.codec_context.thread_count = 1  # parallelism comes from encoding several clips at once
        # One quantiser for all frames: rate control and the default ipratio would favour some frames.
        stream.options = {"preset": "ultrafast", "tune": "zerolatency", "qp": "14", "x264-params": "ipratio=1"}
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())


def write_dataset(
    root: str | Path, split: str, n: int, *, seed: int = 0, workers: int = 1, progress: bool = False
) -> VideoDataset:
    """Write clips 0 .. n-1 of a split as `root/split/00001.mp4` ... with `captions.csv` (path, caption, label).

    The folder appears only when complete; an interrupted run resumes after the clips it has finished, and a finished
    folder of the same content is reused. Labels are motions, numbered as in MOTIONS. More than one worker starts new
    Python processes, so a script must call this under `if __name__ == "__main__"`.
    """
    if n < 1 or n % 2:
        raise ValueError(f"n must be an even integer >= 2, got {n}; clips come in pairs")
    if workers < 1:
        raise ValueError(f"workers must be an integer >= 1, got {workers}")
    draw_scene(seed, split, n - 1)  # raises for an unknown split and for more clips than it has
    folder, content = Path(root) / split, {"look": LOOK, "deal": DEAL, "split": split, "seed": seed, "n": n}
    if folder.exists():
        if _content(folder) != content:
            raise ValueError(f"{folder} holds something other than {content}; delete it or choose another root")
    else:
        partial = folder.with_name(f"{split}.partial")
        if partial.exists() and _content(partial) != content:
            shutil.rmtree(partial)
        partial.mkdir(parents=True, exist_ok=True)
        with atomic_file(partial / "content.json") as draft:
            draft.write_text(json.dumps(content))
        _write_clips(partial, split, n, seed=seed, workers=workers, progress=progress)
        _write_captions(partial, split, n, seed=seed)
        remove_leftovers(partial)
        os.replace(partial, folder)
    scenes = (draw_scene(seed, split, i) for i in range(n))
    records = tuple(
        Record(folder / _name(i), (scene.caption,), MOTIONS.index(scene.motion)) for i, scene in enumerate(scenes)
    )
    return VideoDataset(records, MOTIONS, f"motionshapes-{split}")


def _name(index: int) -> str:
    return f"{index + 1:05d}.mp4"


def _content(folder: Path) -> dict[str, object] | None:
    """Return what a folder says that it holds; None if it says nothing that can be read."""
    try:
        return json.loads((folder / "content.json").read_text())
    except (OSError, ValueError, RecursionError):
        return None


def _write_captions(folder: Path, split: str, n: int, *, seed: int) -> None:
    with atomic_file(folder / "captions.csv") as draft, open(draft, "w", newline="", encoding="utf-8") as file:
        table = csv.writer(file, lineterminator="\n")
        table.writerow(("path", "caption", "label"))
        for i in range(n):
            scene = draw_scene(seed, split, i)
            table.writerow((_name(i), scene.caption, scene.motion))


def _write_clips(folder: Path, split: str, n: int, *, seed: int, workers: int, progress: bool) -> None:
    missing = [i for i in range(n) if not (folder / _name(i)).exists()]
    step = max(1, min(64, len(missing) // (4 * workers)))
    chunks = [missing[i : i + step] for i in range(0, len(missing), step)]
    job = functools.partial(_write_chunk, folder, split, seed)
    with progress_bar(n, f"render {split}", unit="clip", shown=progress, initial=n - len(missing)) as bar:
        for n_written in _map_chunks(job, chunks, workers=workers):
            bar.update(n_written)


def _map_chunks(job: Callable[[list[int]], int], chunks: list[list[int]], *, workers: int) -> Iterator[int]:
    """Yield the result of each chunk, in order, computed in `workers` processes."""
    if workers == 1 or len(chunks) < 2:
        yield from map(job, chunks)
        return
    with process_pool(workers) as pool:
        try:
            yield from pool.map(job, chunks)
        except BrokenProcessPool as error:
            reason = "a worker process died while rendering clips, perhaps for lack of memory"
            raise WorkerError(f"{reason}; run it again with fewer workers; finished clips are reused") from error


def _write_chunk(folder: Path, split: str, seed: int, indices: list[int]) -> int:
    for i in indices:
        scene = draw_scene(seed, split, i)
        write_clip(folder / _name(i), render(scene), fps=scene.fps)
    return len(indices)
