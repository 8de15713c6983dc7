"""TapCache: what a frozen tower says of every clip of a data set, kept on disk for all later runs.

Contract: a folder, a model and a reading in; a TapStore that reads from mapped files out. A cache is addressed by what
decides its bytes: tower, preprocessing, precision, frames, sampler, levels and kind; a clip by its file's content and
its part in seconds. So another model or reading never meets these taps, a file that changed is encoded anew, and one
that was only moved is not. A run that was killed keeps every clip whose file was written. Knows nothing of branches,
losses or metrics.
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

from clipvid.config.data_config import DataConfig
from clipvid.data.records import VideoDataset
from clipvid.errors import CacheError, ClipvidWarning, VideoError
from clipvid.features import codec
from clipvid.features.augmented_views import AugmentedViews
from clipvid.features.cache_key import MODES, CacheKey, repair_cache_key, write_cache_key
from clipvid.features.cached_taps import CachedTaps, FirstLayerTaps
from clipvid.features.clip_keys import clip_keys
from clipvid.features.encode import View, stream_taps, trained_data_config, views_of
from clipvid.features.maintenance import format_bytes
from clipvid.features.shards import Shards, write_shard
from clipvid.features.source import TapStore, check_storable
from clipvid.features.text_cache import TextCache
from clipvid.models.backbone.open_clip import preprocess_fields
from clipvid.models.backbone.partial import check_forward_from, token_type
from clipvid.models.backbone.taps import Geometry, Taps
from clipvid.models.video_clip import VideoCLIP
from clipvid.runtime.files import describe_os_error, require_writable
from clipvid.runtime.precision import autocast, resolve

SPARE = 64 * 2**20
"""Bytes of a disk that a cache leaves free."""
_READ_LIVE = {"bf16-mixed": "bf16", "32-true": "fp32"}
"""Kind of the type in which the branch reads live taps, whatever the tower; in 16-mixed the tower decides."""


class TapCache:
    """A folder of taps. `store` gives those of a data set, encoding what is not there yet."""

    def __init__(self, folder: str | Path, *, kind: str = codec.AUTO, mode: str = "taps") -> None:
        """Open a cache in `folder`, which need not exist yet.

        `kind` is how features are stored: auto, which rounds nothing (`kind_for`), or one of `codec.KINDS`. `mode` says
        which features: taps, or first_layer, the lowest level alone. Raise ValueError for any other kind or mode, and
        where
        the folder cannot be made.
        """
        for name, value, allowed in (("kind", kind, (codec.AUTO, *codec.KINDS)), ("mode", mode, MODES)):
            if value not in allowed:
                raise ValueError(f"unknown {name} {value!r}; choose one of {', '.join(allowed)}")
        if not Path(folder).is_dir():
            require_writable(folder, folder=True)
        self.folder, self.kind, self.mode = Path(folder), kind, mode
        self._noted: set[CacheKey] = set()  # what it has said of clips that are there otherwise

    def origin(self, model: VideoCLIP, data_config: DataConfig) -> str:
        """Return, for messages and checkpoints, which kind of cache this model reads: another kind gives other bits."""
        kind = self.kind_for(model, data_config) if self.kind == codec.AUTO else self.kind
        return f"a tap cache of kind {kind} and mode {self.mode}"

    def kind_for(self, model: VideoCLIP, data_config: DataConfig) -> str:
        """Return the kind in which features of this model are stored, for clips read so.

        `auto` becomes the kind that rounds nothing. For taps this is bf16 where the model runs in bf16-mixed and fp32
        where it runs in 32-true, which are the types that the branch reads live. For a trunk, and in 16-mixed, it
        follows the type of the tower's tokens. A trunk asked for as bf16 is stored as fp32 where tokens are not
        bfloat16: rounded in the middle of the tower, they would end elsewhere.
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
        """What decides the taps of this model's branch, read so."""
        levels = tuple(model.branch.levels)
        return CacheKey(
            tower=model.backbone.tower_fingerprint,
            preprocess=json.dumps(preprocess_fields(model.backbone.preprocess_config), sort_keys=True),
            precision=resolve(data_config.precision, model.device),
            frames=data_config.frames,
            sampler=data_config.sampler,
            levels=levels if self.mode == "taps" else _first_layer_of(model),
            kind=self.kind_for(model, data_config),
            mode=self.mode,
            drawn="" if augmented_views is None else str(augmented_views),
        )

    def needs(
        self,
        model: VideoCLIP,
        data: VideoDataset,
        data_config: DataConfig | None = None,
        *,
        augmented_views: AugmentedViews | None = None,
    ) -> int:
        """Bytes that the clips of `data` that are not there yet would take."""
        data_config = data_config or trained_data_config(model, data.protocol_spec)
        cache_key = self.cache_key(model, data_config, augmented_views)
        missing = _missing(Shards(self.folder / cache_key.key), views_of(clip_keys(data), augmented_views))
        return _size(model, cache_key, len(missing))

    def store(
        self,
        model: VideoCLIP,
        data: VideoDataset,
        data_config: DataConfig | None = None,
        *,
        augmented_views: AugmentedViews | None = None,
        progress: bool = False,
    ) -> TapStore:
        """The taps of `data`; clips that are not there are decoded, encoded and kept, a file a batch.

        One fixed view of each clip, or those that `draws` asks for. Warns before it encodes clips that are there as
        another kind or mode, once for each. Interrupted, it goes on where it was. Raises CacheError where the disk is
        too small, before anything is encoded, and for damaged files; ValueError for what has no taps to keep,
        VideoError as the reading says.
        """
        data_config = data_config or trained_data_config(model, data.protocol_spec)
        check_storable(model, data_config)
        cache_key = self.cache_key(model, data_config, augmented_views)
        shards = Shards(self.folder / cache_key.key)
        repair_cache_key(shards.folder, cache_key)
        views = views_of(clip_keys(data), augmented_views)
        missing = _missing(shards, views)
        self._check_room(_size(model, cache_key, len(missing)))
        if missing and (note := self._kept_otherwise(cache_key, model, missing)):
            warnings.warn(note, ClipvidWarning, stacklevel=2)
        rows, lost = list(range(len(data))), []
        for view in views:
            todo = [row for row in rows if (key := view.keys[row]) is None or key not in shards]
            if todo:
                with _in_words(shards.folder):
                    write_cache_key(shards.folder, cache_key)
                for errors in self._filled(cache_key, shards, model, data, view, todo, data_config, progress=progress):
                    lost.extend(errors)
            rows = [row for row in rows if (key := view.keys[row]) is not None and key in shards]
        if not rows:
            raise ValueError(
                f"none of the {len(data)} videos of {data.name} could be read" + (f"; first: {lost[0]}" if lost else "")
            )
        kept = [_kept(model, cache_key, shards, [str(view.keys[row]) for row in rows]) for view in views]
        return TapStore(
            kept[0],
            data.surviving(rows),
            data_config,
            cache_key.tower,
            unreadable=tuple(lost),
            texts=TextCache(self.folder),
            origin=self.origin(model, data_config),
            augmented_views=augmented_views,
            others=tuple(kept[1:]),
        )

    def _filled(
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
        """Write batch after batch; what of each could not be read."""
        title = f"cache {data.name}" if view.augmented_views is None else f"cache {data.name}, view {view.number + 1}"
        some, clips = data.subset(rows), view.clips(model, data, data_config, rows)
        source = stream_taps(model, some, data_config, to_keep=True, clips=clips, progress=progress, title=title)
        with closing(source) as stream:
            for taps, batch in stream:
                if len(batch) and isinstance(taps, Taps):
                    written = [str(view.keys[rows[place]]) for place in batch.index.tolist()]
                    with _in_words(shards.folder):
                        write_shard(shards.folder, written, _named(_to_keep(taps, cache_key), cache_key))
                    shards.look()
                yield batch.unreadable

    def _kept_otherwise(self, cache_key: CacheKey, model: VideoCLIP, wanted: set[str]) -> str:
        """Which of these clips the folder has as another kind or mode, and how to read them; "" where it has none."""
        levels, asked = tuple(model.branch.levels), cache_key.kind if self.kind == codec.AUTO else self.kind
        held = {"taps": levels, "first_layer": (min(levels),) if levels else ()}
        finest = sorted(codec.KINDS, key=lambda kind: -codec.FIDELITY[kind])
        others = [replace(cache_key, mode=mode, levels=held[mode], kind=kind) for kind in finest for mode in MODES]
        for other in (other for other in others if other != cache_key and (self.folder / other.key).is_dir()):
            try:
                shards = Shards(self.folder / other.key)
            except (CacheError, OSError):  # damaged, or another's: whoever reads it hears of it
                continue
            if found := sum(key in shards for key in wanted):
                plain = replace(other, levels=(), drawn="")
                if plain in self._noted:
                    wanted = {key for key in wanted if key not in shards}
                    continue
                self._noted.add(plain)
                what = "views" if cache_key.drawn else "clips"
                there = (
                    f"{found} of the {len(wanted)} {what} to encode are in {self.folder} as kind {other.kind}, mode "
                    f"{other.mode}, not as kind {asked}, mode {self.mode}"
                )
                if codec.FIDELITY[other.kind] < codec.FIDELITY[asked]:
                    return f"{there}; {other.kind} is coarser, so they are encoded anew"
                return (
                    f"{there}; to read those give --cache_kind {other.kind} --cache_mode {other.mode} (in Python kind "
                    "and mode)"
                )
        return ""

    def _check_room(self, needed: int) -> None:
        place = self.folder.absolute()
        while not place.exists():
            place = place.parent
        free = shutil.disk_usage(place).free
        if needed and needed > free - SPARE:
            raise CacheError(
                f"{self.folder} needs {format_bytes(needed)} for clips that are not there yet, the disk has "
                f"{format_bytes(free)}; choose another folder, mode first_layer, a smaller kind (int8), or fewer frames"
            )


@contextmanager
def _in_words(folder: Path) -> Iterator[None]:
    """CacheError for what the operating system refuses in the block."""
    try:
        yield
    except OSError as error:
        raise CacheError(
            f"{folder} cannot be written ({describe_os_error(error)}); what is there stays, and "
            "the next run goes on from it; "
            "make room, or choose another folder"
        ) from error


def _first_layer_of(model: VideoCLIP) -> tuple[int]:
    """The lowest level that the branch reads: the others follow from it."""
    check_forward_from(model.backbone)
    if not model.branch.levels:
        raise ValueError("this branch reads no inner level, so there is no first layer to cache; choose mode taps")
    return (min(model.branch.levels),)


def _live_type(cache_key: CacheKey) -> torch.dtype | None:
    """Return the type in which taps of that precision reach the branch, live (`VideoCLIP.encode_frames`) and stored.

    None is each tensor's own: in 16-mixed some of a tower's outputs are float16 and others float32.
    """
    if cache_key.precision == "bf16-mixed":
        return torch.bfloat16
    return None if cache_key.precision == "16-mixed" and cache_key.kind in ("fp16", "fp32") else torch.float32


def _to_keep(taps: Taps, cache_key: CacheKey) -> Taps:
    """The levels that are kept; as the branch takes them, but for a trunk, which the tower takes again."""
    chosen = taps.select(cache_key.levels).to("cpu")
    return chosen if cache_key.mode == "first_layer" else chosen.to(dtype=_live_type(cache_key))


def _kept(model: VideoCLIP, cache_key: CacheKey, shards: Shards, keys: Sequence[str]) -> CachedTaps | FirstLayerTaps:
    held, live = cache_key.levels, _live_type(cache_key)
    if cache_key.mode == "taps":
        return CachedTaps(shards, keys, held=held, levels=held, dtype=live)
    one = CachedTaps(shards, keys, held=held, levels=held, dtype=None if live is None else torch.float32)
    return FirstLayerTaps(one, model.backbone, model.branch.levels, precision=cache_key.precision, dtype=live)


def _missing(shards: Shards, views: Sequence[View]) -> set[str]:
    """Keys of what is not there yet."""
    return {key for view in views for key in view.keys if key is not None and key not in shards}


def _size(model: VideoCLIP, cache_key: CacheKey, clips: int) -> int:
    """Bytes of so many clips."""
    return clips * clip_bytes(model.backbone.geometry(cache_key.levels), cache_key.frames, cache_key.kind)


def clip_bytes(geometry: Geometry, frames: int, kind: str) -> int:
    """Bytes that the taps of one clip take on disk, but for headers."""
    tokens = geometry.patches + geometry.class_token
    levels = sum(tokens * codec.size(width, kind) for width in geometry.widths)
    return frames * (levels + codec.size(geometry.embed_dim, _fine(kind)) + 1)


def _fine(kind: str) -> str:
    """How frame embeddings are kept: they are small, and what retrieval compares."""
    return "bf16" if kind == "int8" else kind


def _kind_of(name: str, tensor: Tensor, cache_key: CacheKey) -> str:
    """Return how one tensor of taps is stored; in its own type where that rounds no more than the recipe's kind."""
    if cache_key.kind == "fp32" and _live_type(cache_key) is None:
        return codec.exact_kind(tensor.dtype)
    return _fine(cache_key.kind) if name == "frames" else cache_key.kind


def _named(taps: Taps, cache_key: CacheKey) -> dict[str, Tensor]:
    """Taps as the tensors of a file."""
    features = {f"patches.{level}": patch for level, patch in zip(taps.levels, taps.patches, strict=True)}
    features |= {f"cls.{level}": cls for level, cls in zip(taps.levels, taps.cls, strict=bool(taps.cls))}
    found: dict[str, Tensor] = {"mask": torch.ones(taps.frames.shape[:2], dtype=torch.uint8)}
    if taps.mask is not None:
        found["mask"] = taps.mask.to(torch.uint8)
    for name, tensor in [*features.items(), ("frames", taps.frames)]:
        for part, value in codec.packed(tensor, _kind_of(name, tensor, cache_key)).items():
            found[f"{name}.{part}" if part else name] = value
    return found
