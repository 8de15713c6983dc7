"""VideoIndex: embeddings of many videos, searched by a sentence, a video or an embedding.

Contract: hits come best first, scored by cosine similarity; a query is compared with every video, unless the index has
an approximate kind. Videos and sentences are embedded as in evaluation (features/embed.py). An index belongs to the
model that made it: another model's embeddings are not comparable, so `load` refuses another model. Files that cannot be
read are listed in `skipped`, with the reason.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing, contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any, overload

import numpy as np
from jaxtyping import Float, Float32
from numpy import ndarray
from torch import Tensor

from clipvid.config import checks
from clipvid.config.data_config import DataConfig, checked_data_config
from clipvid.data.paths import Paths, local_path
from clipvid.data.records import Record, VideoDataset
from clipvid.errors import CheckpointError, ClipvidWarning, VideoError
from clipvid.features.embed import embed_batches, embed_texts, unit_rows
from clipvid.features.encode import VideoEncoder, checked_encoder, clip_dataset, trained_data_config
from clipvid.registry import STORES
from clipvid.runtime.files import atomic_folder
from clipvid.runtime.locks import SharedLock
from clipvid.runtime.precision import resolve
from clipvid.runtime.text import pluralize
from clipvid.search.hits import Hit, Hits, IndexTable
from clipvid.search.queries import query_vector
from clipvid.search.rerank import reranked
from clipvid.search.storage import FORMAT, METADATA, READ_AS, STORE, check_replaceable, read_metadata, read_store
from clipvid.search.stores.base import Store
from clipvid.search.videos import video_records
from clipvid.search.where import checked_filter, describe_no_hits, filter_of

EXISTING = ("error", "skip", "replace")
"""Allowed values of `existing` in `VideoIndex.add`."""


class VideoIndex(IndexTable):
    """Searchable embeddings of videos: `VideoIndex.build` makes an index from files, `VideoIndex.load` reads it again.

    Any number of threads may search while another one adds videos: every search sees a consistent state.

    Args:
        data_config: how videos and queries are read, for all embeddings of the index; default: as in the model's
            training, listing unreadable files in `skipped`.
        store: name of a registered store of vectors.
        kind: kind of index in the store. flat compares a query with every video; faiss's ivf and hnsw are faster on
            very many videos and may miss some.
    """

    def __init__(
        self,
        model: VideoEncoder,
        data_config: DataConfig | None = None,
        *,
        store: str = "faiss",
        kind: str = "flat",
    ) -> None:
        self._new_store: type[Store] = STORES.lookup(store)
        self._new_store.check(kind)
        self.model: VideoEncoder = checked_encoder(model)
        self.store = store
        self.kind = kind
        settings = checked_data_config(data_config) or replace(trained_data_config(model), unreadable="skip")
        self.data_config: DataConfig = settings
        self._fingerprint = model.fingerprint  # the weights must not change while the index is in use
        self.note: dict[str, str | None] = {}  # saved with the index; the command line stores the model's name in it
        self._paths: list[Path] = []
        self._skipped: dict[Path, VideoError] = {}
        self._vectors: Store | None = None  # made when the first embedding gives the width
        self._lock = SharedLock()  # guards the three attributes above, because they change together
        self._changing = SharedLock()  # held by one change or one save at a time, which searches need not wait for
        # These two calls raise ValueError for a wrong precision, number of frames, sampler or backend.
        resolve(self.data_config.precision, model.device)
        clip_dataset(model, VideoDataset(()), self.data_config)

    @classmethod
    def build(
        cls,
        model: VideoEncoder,
        videos: Paths | VideoDataset,
        data_config: DataConfig | None = None,
        *,
        store: str = "faiss",
        kind: str = "flat",
        progress: bool = True,
        save_to: str | Path | None = None,
    ) -> VideoIndex:
        """Embed files, the files below folders, the matches of patterns, or the clips of a data set; return an index.

        Below a folder, files with a video suffix or no suffix are indexed, except hidden ones; the arrays of a data set
        are indexed under their names. `data_config` is how they are read, by default as in the model's training;
        unreadable files are then listed in `skipped`, while a given data config decides by its `unreadable`.
        With `save_to`, the index is saved at the end, also when the build is interrupted or fails: to continue, `load`
        it and call `add(..., existing="skip")`.
        """
        index = cls(model, data_config, store=store, kind=kind)
        with nullcontext() if save_to is None else index.saving_to(save_to):
            index.add(videos, progress=progress)
        return index

    @contextmanager
    def saving_to(self, folder: str | Path) -> Iterator[None]:
        """Save to `folder` at the end of the block, also if the block is interrupted or fails."""
        check_replaceable(checks.path("folder", folder))
        try:
            yield
        finally:
            if self.paths or self.skipped:
                self.save(folder)

    def add(
        self,
        videos: Paths | VideoDataset,
        data_config: DataConfig | None = None,
        *,
        existing: str = "error",
        progress: bool = True,
    ) -> None:
        """Embed more videos, as in `build`. Videos that are embedded before an interruption stay in the index.

        Args:
            data_config: by default that of the index; batch_size, workers, time_limit and unreadable may differ from
                it, all other fields must be equal.
            existing: treatment of files that are already indexed: "error" raises ValueError before anything is
                embedded, "skip" leaves them unchanged, "replace" embeds them again.
        """
        if existing not in EXISTING:
            raise ValueError(f"existing must be one of {', '.join(EXISTING)}, got {existing!r}; choose one")
        self._check_model()
        data_config = self._checked(data_config)
        records, indexed = video_records(videos), set(self.paths)
        duplicates = [record.path for record in records if record.path in indexed]
        if duplicates and existing == "error":
            subject = f"and {len(duplicates) - 1} more are" if len(duplicates) > 1 else "is"
            raise ValueError(f"{duplicates[0]} {subject} indexed already; set existing to skip or replace")
        if existing == "skip":
            records = [record for record in records if record.path not in indexed]
        paths = [record.path for record in records]
        self._new_store.check(self.kind, len(indexed.union(paths)))  # before anything is embedded
        names = videos.classes if isinstance(videos, VideoDataset) else ()
        data = VideoDataset(tuple(records), names)
        batches = embed_batches(self.model, data, data_config, progress=progress, title="embedding")
        with closing(batches):
            for rows, positions, unreadable_files in batches:
                self._record_skipped(unreadable_files)
                if rows is not None:
                    embedded = [records[position] for position in positions]
                    labels = [None if r.label is None or not names else names[r.label] for r in embedded]
                    self._put([r.path for r in embedded], unit_rows(rows, views=data_config.views), labels)
        with self._changing.exclusive(), self._lock.exclusive():
            if self._vectors is not None:
                self._vectors.optimize()

    @overload
    def search(self, text: str, k: int = 5, *, rerank: int = 0, where: str | None = None) -> Hits: ...
    @overload
    def search(self, text: Sequence[str], k: int = 5, *, rerank: int = 0, where: str | None = None) -> list[Hits]: ...
    def search(
        self, text: str | Sequence[str], k: int = 5, *, rerank: int = 0, where: str | None = None
    ) -> Hits | list[Hits]:
        """Return the `k` videos that match a sentence best, or all if there are fewer; one `Hits` each for a list.

        Sentences of a list are embedded and compared together; scores equal those of single queries up to rounding. The
        first `rerank` hits are decoded again and sorted by the model's token-wise similarity, which becomes their
        score. `where` is a filter on the columns path and label, such as 'label = "dog"' (clipvid/search/filters.py);
        relative paths in it are those of the working directory. A ClipvidWarning says that no video passes it.
        Raise ValueError for an empty sentence or a wrong filter, and for `rerank` with a model without token-wise
        similarity.
        """
        texts = [text] if isinstance(text, str) else checks.texts("text", text, advice="give one sentence or a list")
        if not all(sentence.strip() for sentence in texts):
            raise ValueError("the query is empty; describe what the video should show")
        rerank = checks.integer("rerank", rerank, 0, advice="rerank is a number of hits, 0 for none")
        if rerank and getattr(self.model, "matcher", None) is None:
            raise ValueError(
                f"rerank must be 0 for a model without token-wise similarity (wti, mug or mug_simple), got {rerank}; "
                "leave rerank out"
            )
        k, where = checks.integer("k", k, 1, advice="k is the number of hits"), checked_filter(where)
        if not texts:
            return []
        config = self.data_config
        options = {"precision": config.precision, "tokens": config.tokens}
        nearest = self._nearest(embed_texts(self.model, texts, **options).numpy(), max(k, rerank), where)
        every = [
            Hits([*reranked(sentence, hits[:rerank], self.model, config), *hits[rerank:]][:k], query=sentence)
            for sentence, hits in zip(texts, nearest, strict=True)
        ]
        return every[0] if isinstance(text, str) else every

    def search_video(self, path: str | Path, k: int = 5, *, where: str | None = None) -> Hits:
        """Return the `k` videos most similar to the given one, which itself comes first if it is indexed."""
        k, where = checks.integer("k", k, 1, advice="k is the number of hits"), checked_filter(where)
        self._check_model()
        clip, config = VideoDataset((Record(local_path(path)),)), replace(self.data_config, unreadable="raise")
        with closing(embed_batches(self.model, clip, config)) as batches:
            (rows, _, _) = next(batches)
        assert rows is not None, "an unreadable query raises VideoError"
        return Hits(self._nearest(unit_rows(rows, views=config.views), k, where)[0], query=str(path))

    def search_embedding(
        self, embedding: Float[Tensor, " e"] | Float[ndarray, " e"], k: int = 5, *, where: str | None = None
    ) -> Hits:
        """Return the `k` videos nearest to an embedding of any norm; raise ValueError unless it is finite and not 0."""
        k, where = checks.integer("k", k, 1, advice="k is the number of hits"), checked_filter(where)
        return Hits(self._nearest(unit_rows(query_vector(embedding)[None]), k, where)[0])

    def _nearest(self, queries: Float32[ndarray, "q e"], k: int, where: str | None) -> list[list[Hit]]:
        """Return the `k` videos nearest to each vector of length 1, if they pass the filter; warn if none does."""
        with self._lock.shared():
            if not self._paths or self._vectors is None:
                skipped = f"; {pluralize(len(self._skipped), 'file')} skipped, see .skipped" if self._skipped else ""
                raise ValueError(f"the index is empty{skipped}; add videos first")
            if queries.shape[1] != self._vectors.width:
                raise ValueError(
                    f"the query must have {self._vectors.width} numbers, as the embeddings of this index, got "
                    f"{queries.shape[1]}; embed it with the model of the index"
                )
            if not np.isfinite(queries).all():
                raise ValueError("the query's embedding is not finite; check the query and the model's weights")
            matches = self._vectors.search(queries, min(k, len(self._paths)), filter_of(where, self._vectors))
            note = None if where is None or any(matches) else describe_no_hits(where, self._vectors)
        if note is not None:
            warnings.warn(note, ClipvidWarning, stacklevel=3)
        return [[Hit(Path(m.id), m.score, rank) for rank, m in enumerate(each, start=1)] for each in matches]

    def save(self, folder: str | Path) -> Path:
        """Write the index to `folder` atomically, replacing an existing index; raise ValueError for other files."""
        folder = checks.path("folder", folder)
        check_replaceable(folder)
        with self._changing.exclusive(), atomic_folder(folder) as draft:
            (draft / METADATA).write_text(json.dumps(self._metadata(), indent=1) + "\n", encoding="utf-8")
            if self._vectors is not None:
                (draft / STORE).mkdir()
                self._vectors.save(draft / STORE)
        return folder

    def _metadata(self) -> dict[str, Any]:
        return {
            "format": FORMAT,
            "fingerprint": self._fingerprint,
            "store": self.store,
            "kind": self.kind,
            **{name: getattr(self.data_config, name) for name in READ_AS},
            "paths": [str(path) for path in self._paths],
            "skipped": [[str(e.path), e.reason, e.backend] for e in self._skipped.values()],
            "note": self.note,
        }

    @classmethod
    def load(cls, folder: str | Path, model: VideoEncoder) -> VideoIndex:
        """Read a saved index; raise CheckpointError if another model made it, or if its files are damaged."""
        folder = checks.path("folder", folder, must="the folder of a saved index")
        metadata = read_metadata(folder)
        if metadata["fingerprint"] != checked_encoder(model).fingerprint:
            raise CheckpointError(
                f"{folder} was made by another model (fingerprint {metadata['fingerprint'][:12]}, this one is "
                f"{model.fingerprint[:12]}); load that model, or build the index again with this one"
            )
        data_config = DataConfig(**{name: metadata[name] for name in READ_AS}, unreadable="skip")
        index = cls(model, data_config, store=metadata["store"], kind=metadata["kind"])
        index.note = metadata.get("note", {})
        index._paths = [Path(path) for path in metadata["paths"]]
        index._skipped = {Path(p): VideoError(p, reason, backend=backend) for p, reason, backend in metadata["skipped"]}
        index._vectors = read_store(folder, metadata)
        return index

    @staticmethod
    def read_note(folder: str | Path) -> dict[str, str | None]:
        """Return the note of a saved index without loading its model; `clipvid search` finds the model's name in it."""
        return read_metadata(Path(folder)).get("note", {})

    @property
    def paths(self) -> tuple[Path, ...]:
        """Absolute paths of the indexed videos."""
        with self._lock.shared():
            return tuple(self._paths)

    @property
    def skipped(self) -> tuple[VideoError, ...]:
        """Errors of the files that could not be read and are not in the index."""
        with self._lock.shared():
            return tuple(self._skipped.values())

    def __len__(self) -> int:
        with self._lock.shared():
            return len(self._paths)

    def __repr__(self) -> str:
        skipped = f", {len(self._skipped)} skipped" if self._skipped else ""
        kind, frames = "" if self.kind == "flat" else f", {self.kind}", pluralize(self.data_config.frames, "frame")
        return f"VideoIndex({pluralize(len(self), 'video')}{skipped}, {frames} each{kind})"

    def _checked(self, data_config: DataConfig | None) -> DataConfig:
        """Return the given data config or that of the index; raise ValueError where they would embed differently."""
        for name in () if data_config is None else READ_AS:
            value, expected = getattr(data_config, name), getattr(self.data_config, name)
            if value != expected:
                raise ValueError(
                    f"data_config must have the {name} of the index, {expected!r}, got {value!r}; pass "
                    "dataclasses.replace(index.data_config, ...), or build another index"
                )
        return data_config or self.data_config

    def _record_skipped(self, errors: Iterable[VideoError]) -> None:
        """Add unreadable files to `skipped`, and remove their rows from the index."""
        skipped = {error.path: error for error in errors}
        if skipped:
            with self._changing.exclusive(), self._lock.exclusive():
                if self._vectors is not None:
                    self._vectors.remove([str(path) for path in skipped])
                self._paths = [path for path in self._paths if path not in skipped]
                self._skipped |= skipped

    def _put(
        self,
        paths: Sequence[Path],
        embeddings: Float32[ndarray, "b e"],
        labels: Sequence[str | None] | None = None,
    ) -> None:
        """Store the embeddings of these videos, replacing earlier ones, with path and label for filters."""
        bad = [path for path, row in zip(paths, embeddings, strict=True) if not np.isfinite(row).all()]
        if bad:
            raise ValueError(f"the model's embedding of {bad[0]} is not finite; check the model's weights")
        columns = zip(map(str, paths), labels or [None] * len(paths), strict=True)
        metadata = [{"path": path, "label": label} for path, label in columns]
        with self._changing.exclusive(), self._lock.exclusive():
            if self._vectors is None:
                self._vectors = self._new_store(embeddings.shape[1], kind=self.kind)
            self._vectors.upsert([str(path) for path in paths], embeddings, metadata)
            replaced = set(paths)
            self._paths = [*(path for path in self._paths if path not in replaced), *paths]
            self._skipped = {path: error for path, error in self._skipped.items() if path not in replaced}

    def _check_model(self) -> None:
        """Raise CheckpointError if the model's weights have changed since the index was made."""
        if self.model.fingerprint != self._fingerprint:
            raise CheckpointError("the model's weights changed since this index was made; build the index again")
