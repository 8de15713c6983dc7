"""Conversion of decoded FFmpeg frames to upright RGB, pixel for pixel as the ffmpeg program writes them.

Contract: `Converter()(frame)` is a uint8 (3, H, W) view, channels-last in memory because resizing is then several
times faster. Colours go through libavfilter's `scale`, as in the ffmpeg program: it takes the position of the chroma
samples from the format. A bare call of the scaler ignores it and differs by up to 130 grey levels at sharp edges in
10-bit video. Knows nothing of files.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING

import torch
from jaxtyping import UInt8
from torch import Tensor

if TYPE_CHECKING:
    from av import VideoFrame
    from av.filter import Graph


class Converter:
    """Convert the frames of one file to RGB; size and pixel format may change from frame to frame."""

    def __init__(self) -> None:
        self._graph_format: tuple[object, ...] = ()
        self._graph: Graph | None = None

    def __call__(self, frame: VideoFrame) -> UInt8[Tensor, "3 h w"]:
        rgb = torch.from_numpy(self._rgb(frame).to_ndarray()).permute(2, 0, 1)  # (3, H, W)
        transposed, flip_x, flip_y = orientation(frame)
        upright = rgb.transpose(1, 2) if transposed else rgb
        flips = [axis for axis, flip in ((2, flip_x), (1, flip_y)) if flip]
        return upright.flip(flips) if flips else upright

    def _rgb(self, frame: VideoFrame) -> VideoFrame:
        frame_format = (frame.format.name, frame.width, frame.height, frame.colorspace, frame.color_range)
        if self._graph is None or frame_format != self._graph_format:
            self._graph, self._graph_format = _scaler(frame), frame_format
        self._graph.vpush(frame)
        return self._graph.vpull()


def _scaler(frame: VideoFrame) -> Graph:
    """Return the filter graph that the ffmpeg program builds to convert such a frame to rgb24."""
    from fractions import Fraction

    from av.filter import Graph

    graph = Graph()
    graph.threads = 1
    graph.link_nodes(
        graph.add_buffer(
            width=frame.width, height=frame.height, format=frame.format, time_base=frame.time_base or Fraction(1, 25)
        ),
        graph.add("scale", "flags=bicubic"),
        graph.add("format", "pix_fmts=rgb24"),
        graph.add("buffersink"),
    )
    graph.configure()
    return graph


def orientation(frame: VideoFrame) -> tuple[bool, bool, bool]:
    """Return (transpose, flip left-right, flip up-down), applied in this order to turn the frame upright.

    The display matrix maps (x, y) to (a x + c y, b x + d y) and is stored as a b . c d . . . . in 16.16 fixed point.
    All eight camera orientations are covered; other angles are rounded to the nearest one, as video players do.
    """
    from av.sidedata.sidedata import SideDataContainer

    # frame.side_data creates a reference cycle, which delays freeing the frame and its decoder.
    matrix = SideDataContainer(frame).get("DISPLAYMATRIX")  # pyright: ignore[reportCallIssue]
    if matrix is None:
        return False, False, False
    a, b, _, c, d = struct.unpack("=5i", bytes(matrix)[:20])
    return (True, c < 0, b < 0) if abs(b) > abs(a) else (False, a < 0, d < 0)
