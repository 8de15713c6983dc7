"""A small intact artefact of every kind that clipvid stores, with the use that shows its content.

Contract: a folder in, the kinds of stored files out. Two uses of intact copies return equal results. The models are
tiny, so that a use takes milliseconds.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest
import tiny
import torch
from stored import (
    Kind,
    edit_checkpoint,
    edit_json,
    edit_line,
    edit_tensors_header,
    seal_checkpoint,
    seal_folder,
    seal_lines,
    seal_manifest,
    seal_result,
)

from clipvid.config.data_config import DataConfig
from clipvid.config.settings import TrainConfig
from clipvid.data import check as data_check
from clipvid.data.motion_shapes import write_dataset
from clipvid.data.probing import content as data_content
from clipvid.data.probing import probe_log
from clipvid.data.probing.probe_file import probe_file
from clipvid.data.records import VideoDataset
from clipvid.errors import CheckpointError, DataError
from clipvid.evaluation.compare import compare
from clipvid.evaluation.results import read_result
from clipvid.evaluation.retrieval import evaluate_retrieval
from clipvid.features.cache_key import CACHE_KEY_FILE
from clipvid.features.maintenance import parts_of
from clipvid.features.tap_cache import TapCache
from clipvid.features.taps.clip_keys import HASHES
from clipvid.features.text_cache import TextCache
from clipvid.models.backbone.backbone import Backbone
from clipvid.models.checkpoint import CONFIG, WEIGHTS
from clipvid.models.factory import attach, load
from clipvid.models.heads import LinearClassifier
from clipvid.models.video_clip import VideoCLIP
from clipvid.runtime.files import atomic_folder
from clipvid.runtime.storage import stamps
from clipvid.runtime.storage.manifest import MANIFEST, hash_bytes, read_sealed, seal
from clipvid.runtime.storage.stamps import Stamp
from clipvid.search.folder.catalog import Entry
from clipvid.search.folder.storage import METADATA, STORE
from clipvid.search.index import VideoIndex
from clipvid.search.stores.base import ROWS, Match, Store
from clipvid.search.stores.base import VECTORS as NPY
from clipvid.search.stores.faiss import VECTORS
from clipvid.training.loop import train
from clipvid.training.trainer import Run

DATA_CONFIG = DataConfig(frames=2, batch_size=2, precision="32-true")
TRAIN = TrainConfig(epochs=2, batch_size=2, lr=1e-3, data_config=DATA_CONFIG)
KINDS = (
    "model: config", "model: weights", "model: manifest",
    "index: metadata", "index: rows", "index: manifest",
    "index: vectors, flat", "index: vectors, hnsw", "index: vectors, ivf",
    "plain store: rows", "plain store: vectors",
    "cache: taps", "cache: key", "cache: log of hashes", "cache: captions",
    "training: checkpoint", "result: metrics", "result: queries", "data check: log", "data check: report",
)  # fmt: skip
"""Names of the kinds of stored files."""


def kinds(folder: Path) -> list[Kind]:
    """Write an artefact of every kind below a folder, and return the kinds."""
    tower = tiny.backbone()
    videos = write_dataset(folder / "videos", "test", 4)
    return [
        *_model_kinds(folder / "model", tower),
        *_index_kinds(folder / "index", tower),
        *_store_kinds(folder / "store"),
        *_cache_kinds(folder / "cache", tower, videos),
        *_training_kinds(folder / "training", tower),
        *_result_kinds(folder / "result", tower),
        *_check_kinds(folder / "check", videos),
    ]


def _fresh(tower: Backbone) -> VideoCLIP:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        model = attach(tower, branch_kwargs={"depth": 2})
        for parameter in model.branch.parameters():  # a new branch does not change the embedding
            parameter.data += 0.05 * torch.randn(parameter.shape)
        return model


def _arrays() -> VideoDataset:
    """Return four clips of noise with a caption each."""
    rng = np.random.default_rng(0)
    clips = [rng.integers(0, 255, (4, 32, 32, 3), dtype=np.uint8) for _ in range(4)]
    return VideoDataset.from_arrays(clips, ["a dog", "two cats", "some fish", "birds"])


def _model_kinds(folder: Path, tower: Backbone) -> Iterator[Kind]:
    saved = _fresh(tower)
    saved.head = LinearClassifier(saved.embed_dim, ("run", "jump", "sit"))
    saved.training_record = {"lr": 1e-3, "task": "recognition", "freeze": "all", "nested": [{"epochs": 3}]}
    saved.save(folder)
    clip = torch.randint(0, 255, (1, 3, 3, 32, 32), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)

    def use(folder: Path) -> object:
        model = load(folder, base=tower)
        with torch.no_grad():
            embedding = model.encode_video(clip)
        assert model.head is not None
        classes = model.head.classes, repr(model.branch.options), model.similarity_name
        return embedding, model.head(embedding), classes, model.training_record, model.branch.state_dict()

    yield Kind("model: config", folder, CONFIG, use, edit_json, seal_folder)
    yield Kind("model: weights", folder, WEIGHTS, use, edit_tensors_header, seal_folder)
    yield Kind("model: manifest", folder, MANIFEST, use, edit_json, seal_manifest)


def _index_kinds(folder: Path, tower: Backbone) -> Iterator[Kind]:
    model, rng = _fresh(tower), np.random.default_rng(0)
    queries = rng.standard_normal((3, model.embed_dim)).astype(np.float32)

    def use(folder: Path) -> object:
        index = VideoIndex.load(folder, model)
        hits = [index.search_embedding(query, k=4) for query in queries]
        hits += [index.search_embedding(queries[0], k=3, where='label = "even"')]
        read_note = VideoIndex.read_note(folder)
        index.save(folder)
        skipped = [(error.path, error.reason, error.backend) for error in index.skipped]
        return hits, skipped, index.paths, index.data_config, index.note, read_note, index.outdated()

    def built(kind: str, size: int) -> Path:
        index = VideoIndex(model, DATA_CONFIG, kind=kind)
        vectors = rng.standard_normal((size, model.embed_dim)).astype(np.float32)
        paths = [folder / "videos" / f"{row}.mp4" for row in range(size)]
        labels = {path: "even" if row % 2 == 0 else "odd" for row, path in enumerate(paths)}
        index._catalog.choose_root(paths)
        entries = {path: Entry(f"{row:032x}", Stamp(1, row, 3, 4, 5)) for row, path in enumerate(paths)}
        index._put(paths, vectors / np.linalg.norm(vectors, axis=1, keepdims=True), entries=entries, labels=labels)
        index._vectors.optimize()
        index.note = {"model": "tiny", "pretrained": None}
        return index.save(folder / kind)

    flat = built("flat", 12)
    yield Kind("index: metadata", flat, METADATA, use, edit_json, seal_folder)
    yield Kind("index: rows", flat, f"{STORE}/{ROWS}", use, edit_json, seal_folder)
    yield Kind("index: manifest", flat, MANIFEST, use, edit_json, seal_manifest)
    yield Kind("index: vectors, flat", flat, f"{STORE}/{VECTORS}", use, seal=seal_folder)
    yield Kind("index: vectors, hnsw", built("hnsw", 40), f"{STORE}/{VECTORS}", use, seal=seal_folder)
    yield Kind("index: vectors, ivf", built("ivf", 320), f"{STORE}/{VECTORS}", use, seal=seal_folder)


class PlainStore(Store):
    """A store that defines no files of its own: those of the base class hold its rows."""

    def __init__(self, width: int, *, kind: str = "flat") -> None:
        super().__init__(width, kind=kind)
        self.rows: dict[str, tuple[np.ndarray, dict[str, Any]]] = {}

    def add(self, ids: Any, vectors: Any, metadata: Any = None) -> None:
        columns = self.checked_columns(ids, vectors, metadata)
        self.refuse_repeated(ids, self.rows)
        self.rows |= dict(zip(ids, zip(vectors, columns, strict=True), strict=True))

    def remove(self, ids: Any) -> int:
        return sum(self.rows.pop(name, None) is not None for name in ids)

    def search(self, vectors: Any, k: int, where: Any = None) -> list[list[Match]]:
        raise AssertionError("these tests do not search")

    def get(self, ids: Any) -> Any:
        return np.stack([self.rows[name][0] for name in ids]), [self.rows[name][1] for name in ids]

    def ids(self, where: Any = None) -> list[str]:
        return list(self.rows)


def _store_kinds(folder: Path) -> Iterator[Kind]:
    store = PlainStore(16)
    names = [f"{row}.mp4" for row in range(6)]
    vectors = np.random.default_rng(0).standard_normal((6, 16)).astype(np.float32)
    store.add(names, vectors, [{"path": name, "label": None, "seconds": 1.5} for name in names])
    with atomic_folder(folder) as draft:
        store.save(draft)
        seal(draft)

    def use(folder: Path) -> object:
        stored = read_sealed(folder, PlainStore.load, error=CheckpointError, advice="build the index again")
        vectors, metadata = stored.get(stored.ids())
        return stored.ids(), torch.from_numpy(vectors.copy()), metadata, stored.kind, stored.width

    yield Kind("plain store: rows", folder, ROWS, use, edit_json, seal_folder)
    yield Kind("plain store: vectors", folder, NPY, use, seal=seal_folder)


def _cache_kinds(folder: Path, tower: Backbone, videos: VideoDataset) -> Iterator[Kind]:
    model, ids = _fresh(tower), tower.tokenize(["a dog", "two cats run", "some fish"])

    def remembered() -> Any:
        data_content._hashes.clear()  # memory of this process, which a new one does not have
        return patch.object(stamps, "SETTLED", 0.0)  # the videos have just been written

    def use_taps(folder: Path) -> object:
        with remembered():
            store = TapCache(folder).store(model, videos, DATA_CONFIG)
            taps = store.batch(range(len(store)))
            again = TapCache(folder).store(model, videos, DATA_CONFIG).batch([0])
        return taps.patches, taps.cls, taps.frames, taps.mask, [record.path for record in store.data], again.frames

    def use_key(folder: Path) -> object:
        """Use the taps, which writes a damaged key again; before that the list of parts must be right or say why."""
        listed = parts_of(folder, full=True)
        taps = use_taps(folder)
        parts = parts_of(folder, full=True)
        for before, after in zip(listed, parts, strict=True):
            assert before.cache_key == after.cache_key or (before.cache_key is None and before.broken)
        return taps, [
            (part.cache_key, part.rows, part.damaged) for part in parts if not part.folder.name.startswith("text")
        ]

    def use_texts(folder: Path) -> object:
        texts = TextCache(folder)
        return texts.embedded(texts.cache_key(tower, "32-true"), ids, tower.encode_text)

    with torch.no_grad():
        use_taps(folder)
        use_texts(folder)
    taps, texts = sorted(path for path in folder.iterdir() if path.is_dir())
    shards = [next(part.glob("*.safetensors")).relative_to(folder) for part in (taps, texts)]
    yield Kind("cache: taps", folder, str(shards[0]), use_taps, edit_tensors_header)
    yield Kind("cache: key", folder, f"{taps.name}/{CACHE_KEY_FILE}", use_key, edit_json)
    yield Kind("cache: log of hashes", folder, HASHES, use_taps, edit_line, seal_lines(_hash_check))
    yield Kind("cache: captions", folder, str(shards[1]), torch.no_grad()(use_texts), edit_tensors_header)


def _hash_check(line: Mapping[str, Any]) -> str:
    """Return the check of a line of any types, which the function of the package refuses while tests check types."""
    return hash_bytes(f"{tuple(line['stamp'])} {line['content']}".encode())[:8]


def _training_kinds(folder: Path, tower: Backbone) -> Iterator[Kind]:
    data, save = _arrays(), Run.save

    def stop(run: Run) -> None:
        save(run)
        raise InterruptedError

    def use(folder: Path) -> object:
        model = _fresh(tower)
        try:
            result = train(model, data, None, TRAIN, out=folder, resume=True, progress=False)
        except FloatingPointError as error:  # an edited setting, such as a weight decay of 1e308, may diverge
            raise CheckpointError(str(error)) from error
        return result.history, result.best_epoch, model.branch.state_dict(), model.training_record

    with patch.object(Run, "save", stop), pytest.raises(InterruptedError):
        train(_fresh(tower), data, None, TRAIN, out=folder, progress=False)
    yield Kind("training: checkpoint", folder, "checkpoint.pt", use, edit_checkpoint, seal_checkpoint)


def _result_kinds(folder: Path, tower: Backbone) -> Iterator[Kind]:
    evaluate_retrieval(_fresh(tower), _arrays(), DATA_CONFIG).save(folder / "a.json", per_query=True)

    def use(folder: Path) -> object:
        result = read_result(folder / "a.json")
        queries = [result.per_query(side).to_csv() for side in ("t2v", "v2t")]
        shown = (
            repr(result),
            result._repr_html_(),
            result.to_frame().to_csv(),
            str(compare(result, result, n_resamples=20)),
        )
        return dict(result), queries, shown

    yield Kind("result: metrics", folder, "a.json", use, edit_json, seal_result)
    yield Kind("result: queries", folder, "a.queries.parquet", use, seal=seal_result)


def _check_kinds(folder: Path, videos: VideoDataset) -> Iterator[Kind]:
    def probed(paths: Sequence[Path], *, workers: int, limit: float) -> Iterator[dict[str, Any]]:
        return (probe_file(path, limit) for path in paths)

    def use(folder: Path) -> object:
        with patch.object(data_check, "_probed", probed):  # in this process, as workers take seconds to start
            try:
                report = data_check.check(videos, folder, workers=1)
            except FileExistsError as error:  # a report of another data set is not overwritten
                raise DataError(str(error)) from error
        return str(report).partition("\n")[2], {**report.to_dict(), "probed": 0, "seconds": 0}

    use(folder)
    yield Kind("data check: log", folder, data_check.LOG, use, edit_line, seal_lines(probe_log._check))
    yield Kind("data check: report", folder, data_check.REPORT, use, edit_json)
