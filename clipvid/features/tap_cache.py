"""TapCache: the frozen tower's taps of every clip of a data set, cached on disk for all later runs.

Contract: a folder, a model and a data config in; a TapStore that reads from memory-mapped files out. The cache key
holds everything that determines the bytes: tower, preprocessing, precision, frames, sampler, levels and kind; a clip's
key holds its file's content and its part in seconds. So another model or data config never reads these taps, a changed
file is encoded again, and one that was only moved is not. A killed run loses only the clips of its unfinished file.
Knows nothing of branches, losses or metrics.
"""

from __future__ import annotations

import json
import shutil
import warnings
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from clipvid.config import checks
from clipvid.config.data_config import DataConfig
from clipvid.data.records import VideoDataset
from clipvid.errors import CacheError, ClipvidWarning, VideoError
from clipvid.features.augmented_views import AugmentedViews
from clipvid.features.cache_key import MODES, CacheKey, repair_cache_key, write_cache_key
from clipvid.features.encode import LiveSource, View, clips_per_batch, trained_data_config, views_of
from clipvid.features.maintenance import format_bytes
from clipvid.features.shards import Shards, write_shard
from clipvid.features.source import stream_in_order
from clipvid.features.taps import codec
from clipvid.features.taps.cached_taps import CachedTaps, FirstLayerTaps, shapes_of
from clipvid.features.taps.clip_keys import CONTENT_HASH, stored_clip_keys
from clipvid.features.taps.tap_store import TapStore, check_storable
from clipvid.features.text_cache import TextCache
from clipvid.models.backbone.open_clip import preprocess_fields
from clipvid.models.backbone.partial import check_forward_from, token_type
from clipvid.models.backbone.taps import Geometry, Taps
from clipvid.models.video_clip import VideoCLIP
from clipvid.runtime.files import describe_os_error, require_writable
from clipvid.runtime.precision import autocast, resolve

SPARE = 64 * 2**20
"""Bytes of disk space that a cache leaves free."""
_READ_LIVE = {"bf16-mixed": "bf16", "32-true": "fp32"}
"""Kind of the type in which the branch reads live taps, whatever the tower; in 16-mixed the tower decides."""


