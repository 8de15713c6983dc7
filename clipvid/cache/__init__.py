"""Taps of data sets: streamed from videos, or kept in memory."""

from __future__ import annotations

from clipvid.cache.store import TapStore
from clipvid.cache.stream import clip_dataset, stream_taps, trained_reading

__all__ = ["TapStore", "clip_dataset", "stream_taps", "trained_reading"]
