"""Taps of a data set in memory: every clip is decoded and passed through the frozen tower once.

Contract: a model and a VideoDataset in, a TapStore out. Knows nothing of disks, losses or metrics.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import closing

import torch

from clipvid.config.data_config import DataConfig
from clipvid.data.records import VideoDataset
from clipvid.errors import VideoError
from clipvid.features.augmented_views import AugmentedViews
from clipvid.features.encode import LiveSource, View, clips_per_batch, trained_data_config, views_of
from clipvid.features.source import stream_in_order
from clipvid.features.taps.clip_keys import clip_keys
from clipvid.features.taps.tap_store import TapStore, check_storable
from clipvid.models.backbone.taps import Taps
from clipvid.models.video_clip import VideoCLIP


def encode_dataset(
    model: VideoCLIP,
    data: VideoDataset,
    data_config: DataConfig | None = None,
    *,
    augmented_views: AugmentedViews | None = None,
    progress: bool = False,
) -> TapStore:
    """Encode every clip once, or once per augmented view, and hold the taps in memory.

    Memory: `taps.nbytes` times the number of views. Raises ValueError if the model or the data config has no taps to
    cache, or if no video could be read; VideoError for an unreadable video if the data config says so.
    """
    data_config = data_config or trained_data_config(model, data.protocol_spec)
    check_storable(model, data_config)
    rows, views, unreadable = range(len(data)), [], []
    for view in views_of([None] * len(data) if augmented_views is None else clip_keys(data), augmented_views):
        taps, readable, errors = _encode_view(model, data, data_config, view, rows, progress=progress)
        position = {row: number for number, row in enumerate(rows)}
        if len(readable) < len(rows):
            views = [earlier.part([position[row] for row in readable]) for earlier in views]
        rows, views, unreadable = readable, [*views, taps], [*unreadable, *errors]
    tower, others = model.backbone.tower_fingerprint, tuple(views[1:])
    clips = data.surviving(rows)
    return TapStore(
        views[0],
        clips,
        data_config,
        tower,
        unreadable=tuple(unreadable),
        augmented_views=augmented_views,
        others=others,
    )


def _encode_view(
    model: VideoCLIP, data: VideoDataset, data_config: DataConfig, view: View, rows: Sequence[int], *, progress: bool
) -> tuple[Taps, list[int], list[VideoError]]:
    """Return a view's taps of the clips at `rows`, the rows that could be read, and the errors of the others."""
    parts: list[Taps] = []
    readable: list[int] = []
    errors: list[VideoError] = []
    selection, clips = data.subset(rows), view.clips(model, data, data_config, rows)
    source = LiveSource(model, selection, data_config, clips=clips, read=model.taps)
    size, title = clips_per_batch(data_config), f"encode {data.name}"
    with closing(stream_in_order(source, size, progress=progress, title=title)) as stream:
        for batch in stream:
            errors.extend(batch.unreadable)
            if isinstance(batch.features, Taps):
                parts.append(batch.features.to("cpu"))
                readable.extend(rows[position] for position in batch.rows)
    if not parts:
        raise ValueError(
            f"none of the {len(data)} videos of {data.name} could be read; check the files with clipvid data check"
            + (f"; first: {errors[0]}" if errors else "")
        )
    return _concatenate(parts), readable, errors


def _concatenate(parts: Sequence[Taps]) -> Taps:
    levels = range(len(parts[0].levels))
    masks = None
    if any(p.mask is not None for p in parts):
        masks = torch.cat(
            [torch.ones(p.frames.shape[:2], dtype=torch.bool) if p.mask is None else p.mask for p in parts]
        )
    return Taps(
        parts[0].levels,
        tuple(torch.cat([p.patches[k] for p in parts]) for k in levels),
        tuple(torch.cat([p.cls[k] for p in parts]) for k in levels) if parts[0].cls else (),
        torch.cat([p.frames for p in parts]),
        masks,
    )
