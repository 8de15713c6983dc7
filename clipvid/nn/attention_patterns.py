"""Attention patterns over the tokens of a clip: time, space, rows, columns, windows or grids.

Contract: a self-attention over sequences and the tokens of a clip in, the attention residual of each token out. Most
kinds only regroup the tokens into other sequences (`FOLDS`). The others treat the clip as one sequence and restrict
the query-key pairs (`PAIRINGS`). Masked frames are never attended. Knows nothing of weights, towers or branches.
Papers: Bertasius et al., TimeSformer (ICML 2021), section 3; Arnab et al., ViViT (ICCV 2021), section 3.3. The paper
gives only the size of the `local` windows; their position is ours: exactly half the height and width, shifted inwards
at borders.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

import torch
from einops import rearrange
from jaxtyping import Bool, Float
from torch import Tensor

from clipvid.nn.attention import attend
from clipvid.nn.pooling import mean_over_frames

FOLDS = {  # einops patterns that split the axes of (B, T, N, D) patches into sequences and batches of sequences
    "time": "b t n d -> (b n) t d",
    "space": "b t n d -> (b t) n d",
    "joint": "b t n d -> b (t n) d",
    "width": "b t (h w) d -> (b t h) w d",
    "height": "b t (h w) d -> (b t w) h d",
}
Shape = tuple[int, int, int]
Attention = Callable[..., Tensor]
"""Self-attention within sequences (groups, L, D); keyword `mask` hides keys, `pattern` selects query-key pairs."""


def attend_in_groups(
    attention: Attention,
    patch: Float[Tensor, "b t n d"],
    *,
    kind: str,
    grid: tuple[int, int],
    cls: Float[Tensor, "b d"] | None = None,
    mask: Bool[Tensor, "b t"] | None = None,
) -> tuple[Float[Tensor, "b d"] | None, Float[Tensor, "b t n d"]]:
    """Apply attention of one `kind`; the class token joins every sequence, and its outputs are averaged.

    Returns the attention output of the class token (None without one) and of the patches.
    """
    b, t, n = patch.shape[:3]
    fold = FOLDS.get(kind, FOLDS["joint"])
    sizes = {"h": grid[0], "w": grid[1]} if "h w" in fold else {}
    tokens = rearrange(patch, fold, **sizes)
    if cls is not None:
        groups = len(tokens) // b
        tokens = torch.cat([cls[:, None].expand(-1, groups, -1).reshape(-1, 1, cls.shape[-1]), tokens], dim=1)
    options = {}
    if kind in PAIRINGS:
        options["pattern"] = partial(PAIRINGS[kind], shape=(t, *grid), mask=mask)
    elif mask is not None and kind in ("time", "joint"):  # the other kinds stay within a frame
        options["mask"] = _key_mask(mask, fold, n=n, cls=cls is not None)
    out = attention(tokens, **options)
    if cls is None:
        return None, _unfold(out, fold, b=b, t=t, n=n, sizes=sizes)
    return _mean_cls(out[:, 0], kind, mask, b=b, t=t), _unfold(out[:, 1:], fold, b=b, t=t, n=n, sizes=sizes)


def comparisons(kind: str, *, frames: int, grid: tuple[int, int], cls: bool) -> int:
    """Return the number of keys per patch in attention of this kind (TimeSformer, section 3.3 and figure 2)."""
    h, w = grid
    keys = {
        "time": frames,
        "space": h * w,
        "joint": frames * h * w,
        "width": w,
        "height": h,
        "local": frames * max(1, h // 2) * max(1, w // 2),
        "grid": -(-frames // 2) * -(-h // 2) * -(-w // 2),
        "split": frames + h * w,
    }
    return keys[kind] + cls


def local_windows(
    q: Float[Tensor, "b a l d"],
    k: Float[Tensor, "b a l d"],
    v: Float[Tensor, "b a l d"],
    *,
    shape: Shape,
    mask: Bool[Tensor, "b t"] | None = None,
) -> Float[Tensor, "b a l d"]:
    """Attend from each patch to the half-height, half-width window around it in all frames, and to the class token.

    The class token has no query: its output rows are zero. Patches with the same window are computed together.
    """
    t, h, w = shape
    first = q.shape[2] - t * h * w  # 1 with a class token, else 0
    q5, k5, v5 = (x[:, :, first:].unflatten(2, shape) for x in (q, k, v))
    rows = []
    for q_rows, k_rows in _windows(h):
        columns = []
        for q_cols, k_cols in _windows(w):
            keys = [_with_cls(x, y[:, :, :, k_rows, k_cols].flatten(2, 4), first) for x, y in ((k, k5), (v, v5))]
            window = (k_rows.stop - k_rows.start) * (k_cols.stop - k_cols.start)
            mixed = attend(
                q5[:, :, :, q_rows, q_cols].flatten(2, 4), *keys, mask=_frame_keys(mask, window, first=first)
            )
            columns.append(mixed.unflatten(2, (t, q_rows.stop - q_rows.start, q_cols.stop - q_cols.start)))
        rows.append(torch.cat(columns, dim=4))
    mixed = torch.cat(rows, dim=3).flatten(2, 4)
    return torch.cat([torch.zeros_like(q[:, :, :first]), mixed], dim=2)


def even_grid(
    q: Float[Tensor, "b a l d"],
    k: Float[Tensor, "b a l d"],
    v: Float[Tensor, "b a l d"],
    *,
    shape: Shape,
    mask: Bool[Tensor, "b t"] | None = None,
) -> Float[Tensor, "b a l d"]:
    """Attend from every token to every second patch along time, height and width, and to the class token.

    Raises ValueError when there is no class token and a clip's frames 0, 2, 4, ... are all masked: its tokens would
    have no keys.
    """
    first = q.shape[2] - shape[0] * shape[1] * shape[2]
    keys = [_with_cls(x, x[:, :, first:].unflatten(2, shape)[:, :, ::2, ::2, ::2].flatten(2, 4), first) for x in (k, v)]
    window, mask = -(-shape[1] // 2) * -(-shape[2] // 2), None if mask is None else mask[:, ::2]
    if mask is not None and not first and not bool(mask.any(dim=1).all()):
        raise ValueError(
            "mask must leave one of frames 0, 2, 4, ... in each clip, got a clip with none; mask only the end of a clip"
        )
    return attend(q, *keys, mask=_frame_keys(mask, window, first=first))


def time_and_space(
    q: Float[Tensor, "b a l d"],
    k: Float[Tensor, "b a l d"],
    v: Float[Tensor, "b a l d"],
    *,
    shape: Shape,
    mask: Bool[Tensor, "b t"] | None = None,
) -> Float[Tensor, "b a l d"]:
    """Attend over time with the first half of the heads, within frames with the rest (ViViT's model 4, figure 6)."""
    t, half = shape[0], q.shape[1] // 2
    over_time = [rearrange(x[:, :half], "b a (t n) d -> (b n) a t d", t=t) for x in (q, k, v)]
    within = [rearrange(x[:, half:], "b a (t n) d -> (b t) a n d", t=t) for x in (q, k, v)]
    n = q.shape[2] // t
    key_mask = None if mask is None else mask.repeat_interleave(n, dim=0)[:, None, None]
    mixed = rearrange(attend(*over_time, mask=key_mask), "(b n) a t d -> b a (t n) d", n=n)
    return torch.cat([mixed, rearrange(attend(*within), "(b t) a n d -> b a (t n) d", t=t)], dim=1)


PAIRINGS: dict[str, Callable[..., Tensor]] = {"local": local_windows, "grid": even_grid, "split": time_and_space}
"""Attention kinds that select query-key pairs within one sequence holding the entire clip."""


def _windows(side: int) -> Iterator[tuple[slice, slice]]:
    """Yield runs of neighbouring positions that share a window along one axis, each with its window."""
    size = max(1, side // 2)
    starts = [min(max(i - size // 2, 0), side - size) for i in range(side)]
    for start in sorted(set(starts)):
        positions = [i for i, s in enumerate(starts) if s == start]
        yield slice(positions[0], positions[-1] + 1), slice(start, start + size)


def _with_cls(x: Tensor, patches: Tensor, first: int) -> Tensor:
    """Return `patches` with the class token of `x`, if any, in front."""
    return torch.cat([x[:, :, :first], patches], dim=2) if first else patches


def _frame_keys(mask: Tensor | None, window: int, *, first: int) -> Tensor | None:
    """Expand a frame mask (B, T) to a key mask: `first` class tokens, then `window` patches per frame."""
    if mask is None:
        return None
    keys = mask.repeat_interleave(window, dim=1)
    return torch.cat([keys.new_ones(len(keys), first), keys], dim=1)[:, None, None]


def _key_mask(mask: Tensor, fold: str, *, n: int, cls: bool) -> Tensor:
    """Expand a frame mask (B, T) to a key mask (groups, L) for sequences folded by `fold`."""
    keys = rearrange(mask[:, :, None, None].expand(-1, -1, n, 1), fold)[..., 0]
    return torch.cat([keys.new_ones(len(keys), 1), keys], dim=1) if cls else keys


def _mean_cls(cls: Tensor, kind: str, mask: Tensor | None, *, b: int, t: int) -> Tensor:
    """Return the mean (B, D) of the class token's outputs over all sequences of a clip."""
    cls = cls.unflatten(0, (b, -1))
    if kind not in ("space", "height", "width"):
        return cls.mean(dim=1)
    return mean_over_frames(cls.unflatten(1, (t, -1)).mean(dim=2), mask)


def _unfold(out: Tensor, fold: str, *, b: int, t: int, n: int, sizes: dict[str, int]) -> Tensor:
    """Return folded sequences as patches (B, T, N, D)."""
    axes, folded = fold.split(" -> ")
    return rearrange(out, f"{folded} -> {axes}", b=b, t=t, **(sizes or {"n": n}))
