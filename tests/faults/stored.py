"""Edits and seals of clipvid's file formats: JSON, lines of JSON, the headers of safetensors files, checkpoints.

Contract: a path and a random generator in, the file changed in place and a description of the change out; a path in,
its hashes made right again. Knows nothing of the content.
"""

from __future__ import annotations

import json
import random
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import torch
from damage import ABSURD, damaged, edited, written

from clipvid.evaluation.saved import CHECKSUM, QUERIES, checksum, queries_path
from clipvid.runtime.storage.archive import seal_archive
from clipvid.runtime.storage.manifest import MANIFEST, hash_bytes, hash_file, seal

Edit = Callable[[Path, random.Random], str]


@dataclass(frozen=True)
class Kind:
    """One kind of stored file."""

    name: str
    artefact: Path
    """Intact folder that the file belongs to; its copies are damaged."""
    file: str
    """Path of the file below the folder."""
    use: Callable[[Path], object]
    """Function of a copy of the folder; returns all that the file decides."""
    edit: Edit | None = None
    """Change of the file's fields; None for a format without fields."""
    seal: Callable[[Path], None] | None = None
    """Function of the file that makes the hashes right again; None for a file without."""

    def damage(self, folder: Path, rng: random.Random) -> tuple[str, bool]:
        """Damage the file in a copy of the folder; return a description, and True if its hashes are right again."""
        path = folder / self.file
        is_edited = self.edit is not None and rng.random() < 0.6
        if is_edited:
            assert self.edit is not None
            description = self.edit(path, rng)
        else:
            content, description = damaged(path.read_bytes(), rng)
            path.write_bytes(content)
        if self.seal is None or rng.random() < (0.4 if is_edited else 0.75):
            return description, False
        try:
            self.seal(path)
        except (ValueError, TypeError, KeyError, AttributeError, OSError, RecursionError):
            return f"{description} (cannot be sealed)", False
        return f"{description} (sealed again)", True


def edit_json(path: Path, rng: random.Random) -> str:
    """Change a JSON file."""
    content, description = edited(json.loads(path.read_bytes()), rng)
    path.write_bytes(written(content))
    return description


def edit_line(path: Path, rng: random.Random) -> str:
    """Change one line of a file of JSON lines; half of the changes get the right check."""
    lines = path.read_bytes().splitlines()
    row = rng.randrange(len(lines))
    content, description = edited(json.loads(lines[row]), rng)
    lines[row] = written(content)
    path.write_bytes(b"".join(line + b"\n" for line in lines))
    return f"line {row}: {description}"


def edit_tensors_header(path: Path, rng: random.Random) -> str:
    """Change the header of a safetensors file: 8 bytes with its length, then JSON."""
    data = path.read_bytes()
    length = struct.unpack("<Q", data[:8])[0]
    content, description = edited(json.loads(data[8 : 8 + length]), rng)
    header = written(content)
    path.write_bytes(struct.pack("<Q", len(header)) + header + data[8 + length :])
    return description


def edit_checkpoint(path: Path, rng: random.Random) -> str:
    """Change one entry of a training checkpoint, at any depth."""
    state = torch.load(path, weights_only=True)
    where, container, key = rng.choice([*_entries(state)])
    value, change = container[key], rng.choice(("absurd", "absurd", "near", "near", "drop", "swap"))
    if change == "drop":
        del container[key]
    elif change == "swap" and len(container) > 1:
        other = rng.choice([each for each, _ in _items(container) if each != key])
        container[key], container[other] = container[other], container[key]
    elif change == "near" and isinstance(value, torch.Tensor):
        container[key] = rng.choice(
            (value[..., None], value.double(), value.reshape(-1)[:0], value.float() * torch.nan)
        )
    elif change == "near":
        content = json.loads(value) if isinstance(value, str) and value[:1] == "{" else value
        try:
            new, change = edited(content, rng)
            new = json.loads(written(new))
        except (TypeError, RecursionError):
            new = None
        container[key] = json.dumps(new) if content is not value else new
    else:
        container[key] = rng.choice(ABSURD)
    torch.save(state, path)
    return f"{where}: {change}"


def _items(container: Any) -> Iterator[tuple[Any, Any]]:
    return iter(container.items() if isinstance(container, dict) else enumerate(container))


def _entries(container: Any, where: str = "") -> Iterator[tuple[str, Any, Any]]:
    """Yield the path, the container and the key of every entry below a dictionary or list."""
    for key, value in _items(container):
        yield f"{where}/{key}", container, key
        if isinstance(value, dict | list):
            yield from _entries(value, f"{where}/{key}")


def seal_folder(path: Path) -> None:
    """Write the manifest of the folder in or above which a file lies."""
    folder = next(parent for parent in path.parents if (parent / MANIFEST).exists())
    seal(folder)


def seal_manifest(path: Path) -> None:
    """Make a manifest's own check right again."""
    content = json.loads(path.read_bytes())
    fields = [content["format_version"], content["id"], sorted(content["files"].items())]
    path.write_bytes(json.dumps(content | {"check": hash_bytes(msgspec.json.encode(fields))}).encode())


def seal_lines(check: Callable[[dict[str, Any]], str]) -> Callable[[Path], None]:
    """Return a function that makes the check of every line of a log right again."""

    def seal_file(path: Path) -> None:
        lines = []
        for line in path.read_bytes().splitlines():
            content = json.loads(line)
            content.pop("check", None)
            lines.append(json.dumps({**content, "check": check(content)}).encode())
        path.write_bytes(b"".join(line + b"\n" for line in lines))

    return seal_file


def seal_result(path: Path) -> None:
    """Make the checksum of a result right again, whether it or its queries changed."""
    path = path if path.suffix == ".json" else path.with_name(path.name.removesuffix(".queries.parquet") + ".json")
    content = json.loads(path.read_bytes())
    content.pop(CHECKSUM, None)
    if QUERIES in content and queries_path(path).exists():
        content[QUERIES] = hash_file(queries_path(path))
    path.write_text(json.dumps({**content, CHECKSUM: checksum(content)}))


def seal_checkpoint(path: Path) -> None:
    """Append the hash of a training checkpoint."""
    seal_archive(path)
