"""Search of videos by text or by video: an index of embeddings that can be saved, loaded and added to."""

from __future__ import annotations

from clipvid.search.index import Hit, VideoIndex

__all__ = ["Hit", "VideoIndex"]