class TapCache:
    """A folder of cached taps. `store` returns those of a data set and encodes the missing ones."""

    def __init__(self, folder: str | Path, *, kind: str = codec.AUTO, mode: str = "taps") -> None:
        """Open a cache in `folder`, which need not exist yet.

        `kind` is the storage format: auto, which rounds nothing (`kind_for`), or one of `codec.KINDS`. `mode` selects
        the features: taps, or first_layer, the lowest level alone. Raises ValueError for any other kind or mode, and if
        the folder cannot be created.
        """
        for name, value, allowed in (("kind", kind, (codec.AUTO, *codec.KINDS)), ("mode", mode, MODES)):
            if value not in allowed:
                raise ValueError(f"unknown {name} {value!r}; choose one of {', '.join(allowed)}")
        folder = checks.path("folder", folder)
        if not folder.is_dir():
            require_writable(folder, folder=True)
        self.folder: Path = folder
        self.kind = kind
        self.mode = mode
        self._noted: set[CacheKey] = set()  # cache keys already named in a warning of `store`

    def origin(self, model: VideoCLIP, data_config: DataConfig) -> str:
        """Return a description of this cache for messages and checkpoints; another kind may give other taps."""
        kind = self.kind_for(model, data_config) if self.kind == codec.AUTO else self.kind
        return f"a tap cache of kind {kind} and mode {self.mode}"

    def kind_for(self, model: VideoCLIP, data_config: DataConfig) -> str:
        """Return the kind in which this model's features are stored with this data config.

        `auto` becomes the kind that rounds nothing. For taps this is bf16 in bf16-mixed and fp32 in 32-true, the types
        that the branch reads live. For a first layer, and in 16-mixed, it follows the type of the tower's tokens. A
        first layer requested as bf16 is stored as fp32 if the tokens are not bfloat16: rounding in the middle of the
        tower would change its output.
        """
        if self.kind != codec.AUTO and (self.kind, self.mode) != ("bf16", "first_layer"):
            return self.kind
        if self.mode == "taps" and (exact := _READ_LIVE.get(resolve(data_config.precision, model.device))):
            return exact
        with autocast(data_config.precision, model.device):
            tokens = codec.exact_kind(token_type(model.backbone))
        return tokens if self.kind in (codec.AUTO, tokens) else "fp32"

    def cache_key(
        self, model: VideoCLIP, data_config: DataConfig, augmented_views: AugmentedViews | None = None
    ) -> CacheKey:
        """Return the cache key of the taps of this model's branch."""
        levels = tuple(model.branch.levels)
        return CacheKey(
            tower_fingerprint=model.backbone.tower_fingerprint,
            preprocess=json.dumps(preprocess_fields(model.backbone.preprocess_config), sort_keys=True),
            precision=resolve(data_config.precision, model.device),
            frames=data_config.frames,
            sampler=data_config.sampler,
            levels=levels if self.mode == "taps" else _first_layer_of(model),
            kind=self.kind_for(model, data_config),
            mode=self.mode,
            augmented_views="" if augmented_views is None else str(augmented_views),
            content_hash=CONTENT_HASH,
        )

    def needs(
        self,
        model: VideoCLIP,
        data: VideoDataset,
        data_config: DataConfig | None = None,
        *,
        augmented_views: AugmentedViews | None = None,
    ) -> int:
        """Return the bytes that the clips of `data` that are not cached yet would take."""
        data_config = data_config or trained_data_config(model, data.protocol_spec)
        cache_key = self.cache_key(model, data_config, augmented_views)
        missing = _missing_keys(
            Shards(self.folder / cache_key.key), views_of(stored_clip_keys(data, self.folder), augmented_views)
        )
        return _bytes_needed(model, cache_key, len(missing))

    def store(
        self,
        model: VideoCLIP,
        data: VideoDataset,
        data_config: DataConfig | None = None,
        *,
        augmented_views: AugmentedViews | None = None,
        progress: bool = False,
    ) -> TapStore:
        """Return the taps of `data`; missing clips are decoded, encoded and stored, one file per batch.

        Stores one fixed view per clip, or those of `augmented_views`. Warns before it encodes clips that are cached as
        another kind or mode, once for each. After an interruption the next call continues. Raises CacheError if the
        disk is too small, before anything is encoded, and for damaged files; ValueError if the model or the data config
        has no taps to cache; VideoError for an unreadable video if the data config says so.
        """
        data_config = data_config or trained_data_config(model, data.protocol_spec)
        check_storable(model, data_config)
        cache_key = self.cache_key(model, data_config, augmented_views)
        shards = Shards(self.folder / cache_key.key)
        repair_cache_key(shards.folder, cache_key)
        views = views_of(stored_clip_keys(data, self.folder, progress=progress), augmented_views)
        missing = _missing_keys(shards, views)
        self._check_disk_space(_bytes_needed(model, cache_key, len(missing)))
        if missing and (note := self._stored_otherwise(cache_key, model, missing)):
            warnings.warn(note, ClipvidWarning, stacklevel=2)
        rows, unreadable = list(range(len(data))), []
        for view in views:
            todo = [row for row in rows if (key := view.keys[row]) is None or key not in shards]
            if todo:
                with _as_cache_error(shards.folder):
                    write_cache_key(shards.folder, cache_key)
                for errors in self._fill(cache_key, shards, model, data, view, todo, data_config, progress=progress):
                    unreadable.extend(errors)
            rows = [row for row in rows if (key := view.keys[row]) is not None and key in shards]
        if not rows:
            raise ValueError(
                f"none of the {len(data)} videos of {data.name} could be read; check the files with clipvid data check"
                + (f"; first: {unreadable[0]}" if unreadable else "")
            )
        cached = [_open_taps(model, cache_key, shards, [str(view.keys[row]) for row in rows]) for view in views]
        return TapStore(
            cached[0],
            data.surviving(rows),
            data_config,
            cache_key.tower_fingerprint,
            unreadable=tuple(unreadable),
            texts=TextCache(self.folder),
            origin=self.origin(model, data_config),
            augmented_views=augmented_views,
            others=tuple(cached[1:]),
        )

    def _fill(
        self,
        cache_key: CacheKey,
        shards: Shards,
        model: VideoCLIP,
        data: VideoDataset,
        view: View,
        rows: Sequence[int],
        data_config: DataConfig,
        *,
        progress: bool,
    ) -> Iterator[tuple[VideoError, ...]]:
        """Encode and store the clips at `rows`; yield the errors of each batch's unreadable ones."""
        title = f"cache {data.name}" if view.augmented_views is None else f"cache {data.name}, view {view.number + 1}"
        selection, clips = data.subset(rows), view.clips(model, data, data_config, rows)
        source = LiveSource(model, selection, data_config, clips=clips, read=model.taps)
        size = clips_per_batch(data_config)
        with closing(stream_in_order(source, size, progress=progress, title=title)) as stream:
            for batch in stream:
                if isinstance(batch.features, Taps):
                    keys = [str(view.keys[rows[position]]) for position in batch.rows]
                    taps = _for_cache(batch.features, cache_key)
                    with _as_cache_error(shards.folder):
                        write_shard(shards.folder, keys, _as_tensors(taps, cache_key))
                    shards.refresh()
                yield batch.unreadable

    def _stored_otherwise(self, cache_key: CacheKey, model: VideoCLIP, missing: set[str]) -> str:
        """Return a note on missing clips that are cached as another kind or mode, and how to read them; or ""."""
        levels, requested = tuple(model.branch.levels), cache_key.kind if self.kind == codec.AUTO else self.kind
        stored_levels = {"taps": levels, "first_layer": (min(levels),) if levels else ()}
        finest = sorted(codec.KINDS, key=lambda kind: -codec.FIDELITY[kind])
        others = [
            replace(cache_key, mode=mode, levels=stored_levels[mode], kind=kind) for kind in finest for mode in MODES
        ]
        for other in (other for other in others if other != cache_key and (self.folder / other.key).is_dir()):
            try:
                shards = Shards(self.folder / other.key)
            except (CacheError, OSError):  # damaged or unreadable; reported when that cache is read
                continue
            if n_stored := sum(key in shards for key in missing):
                general = replace(other, levels=(), augmented_views="")
                if general in self._noted:
                    missing = {key for key in missing if key not in shards}
                    continue
                self._noted.add(general)
                noun = "views" if cache_key.augmented_views else "clips"
                note = (
                    f"{n_stored} of the {len(missing)} {noun} to encode are in {self.folder} as kind {other.kind}, "
                    f"mode {other.mode}, not as kind {requested}, mode {self.mode}"
                )
                if codec.FIDELITY[other.kind] < codec.FIDELITY[requested]:
                    return f"{note}; {other.kind} is coarser, so they are encoded again"
                return (
                    f"{note}; to read those give --cache-kind {other.kind} --cache-mode {other.mode} (in Python kind "
                    "and mode)"
                )
        return ""

    def _check_disk_space(self, needed: int) -> None:
        """Raise CacheError if the disk has less than `needed` bytes free in addition to a reserve of SPARE."""
        existing = self.folder.absolute()
        while not existing.exists():
            existing = existing.parent
        free = shutil.disk_usage(existing).free
        if needed and needed > free - SPARE:
            raise CacheError(
                f"{self.folder} needs {format_bytes(needed)} for clips that are not cached yet, the disk has "
                f"{format_bytes(free)}; choose another folder, mode first_layer, a smaller kind (int8), or fewer frames"
            )


