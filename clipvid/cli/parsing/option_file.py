"""Option files: YAML read strictly, every option with its line.

Contract: a path in, options as the words that a command line would have out. Values stay text, so that `lr: 1e-4`
means the same as `--lr 1e-4`. Raises UsageError with file and line for anything ambiguous: duplicate options, anchors,
aliases, tags, dates in JSON options and lists in lists. Knows nothing of commands.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from clipvid.errors import UsageError
from clipvid.runtime.files import read_file

if TYPE_CHECKING:
    import yaml

BYTE_LIMIT = 1 << 16
"""Largest size of an option file; the YAML parser takes a second for as much."""
DEPTH_LIMIT = 20
"""Deepest nesting of mappings and lists in an option file."""
FLOATS = {".inf": "inf", "+.inf": "inf", "-.inf": "-inf", ".nan": "nan"}
"""YAML's spelling of special numbers, and Python's."""
JSON_TAGS = ("str", "int", "float", "bool", "null")
"""Names of YAML's types of single values that JSON has, too; dates are one that it lacks."""


class Entry(NamedTuple):
    """One option of a file: its name without dashes, its values as text, and its line."""

    name: str
    values: tuple[str, ...] | bool | None
    """True or False for a switch; None for `null`."""
    line: int


def read_options(path: str | Path, json_options: Collection[str] = ()) -> list[Entry]:
    """Read an option file; `data_config: {frames: 8}` gives the option data-config.frames.

    `json_options` are the options whose value is an object: their content becomes JSON text. Raises UsageError with
    file and line for invalid YAML, duplicate options, anchors, aliases and tags.
    """
    import yaml

    try:
        text = read_file(path, limit=BYTE_LIMIT).decode("utf-8")
        _check_events(text, path)
        root = yaml.compose(text, Loader=yaml.SafeLoader)
    except FileNotFoundError:
        raise UsageError(f"--config {path} does not exist; correct the path") from None
    except OSError as error:
        raise UsageError(f"--config {path} cannot be read: {(error.strerror or 'unknown error').lower()}") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        mark = getattr(error, "problem_mark", None)
        line = f", line {mark.line + 1}," if mark else ""
        raise UsageError(f"--config {path}{line} is not valid YAML; write one option per line: device: cpu") from error
    if not isinstance(root, yaml.MappingNode) or not root.value:
        raise UsageError(f"--config {path} holds no options; write one per line, such as device: cpu")
    return _unique(list(_entries(root, path, set(json_options))), path)


def _check_events(text: str, path: str | Path) -> None:
    """Raise UsageError for anchors, aliases, tags, and nesting that would exhaust the stack."""
    import yaml

    depth = 0
    for event in yaml.parse(text, Loader=yaml.SafeLoader):
        _check_event(event, path)
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        if depth > DEPTH_LIMIT:
            raise UsageError(
                f"--config {path}, line {event.start_mark.line + 1}, is nested deeper than the limit of {DEPTH_LIMIT} "
                "levels; write one option per line: device: cpu"
            )


def _check_event(event: Any, path: str | Path) -> None:
    """Raise UsageError for anchors, aliases and tags."""
    line = event.start_mark.line + 1
    if getattr(event, "anchor", None) is not None:
        raise UsageError(f"--config {path}, line {line}, has an anchor or alias (& or *); write the value out")
    if getattr(event, "tag", None) is not None:
        raise UsageError(f"--config {path}, line {line}, has a tag ({event.tag}); leave it out")


def _entries(node: yaml.MappingNode, path: str | Path, json_options: set[str], prefix: str = "") -> Iterator[Entry]:
    """Yield the options of a mapping in the order of the file."""
    import yaml

    for key, value in node.value:
        line = key.start_mark.line + 1
        if not isinstance(key, yaml.ScalarNode):
            raise UsageError(f"--config {path}, line {line}: an option must be a name; write device: cpu")
        name = prefix + key.value.replace("_", "-")
        if isinstance(value, yaml.MappingNode) and name in json_options:
            yield Entry(name, (json.dumps(_content(value, name, path)),), line)
        elif isinstance(value, yaml.MappingNode):
            yield from _entries(value, path, json_options, f"{name}.")
        else:
            yield Entry(name, _values(value, name, path), line)


def _content(node: yaml.Node, name: str, path: str | Path) -> Any:
    """Return the value of a JSON option; raise UsageError for a key given twice, and a value that JSON lacks."""
    import yaml

    if isinstance(node, yaml.MappingNode):
        for key in (key for key, _ in node.value if not isinstance(key, yaml.ScalarNode)):
            line = key.start_mark.line + 1
            raise UsageError(f"--config {path}, line {line}: a name in {name} must be a text; write NAME: VALUE")
        entries = [Entry(f"{name}.{key.value}", None, key.start_mark.line + 1) for key, _ in node.value]
        _unique(entries, path)
        return {str(key.value): _content(value, f"{name}.{key.value}", path) for key, value in node.value}
    if isinstance(node, yaml.SequenceNode):
        return [_content(part, name, path) for part in node.value]
    if node.tag.rpartition(":")[2] not in JSON_TAGS:
        raise UsageError(
            f"--config {path}, line {node.start_mark.line + 1}: {name} must be a text, a number, true, false or null, "
            f"got {node.value}; write it in quotes to give a text"
        )
    return yaml.SafeLoader("").construct_document(node)


def _values(node: yaml.Node, name: str, path: str | Path) -> tuple[str, ...] | bool | None:
    """Return the text of a scalar or of the items of a list."""
    import yaml

    parts = node.value if isinstance(node, yaml.SequenceNode) else [node]
    if not parts or not all(isinstance(part, yaml.ScalarNode) for part in parts):
        raise UsageError(
            f"--config {path}, line {node.start_mark.line + 1}: {name} must be a value or a list of values; leave the "
            "option out for its default"
        )
    if isinstance(node, yaml.ScalarNode) and node.tag.endswith(":null"):
        return None
    if isinstance(node, yaml.ScalarNode) and node.tag.endswith(":bool") and node.value.lower() in ("true", "false"):
        return node.value.lower() == "true"
    return tuple(FLOATS.get(str(part.value).lower(), str(part.value)) for part in parts)


def _unique(entries: list[Entry], path: str | Path) -> list[Entry]:
    """Return the entries; raise UsageError for an option that the file sets twice."""
    lines: dict[str, int] = {}
    for entry in entries:
        if entry.name in lines:
            raise UsageError(
                f"--config {path} sets {entry.name} twice (lines {lines[entry.name]} and {entry.line}); remove one"
            )
        lines[entry.name] = entry.line
    return entries
