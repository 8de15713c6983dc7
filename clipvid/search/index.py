"""VideoIndex: embeddings of many videos, searched by a sentence, a video or an embedding.

Contract: hits come best first, scored by cosine similarity; a query is compared with every video, unless the index has
an approximate kind. Videos and sentences are embedded as in evaluation (features/embed.py). An index belongs to the
model that made it: another model's embeddings are not comparable, so `load` refuses another model. Files that cannot be
read are listed in `skipped`, with the reason.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import overload

from jaxtyping import Float
from numpy import ndarray
from torch import Tensor, nn

from clipvid.config import checks
from clipvid.config.data_config import DataConfig, checked_data_config
from clipvid.data.paths import Paths, local_path
from clipvid.data.records import Record, VideoDataset
from clipvid.errors import CheckpointError, VideoError
from clipvid.features.embed import embed_batches, embed_texts, unit_rows
from clipvid.features.encode import VideoEncoder, checked_encoder, clip_dataset, trained_data_config
from clipvid.models.backbone.weight_cache import weights_of
from clipvid.runtime.precision import resolve
from clipvid.runtime.storage.folder_lock import lock_folder
from clipvid.search.folder.catalog import CHANGED, GONE, UNREADABLE, entry_of, stamps_of
from clipvid.search.folder.saved import WAIT, SavedContents
from clipvid.search.folder.storage import READ_AS, data_config_of, read_index, read_metadata
from clipvid.search.hits import Hits
from clipvid.search.queries.queries import query_vector
from clipvid.search.queries.where import checked_filter
from clipvid.search.rerank import reranked
from clipvid.search.videos import video_records

EXISTING = ("error", "skip", "replace")
"""Allowed values of `existing` in `VideoIndex.add`."""


@dataclass(frozen=True)
class Refreshed:
    """Result of `VideoIndex.refresh`."""

    embedded: tuple[Path, ...]
    """Videos that were embedded again, or for the first time after they were skipped."""
    gone: tuple[Path, ...]
    """Videos that were removed because their files have gone."""
    skipped: tuple[VideoError, ...]
    """Errors of the files that cannot be read."""
    unreadable: tuple[Path, ...] = ()
    """Videos that stay as they are, because it is unknown whether their files have changed: the system refuses access,
    or a volume fails."""


class VideoIndex(SavedContents):
    """Searchable embeddings of videos: `VideoIndex.build` makes an index from files, `VideoIndex.load` reads it again.

    Any number of threads may search while another one adds videos: every search sees a consistent state. An index knows
    the content of its files: hits whose file has changed or gone say so, and `refresh` embeds again what changed.

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
        data_config = checked_data_config(data_config) or replace(trained_data_config(model), unreadable="skip")
        super().__init__(checked_encoder(model).fingerprint, data_config, store=store, kind=kind)
        self.model: VideoEncoder = model  # its weights must not change while the index is in use
        self._marks = _marks_of(model)
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
        self._new_store.check(self.kind, len(indexed.union(record.path for record in records)))  # before any embedding
        names = videos.classes if isinstance(videos, VideoDataset) else ()
        labels = {r.path: names[r.label] for r in records if names and r.label is not None}
        self._embed(records, data_config, labels=labels, progress=progress)

    def _embed(
        self, records: Sequence[Record], data_config: DataConfig, *, labels: Mapping[Path, str], progress: bool
    ) -> None:
        """Embed videos batch by batch into the index, in place of their earlier embeddings."""
        files = {record.path for record in records if record.array is None}
        before = stamps_of(files)
        with self._changing.exclusive(), self._lock.exclusive():
            self._catalog.choose_root(record.path for record in records)
        data = VideoDataset(tuple(replace(record, label=None) for record in records))
        with closing(embed_batches(self.model, data, data_config, progress=progress, title="embedding")) as batches:
            for rows, positions, unreadable_files in batches:
                self._record_skipped(unreadable_files)
                if rows is not None:
                    paths = [records[position].path for position in positions]
                    entries = {path: entry_of(path, before.get(path)) for path in paths if path in files}
                    vectors = self._as_equals(paths, unit_rows(rows, views=data_config.views), entries)
                    self._put(paths, vectors, entries=entries, labels=labels)
                self._save_on_the_way()
        with self._changing.exclusive(), self._lock.exclusive():
            if self._vectors is not None:
                self._vectors.optimize()

    def refresh(
        self, data_config: DataConfig | None = None, *, remove_all: bool = False, progress: bool = True
    ) -> Refreshed:
        """Embed again the videos whose files have changed, try skipped ones again, and remove those that have gone.

        New files are not looked for: `add` them with existing="skip". A video whose file the system cannot look up
        stays as it is. If all of several videos have gone, as where a volume is not mounted, ValueError is raised and
        nothing changes; `remove_all` removes them.
        """
        self._check_model()
        data_config = self._checked(data_config)
        catalog, skipped = self._copied(), [Path(error.path) for error in self.skipped]
        states = catalog.outdated()
        gone, changed, unreadable = (
            [path for path, state in states.items() if state == each] for each in (GONE, CHANGED, UNREADABLE)
        )
        n_files = sum(path.is_absolute() for path in catalog.entries)  # all but arrays
        if len(gone) == n_files > 1 and not remove_all:
            raise ValueError(
                f"all {len(gone)} videos of the index are gone, such as {gone[0]}, so nothing was removed; mount their "
                "volume, give root if they have moved, or remove_all to remove them"
            )
        gone += catalog.missing(skipped)
        self._forget(gone)
        removed = set(gone)
        again = [*changed, *(path for path in skipped if path.is_absolute() and path not in removed)]
        labels = self._labels(changed)
        with self._replaced(changed):
            if again:
                self._embed([Record(path) for path in again], data_config, labels=labels, progress=progress)
        indexed = set(self.paths)
        embedded = tuple(path for path in again if path in indexed)
        return Refreshed(embedded, tuple(gone), self.skipped, tuple(unreadable))

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
        score. `where` is a filter on the columns path and label, such as 'label = "dog"' (search/queries/filters.py);
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
        if _marks_of(self.model) != self._marks:  # cheaper than a fingerprint
            self._check_model()
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

    @classmethod
    def load(cls, folder: str | Path, model: VideoEncoder, *, root: str | Path | None = None) -> VideoIndex:
        """Read a saved index; raise CheckpointError if another model made it, or if its files are damaged.

        `root` is the folder of the videos if it has moved since.
        """
        folder = checks.path("folder", folder, must="the folder of a saved index")
        metadata, store = read_index(folder)
        if metadata.fingerprint != checked_encoder(model).fingerprint:
            raise CheckpointError(
                f"{folder} was made by another model (fingerprint {metadata.fingerprint[:12]}, this one is "
                f"{model.fingerprint[:12]}); load that model, or build the index again with this one"
            )
        try:
            index = cls(model, data_config_of(metadata), store=metadata.store, kind=metadata.kind)
        except ValueError as error:
            raise CheckpointError(
                f"{folder} cannot be read: {error}; build the index again, or install what it was built with"
            ) from error
        index._restore(metadata, store, folder, root)
        return index

    @classmethod
    @contextmanager
    def changing(
        cls, folder: str | Path, model: VideoEncoder, *, root: str | Path | None = None
    ) -> Iterator[VideoIndex]:
        """Load an index, yield it to be changed, and save it at the end of the block, also if it is interrupted.

        Meanwhile no other process can save to the folder: it waits.
        """
        with lock_folder(folder, outside=True, wait=WAIT, again=True):
            index = cls.load(folder, model, root=root)
            with index.saving_to(folder):
                yield index

    @staticmethod
    def read_note(folder: str | Path) -> dict[str, str | None]:
        """Return the note of a saved index without loading its model; `clipvid search` finds the model's name in it."""
        return read_metadata(Path(folder)).note

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

    def _check_model(self) -> None:
        """Raise CheckpointError if the model's weights have changed since the index was made."""
        if self.model.fingerprint != self._fingerprint:
            raise CheckpointError("the model's weights changed since this index was made; build the index again")


def _marks_of(model: VideoEncoder) -> tuple[tuple[int, int], ...]:
    """Return what changes with the weights: the identity of each, and the number of writes that torch counted."""
    weights = weights_of(model) if isinstance(model, nn.Module) else ()
    return tuple((id(weight), 0 if weight.is_inference() else weight._version) for weight in weights)
