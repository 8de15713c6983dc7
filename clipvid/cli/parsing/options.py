"""Options that several commands share, and options derived from the dataclasses of settings.

Contract: dataclasses in, annotations for cyclopts out; and the given values in, a checked dataclass out. Help is the
docstring of a field. Imports nothing heavy.
"""

from __future__ import annotations

import ast
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import MISSING, Field, dataclass, fields, is_dataclass, replace
from functools import cache, partial
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Generic, TypedDict, TypeVar, get_type_hints

from cyclopts import Group, Parameter

from clipvid.cli.parsing import names
from clipvid.cli.parsing.messages import as_options
from clipvid.config.data_config import DataConfig
from clipvid.config.selfsup import SelfSupervision
from clipvid.config.settings import TrainConfig
from clipvid.errors import UsageError

Config = TypeVar("Config")

DATA = Group("Data", sort_key=1)
MODEL = Group("Model", sort_key=2)
TRAINING = Group("Training", sort_key=3)
CLIPS = Group("Reading clips", sort_key=5)
CACHE = Group("Cache of taps", sort_key=6)
SCORES = Group("Scores", sort_key=3)
SEARCH = Group("Search", sort_key=3)
CLASSES = Group("Classes", sort_key=3)
OUTPUT = Group("Output", sort_key=8)
RUN = Group("Run", sort_key=9)
SECTIONS: dict[type, Group] = {
    TrainConfig: TRAINING,
    DataConfig: CLIPS,
    SelfSupervision: Group("Self-supervision (--task selfsup)", sort_key=4),
}
"""Section of the help for each dataclass of settings."""


PAIRS = "NAME=COLUMN"
"""Metavar of an option whose values are pairs, which an option file may give as a mapping."""


def named(option: str) -> Parameter:
    """Return the annotation of an option whose value is one of the names of `names.allowed`."""
    return Parameter(
        validator=partial(_check_name, option),
        completer=lambda _: names.allowed(option),  # for completion in a shell
        metavar=option.rpartition("_")[2].upper(),
    )


def _check_name(option: str, _: Any, value: str | None) -> None:
    if value is not None:
        names.check(option, value)


def _check_columns(_: Any, values: Sequence[str] | None) -> None:
    names.column_pairs(values or ())


Columns = Annotated[tuple[str, ...], Parameter(metavar=PAIRS, validator=_check_columns)]


def _json_object(_: Any, tokens: Sequence[Any]) -> dict[str, Any]:
    """Return the object that a JSON text holds."""
    try:
        value = json.loads(tokens[0].value)
    except (ValueError, RecursionError):
        value = None
    if not isinstance(value, dict):
        raise ValueError(f"""must be a JSON object such as '{{"hidden": 8}}', got {tokens[0].value!r}""")
    return value


if TYPE_CHECKING:

    class Given(dict[str, Any], Generic[Config]):
        """Values that a command line gives for fields of a dataclass, by field name; nested dataclasses as mappings."""

else:

    class Given:
        """Subscripted with a dataclass, the type whose keys are its fields, all optional."""

        def __class_getitem__(cls, config: type) -> type:
            """Return a TypedDict with the fields of a dataclass."""
            return _typed_dict(config)


@cache
def _typed_dict(config: type) -> type:
    """Return a TypedDict of a dataclass's fields, annotated with their help, defaults and allowed names."""
    hints, documented = get_type_hints(config), _field_docstrings(config)
    keys: dict[str, Any] = {}
    for field in fields(config):
        text = documented.get(field.name)
        if isinstance(hints[field.name], type) and is_dataclass(hints[field.name]):
            nested = hints[field.name]
            keys[field.name] = Annotated[_typed_dict(nested), Parameter(group=SECTIONS[nested], help=text)]
            continue
        parameter = Parameter(help=text, show_default=partial(_default_text, field), group=SECTIONS[config])
        limits = [named(field.name)] if names.allowed(field.name) else []
        keys[field.name] = Annotated[(hints[field.name], parameter, *limits)]
    return TypedDict(config.__name__, keys, total=False)  # pyright: ignore[reportArgumentType]


def _default_text(field: Field[Any], _: Any = None) -> str:
    """Return the default of a field as a user would type it; "" without one."""
    value = field.default
    if value is MISSING or value is None:
        return ""
    if isinstance(value, tuple):
        return " ".join(f'"{part}"' if " " in str(part) else str(part) for part in value)
    return str(value)


@cache
def _field_docstrings(config: type) -> dict[str, str]:
    """Return the docstrings of a dataclass's fields, read from its source."""
    source = Path(sys.modules[config.__module__].__file__ or "").read_text(encoding="utf-8")
    classes = [node for node in ast.parse(source).body if isinstance(node, ast.ClassDef)]
    body = next(node.body for node in classes if node.name == config.__name__)
    return {
        before.target.id: " ".join(str(statement.value.value).split())
        for before, statement in pairwise(body)
        if isinstance(before, ast.AnnAssign)
        and isinstance(before.target, ast.Name)
        and isinstance(statement, ast.Expr)
        and isinstance(statement.value, ast.Constant)
    }


def option_names(config: type, prefix: str = "") -> dict[str, str]:
    """Return the options of a dataclass's fields by field name, without those of nested dataclasses."""
    hints = get_type_hints(config)
    leaves = [field.name for field in fields(config) if not is_dataclass(hints[field.name])]
    return {name: f"--{prefix}{name}".replace("_", "-") for name in leaves}


@contextmanager
def _checked(config: type, prefix: str, others: Mapping[str, str]) -> Iterator[None]:
    """Turn a ValueError of a dataclass in the block into a UsageError that names the options."""
    try:
        yield
    except ValueError as error:
        message = as_options(str(error), {**others, **option_names(config, prefix)}, at_start=True)
        raise UsageError(message) from error


