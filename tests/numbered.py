"""Small videos of known content in many codecs and containers: the grey level of frame i is 20 + 3 i."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import torch

X264 = "keyint=10:min-keyint=10:scenecut=0:bframes=3:b-adapt=0:b-pyramid=2"
WRITTEN = {  # name: codec, options, B-frames, frames per second
    "closed.mp4": ("libx264", {"x264-params": X264}, None, 25),
    "closed.mkv": ("libx264", {"x264-params": X264}, None, Fraction(24000, 1001)),
    "closed.ts": ("libx264", {"x264-params": X264}, None, 25),
    "open.mp4": ("libx264", {"x264-params": X264 + ":open-gop=1"}, None, 25),
    "open.mkv": ("libx264", {"x264-params": X264 + ":open-gop=1"}, None, 50),
    "b_frames.avi": ("libx264", {"x264-params": X264}, None, 25),
    "refresh.mp4": ("libx264", {"x264-params": "intra-refresh=1:keyint=10"}, 0, 30),
    "fragments.mp4": ("libx264", {"x264-params": X264}, None, 25),
    "hevc.mp4": ("libx265", {"x265-params": "keyint=10:log-level=none"}, None, 25),
    "mpeg4.avi": ("mpeg4", {}, 2, 25),
    "mpeg4.mp4": ("mpeg4", {}, 0, 12),
    "mpeg2.mpg": ("mpeg2video", {}, 2, 25),
    "vp9.webm": ("libvpx-vp9", {"crf": "10", "b": "0", "auto-alt-ref": "1", "lag-in-frames": "16"}, None, 25),
    "vp8.webm": ("libvpx", {"crf": "4", "b": "1000000", "auto-alt-ref": "1", "lag-in-frames": "16"}, None, 25),
    "motion.avi": ("mjpeg", {}, 0, 7),
}
FRAMES = 60


def write(path: Path, *, codec="libx264", options=None, b_frames=None, fps=25, stamps=range(FRAMES), mux=None) -> Path:
    """Write a video whose frame i is grey 20 + 3 i with a moving bar, shown at stamps[i] / fps seconds."""
    with av.open(str(path), "w", options=mux or {}) as container:
        stream = container.add_stream(codec, rate=fps, options=options or {})
        stream.width, stream.height = 64, 48
        stream.pix_fmt = "yuvj420p" if codec == "mjpeg" else "yuv420p"
        stream.codec_context.gop_size, stream.bit_rate = 10, 2_000_000
        if b_frames is not None:
            stream.codec_context.max_b_frames = b_frames
        for i, stamp in enumerate(stamps):
            picture = np.full((48, 64, 3), 20 + 3 * i, np.uint8)
            picture[(2 * i) % 40 :][:8, :32] = 128
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
            frame.pts, frame.time_base = stamp, 1 / Fraction(fps)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def seen(frames: torch.Tensor) -> list[int]:
    """Return the frame numbers of pictures of a written video, from their grey levels."""
    return ((frames[..., 40:].float().mean(dim=(1, 2, 3)) - 20) / 3).round().int().tolist()


def write_all(folder: Path) -> dict[str, Path]:
    """Write one video for each entry of WRITTEN and return their paths by name."""
    paths = {}
    for name, (codec, options, b_frames, fps) in WRITTEN.items():
        mux = {"movflags": "frag_keyframe+empty_moov"} if name == "fragments.mp4" else None
        paths[name] = write(folder / name, codec=codec, options=options, b_frames=b_frames, fps=fps, mux=mux)
    return paths
