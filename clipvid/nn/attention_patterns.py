"""Which tokens of a clip attend to which: attention over time, space, rows, columns, windows or grids.

Contract: any self-attention over sequences and the tokens of a clip in, what it adds to them out. Most kinds only fold
the tokens into other sequences (`FOLDS`); the rest keep one sequence of the whole clip and choose its pairs
(`PAIRINGS`). Masked frames are never attended. Knows nothing of weights, towers or branches.
Papers: Bertasius et al., TimeSformer (ICML 2021), section 3; Arnab et al., ViViT (ICCV 2021), section 3.3. Windows of
`local` are ours where the paper gives only their size: exactly half the height and width, shifted inwards at borders.
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

FOLDS = {  # the axes of (B, T, N, D) patches that make a sequence, and those that make the batch of sequences
    "time": "b t n d -> (b n) t d",
    "space": "b t n d -> (b t) n d",
    "joint": "b t n d -> b (t n) d",
    "width": "b t (h w) d -> (b t h) w d",
    "height": "b t (h w) d -> (b t w) h d",
}
Shape = tuple[int, int, int]
Attention = Callable[..., Tensor]
"""Self-attention within sequences (groups, L, D); the keywords `mask` hides keys, `pattern` chooses pairs."""


def attend_in_groups(
    attention: Attention,
    patch: Float[Tensor, "b t n d"],
    *,
    kind: str,
    grid: tuple[int, int],
    cls: Float[Tensor, "b d"] | None = None,
    mask: Bool[Tensor, "b t"] | None = None,
) -> tuple[Float[Tensor, "b d"] | None, Float[Tensor, "b t n d"]]:
    """Attend as `kind` says; the class token joins every sequence, and its answers are averaged.

    Returns what attention gives for the class token (None without one) and for the patches.
    """
    b, t, n = patch.shape[:3]
    fold = FOLDS.get(kind, FOLDS["joint"])
    sizes = {"h": grid[0], "w": grid[1]} if "h w" in fold else {}
    tokens = rearrange(patch, fold, **sizes)
    if cls is not None:
        groups = len(tokens) // b
        tokens = torch.cat([cls[:, None].expand(-1, groups, -1).reshape(-1, 1, cls.shape[-1]), tokens], dim=1)
    extras = {}
    if kind in PAIRINGS:
        extras["pattern"] = partial(PAIRINGS[kind], shape=(t, *grid), mask=mask)
    elif mask is not None and kind in ("time", "joint"):  # the other kinds stay within a frame
        extras["mask"] = _keys(mask, fold, n=n, cls=cls is not None)
    out = attention(tokens, **extras)
    if cls is None:
        return None, _unfold(out, fold, b=b, t=t, n=n, sizes=sizes)
    return _averaged(out[:, 0], kind, mask, b=b, t=t), _unfold(out[:, 1:], fold, b=b, t=t, n=n, sizes=sizes)


def comparisons(kind: str, *, frames: int, grid: tuple[int, int], cls: bool) -> int:
    """Keys that a patch is compared with in a step of this kind (TimeSformer, section 3.3 and figure 2)."""
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
    """Patches attend to the half-height, half-width window around them in all frames, and to the class token.

    The class token itself asks nothing: its rows are zero. Patches with the same window are attended together.
    """
    t, h, w = shape
    first = q.shape[2] - t * h * w  # 1 with a class token, else 0
    q5, k5, v5 = (x[:, :, first:].unflatten(2, shape) for x in (q, k, v))
    rows = []
    for own_rows, seen_rows in _windows(h):
        columns = []
        for own, seen in _windows(w):
            keys = [_with_cls(x, y[:, :, :, seen_rows, seen].flatten(2, 4), first) for x, y in ((k, k5), (v, v5))]
            window = (seen_rows.stop - seen_rows.start) * (seen.stop - seen.start)
            found = attend(q5[:, :, :, own_rows, own].flatten(2, 4), *keys, mask=_frame_keys(mask, window, first=first))
            columns.append(found.unflatten(2, (t, own_rows.stop - own_rows.start, own.stop - own.start)))
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
    """Every token attends to every second patch along time, height and width, and to the class token.

    Without one, a clip of whose frames 0, 2, 4, ... none counts would attend to nothing: ValueError.
    """
    first = q.shape[2] - shape[0] * shape[1] * shape[2]
    keys = [_with_cls(x, x[:, :, first:].unflatten(2, shape)[:, :, ::2, ::2, ::2].flatten(2, 4), first) for x in (k, v)]
    seen, mask = -(-shape[1] // 2) * -(-shape[2] // 2), None if mask is None else mask[:, ::2]
    if mask is not None and not first and not bool(mask.any(dim=1).all()):
        raise ValueError("every second frame is masked in some clip, so its tokens have no keys; let masks end clips")
    return attend(q, *keys, mask=_frame_keys(mask, seen, first=first))


def time_and_space(
    q: Float[Tensor, "b a l d"],
    k: Float[Tensor, "b a l d"],
    v: Float[Tensor, "b a l d"],
    *,
    shape: Shape,
    mask: Bool[Tensor, "b t"] | None = None,
) -> Float[Tensor, "b a l d"]:
    """The first half of the heads attends over time, the second within the frame (ViViT's model 4, figure 6)."""
    t, half = shape[0], q.shape[1] // 2
    over_time = [rearrange(x[:, :half], "b a (t n) d -> (b n) a t d", t=t) for x in (q, k, v)]
    within = [rearrange(x[:, half:], "b a (t n) d -> (b t) a n d", t=t) for x in (q, k, v)]
    n = q.shape[2] // t
    keys = None if mask is None else mask.repeat_interleave(n, dim=0)[:, None, None]
    mixed = rearrange(attend(*over_time, mask=keys), "(b n) a t d -> b a (t n) d", n=n)
    return torch.cat([mixed, rearrange(attend(*within), "(b t) a n d -> b a (t n) d", t=t)], dim=1)


PAIRINGS: dict[str, Callable[..., Tensor]] = {"local": local_windows, "grid": even_grid, "split": time_and_space}
"""Kinds that choose pairs within one sequence of the whole clip."""


def _windows(side: int) -> Iterator[tuple[slice, slice]]:
    """Runs of neighbours that see the same window along one axis, and that window."""
    size = max(1, side // 2)
    starts = [min(max(i - size // 2, 0), side - size) for i in range(side)]
    for start in sorted(set(starts)):
        own = [i for i, s in enumerate(starts) if s == start]
        yield slice(own[0], own[-1] + 1), slice(start, start + size)


def _with_cls(x: Tensor, chosen: Tensor, first: int) -> Tensor:
    return torch.cat([x[:, :, :first], chosen], dim=2) if first else chosen


def _frame_keys(mask: Tensor | None, window: int, *, first: int) -> Tensor | None:
    """(B, T) as a mask of keys: `window` patches of each frame, behind `first` class tokens."""
    if mask is None:
        return None
    keys = mask.repeat_interleave(window, dim=1)
    return torch.cat([keys.new_ones(len(keys), first), keys], dim=1)[:, None, None]


def _keys(mask: Tensor, fold: str, *, n: int, cls: bool) -> Tensor:
    keys = rearrange(mask[:, :, None, None].expand(-1, -1, n, 1), fold)[..., 0]
    return torch.cat([keys.new_ones(len(keys), 1), keys], dim=1) if cls else keys


def _averaged(cls: Tensor, kind: str, mask: Tensor | None, *, b: int, t: int) -> Tensor:
    """The class token's answers of all sequences of a clip -> their mean (B, D)."""
    cls = cls.unflatten(0, (b, -1))
    if kind not in ("space", "height", "width"):
        return cls.mean(dim=1)
    return mean_over_frames(cls.unflatten(1, (t, -1)).mean(dim=2), mask)


def _unfold(out: Tensor, fold: str, *, b: int, t: int, n: int, sizes: dict[str, int]) -> Tensor:
    axes, folded = fold.split(" -> ")
    return rearrange(out, f"{folded} -> {axes}", b=b, t=t, **(sizes or {"n": n}))
