"""The folder of a saved index: its metadata, its store, and the manifest with the hashes of both.

Contract: paths in, metadata and stores out; CheckpointError for a folder that `VideoIndex.save` did not write, or that
has changed since. Knows nothing of models.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import msgspec

from clipvid.config import checks
from clipvid.config.data_config import PRECISIONS, DataConfig
from clipvid.config.settings import INDEX
from clipvid.errors import CheckpointError
from clipvid.registry import STORES
from clipvid.runtime.files import describe_os_error, read_file, recover
from clipvid.runtime.storage.manifest import MANIFEST, count_files, is_sealed, read_sealed
from clipvid.runtime.storage.schema import decode, encode
from clipvid.runtime.storage.stamps import Stamp
from clipvid.search.stores.base import Store
from clipvid.search.stores.faiss import VECTORS, FaissStore, Vectors

FORMAT = 3
"""Version of the format that is written. Versions 1, with faiss's file beside the metadata, and 2 are read too; they
have no hashes, neither of their files nor of the videos."""
METADATA, STORE = INDEX, "store"
"""Names of an index's file of metadata, and of the folder of its store."""
BLOCK = 65_536
"""Rows whose columns are checked at a time."""
READ_AS = ("frames", "sampler", "temporal_views", "spatial_views", "tokens", "backend", "precision")
"""Fields of the data config that an embedding depends on, saved with the index."""
ADVICE = "take a copy of the folder that is whole, or delete the folder and build the index again"
"""Advice at the end of messages about a damaged index."""
REFUSAL: Any = {"error": CheckpointError, "advice": ADVICE}
"""Arguments of the readers in runtime/ for an index that is damaged."""


class VideoEntry(msgspec.Struct, forbid_unknown_fields=True, omit_defaults=True):
    """One video of an index."""

    path: str
    """Path below the root, an absolute path, or ./ and the name of an array; some versions wrote the name alone."""
    content: str | None = None
    """Hash of the bytes that were embedded; None if unknown."""
    stamp: Stamp | None = None
    """Stamp of the file with these bytes."""
    array: bool = False
    """True for an array in memory, which has no file."""


class IndexMetadata(msgspec.Struct):
    """Content of index.json."""

    fingerprint: str
    frames: int
    sampler: str
    backend: str
    format_version: int = FORMAT
    id: str = ""
    """Random; differs for each version that is saved."""
    store: str = "faiss"
    kind: str = "flat"
    temporal_views: int = 1
    spatial_views: int = 1
    tokens: int | None = None
    precision: str = "auto"
    root: str | None = None
    """Folder that relative paths start from; None if there is none."""
    root_from_index: str | None = None
    """The same folder as a path from the folder of the index, for both of them moved together."""
    videos: list[VideoEntry] = []
    skipped: list[tuple[str, str, str | None]] = []
    """Path, as that of a video, reason and decoder of each file that could not be read; some versions wrote absolute
    paths."""
    note: dict[str, str | None] = {}
    paths: list[str] | None = None
    """Absolute paths in place of `videos`, in versions 1 and 2."""
    format: int | None = None
    """Name of `format_version` in versions 1 and 2."""

    @property
    def version(self) -> int:
        """Version of the format."""
        return self.format_version if self.format is None else self.format


class _Version(msgspec.Struct):
    format_version: Any = None
    format: Any = None


def check_replaceable(folder: Path) -> None:
    """Raise ValueError for a file, and for a folder that holds anything but an index."""
    recover(folder)
    if folder.is_dir():
        other_files = sorted({path.name for path in folder.iterdir()} - {METADATA, STORE, VECTORS, MANIFEST})
        if other_files:
            raise ValueError(f"{folder} holds other files ({other_files[0]}); save the index to a separate folder")
    elif folder.exists():
        raise ValueError(f"{folder} is a file; give a folder for the index")


def read_index(folder: Path) -> tuple[IndexMetadata, Store | None]:
    """Return metadata and store of a saved index, both of one version of the folder; the store is None if empty.

    Raises CheckpointError for a folder that is missing, damaged or of another version.
    """
    return read_sealed(folder, _read, **REFUSAL)


def verify_files(folder: Path) -> tuple[IndexMetadata, int]:
    """Return the metadata of a saved index and the number of its files, all of which are read and compared once.

    The number is 0 for an index of an older format, without hashes. Raises the errors of `read_index`.
    """
    return read_sealed(folder, lambda folder: (_read(folder)[0], count_files(folder, **REFUSAL)), **REFUSAL)


def read_metadata(folder: Path) -> IndexMetadata:
    """Return the metadata of a saved index; raise CheckpointError if the file is missing, damaged or unsupported.

    The other files of the index are not read.
    """
    return read_sealed(folder, _read_metadata, only=(METADATA,), **REFUSAL)


def saved_id(folder: Path) -> str | None:
    """Return the id of the version that is saved in a folder, "" for one without, or None for no index.

    Raises CheckpointError for an index whose metadata are damaged.
    """
    recover(folder)
    try:
        return decode(read_file(folder / METADATA), _Id, source=folder / METADATA, **REFUSAL).id
    except (FileNotFoundError, NotADirectoryError):
        return None


class _Id(msgspec.Struct):
    id: str = ""


