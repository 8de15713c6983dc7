"""Embeddings of captions by a frozen text tower, cached on disk: the same captions are embedded once for all runs.

Contract: a model, token ids and the function that embeds them in; that function's result, new or cached, out, bit for
bit. A file holds the embeddings of one batch, because the last bits of a row may differ in another batch. Files are
written atomically. Knows nothing of tokenizers or of the videos that captions belong to.
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
"""Name of the single tensor in a file."""


class TextCache:
    """Caption embeddings in the folder of a tap cache."""

    def __init__(self, folder: str | Path) -> None:
        self.folder: Path = Path(folder)

    def cache_key(self, backbone: Backbone, precision: str) -> TextCacheKey:
        """Return the key of this text tower's embeddings. It hashes all weights, so call it once for many ids."""
        return TextCacheKey(backbone.text_fingerprint, resolve(precision, backbone.device))

    def embedded(
        self, cache_key: TextCacheKey, ids: Int[Tensor, "m ctx"], embed: Callable[[Tensor], Tensor]
    ) -> Float[Tensor, "m e"]:
        """Return the embeddings of these token ids from the cache, or from `embed` and store them; float32, on the CPU.

        `ids` (truncated) are one batch, reused only for the same ids in the same order.
        Raises CacheError for a damaged file, and if a new one cannot be written.
        """
        folder, name = self.folder / cache_key.key, _hash(ids)
        keys = [f"{name}:{row}" for row in range(len(ids))]
        path = folder / f"{name}{SUFFIX}"
        if path.exists():
            repair_cache_key(folder, cache_key)
            return read_shard(path, keys)[NAME]
        embeddings = embed(ids).float().cpu()
        try:
            write_cache_key(folder, cache_key)
            write_shard(folder, keys, {NAME: embeddings}, name=name)
        except OSError as error:
            raise CacheError(describe_os_error(error)) from error
        return embeddings


def _hash(ids: Tensor) -> str:
    """Return a hash of token ids and their shape."""
    canonical = ids.detach().cpu().to(torch.int64).contiguous()
    return hashlib.sha256(f"{tuple(canonical.shape)}".encode() + canonical.numpy().tobytes()).hexdigest()[:32]
