"""Results side by side: differences with p-values, and summaries over seeds.

Contract: results as plain data or fresh ones in, tables out: text, Markdown, LaTeX, CSV, a DataFrame. Knows nothing of
models or of how anything was computed.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from string import ascii_lowercase
from typing import TYPE_CHECKING, Any

import numpy as np

from clipvid.config import checks
from clipvid.evaluation.metrics import Difference, paired_bootstrap
from clipvid.evaluation.results import EvaluationResult, count_videos
from clipvid.evaluation.saved import directions
from clipvid.runtime.display.tables import data_frame, html_table, latex_table, latex_text, markdown_table
from clipvid.runtime.text import pluralize

if TYPE_CHECKING:
    import pandas as pd

Result = EvaluationResult[Any] | Mapping[str, Any]
"""A fresh result, or the content of a saved one (`read_result`)."""


@dataclass(frozen=True)
class ComparedMetric:
    """One metric of several results, with its differences from the first result."""

    name: str
    """Direction and metric, such as "t2v R@1"."""
    values: tuple[float, ...]
    tests: tuple[Difference | None, ...]
    """Paired test of each result after the first, in the metric's unit; None for a metric without values per query."""


@dataclass(frozen=True, repr=False)
class Comparison:
    """Metrics of several results on the same queries; `str()` is a table, and `to_frame` has every number."""

    names: tuple[str, ...]
    descriptions: tuple[str, ...]
    """Model, data and settings of each result."""
    metrics: tuple[ComparedMetric, ...]

    def to_frame(self) -> pd.DataFrame:
        """Return one row per metric and result.

        Columns: metric, result, value, difference (from the first result), low, high (its 95 % interval) and p; the
        last four are not a number for the first result, and the last three for a metric without values per query.
        """
        rows = []
        for metric in self.metrics:
            for name, value, test in zip(self.names, metric.values, (None, *metric.tests), strict=True):
                low, high, p = (float("nan"),) * 3 if test is None else (*test.interval, test.p)
                difference = float("nan") if name == self.names[0] else value - metric.values[0]
                rows.append((metric.name, name, value, difference, low, high, p))
        return data_frame(rows, ["metric", "result", "value", "difference", "low", "high", "p"])

    def to_dict(self) -> dict[str, Any]:
        """Return the results and the rows of `to_frame` as plain data; None where a number does not apply."""
        frame = self.to_frame()
        rows = frame.astype(object).where(frame.notna(), None).to_dict("records")
        return {"results": dict(self._legend()), "metrics": rows}

    def to_csv(self) -> str:
        """Return the rows of `to_frame` as CSV."""
        return self.to_frame().to_csv(index=False)

    def to_markdown(self) -> str:
        """Return a Markdown list of the results and a table of their metrics."""
        legend = [f"- {name}: {text}" for name, text in self._legend()]
        return "\n".join([*legend, "", markdown_table(*self._cells())])

    def to_latex(self) -> str:
        """Return a LaTeX tabular of the metrics (package booktabs), below comments that describe the results."""
        legend = [f"% {latex_text(name)}: {' '.join(text.split())}" for name, text in self._legend()]
        return "\n".join([*legend, latex_table(*self._cells())])

    def _legend(self) -> list[tuple[str, str]]:
        return list(zip(self.names, self.descriptions, strict=True))

    def _cells(self) -> tuple[list[str], list[list[str]]]:
        """Return header and rows: every value, then difference with interval and p-value of each later result."""
        first, *later = self.names
        header = ["metric", *self.names]
        for name in later:
            header += [f"{name} - {first} [95 %]", "p"]
        rows = []
        for metric in self.metrics:
            row = [metric.name, *(f"{value:.2f}" for value in metric.values)]
            for value, test in zip(metric.values[1:], metric.tests, strict=True):
                interval = "" if test is None else " [{:+.2f}, {:+.2f}]".format(*test.interval)
                row += [f"{value - metric.values[0]:+.2f}{interval}", "" if test is None else f"{test.p:.3g}"]
            rows.append(row)
        return header, rows

    def __str__(self) -> str:
        first, *later = self.names
        widths = [max(8, len(name) + 2) for name in self.names]
        head = f"{'':<14}" + "".join(f"{name:>{width}}" for name, width in zip(self.names, widths, strict=True))
        columns = [max(9, len(f"{name} - {first}") + 2) for name in later]
        for name, width in zip(later, columns, strict=True):
            head += f"{f'{name} - {first}':>{width}}   {'95 %':<18}{'p':<9}"
        lines = [*(f"{name}: {text}" for name, text in self._legend()), head.rstrip()]
        for metric in self.metrics:
            line = f"{metric.name:<14}"
            line += "".join(f"{value:>{width}.2f}" for value, width in zip(metric.values, widths, strict=True))
            for value, test, width in zip(metric.values[1:], metric.tests, columns, strict=True):
                interval = "" if test is None else "[{:+.2f}, {:+.2f}]".format(*test.interval)
                p = "" if test is None else f"{test.p:.3g}"
                line += f"{value - metric.values[0]:>+{width}.2f}   {interval:<18}{p:<9}"
            lines.append(line.rstrip())
        return "\n".join(lines)

    def __repr__(self) -> str:
        shown = f"{pluralize(len(self.metrics), 'metric')} of {pluralize(len(self.names), 'result')}"
        return f"Comparison({shown}: {', '.join(self.names)})"

    def _repr_html_(self) -> str:
        title = "; ".join(f"{name}: {text}" for name, text in self._legend())
        return html_table(title, *self._cells(), limit=len(self.metrics))