@contextmanager
def _as_cache_error(folder: Path) -> Iterator[None]:
    """Raise operating system errors of the block as CacheError."""
    try:
        yield
    except OSError as error:
        raise CacheError(
            f"{folder} cannot be written ({describe_os_error(error)}); the clips stored so far remain valid, and the "
            "next run continues from them; make room, or choose another folder"
        ) from error


def _first_layer_of(model: VideoCLIP) -> tuple[int]:
    """Return the lowest level that the branch reads; the others can be computed from it."""
    check_forward_from(model.backbone)
    if not model.branch.levels:
        raise ValueError("this branch reads no inner level, so there is no first layer to cache; choose mode taps")
    return (min(model.branch.levels),)


def _live_type(cache_key: CacheKey) -> torch.dtype | None:
    """Return the type in which taps of that precision reach the branch, live (`VideoCLIP.encode_frames`) and stored.

    None stands for the type of each tensor: in 16-mixed some of a tower's outputs are float16 and others float32.
    """
    if cache_key.precision == "bf16-mixed":
        return torch.bfloat16
    return None if cache_key.precision == "16-mixed" and cache_key.kind in ("fp16", "fp32") else torch.float32


def _for_cache(taps: Taps, cache_key: CacheKey) -> Taps:
    """Return the levels to store: in the type that the branch reads, but a first layer in the type of the tower."""
    chosen = taps.select(cache_key.levels).to("cpu")
    return chosen if cache_key.mode == "first_layer" else chosen.to(dtype=_live_type(cache_key))


