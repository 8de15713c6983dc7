"""Results as plain data: reading saved ones, and the tables and summaries that saved and fresh results share.

Contract: the content of a result's JSON file in, tables out. A result can be compared, summarised and tabulated from
this content alone; the outcome of every query as a table (`per_query`) needs the Parquet file beside it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import msgspec

from clipvid.errors import CheckpointError
from clipvid.evaluation.metrics.bootstrap import cell
from clipvid.evaluation.metrics.retrieval import SHOWN
from clipvid.runtime.display.tables import data_frame, html_table
from clipvid.runtime.files import read_file
from clipvid.runtime.optional import require
from clipvid.runtime.storage.manifest import hash_file
from clipvid.runtime.storage.schema import convert
from clipvid.runtime.text import first_line, pluralize

if TYPE_CHECKING:
    import pandas as pd

FORMAT = 3
"""Version of the format that is written. Version 2, which is read too, has no checksum."""
CHECKSUM, QUERIES = "checksum", "queries"
"""Keys of the hash of a result's other content, and of that of its Parquet file of queries."""
QUERIES_FORMAT = 1
"""Format version of the Parquet file of queries, stored in its metadata."""
Side = tuple[str, Mapping[str, float], Mapping[str, Any]]
"""Name of a retrieval direction, its metrics, and per-query scores by metric."""

REQUIRED_KEYS: dict[str, tuple[str, ...]] = {
    "model": ("base", "branch", "fingerprint"),
    "data": ("name", "videos", "expected", "hash"),
    "data_config": ("frames", "temporal_views", "spatial_views"),
    "metrics": (),
}
"""Keys that comparisons need, by part of a result, besides `task` and `precision`."""


class _Model(msgspec.Struct):
    base: str
    branch: str
    fingerprint: str
    pretrained: str | None = None


class _Data(msgspec.Struct):
    name: str
    videos: int
    expected: int | None
    hash: str
    listed: int | None = None


class _DataConfig(msgspec.Struct):
    frames: int
    temporal_views: int
    spatial_views: int
    tokens: int | None = None


class _Side(msgspec.Struct):
    """Metrics of one direction, beside which its values are."""

    intervals: dict[str, tuple[float, float]] = {}
    each: dict[str, list[float]] = {}
    queries: int | None = None
    videos: int | None = None


class _Content(msgspec.Struct):
    """The parts of a result that tables and comparisons read."""

    task: Literal["retrieval", "recognition"]
    precision: str
    model: _Model
    data: _Data
    data_config: _DataConfig
    metrics: dict[str, Any]
    similarity: str | None = None
    prompts: list[str] = []
    adjusted: dict[str, dict[str, Any]] = {}


class SavedResult(dict[str, Any]):
    """The content of a result's JSON file, a dictionary; `path` is the file."""

    def __init__(self, content: Mapping[str, Any], *, path: Path | None = None) -> None:
        super().__init__(content)
        self.path = path

    def to_frame(self) -> pd.DataFrame:
        """Return one row per metric, as `EvaluationResult.to_frame` does."""
        settings = _settings_columns(self)
        return data_frame(((*settings.values(), *row) for row in metric_rows(self)), [*settings, *MetricRow._fields])

    def per_query(self, direction: str | None = None) -> pd.DataFrame:
        """Return one row per query, as `EvaluationResult.per_query` does, from the Parquet file beside this result.

        Raise CheckpointError if the result was saved without that file, or if the file belongs to another result.
        """
        if self.path is None or not queries_path(self.path).is_file():
            raise CheckpointError(
                f"{self.path or 'this result'} was saved without its queries; evaluate again and save them with "
                "result.save(path, per_query=True)"
            )
        direction = checked_direction(self["task"], direction)
        if QUERIES in self and hash_file(queries_path(self.path)) != self[QUERIES]:
            raise CheckpointError(
                f"{queries_path(self.path)} is damaged or belongs to another result than {self.path}; evaluate again "
                "and save both"
            )
        frame = _read_queries(queries_path(self.path))
        if (older := frame.attrs.pop("result", None)) is not None and older != checksum(self):
            raise CheckpointError(
                f"{queries_path(self.path)} belongs to another result than {self.path}; evaluate again and save both "
                "with result.save(path, per_query=True)"
            )
        if older is None and QUERIES not in self:
            raise CheckpointError(
                f"{queries_path(self.path)} belongs to another result than {self.path}, which was saved without its "
                "queries; evaluate again and save both"
            )
        if direction is not None:
            if "direction" not in frame:
                raise CheckpointError(f"{queries_path(self.path)} is damaged: it has no directions; evaluate again")
            frame = frame.loc[frame["direction"] == direction].drop(columns="direction").reset_index(drop=True)
        return frame

    def __repr__(self) -> str:
        return describe_result(self, name="SavedResult")

    def _repr_html_(self) -> str:
        return html_result(self)


