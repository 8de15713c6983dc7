"""VideoIndex: embeddings of many videos, searched by a sentence, a video or an embedding.

Contract: scores are cosine similarities, best first; every video is compared, unless an approximate kind is chosen.
Videos and sentences are embedded as evaluation does it (features/embed.py). An index belongs to the model that made
it: another model's queries live in another space, so loading it with one is refused. Files that cannot be read are
listed in `skipped`, with the reason.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Float32
from numpy import ndarray
from torch import Tensor

from clipvid.config.data_config import DataConfig
from clipvid.data.records import Record, VideoDataset
from clipvid.errors import CheckpointError, VideoError
from clipvid.features.embed import embed_batches, embed_frames, embed_texts
from clipvid.features.encode import VideoEncoder, clip_dataset
from clipvid.features.token_wise import match_all
from clipvid.runtime.files import atomic_folder
from clipvid.runtime.locks import SharedLock
from clipvid.runtime.precision import resolve
from clipvid.runtime.text import pluralize
from clipvid.search.storage import FACTS, FORMAT, VECTORS, check_place, read_metadata
from clipvid.search.stores.faiss import Vectors, check_enough, checked_kind
from clipvid.search.videos import expanded

EXISTING = ("error", "skip", "replace")


@dataclass(frozen=True)
class Hit:
    """A found video: its absolute path, the cosine similarity to the query, and its place, from 1."""

    path: Path
    score: float
    rank: int


class VideoIndex:
    """Videos to be searched. `VideoIndex.build` makes one from files, `VideoIndex.load` reads a saved one.

    Any number of threads may search, also while another one adds: an answer is that of one moment.

    Args:
        kind: flat compares a query with every video; ivf and hnsw answer sooner among very many and may miss some.
        precision: floating-point type of all embeddings, those of queries too, as for evaluation (`DataConfig`).
    """

    def __init__(
        self,
        model: VideoEncoder,
        *,
        frames: int = 12,
        sampler: str = "uniform",
        backend: str = "pyav",
        kind: str = "flat",
        precision: str = "auto",
    ) -> None:
        self.kind = checked_kind(kind)
        self.model, self.frames, self.sampler, self.backend = model, frames, sampler, backend
        self.precision = precision
        self._fingerprint = model.fingerprint  # of the weights that embed: they must not change later
        self.note: dict[str, str | None] = {}  # saved with the index; the command line keeps the model's name in it
        self._paths: list[Path] = []
        self._skipped: dict[Path, VideoError] = {}
        self._vectors: Vectors | None = None  # once the width of an embedding is known
        self._lock = SharedLock()  # of the three above, which change together
        resolve(precision, model.device)  # refuses a wrong precision now
        clip_dataset(model, _data([]), self._reading())  # and wrong frames, samplers and backends

    @classmethod
    def build(
        cls,
        model: VideoEncoder,
        videos: str | Path | Iterable[str | Path],
        *,
        frames: int = 12,
        sampler: str = "uniform",
        backend: str = "pyav",
        kind: str = "flat",
        precision: str = "auto",
        unreadable: str = "skip",
        batch_size: int = DataConfig.batch_size,
        workers: int = 0,
        progress: bool = True,
        save_to: str | Path | None = None,
    ) -> VideoIndex:
        """Embed files, and the files below folders, and index them.

        Below a folder, files with the suffix of a video or with none are taken, hidden ones never. With `save_to` the
        index is saved there at the end, and what is done is saved too when the build is interrupted or fails:
        `load` it and `add(..., existing="skip")` to go on.
        """
        index = cls(model, frames=frames, sampler=sampler, backend=backend, kind=kind, precision=precision)
        with nullcontext() if save_to is None else index.saving_to(save_to):
            index.add(videos, unreadable=unreadable, batch_size=batch_size, workers=workers, progress=progress)
        return index

    @contextmanager
    def saving_to(self, folder: str | Path) -> Iterator[None]:
        """Save to `folder` at the end of the block, also when it is interrupted or fails."""
        check_place(Path(folder))
        try:
            yield
        finally:
            if self.paths or self.skipped:
                self.save(folder)

    def add(
        self,
        videos: str | Path | Iterable[str | Path],
        *,
        existing: str = "error",
        unreadable: str = "skip",
        batch_size: int = DataConfig.batch_size,
        workers: int = 0,
        progress: bool = True,
    ) -> None:
        """Embed more files or folders. An interruption keeps what is embedded.

        Args:
            existing: what to do with files that are indexed already: "error" before anything is embedded, "skip" to
                leave them as they are, "replace" to embed them again.
            unreadable: "skip" lists a file that cannot be read in `skipped`, "raise" raises its VideoError.
        """
        if existing not in EXISTING:
            raise ValueError(f"existing must be one of {', '.join(EXISTING)}, got {existing!r}")
        self._check_model()
        paths, known = expanded(videos), set(self.paths)
        again = [path for path in paths if path in known]
        if again and existing == "error":
            raise ValueError(
                f"{again[0]}{f' and {len(again) - 1} more' if len(again) > 1 else ''} is indexed already; "
                "choose what becomes of them (existing: skip or replace)"
            )
        if existing == "skip":
            paths = [path for path in paths if path not in known]
        if self._vectors is None or not self._vectors.trained:
            check_enough(self.kind, len(known.union(paths)))  # before anything is embedded
        data_config = self._reading(batch_size=batch_size, workers=workers, unreadable=unreadable)
        batches = embed_batches(self.model, _data(paths), data_config, progress=progress, title="embedding")
        with closing(batches):
            for rows, places, lost in batches:
                self._lose(lost)
                if rows is not None:
                    self._put([paths[place] for place in places], _unit(rows))
        with self._lock.exclusive():
            if self._vectors is not None:
                self._vectors.settle()

    def search(self, text: str, k: int = 5, *, rerank: int = 0) -> list[Hit]:
        """The `k` videos that fit the sentence best; all of them if there are fewer.

        With `rerank` so many of the first are read again and put in the order of the model's token-wise similarity,
        which is then their score. ValueError for a model that has none.
        """
        if not text.strip():
            raise ValueError("the query is empty; describe what the video should show")
        if rerank < 0 or (rerank and getattr(self.model, "matcher", None) is None):
            raise ValueError(
                f"rerank={rerank} is a number of videos, 0 for none, and needs a model with a token-wise similarity "
                "(wti, mug or mug_simple); leave rerank out"
            )
        embedding = embed_texts(self.model, [text], precision=self.precision)[0]
        hits = self._nearest(embedding.numpy(), max(k, rerank))
        return [*self._reranked(text, hits[:rerank]), *hits[rerank:]][:k]

    def _reranked(self, text: str, hits: list[Hit]) -> list[Hit]:
        if not hits:
            return []
        model: Any = self.model
        frames, _, _ = embed_frames(model, _data([hit.path for hit in hits]), self._reading())
        scores = match_all(model, [text], frames, precision=self.precision)[0].tolist()
        order = sorted(range(len(hits)), key=lambda place: -scores[place])
        return [Hit(hits[place].path, scores[place], rank) for rank, place in enumerate(order, start=1)]

    def search_video(self, path: str | Path, k: int = 5) -> list[Hit]:
        """The `k` videos most like the given one, which comes first itself if it is indexed."""
        self._check_model()
        with closing(embed_batches(self.model, _data([Path(path)]), self._reading())) as batches:
            (rows, _, _) = next(batches)
        assert rows is not None, "a video that cannot be read is an error"
        return self._nearest(_unit(rows)[0], k)

    def search_embedding(self, embedding: Float[Tensor, " e"] | Float[ndarray, " e"], k: int = 5) -> list[Hit]:
        """The `k` videos nearest to an embedding of any length (the vector's norm does not count)."""
        return self._nearest(_unit(torch.as_tensor(embedding)[None])[0], k)

    def _nearest(self, query: Float32[ndarray, " e"], k: int) -> list[Hit]:
        """Return the `k` videos nearest to a vector of length 1, those of one moment."""
        if k < 1:
            raise ValueError(f"k must be 1 or more, got {k}")
        with self._lock.shared():
            if not self._paths or self._vectors is None:
                lost = f"; {pluralize(len(self._skipped), 'file')} skipped, see .skipped" if self._skipped else ""
                raise ValueError(f"the index is empty{lost}; add videos first")
            if len(query) != self._vectors.width:
                raise ValueError(
                    f"embeddings of this index have {self._vectors.width} numbers, the query has {len(query)}"
                )
            if not np.isfinite(query).all():
                raise ValueError("the query's embedding is not finite")
            scores, rows = (one[0] for one in self._vectors.search(query[None], min(k, len(self._paths))))
            scores, rows = scores[rows >= 0], rows[rows >= 0]
            best = np.lexsort((rows, -scores))  # equal scores in the order of the index, on every machine
            return [Hit(self._paths[rows[at]], float(scores[at]), rank) for rank, at in enumerate(best, start=1)]

    def save(self, folder: str | Path) -> Path:
        """Write the index to `folder`, whole or not at all; an index that is there is replaced."""
        folder = Path(folder)
        check_place(folder)
        with self._lock.shared():  # only while the contents are copied: writing them may take long
            facts = self._facts()
            vectors = None if self._vectors is None else self._vectors.packed()
        with atomic_folder(folder) as beside:
            (beside / FACTS).write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")
            if vectors is not None:
                (beside / VECTORS).write_bytes(vectors)
        return folder

    def _facts(self) -> dict[str, Any]:
        return {
            "format": FORMAT,
            "fingerprint": self._fingerprint,
            "frames": self.frames,
            "sampler": self.sampler,
            "backend": self.backend,
            "kind": self.kind,
            "precision": self.precision,
            "paths": [str(path) for path in self._paths],
            "skipped": [[str(e.path), e.reason, e.backend] for e in self._skipped.values()],
            "note": self.note,
        }

    @classmethod
    def load(cls, folder: str | Path, model: VideoEncoder) -> VideoIndex:
        """Read an index of `save`. CheckpointError if another model made it, or if the files are damaged."""
        folder = Path(folder)
        facts = read_metadata(folder)
        if facts["fingerprint"] != model.fingerprint:
            raise CheckpointError(
                f"{folder} was made by another model (fingerprint {facts['fingerprint'][:12]}, this one is "
                f"{model.fingerprint[:12]}); load that model, or build the index again with this one"
            )
        options = {name: facts[name] for name in ("frames", "sampler", "backend", "kind", "precision")}
        index = cls(model, **options)
        index.note = facts.get("note", {})
        index._paths = [Path(path) for path in facts["paths"]]
        index._skipped = {Path(p): VideoError(p, reason, backend=backend) for p, reason, backend in facts["skipped"]}
        if index._paths:
            index._vectors = Vectors.load(folder / VECTORS, kind=index.kind, rows=len(index))
        return index

    @staticmethod
    def read_note(folder: str | Path) -> dict[str, str | None]:
        """The note of a saved index, without its model: what `clipvid search` needs to load that model."""
        return read_metadata(Path(folder)).get("note", {})

    @property
    def paths(self) -> tuple[Path, ...]:
        """The indexed videos."""
        with self._lock.shared():
            return tuple(self._paths)

    @property
    def skipped(self) -> tuple[VideoError, ...]:
        """Why files are not in the index."""
        with self._lock.shared():
            return tuple(self._skipped.values())

    def __len__(self) -> int:
        with self._lock.shared():
            return len(self._paths)

    def __repr__(self) -> str:
        lost = f", {len(self._skipped)} skipped" if self._skipped else ""
        kind = "" if self.kind == "flat" else f", {self.kind}"
        return f"VideoIndex({pluralize(len(self), 'video')}{lost}, {pluralize(self.frames, 'frame')} each{kind})"

    def _reading(self, **options: Any) -> DataConfig:
        """Return how this index reads and embeds videos, with other options of a `DataConfig` beside its own."""
        own = {"frames": self.frames, "sampler": self.sampler, "backend": self.backend, "precision": self.precision}
        return DataConfig(**own, **options)

    def _lose(self, errors: Iterable[VideoError]) -> None:
        """List files that cannot be read in `skipped`, and drop the rows that they had."""
        lost = {error.path: error for error in errors}
        if lost:
            with self._lock.exclusive():
                self._drop(lost)
                self._skipped |= lost

    def _put(self, paths: Sequence[Path], embeddings: Float32[ndarray, "b e"]) -> None:
        """Add rows, in place of those that the paths had."""
        wrong = [path for path, row in zip(paths, embeddings, strict=True) if not np.isfinite(row).all()]
        if wrong:
            raise ValueError(f"the model's embedding of {wrong[0]} is not finite; check the model's weights")
        with self._lock.exclusive():
            if self._vectors is None:
                self._vectors = Vectors(embeddings.shape[1], kind=self.kind)
            self._drop(paths)
            self._vectors.add(embeddings)
            self._paths.extend(paths)
            for path in paths:
                self._skipped.pop(path, None)

    def _drop(self, paths: Iterable[Path]) -> None:
        """Remove the rows of these videos, where they have any; the caller holds the lock."""
        gone = set(paths).intersection(self._paths)
        if gone and self._vectors is not None:
            self._vectors.remove([row for row, path in enumerate(self._paths) if path in gone])
            self._paths = [path for path in self._paths if path not in gone]

    def _check_model(self) -> None:
        if self.model.fingerprint != self._fingerprint:
            raise CheckpointError("the model's weights changed since this index was made; build the index again")


def _unit(embeddings: Float[Tensor, "b e"]) -> Float32[ndarray, "b e"]:
    """Rows of length 1 as faiss takes them; in float32 also where the model computes in half precision."""
    return F.normalize(embeddings.detach().float(), dim=-1).cpu().contiguous().numpy()


def _data(paths: Iterable[Path]) -> VideoDataset:
    return VideoDataset(tuple(Record(path) for path in paths), name="videos")
