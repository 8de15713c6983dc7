"""Cost of a sliding pass over a long video: the tower once per frame, and the branch for every window.

    python benchmarks/windows.py             # ViT-B-32, random weights; writes benchmarks/results/windows.json

A synthetic video is decoded and encoded in windows of 12 frames, one frame apart. In turns with it, in the same
process, are measured: the decoder alone, the tower alone on as many frames, the branch alone on as many windows.
The allowed time is that of decoding, two passes of the tower and the branch together.
"""

from __future__ import annotations

import argparse
import statistics
from pathlib import Path
from tempfile import TemporaryDirectory

import av
import numpy as np
import torch
from cells import COMMIT, invocation, machine, peak_memory, result_of, write_json
from rates import Step, take_turns

from clipvid.models.backbone.open_clip import MINI
from clipvid.models.factory import create_model
from clipvid.models.video_clip import VideoCLIP
from clipvid.runtime.precision import autocast
from clipvid.video.decode import stream

WINDOW, CHUNK, BATCH = 12, 32, 8


def write(path: Path, seconds: int) -> None:
    """Write a video of a moving bar, with 25 frames per second."""
    with av.open(str(path), "w") as container:
        video = container.add_stream("libx264", rate=25, options={"preset": "ultrafast"})
        video.width, video.height, video.pix_fmt = 256, 192, "yuv420p"
        for i in range(25 * seconds):
            picture = np.full((192, 256, 3), i % 200, np.uint8)
            picture[:, i % 240 : i % 240 + 16] = 255
            container.mux(video.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(video.encode())


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--model", default="ViT-B-32")
    parser.add_argument("--seconds", type=int, default=16)
    parser.add_argument("--fps", type=float, default=2.0)
    parser.add_argument("--runs", type=int, default=13)
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--out", type=Path, help="JSON to write")
    args = parser.parse_args()
    args.out = args.out or result_of(__file__, args.device)
    model = create_model(
        args.model, None if args.model == MINI else "random", branch_kwargs={"depth": 4}, device=args.device
    ).eval()
    with TemporaryDirectory() as folder:
        path = Path(folder) / "video.mp4"
        write(path, args.seconds)
        steps, frames, windows = sides(model, path, fps=args.fps)
        with peak_memory(args.device) as peak:
            steps["total"]()
        seconds = take_turns(steps, runs=args.runs, device=args.device)
    turns = zip(*(seconds[name] for name in ("total", "decoding", "tower", "branch")), strict=True)
    result = {
        "command": invocation(),
        "model": args.model,
        "frames": frames,
        "windows": windows,
        "seconds": {name: statistics.median(times) for name, times in seconds.items()},
        "share_of_allowed_time": statistics.median(a / (d + 2 * t + b) for a, d, t, b in turns),
        "peak_mib": peak[0],
        "commit": COMMIT,
        **machine(),
    }
    write_json(args.out, result)
    print(result)


def sides(model: VideoCLIP, path: Path, *, fps: float) -> tuple[dict[str, Step], int, int]:
    """Return the steps to be timed in turns, and the number of frames and windows of the video."""

    def slide() -> int:
        return sum(len(batch) for batch in model.encode_windows(path, window=WINDOW, fps=fps))

    def decode() -> int:
        return sum(1 for _ in stream(path, fps=fps, fit=model.transform.fit))

    frames, windows = decode(), slide()
    pixels = torch.randint(0, 255, (1, frames, 3, *model.backbone.image_size), dtype=torch.uint8).to(model.device)
    parts = pixels.split(CHUNK, dim=1)
    with torch.no_grad(), autocast("auto", model.device):
        taps = model.reads(parts[0])
    batches = [min(BATCH, windows - first) for first in range(0, windows, BATCH)]
    tap_batches = [taps.map(lambda t, n=n: t[:, :WINDOW].repeat(n, *[1] * (t.ndim - 1))) for n in batches]

    def tower() -> None:
        with torch.no_grad(), autocast("auto", model.device):
            for part in parts:
                model.reads(part)

    def branch() -> None:
        with torch.no_grad(), autocast("auto", model.device):
            for batch in tap_batches:
                model.encode_video(batch, normalize=True)

    return {"total": slide, "decoding": decode, "tower": tower, "branch": branch}, frames, windows


if __name__ == "__main__":
    main()
