"""What sliding over a long video costs: one pass of the tower over its frames, and the branch for every window.

    python benchmarks/windows.py             # ViT-B-32, random weights; writes benchmarks/results/windows.json

A synthetic video is decoded and encoded in windows of 12 frames, one frame apart. Beside it, in the same process: the
decoder alone, the tower alone on as many frames, the branch alone on as many windows.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from tempfile import TemporaryDirectory

import av
import numpy as np
import torch
from cells import COMMIT, machine, peak_memory, write_json

from clipvid.bases import MINI
from clipvid.model import create_model
from clipvid.precision import autocast
from clipvid.video.decode import stream
from clipvid.windows import encode_windows

RESULTS = Path(__file__).parent / "results" / "windows.json"
WINDOW, CHUNK, BATCH = 12, 32, 8


def write(path: Path, seconds: int) -> None:
    """A video of 25 frames a second with a bar that moves."""
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
    parser.add_argument("--seconds", type=int, default=120)
    parser.add_argument("--fps", type=float, default=2.0)
    parser.add_argument("--out", type=Path, default=RESULTS)
    args = parser.parse_args()
    model = create_model(args.model, None if args.model == MINI else "random", depth=4).eval()
    with TemporaryDirectory() as folder:
        path = Path(folder) / "video.mp4"
        write(path, args.seconds)
        for _ in encode_windows(model, path, window=WINDOW, fps=args.fps):
            pass  # what is slow only once
        with peak_memory("cpu") as peak:
            start = time.perf_counter()
            windows = sum(len(some) for some in encode_windows(model, path, window=WINDOW, fps=args.fps))
            whole = time.perf_counter() - start
        start = time.perf_counter()
        frames = sum(1 for _ in stream(path, fps=args.fps, fit=model.transform.fit))
        decoding = time.perf_counter() - start
    pixels = torch.randint(0, 255, (1, CHUNK, 3, *model.backbone.image_size), dtype=torch.uint8)
    with torch.no_grad(), autocast("auto", model.device):
        taps = model.reads(pixels)
        start = time.perf_counter()
        for _ in range(frames // CHUNK):
            taps = model.reads(pixels)
        tower = (time.perf_counter() - start) * frames / (frames // CHUNK * CHUNK)
        some = taps.map(lambda t: t[:, :WINDOW].repeat(BATCH, *[1] * (t.ndim - 1)))
        model.encode_video(some)
        start = time.perf_counter()
        for _ in range(windows // BATCH):
            model.encode_video(some)
        branch = (time.perf_counter() - start) * windows / (windows // BATCH * BATCH)
    seconds = {"in all": whole, "decoding alone": decoding, "tower alone": tower, "branch alone": branch}
    found = {
        "command": "python benchmarks/windows.py",
        "model": args.model,
        "frames": frames,
        "windows": windows,
        "seconds": seconds,
        "times the tower, beside decoding and branch": (whole - decoding - branch) / tower,
        "peak MiB": peak[0],
        "commit": COMMIT,
        **machine(),
    }
    write_json(args.out, found)
    print(found)


if __name__ == "__main__":
    main()
