"""Saved results side by side: differences with p-values, and summaries over seeds.

Contract: results as plain data in, text out. Knows nothing of models or of how anything was computed.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from clipvid.evaluation.metrics import paired_bootstrap
from clipvid.evaluation.results import count_videos, directions
from clipvid.runtime.text import pluralize


def compare(a: Mapping[str, Any], b: Mapping[str, Any], *, n: int = 10_000, seed: int = 0) -> str:
    """Two results side by side, figure by figure, with the paired-bootstrap p-value of each difference.

    Raises ValueError for results of other tasks or other data: their queries are not the same.
    """
    _check_comparable(a, b)
    lines = [f"{name}: {_said(result)}" for name, result in (("a", a), ("b", b))]
    lines.append(f"{'':<14}{'a':>8}{'b':>8}{'b - a':>9}   {'95 %':<18}p")
    for (side, ours, own), (_, theirs, their) in zip(directions(a), directions(b), strict=True):
        for figure in (f for f in ours if f in theirs):
            name = f"{side} {figure}".strip()
            line = f"{name:<14}{ours[figure]:>8.2f}{theirs[figure]:>8.2f}{theirs[figure] - ours[figure]:>+9.2f}"
            if figure in own and figure in their:
                scale = 1 if figure == "MnR" else 100
                found = paired_bootstrap(np.asarray(own[figure]), np.asarray(their[figure]), n=n, seed=seed)
                low, high = (scale * limit for limit in found.interval)
                span = f"[{low:+.2f}, {high:+.2f}]"
                line += f"   {span:<18}{found.p:.3g}"
            lines.append(line)
    return "\n".join(lines)


def summarize(results: Sequence[Mapping[str, Any]]) -> str:
    """Runs of one recipe with other seeds: mean and standard deviation (n - 1) of every figure.

    Raises ValueError for fewer than two results, for other tasks or data, and for the same model twice.
    """
    if len(results) < 2:
        raise ValueError(f"mean and deviation need two results or more, got {len(results)}")
    for result in results[1:]:
        _check_comparable(results[0], result)
    for result in results[1:]:
        if differing := [name for name, value in _recipe(result).items() if value != _recipe(results[0])[name]]:
            raise ValueError(
                f"the results are of different recipes: they differ in {', '.join(differing)}; compare takes two of "
                "any recipe"
            )
    known = [result["model"]["fingerprint"] for result in results]
    if len(set(known)) < len(known):
        raise ValueError("two of the results are of one and the same model, not of runs of their own")
    lines = [_said(results[0]), f"{'':<14}{'mean':>8}{'std':>8}   of {len(results)} runs"]
    for sides in zip(*(directions(result) for result in results), strict=True):
        for figure in (name for name in sides[0][1] if all(name in numbers for _, numbers, _ in sides)):
            values = [numbers[figure] for _, numbers, _ in sides]
            name = f"{sides[0][0]} {figure}".strip()
            runs = "  ".join(f"{value:.2f}" for value in values)
            lines.append(f"{name:<14}{statistics.fmean(values):>8.2f}{statistics.stdev(values):>8.2f}   {runs}")
    return "\n".join(lines)


def _recipe(result: Mapping[str, Any]) -> dict[str, Any]:
    """What runs with other seeds have in common: all that decides figures."""
    idle = ("batch_size", "workers", "time_limit")
    model = {f"model {name}": value for name, value in result["model"].items() if name != "fingerprint"}
    data_config = {f"reading {name}": value for name, value in result["data_config"].items() if name not in idle}
    return {**model, **data_config, **{name: result.get(name) for name in ("similarity", "prompts", "precision")}}


def _check_comparable(a: Mapping[str, Any], b: Mapping[str, Any]) -> None:
    if a["task"] != b["task"]:
        raise ValueError(f"the results are of {a['task']} and of {b['task']}; compare results of one task")
    if a["data"]["hash"] != b["data"]["hash"]:
        raise ValueError(
            f"the results are not of the same queries: {a['data']['name']} ({a['data']['videos']} videos, hash "
            f"{a['data']['hash'][:8]}) and {b['data']['name']} ({b['data']['videos']}, {b['data']['hash'][:8]}); "
            "evaluate both models on the same files and captions"
        )


def _said(result: Mapping[str, Any]) -> str:
    model, data, data_config = result["model"], result["data"], result["data_config"]
    what, prompts, tokens = result.get("similarity"), result.get("prompts"), data_config.get("tokens")
    views = data_config["temporal_views"] * data_config["spatial_views"]
    parts = [
        f"{model['base']}, {model['branch']} ({model['fingerprint'][:8]}); {data['name']}",
        count_videos(data["videos"], data["expected"], data.get("listed")),
        pluralize(data_config["frames"], "frame") + ("" if views == 1 else f" x {views} views"),
        *([] if what in (None, "mean") else [what]),
        *([f"captions of {tokens} tokens"] if tokens else []),
        *([f"prompts {', '.join(prompts)}"] if prompts else []),
        result["precision"],
    ]
    return ", ".join(parts)
