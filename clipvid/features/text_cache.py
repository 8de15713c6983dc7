"""Embeddings of captions by a frozen text tower, kept on disk: the same captions pass it once for all runs.

Contract: a model, token ids and the function that embeds them in; what that function gives, or gave, out, bit for bit.
Ids that are embedded together are kept together, in one file that is written whole or not at all: alone, or beside
others, the last bits of a row may differ. Knows nothing of tokenizers or of which captions belong to which video.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path

import torch
from jaxtyping import Float, Int
from torch import Tensor

from clipvid.errors import CacheError
from clipvid.features.cache_key import TextCacheKey, repair_cache_key, write_cache_key
from clipvid.features.shards import SUFFIX, read_shard, write_shard
from clipvid.models.backbone.backbone import Backbone
from clipvid.runtime.files import describe_os_error
from clipvid.runtime.precision import resolve

NAME = "embedding"
"""Of the one tensor of a file."""


class TextCache:
    """The part of a cache's folder that holds caption embeddings."""

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)

    def cache_key(self, backbone: Backbone, precision: str) -> TextCacheKey:
        """Return the key of this text tower's embeddings; it hashes all weights, so ask once for many ids."""
        return TextCacheKey(backbone.text_fingerprint, resolve(precision, backbone.device))

    def embedded(
        self, cache_key: TextCacheKey, ids: Int[Tensor, "m ctx"], embed: Callable[[Tensor], Tensor]
    ) -> Float[Tensor, "m e"]:
        """The embeddings of these token ids, from the cache, else from `embed` and kept; float32, on the CPU.

        A row is known by the ids that the tower sees, cut as they are, and by its neighbours. Raises CacheError for a
        damaged file, and where none can be written.
        """
        folder, name = self.folder / cache_key.key, _hash(ids)
        keys = [f"{name}:{row}" for row in range(len(ids))]
        path = folder / f"{name}{SUFFIX}"
        if path.exists():
            repair_cache_key(folder, cache_key)
            return read_shard(path, keys)[NAME]
        found = embed(ids).float().cpu()
        try:
            write_cache_key(folder, cache_key)
            write_shard(folder, keys, {NAME: found}, name=name)
        except OSError as error:
            raise CacheError(describe_os_error(error)) from error
        return found


def _hash(ids: Tensor) -> str:
    """Of token ids and their arrangement."""
    plain = ids.detach().cpu().to(torch.int64).contiguous()
    return hashlib.sha256(f"{tuple(plain.shape)}".encode() + plain.numpy().tobytes()).hexdigest()[:32]