def read_result(path: str | Path) -> SavedResult:
    """Read a saved result; raise CheckpointError for a missing, incomplete or other file, or one of another format."""
    if not Path(path).is_file():
        raise CheckpointError(f"there is no result {path}; write it with clipvid eval DATA --out {path}")
    try:
        result = json.loads(read_file(path).decode("utf-8"))
        version = result["format_version"] if "format_version" in result else result["format"]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        reason = "it is no JSON" if isinstance(error, ValueError | RecursionError) else "it has no format version"
        raise CheckpointError(f"{path} is not a saved result: {reason}; write one with clipvid eval --out") from error
    if version not in (2, FORMAT):  # checked before the keys, which differ between formats
        raise CheckpointError(
            f"{path} has result format {version!r}, this version of clipvid reads 2 and {FORMAT}; evaluate the model "
            "again with clipvid eval --out"
        )
    if (version == FORMAT or CHECKSUM in result) and result.get(CHECKSUM) != checksum(result):
        raise CheckpointError(
            f"{path} is damaged or was edited: its content has changed since it was written; evaluate the model again"
        )
    if missing := _missing_keys(result):
        raise CheckpointError(
            f"{path} is an incomplete result: {', '.join(missing)} missing; evaluate the model again with clipvid eval "
            "--out"
        )
    _check_schema(result, path=Path(path))
    for metrics in (result["metrics"], *result.get("adjusted", {}).values()):
        for side in [metrics[name] for name in ("t2v", "v2t") if name in metrics] or [metrics]:
            if "intervals" in side:  # JSON may have whole numbers for bounds
                side["intervals"] = {name: [float(low), float(high)] for name, (low, high) in side["intervals"].items()}
    return SavedResult(result, path=Path(path))


def _check_schema(result: Mapping[str, Any], *, path: Path) -> None:
    """Raise CheckpointError for a part of a result of another type than tables and comparisons take."""
    refusal: dict[str, Any] = {"source": path, "error": CheckpointError, "advice": "evaluate the model again"}
    content = convert(dict(result), _Content, **refusal)
    for metrics in (content.metrics, *content.adjusted.values()):
        nested = [metrics[name] for name in ("t2v", "v2t") if name in metrics]
        for side in [convert(each, _Side, **refusal) for each in nested or [metrics]]:
            if len({len(values) for values in side.each.values()}) > 1:
                raise CheckpointError(
                    f"{path} is damaged: its metrics have different numbers of queries; evaluate the model again"
                )


def _missing_keys(result: Mapping[str, Any]) -> list[str]:
    """Return the keys that comparisons need and `result` lacks, nested ones with dots."""
    missing = [name for name in ("task", "precision") if name not in result]
    for part, keys in REQUIRED_KEYS.items():
        values = result.get(part)
        if not isinstance(values, Mapping) or not values:
            missing.append(part)
            continue
        missing += [f"{part}.{key}" for key in keys if key not in values]
        if part == "metrics" and result.get("task") == "retrieval":
            missing += [f"{part}.{side}" for side in ("t2v", "v2t") if not isinstance(values.get(side), Mapping)]
    return missing


def directions(result: Mapping[str, Any]) -> list[Side]:
    """Return each retrieval direction of a result; recognition has a single one without a name."""
    metrics = result["metrics"]
    sides = metrics.items() if result["task"] == "retrieval" else [("", metrics)]
    return [(name, metrics_of(side), side.get("each", {})) for name, side in sides]


def metrics_of(side: Mapping[str, Any]) -> dict[str, float]:
    """Return the metrics of a direction, without counts, intervals and per-query scores."""
    return {name: value for name, value in side.items() if isinstance(value, float)}


class MetricRow(NamedTuple):
    """One metric of a result."""

    adjustment: str | None
    """Adjustment of the scores, such as a dual softmax; None for plain scores."""
    direction: str | None
    """t2v or v2t; None for recognition."""
    metric: str
    value: float
    low: float
    high: float
    """Limits of the 95 % interval; not a number where the result has none."""
    queries: int


def metric_rows(result: Mapping[str, Any]) -> Iterator[MetricRow]:
    """Yield every metric of a result, those of adjusted scores last."""
    for adjustment, metrics in {None: result["metrics"], **result.get("adjusted", {})}.items():
        nested = {name: side for name, side in metrics.items() if name in ("t2v", "v2t")}
        # QB-Norm adjusts text to video alone, and its metrics are not nested.
        single = None if result["task"] == "recognition" else "t2v"
        for direction, side in (nested or {single: metrics}).items():
            for name, value in metrics_of(side).items():
                low, high = side.get("intervals", {}).get(name, (float("nan"),) * 2)
                yield MetricRow(adjustment, direction, name, value, low, high, side.get("queries", side.get("videos")))


