"""A decoded frame of FFmpeg as an upright RGB picture: the very pixels that the FFmpeg program writes.

Contract: `Converter()(frame)` is a uint8 (3, H, W) view, left channels-last in memory (resizing it so is several times
faster). Colours go through libavfilter's `scale`, as in the program: it knows where a format's chroma samples lie,
which a bare call of the scaler does not (up to 130 grey levels apart at sharp edges in 10 bits). Knows no files.
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
    """Pictures of the frames of one file; frames that change their size or format on the way are no trouble."""

    def __init__(self) -> None:
        self._made_for: tuple[object, ...] = ()
        self._graph: Graph | None = None

    def __call__(self, frame: VideoFrame) -> UInt8[Tensor, "3 h w"]:
        rgb = torch.from_numpy(self._rgb(frame).to_ndarray()).permute(2, 0, 1)  # (3, H, W)
        turned, mirrored, upended = orientation(frame)
        upright = rgb.transpose(1, 2) if turned else rgb
        flips = [axis for axis, flip in ((2, mirrored), (1, upended)) if flip]
        return upright.flip(flips) if flips else upright

    def _rgb(self, frame: VideoFrame) -> VideoFrame:
        looks = (frame.format.name, frame.width, frame.height, frame.colorspace, frame.color_range)
        if self._graph is None or looks != self._made_for:
            self._graph, self._made_for = _scaler(frame), looks
        self._graph.vpush(frame)
        return self._graph.vpull()


def _scaler(frame: VideoFrame) -> Graph:
    """The filters that the FFmpeg program puts between such a frame and rgb24."""
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
    """What makes the frame upright: swap the axes, then mirror left-right, then up-down; from its display matrix.

    The matrix maps (x, y) to (a x + c y, b x + d y) and is stored as a b . c d . . . . in 16.16 fixed point. All eight
    orientations of cameras are covered; an angle in between goes to the nearest, as in players.
    """
    from av.sidedata.sidedata import SideDataContainer

    # frame.side_data would keep the frame, and whatever it holds, alive in a cycle
    matrix = SideDataContainer(frame).get("DISPLAYMATRIX")  # pyright: ignore[reportCallIssue]
    if matrix is None:
        return False, False, False
    a, b, _, c, d = struct.unpack("=5i", bytes(matrix)[:20])
    return (True, c < 0, b < 0) if abs(b) > abs(a) else (False, a < 0, d < 0)