def build_config(config: type[Config], given: Mapping[str, Any], prefix: str = "") -> Config:
    """Return the dataclass with the given values, the defaults elsewhere; raise UsageError for a refused value."""
    values, others = dict(given), {}
    for name, nested in get_type_hints(config).items():
        if is_dataclass(nested) and isinstance(nested, type):
            values[name] = build_config(nested, values.get(name, {}), f"{name}.")
            others |= {f"{name}.{key}": option for key, option in option_names(nested, f"{name}.").items()}
    with _checked(config, prefix, others):
        return config(**values)


def changed(config: Any, given: Mapping[str, Any], prefix: str) -> Any:
    """Return a dataclass with the given fields replaced; raise UsageError for a refused value."""
    with _checked(type(config), prefix, {}):
        return replace(config, **given)


@dataclass(frozen=True)
class ModelOptions:
    """Choice of a model."""

    model: Annotated[str | None, Parameter(metavar="NAME")] = None
    """Folder that clipvid saved, or a base model: an open_clip name, hf-hub: tag or local-dir: folder; clipvid-mini,
    for demonstration, when left out."""
    pretrained: Annotated[str | None, Parameter(metavar="TAG")] = None
    """Weights of a base model: a tag of open_clip or the path of a checkpoint."""


@dataclass(frozen=True)
class BranchOptions:
    """Options of the branch and head of a new model."""

    branch: Annotated[str | None, named("branch")] = None
    """Side branch; stan when left out."""
    depth: Annotated[int | None, Parameter(metavar="N")] = None
    """Number of the tower's last levels that are tapped, or of blocks that are copied."""
    mixer: Annotated[str | None, named("mixer")] = None
    """Cross-frame module of stan and divided."""
    options: Annotated[
        dict[str, Any] | None, Parameter(accepts_keys=False, converter=_json_object, n_tokens=1, metavar="JSON")
    ] = None
    """Other options of the branch, as a JSON object."""
    similarity: Annotated[str | None, named("similarity")] = None
    """Similarity of retrieval; mean when left out."""

    def given(self) -> dict[str, Any]:
        """Return the options that were given, by name."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        return {name: value for name, value in values.items() if value is not None}


@dataclass(frozen=True)
class DataOptions:
    """Format and part of a data set."""

    format: Annotated[str | None, named("format")] = None
    """Format of the data, or a protocol; guessed from SOURCE when left out."""
    annotations: Annotated[str | None, Parameter(metavar="PATH")] = None
    """Annotation file, or folder of the files, if they are not in or beside SOURCE."""
    columns: Columns = ()
    """Names of a table's columns where they differ, such as path=video_path caption=text."""
    split: Annotated[str | None, Parameter(metavar="NAME")] = None
    """Split of the data, if it has splits."""
    allow_missing: bool = False
    """Accept data of which some videos do not exist; metrics are then printed with the number of videos."""

    def column_names(self) -> dict[str, str] | None:
        """Return the table's name of each column that differs, or None if none does."""
        return names.column_pairs(self.columns) or None


@dataclass(frozen=True)
class CacheOptions:
    """Cache of taps on disk."""

    cache: Annotated[str | None, Parameter(metavar="DIR")] = None
    """Folder of a tap cache: cached taps are read, missing ones are encoded and stored for this and later runs."""
    cache_kind: Annotated[str | None, named("cache_kind")] = None
    """Number type of the cache; auto, the type of the precision, when left out. int8 is the smallest."""
    cache_mode: Annotated[str | None, named("cache_mode")] = None
    """Content of the cache: taps, when left out; or first_layer, smaller: one level, and the last blocks run per
    batch."""


@dataclass(frozen=True)
class ResultOptions:
    """Files that an evaluation writes."""

    out: Annotated[str | None, Parameter(metavar="FILE")] = None
    """JSON file for the result, which `clipvid compare` reads."""
    report: Annotated[str | None, Parameter(metavar="FILE")] = None
    """HTML file for the captions that did not find their video, or the clips with a wrong class, with film strips."""
    report_queries: Annotated[int | None, Parameter(metavar="N")] = None
    """Number of captions or clips in the report, the worst first; 50 when left out."""
    per_query: Annotated[str | None, Parameter(metavar="FILE")] = None
    """Table of every caption with its rank and the video found instead, or of every clip with its label, prediction
    and probability; a file ending in .parquet, .csv or .json."""
    overwrite: bool = False
    """Replace existing files of out, report, per_query and profile."""


@dataclass(frozen=True)
class RunOptions:
    """Options of how a command runs."""

    device: Annotated[str, named("device")] = "auto"
    """Device; auto is a GPU if there is one."""
    profile: Annotated[bool, Parameter(negative=())] = False
    """Also print the time per stage, and write it as JSON beside the output."""


Model = Annotated[ModelOptions, Parameter(name="*", group=MODEL)]
Branch = Annotated[BranchOptions, Parameter(name="*", group=MODEL)]
Data = Annotated[DataOptions, Parameter(name="*", group=DATA)]
Cache = Annotated[CacheOptions, Parameter(name="*", group=CACHE)]
ResultFiles = Annotated[ResultOptions, Parameter(name="*", group=OUTPUT)]
Run = Annotated[RunOptions, Parameter(name="*", group=RUN)]
Settings: Parameter = Parameter(name="*")
"""Annotation of the options of a dataclass of settings, which have no prefix."""
DataConfigOptions = Annotated[Given[DataConfig], Parameter(group=CLIPS)]
Sources = Annotated[tuple[str, ...], Parameter(metavar="SOURCE")]
Json = Annotated[
    bool,
    Parameter(group=OUTPUT, negative=(), help="Print the result as JSON; progress and notes go to stderr."),
]