def _settings_columns(result: Mapping[str, Any]) -> dict[str, Any]:
    """Return the columns that tell results apart: model, data and settings."""
    model, data, data_config = result["model"], result["data"], result["data_config"]
    prompts = result.get("prompts")
    return {
        "model": model["base"],
        "pretrained": model.get("pretrained"),
        "branch": model["branch"],
        "fingerprint": model["fingerprint"],
        "data": data["name"],
        "videos": data["videos"],
        "frames": data_config["frames"],
        "views": data_config["temporal_views"] * data_config["spatial_views"],
        "precision": result["precision"],
        "task": result["task"],
        "similarity": result.get("similarity"),
        "prompts": "; ".join(prompts) if prompts else None,
    }


def describe_result(result: Mapping[str, Any], *, name: str) -> str:
    """Return a result in one line: task, data, and the first metric of each direction."""
    heads = []
    for direction, metrics, _ in directions(result):
        metric, value = next(iter(metrics.items()), ("no metric", float("nan")))
        heads.append(f"{direction} {metric} {value:.1f}".strip())
    data = f"{result['data']['name']}, {pluralize(result['data']['videos'], 'video')}"
    return f"{name}({result['task']} on {data}: {', '.join(heads)})"


def html_result(result: Mapping[str, Any]) -> str:
    """Return a small HTML table of the shown metrics with their intervals, one row per direction and adjustment."""
    table: dict[tuple[str, str], dict[str, str]] = {}
    for row in metric_rows(result):
        if row.metric in SHOWN or result["task"] == "recognition":
            text = cell(row.value, (row.low, row.high))
            table.setdefault((row.adjustment or "", row.direction or ""), {})[row.metric] = text
    names = list(dict.fromkeys(name for cells in table.values() for name in cells))
    rows = [[" ".join(key).strip(), *(cells.get(name, "") for name in names)] for key, cells in table.items()]
    model, data = result["model"], result["data"]
    videos, frames = pluralize(data["videos"], "video"), pluralize(result["data_config"]["frames"], "frame")
    title = f"{model['base']}, {model['branch']}: {result['task']} on {data['name']}, {videos}, {frames}"
    return html_table(title, ["", *names], rows)


def checked_direction(task: str, direction: str | None) -> str | None:
    """Return the direction of a table of queries: t2v unless given, None for recognition; ValueError for another."""
    allowed = ("t2v", "v2t") if task == "retrieval" else ()
    if direction is not None and direction not in allowed:
        allowed_text = f"one of {', '.join(allowed)}" if allowed else "left out for recognition"
        advice = "t2v has a row per caption, v2t one per video" if allowed else "its table has a row per clip"
        raise ValueError(f"direction must be {allowed_text}, got {direction!r}; {advice}")
    return direction or (allowed[0] if allowed else None)


def queries_path(path: Path) -> Path:
    """Return the Parquet file of queries that belongs to a result's JSON file: a.queries.parquet for a.json."""
    return path.with_name(f"{path.stem}.queries.parquet")


def write_queries(path: Path, frames: Mapping[str, pd.DataFrame]) -> None:
    """Write the queries of each direction to a Parquet file."""
    import pandas as pd

    require("pyarrow", why="writing Parquet")
    named = [frame.assign(direction=direction) if direction else frame for direction, frame in frames.items()]
    table = pd.concat(named, ignore_index=True)
    table.attrs = {"format_version": QUERIES_FORMAT}  # pandas stores them in the file
    table.to_parquet(path, index=False)


def _read_queries(path: Path) -> pd.DataFrame:
    """Read a Parquet file of queries; raise CheckpointError for a damaged or other file."""
    import pandas as pd

    require("pyarrow", why="reading Parquet")
    from pyarrow import parquet

    advice = "evaluate again and save both files with result.save(path, per_query=True)"
    try:
        parquet.read_table(path).validate(full=True)  # pandas decodes texts only when they are used
        frame = pd.read_parquet(path)
    except Exception as error:  # pyarrow and pandas raise errors of many kinds for damaged files
        raise CheckpointError(f"{path} cannot be read: {first_line(error)}; {advice}") from error
    if (version := frame.attrs.pop("format_version", None)) != QUERIES_FORMAT:
        raise CheckpointError(
            f"{path} has format {version!r}, this version of clipvid reads {QUERIES_FORMAT}; {advice}"
        )
    return frame


def checksum(result: Mapping[str, Any]) -> str:
    """Return the SHA-256 of a result's content but its checksum, equal before saving and after reading."""
    content = {key: value for key, value in result.items() if key != CHECKSUM}
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
