"""Cached caption embeddings: bit-identical to live, specific to tower and caption length, damage is reported."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from clipvid.cli.main import main
from clipvid.config.data_config import DataConfig
from clipvid.config.settings import TrainConfig
from clipvid.data.motion_shapes import write_dataset
from clipvid.data.records import VideoDataset
from clipvid.errors import CacheError
from clipvid.evaluation.retrieval import evaluate_retrieval
from clipvid.features.embed import embed_texts
from clipvid.features.maintenance import parts_of
from clipvid.features.tap_cache import TapCache
from clipvid.features.taps.memory import encode_dataset
from clipvid.features.taps.tap_store import TapStore
from clipvid.features.text_cache import TextCache
from clipvid.models.backbone.backbone import Backbone
from clipvid.models.factory import create_model
from clipvid.models.video_clip import VideoCLIP
from clipvid.training.loop import train

DATA_CONFIG = DataConfig(frames=2, batch_size=4, precision="32-true")
OPTIONS = ["--data_config", '{"frames": 2, "batch_size": 4, "precision": "32-true"}']
HALF = ["--data_config", '{"frames": 2, "batch_size": 4, "precision": "bf16-mixed"}']
TEXTS = [f"shape number {n} {'turns and turns ' * (n % 5)}" for n in (5, 3, 9, 3, 7, 1, 0)]


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> VideoDataset:
    return write_dataset(tmp_path_factory.mktemp("shapes"), "test", 6)


@pytest.fixture
def model() -> VideoCLIP:
    return create_model("clipvid-mini", branch_kwargs={"depth": 1}).eval()


@pytest.fixture
def passes(monkeypatch) -> list[int]:
    """Number of captions in each pass of a text tower."""
    sizes: list[int] = []
    encode = VideoCLIP.encode_text
    monkeypatch.setattr(VideoCLIP, "encode_text", lambda m, x, **k: sizes.append(len(x)) or encode(m, x, **k))
    return sizes


def shards(folder: Path) -> list[Path]:
    return sorted(folder.glob("text-*/*.safetensors"))


@pytest.mark.parametrize("precision", ["bf16-mixed", "32-true"])
def test_cached_equals_live_to_the_bit_and_the_tower_runs_once(model, tmp_path, passes, precision):
    live = embed_texts(model, TEXTS, precision=precision, batch_size=4)
    assert passes == [4, 2]
    assert live.dtype == torch.float32
    for _ in range(2):
        cached = embed_texts(model, TEXTS, precision=precision, batch_size=4, cache=TextCache(tmp_path))
        assert torch.equal(cached, live)
    assert passes == [4, 2, 4, 2]
    torch.testing.assert_close(cached.norm(dim=-1), torch.ones(len(TEXTS)))
    assert len(shards(tmp_path)) == 2


def test_the_text_tower_is_hashed_once_for_all_chunks(model, tmp_path, monkeypatch):
    calls: list[None] = []
    hashed = Backbone._hashed
    monkeypatch.setattr(Backbone, "_hashed", lambda *args: calls.append(None) or hashed(*args))
    embed_texts(model, TEXTS, batch_size=2, cache=TextCache(tmp_path))
    assert len(shards(tmp_path)) == 3
    assert len(calls) == 1


def test_added_captions_leave_full_chunks_before_them_cached(model, tmp_path, passes):
    embed_texts(model, ["a", "b", "c", "d"], batch_size=2, cache=TextCache(tmp_path))
    embed_texts(model, ["e", "d", "c", "b", "a"], batch_size=2, cache=TextCache(tmp_path))
    assert passes == [2, 2, 1]


def test_embeddings_are_specific_to_text_tower_caption_length_and_precision(model, tmp_path, passes):
    def embedded(m: VideoCLIP, **options) -> torch.Tensor:
        return embed_texts(m, TEXTS, **{"precision": "32-true", **options}, cache=TextCache(tmp_path))

    uncut, cut = embedded(model), embedded(model, tokens=5)
    assert not torch.equal(uncut, cut)
    assert torch.equal(cut, embed_texts(model, TEXTS, precision="32-true", tokens=5))
    embedded(model, precision="bf16-mixed")
    assert len(list(tmp_path.iterdir())) == 2
    other = create_model("clipvid-mini", branch_kwargs={"depth": 1})
    with torch.no_grad():
        other.backbone.clip.token_embedding.weight[5:50] += 0.1
    assert not torch.equal(embedded(other), uncut)
    same_text = create_model("clipvid-mini", branch_kwargs={"depth": 1})
    with torch.no_grad():
        same_text.backbone.visual.conv1.weight.mul_(1.1)
        same_text.backbone.clip.logit_scale.fill_(0)
    before = len(passes)
    assert torch.equal(embedded(same_text), uncut)
    assert len(passes) == before, "image tower and temperature do not change text embeddings"


def test_training_changes_the_text_fingerprint(model):
    before = model.backbone.text_fingerprint
    name = "token_embedding.weight"
    model.backbone.trained.add(name)
    with torch.no_grad():
        model.backbone.clip.token_embedding.weight[0] += 1
    assert model.backbone.text_fingerprint != before


@pytest.mark.parametrize("damage", ["flip", "cut", "other"])
def test_damaged_files_are_named_and_not_used(model, tmp_path, damage):
    embed_texts(model, TEXTS, batch_size=4, cache=TextCache(tmp_path))
    path, neighbour = shards(tmp_path)
    content = bytearray(path.read_bytes())
    content[-9] ^= 1
    path.write_bytes({"flip": content, "cut": content[:-9], "other": neighbour.read_bytes()}[damage])
    with pytest.raises(CacheError, match=f"{path.name} is damaged.*clipvid cache prune"):
        embed_texts(model, TEXTS, batch_size=4, cache=TextCache(tmp_path))


@pytest.mark.parametrize("precision", ["bf16-mixed", pytest.param("32-true", marks=pytest.mark.slow)])
def test_training_and_evaluation_from_a_cache_embed_each_caption_once(model, data, tmp_path, passes, precision):
    data_config = replace(DATA_CONFIG, precision=precision)
    store = TapCache(tmp_path).store(model, data, data_config)
    in_memory = encode_dataset(model, data, data_config)
    live, from_disk, second = (evaluate_retrieval(model, clips) for clips in (in_memory, store, store))
    assert len(passes) == 2
    assert live.metrics.to_dict() == from_disk.metrics.to_dict() == second.metrics.to_dict()
    config = TrainConfig(epochs=1, batch_size=4, captions_per_video=0, data_config=data_config)

    def trained(clips: TapStore) -> tuple[dict[str, float], ...]:
        torch.manual_seed(0)
        return train(
            create_model("clipvid-mini", branch_kwargs={"depth": 1}), clips, None, config, progress=False
        ).history

    assert trained(in_memory) == trained(store)
    assert len(passes) == 3, "training reuses the embeddings of the evaluation"


def test_nothing_is_cached_while_the_text_tower_trains(data, tmp_path):
    model = create_model("clipvid-mini", branch_kwargs={"depth": 1})
    store = TapCache(tmp_path).store(model, data, DATA_CONFIG)
    config = TrainConfig(epochs=1, batch_size=4, train_clip="text", data_config=DATA_CONFIG)
    train(model, store, None, config, progress=False)
    assert not shards(tmp_path)


@pytest.fixture
def videos(data, tmp_path, monkeypatch) -> str:
    """Folder of the videos; commands run in an empty folder."""
    monkeypatch.chdir(tmp_path)
    return str(data[0].path.parent)


@pytest.fixture
def evaluated_cache(videos) -> Path:
    """Cache written by an evaluation, with the result in made.json."""
    assert main(["eval", videos, "--cache", "taps", "--out", "made.json", *OPTIONS]) == 0
    return Path("taps")


def test_eval_gives_the_same_result_with_and_without_a_cache(videos, evaluated_cache):
    assert main(["eval", videos, "--out", "live.json", *OPTIONS]) == 0
    assert json.loads(Path("live.json").read_text()) == json.loads(Path("made.json").read_text())


def test_a_second_eval_reads_only_the_cache(videos, evaluated_cache, monkeypatch):
    for encodes in ("clipvid.features.embed.LiveSource", "clipvid.features.tap_cache.LiveSource"):
        monkeypatch.setattr(encodes, None)
    monkeypatch.setattr(VideoCLIP, "encode_text", None)
    assert main(["eval", videos, "--cache", "taps", "--out", "read.json", *OPTIONS]) == 0
    assert json.loads(Path("read.json").read_text()) == json.loads(Path("made.json").read_text())


@pytest.mark.parametrize(
    "options", [pytest.param(OPTIONS, marks=pytest.mark.slow), HALF], ids=["32-true", "bf16-mixed"]
)
def test_embed_gives_the_same_from_the_cache_as_live(videos, monkeypatch, options):
    assert main(["eval", videos, "--cache", "taps", *options]) == 0
    assert main(["embed", videos, "--out", "live.safetensors", *options]) == 0
    monkeypatch.setattr("clipvid.features.tap_cache.LiveSource", None)
    assert main(["embed", videos, "--cache", "taps", "--out", "cached.safetensors", *options]) == 0
    assert torch.equal(load_file("live.safetensors")["video"], load_file("cached.safetensors")["video"])


def test_verify_counts_captions_too(data, evaluated_cache, capsys):
    capsys.readouterr()
    assert main(["cache", "verify", "taps"]) == 0
    output = capsys.readouterr().out
    assert "6 clips" in output
    assert f"{len({c for r in data for c in r.captions})} captions" in output
    assert "caption embeddings" in output


def test_verify_names_damaged_captions(evaluated_cache, capsys):
    (path,) = shards(evaluated_cache)
    path.write_bytes(path.read_bytes()[:-1])
    assert main(["cache", "verify", "taps"]) == 1
    assert f"{path.name} is damaged" in capsys.readouterr().out


def test_prune_removes_damaged_captions_and_leaves_the_clips(evaluated_cache):
    (path,) = shards(evaluated_cache)
    path.write_bytes(path.read_bytes()[:-1])
    assert main(["cache", "prune", "taps"]) == 0
    assert [part.rows for part in parts_of(evaluated_cache)] == [6, 0]
    assert not path.exists()


def test_embed_encodes_uncached_clips_and_skips_unreadable_ones(data, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "videos"
    folder.mkdir()
    for record in (*data.records[:3], data[5]):
        shutil.copy(record.path, folder)
    (folder / "broken.mp4").write_bytes(b"nothing")
    TapCache("taps").store(create_model("clipvid-mini", branch="mean"), data.subset(range(3)), DATA_CONFIG)
    assert main(["embed", str(folder), "--cache", "taps", *OPTIONS]) == 0
    assert load_file("embeddings.safetensors")["video"].shape[0] == 4
    assert list(json.loads(Path("embeddings.json").read_text())["skipped"]) == [str(folder / "broken.mp4")]
    assert [part.rows for part in parts_of("taps")] == [4]