def _open_taps(
    model: VideoCLIP, cache_key: CacheKey, shards: Shards, keys: Sequence[str]
) -> CachedTaps | FirstLayerTaps:
    """Return the cached taps of these clips, in the mode of the cache key."""
    stored, live = cache_key.levels, _live_type(cache_key)
    shapes = shapes_of(model.backbone.geometry(stored), stored, frames=cache_key.frames)
    if cache_key.mode == "taps":
        return CachedTaps(shards, keys, stored=stored, levels=stored, dtype=live, shapes=shapes)
    dtype = None if live is None else torch.float32
    first_layer = CachedTaps(shards, keys, stored=stored, levels=stored, dtype=dtype, shapes=shapes)
    return FirstLayerTaps(first_layer, model.backbone, model.branch.levels, precision=cache_key.precision, dtype=live)


def _missing_keys(shards: Shards, views: Sequence[View]) -> set[str]:
    """Return the keys of clips, in these views, that are not stored yet."""
    return {key for view in views for key in view.keys if key is not None and key not in shards}


def _bytes_needed(model: VideoCLIP, cache_key: CacheKey, n_clips: int) -> int:
    """Return the bytes that the taps of `n_clips` clips take on disk."""
    return n_clips * clip_bytes(model.backbone.geometry(cache_key.levels), cache_key.frames, cache_key.kind)


def clip_bytes(geometry: Geometry, frames: int, kind: str) -> int:
    """Return the bytes that the taps of one clip take on disk, without headers."""
    tokens = geometry.patches + geometry.class_token
    levels = sum(tokens * codec.size(width, kind) for width in geometry.widths)
    return frames * (levels + codec.size(geometry.embed_dim, _frame_kind(kind)) + 1)


def _frame_kind(kind: str) -> str:
    """Return the kind of frame embeddings: never int8, as they are small and compared by retrieval."""
    return "bf16" if kind == "int8" else kind


def _kind_of(name: str, tensor: Tensor, cache_key: CacheKey) -> str:
    """Return the kind of one tensor of taps: that of its type if it rounds no more than the cache key's kind."""
    if cache_key.kind == "fp32" and _live_type(cache_key) is None:
        return codec.exact_kind(tensor.dtype)
    return _frame_kind(cache_key.kind) if name == "frames" else cache_key.kind


def _as_tensors(taps: Taps, cache_key: CacheKey) -> dict[str, Tensor]:
    """Return the taps as named tensors of a shard."""
    features = {f"patches.{level}": patch for level, patch in zip(taps.levels, taps.patches, strict=True)}
    features |= {f"cls.{level}": cls for level, cls in zip(taps.levels, taps.cls, strict=bool(taps.cls))}
    tensors: dict[str, Tensor] = {"mask": torch.ones(taps.frames.shape[:2], dtype=torch.uint8)}
    if taps.mask is not None:
        tensors["mask"] = taps.mask.to(torch.uint8)
    for name, tensor in [*features.items(), ("frames", taps.frames)]:
        for part, value in codec.packed(tensor, _kind_of(name, tensor, cache_key)).items():
            tensors[f"{name}.{part}" if part else name] = value
    return tensors
