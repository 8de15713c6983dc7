"""Saved results side by side: differences with p-values, and summaries over seeds.

Contract: results as plain data in, text out. Knows nothing of models or of how anything was computed.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from clipvid.evaluation.metrics import paired_bootstrap
from clipvid.evaluation.results import count_videos
from clipvid.evaluation.saved import directions
from clipvid.runtime.text import pluralize


def compare(a: Mapping[str, Any], b: Mapping[str, Any], *, n: int = 10_000, seed: int = 0) -> str:
    """Return a table of two saved results: every metric, its difference b - a, and the paired-bootstrap p-value.

    `n` bootstrap samples are drawn with `seed`. Raises ValueError if task or data differ: the queries are not the same.
    """
    _check_comparable(a, b)
    lines = [f"{name}: {_description(result)}" for name, result in (("a", a), ("b", b))]
    lines.append(f"{'':<14}{'a':>8}{'b':>8}{'b - a':>9}   {'95 %':<18}p")
    for (direction, side_a, each_a), (_, side_b, each_b) in zip(directions(a), directions(b), strict=True):
        for metric in (m for m in side_a if m in side_b):
            name = f"{direction} {metric}".strip()
            line = f"{name:<14}{side_a[metric]:>8.2f}{side_b[metric]:>8.2f}{side_b[metric] - side_a[metric]:>+9.2f}"
            if metric in each_a and metric in each_b:
                scale = 1 if metric == "MnR" else 100
                difference = paired_bootstrap(np.asarray(each_a[metric]), np.asarray(each_b[metric]), n=n, seed=seed)
                low, high = (scale * limit for limit in difference.interval)
                interval = f"[{low:+.2f}, {high:+.2f}]"
                line += f"   {interval:<18}{difference.p:.3g}"
            lines.append(line)
    return "\n".join(lines)


def summarize(results: Sequence[Mapping[str, Any]]) -> str:
    """Return mean and standard deviation (n - 1) of every metric over runs that differ in their seed only.

    Raises ValueError for fewer than two results, for different tasks, data or settings, and for duplicate models.
    """
    if len(results) < 2:
        raise ValueError(f"results must be two or more, got {len(results)}; give runs of several seeds")
    for result in results[1:]:
        _check_comparable(results[0], result)
    for result in results[1:]:
        if differing := [name for name, value in _settings(result).items() if value != _settings(results[0])[name]]:
            raise ValueError(
                f"results must differ in their seed only, got different {', '.join(differing)}; use compare for two "
                "results of different settings"
            )
    fingerprints = [result["model"]["fingerprint"] for result in results]
    if len(set(fingerprints)) < len(fingerprints):
        raise ValueError("results must be of different models, got the same fingerprint twice; give one result per run")
    lines = [_description(results[0]), f"{'':<14}{'mean':>8}{'std':>8}   of {len(results)} runs"]
    for sides in zip(*(directions(result) for result in results), strict=True):
        for metric in (name for name in sides[0][1] if all(name in metrics for _, metrics, _ in sides)):
            values = [metrics[metric] for _, metrics, _ in sides]
            name = f"{sides[0][0]} {metric}".strip()
            runs = "  ".join(f"{value:.2f}" for value in values)
            lines.append(f"{name:<14}{statistics.fmean(values):>8.2f}{statistics.stdev(values):>8.2f}   {runs}")
    return "\n".join(lines)


def _settings(result: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings that affect metrics, which runs that differ in their seed only have in common."""
    ignored = ("batch_size", "workers", "time_limit")
    model = {f"model.{name}": value for name, value in result["model"].items() if name != "fingerprint"}
    data_config = {f"data_config.{name}": value for name, value in result["data_config"].items() if name not in ignored}
    return {**model, **data_config, **{name: result.get(name) for name in ("similarity", "prompts", "precision")}}


def _check_comparable(a: Mapping[str, Any], b: Mapping[str, Any]) -> None:
    """Raise ValueError if task or data differ."""
    if a["task"] != b["task"]:
        raise ValueError(
            f"results must be of one task, got {a['task']} and {b['task']}; compare results of the same task"
        )
    if a["data"]["hash"] != b["data"]["hash"]:
        raise ValueError(
            f"results must be of the same queries, got {a['data']['name']} ({a['data']['videos']} videos, hash "
            f"{a['data']['hash'][:8]}) and {b['data']['name']} ({b['data']['videos']}, {b['data']['hash'][:8]}); "
            "evaluate both models on the same files and captions"
        )


def _description(result: Mapping[str, Any]) -> str:
    """Return model, data and settings of a result in one line."""
    model, data, data_config = result["model"], result["data"], result["data_config"]
    similarity, prompts, tokens = result.get("similarity"), result.get("prompts"), data_config.get("tokens")
    views = data_config["temporal_views"] * data_config["spatial_views"]
    parts = [
        f"{model['base']}, {model['branch']} ({model['fingerprint'][:8]}); {data['name']}",
        count_videos(data["videos"], data["expected"], data.get("listed")),
        pluralize(data_config["frames"], "frame") + ("" if views == 1 else f" x {views} views"),
        *([] if similarity in (None, "mean") else [similarity]),
        *([f"captions of {tokens} tokens"] if tokens else []),
        *([f"prompts {', '.join(prompts)}"] if prompts else []),
        result["precision"],
    ]
    return ", ".join(parts)