def compare(*results: Result, names: Sequence[str] = (), n_resamples: int = 10_000, seed: int = 0) -> Comparison:
    """Compare two or more results on the same queries: every metric, and a paired test of each result with the first.

    The test is the paired bootstrap over queries, with `n_resamples` samples drawn with `seed`; p-values are not
    corrected for the number of results and metrics. `names` are those of the results, a, b, c, ... unless given.
    Raises ValueError if task or data differ, as the queries are then not the same, for fewer than two results, and for
    more than 26 without names.
    """
    checks.integer("n_resamples", n_resamples, 1, advice="take 1000 or more")
    contents = _contents(results, advice="give more")
    if len(contents) > len(ascii_lowercase) and not names:
        raise ValueError(
            f"names must be given for more than {len(ascii_lowercase)} results, got {len(contents)} results; pass "
            "names="
        )
    labels = tuple(checks.texts("names", names, advice="give one name per result")) or tuple(
        ascii_lowercase[: len(contents)]
    )
    if len(labels) != len(contents) or len(set(labels)) < len(labels):
        raise ValueError(f"names must be {len(contents)} different ones, got {labels}; give one per result")
    for content in contents[1:]:
        _check_comparable(contents[0], content)
    metrics = []
    for sides in zip(*(directions(content) for content in contents), strict=True):
        for metric in (name for name in sides[0][1] if all(name in values for _, values, _ in sides)):
            each = [per_query.get(metric) for _, _, per_query in sides]
            tests = tuple(
                _test(each[0], later, metric=metric, n_resamples=n_resamples, seed=seed) for later in each[1:]
            )
            values = tuple(values[metric] for _, values, _ in sides)
            metrics.append(ComparedMetric(f"{sides[0][0]} {metric}".strip(), values, tests))
    return Comparison(labels, tuple(_description(content) for content in contents), tuple(metrics))


def _contents(results: Sequence[Any], *, advice: str) -> list[Mapping[str, Any]]:
    """Return the results as plain data; raise ValueError for fewer than two, and for other objects."""
    kinds = "give results of evaluate_*, or read saved ones by read_result"
    for result in results:
        checks.of_type("results", result, (EvaluationResult, Mapping), must="results of evaluations", advice=kinds)
    if len(results) < 2:
        raise ValueError(f"results must be two or more, got {len(results)}; {advice}")
    return [result.to_dict() if isinstance(result, EvaluationResult) else result for result in results]


def _test(a: Any, b: Any, *, metric: str, n_resamples: int, seed: int) -> Difference | None:
    """Return the paired test of values per query, in the metric's unit; None if either result has no such values."""
    if a is None or b is None:
        return None
    scale = 1 if metric == "MnR" else 100
    test = paired_bootstrap(np.asarray(a), np.asarray(b), n_resamples=n_resamples, seed=seed)
    low, high = test.interval
    return Difference(scale * test.mean, (scale * low, scale * high), test.p)


def summarize(*results: Result) -> str:
    """Return mean and standard deviation (n - 1) of every metric over runs that differ in their seed only.

    Raises ValueError for fewer than two results, for different tasks, data or settings, and for duplicate models.
    """
    contents = _contents(results, advice="give runs of several seeds")
    first, *others = contents
    for content in others:
        _check_comparable(first, content)
    for content in others:
        if differing := [name for name, value in _settings(content).items() if value != _settings(first)[name]]:
            raise ValueError(
                f"results must differ in their seed only, got different {', '.join(differing)}; use compare for two "
                "results of different settings"
            )
    fingerprints = [content["model"]["fingerprint"] for content in contents]
    if len(set(fingerprints)) < len(fingerprints):
        repeated = next(name for name in fingerprints if fingerprints.count(name) > 1)
        raise ValueError(
            f"results must be of different models, got the same fingerprint twice ({repeated[:8]}); give one result "
            "per run"
        )
    lines = [_description(first), f"{'':<14}{'mean':>8}{'std':>8}   of {len(contents)} runs"]
    for sides in zip(*(directions(content) for content in contents), strict=True):
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