def _read(folder: Path) -> tuple[IndexMetadata, Store | None]:
    metadata = _read_metadata(folder)
    return metadata, _read_store(folder, metadata)


def _read_metadata(folder: Path) -> IndexMetadata:
    path = folder / METADATA
    try:
        content = read_file(path)
    except (FileNotFoundError, NotADirectoryError) as error:
        raise CheckpointError(
            f"{folder} holds no index (no {METADATA}); clipvid index build VIDEOS --out {folder} makes one"
        ) from error
    except OSError as error:
        raise CheckpointError(f"{describe_os_error(error)}; {ADVICE}") from error
    version = decode(content, _Version, source=path, **REFUSAL)
    version = version.format if version.format_version is None else version.format_version
    if version not in (1, 2, FORMAT):
        raise CheckpointError(
            f"{folder} has index format {version!r}, this version of clipvid reads 1 to {FORMAT}; build it again"
        )
    if version == FORMAT and not is_sealed(folder):
        raise CheckpointError(f"{folder} is damaged: {MANIFEST} is missing; {ADVICE}")
    metadata = decode(content, IndexMetadata, source=path, **REFUSAL)
    if version != FORMAT:
        if metadata.paths is None:
            raise CheckpointError(f"{path} is damaged (missing required field paths); {ADVICE}")
        metadata.videos, metadata.format = (
            [VideoEntry(name, array=not os.path.isabs(name)) for name in metadata.paths],
            version,
        )
    _check(folder, metadata)
    return metadata


def _check(folder: Path, metadata: IndexMetadata) -> None:
    """Raise CheckpointError for a store, a kind or settings that this installation does not have."""
    try:
        STORES.lookup(metadata.store).check(metadata.kind)
        checks.choices(metadata, {"precision": PRECISIONS})
        data_config_of(metadata)
    except ValueError as error:
        raise CheckpointError(
            f"{folder} cannot be read: {error}; build the index again, or install what it was built with"
        ) from error


def data_config_of(metadata: IndexMetadata) -> DataConfig:
    """Return the data config that the index was made with, listing unreadable files; ValueError for a wrong value."""
    return DataConfig(**{name: getattr(metadata, name) for name in READ_AS}, unreadable="skip")


def _read_store(folder: Path, metadata: IndexMetadata) -> Store | None:
    ids = [video.path for video in metadata.videos]
    if not ids:
        return None
    if metadata.version == 1:
        vectors = Vectors.load(folder / VECTORS, kind=metadata.kind, rows=len(ids))
        return FaissStore.of_rows(vectors, ids, [{"path": name, "label": None} for name in ids])
    store = STORES.lookup(metadata.store).load(folder / STORE)
    if sorted(store.ids()) != sorted(ids) or store.kind != metadata.kind:
        raise CheckpointError(
            f"{folder} lists {len(ids)} videos in a {metadata.kind} index, and its store holds {store.count()} or "
            f"other videos in a {store.kind} index; {ADVICE}"
        )
    _check_columns(folder, store, ids)
    return store


def _check_columns(folder: Path, store: Store, ids: list[str]) -> None:
    """Raise CheckpointError for rows whose columns are not those of an index: their path, and a label or None.

    Indices of the first format that were saved again by earlier versions have rows without a path.
    """
    for start in range(0, len(ids), BLOCK):
        block = ids[start : start + BLOCK]
        for name, columns in zip(block, store.get(block)[1], strict=True):
            label = columns.get("label")
            if columns.get("path", name) != name or not (label is None or isinstance(label, str)):
                raise CheckpointError(f"{folder} is damaged: the store has {columns} for video {name!r}; {ADVICE}")


def encoded(metadata: IndexMetadata) -> bytes:
    """Return the metadata as the bytes of its file."""
    fields = msgspec.to_builtins(metadata)
    for older in ("format", "paths"):
        del fields[older]
    return encode(fields)


def root_of(metadata: IndexMetadata, folder: Path, root: str | Path | None) -> Path | None:
    """Return the root of the videos: the given one, the saved one, or where both index and videos were moved.

    Raises ValueError for a given root that has none of the videos.
    """
    if root is not None:
        if metadata.root is None:
            raise ValueError(f"root must be None for {folder}, whose videos have absolute paths, got {root}")
        given = Path(os.path.abspath(root))
        if not _holds_videos(given, metadata):
            raise ValueError(
                f"root must be a folder with videos of {folder}, got {str(root)!r}, which has none of them; give the "
                f"folder that {metadata.root} is now"
            )
        return given
    if metadata.root is None:
        return None
    saved = Path(metadata.root)
    if _holds_videos(saved, metadata) or metadata.root_from_index is None:
        return saved
    moved = Path(os.path.abspath(folder / metadata.root_from_index))
    return moved if _holds_videos(moved, metadata) else saved


def _holds_videos(root: Path, metadata: IndexMetadata) -> bool:
    """Return True for a folder with at least one video or skipped file of an index, or if the index has none."""
    names = [video.path for video in metadata.videos if not video.array]
    names = [name for name in (*names, *(name for name, *_ in metadata.skipped)) if not os.path.isabs(name)]
    return os.path.isdir(root) and (not names or any(os.path.lexists(root / name) for name in names))
