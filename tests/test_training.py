"""Training: learns, resumes to the bit after SIGKILL, refuses what it cannot use."""

import json
import multiprocessing
import resource
import shutil
import signal
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import tiny
import torch
from safetensors.torch import load_file

from clipvid.config.data_config import DataConfig
from clipvid.config.settings import TrainConfig
from clipvid.data.open import open_dataset
from clipvid.data.records import ProtocolSpec, Record, VideoDataset
from clipvid.errors import CheckpointError, DataError, VideoError
from clipvid.evaluation.metrics import retrieval_metrics
from clipvid.evaluation.recognition import evaluate_recognition, evaluate_zero_shot
from clipvid.evaluation.retrieval import evaluate_retrieval
from clipvid.features.embed import embed_texts, embed_videos
from clipvid.features.tap_cache import TapCache
from clipvid.features.taps.memory import encode_dataset
from clipvid.models.backbone.backbone import Backbone
from clipvid.models.factory import attach, load
from clipvid.runtime.storage.archive import seal_archive
from clipvid.runtime.storage.folder_lock import lock_folder
from clipvid.training.batches import batch_order, open_batches
from clipvid.training.hooks import Callback, TrainState
from clipvid.training.loop import train
from clipvid.training.optim import schedule
from clipvid.training.trainer import Run
from clipvid.video.decode import read

DATA_CONFIG = DataConfig(frames=3, batch_size=4, precision="32-true")
WORDS = ("a red circle", "a blue square", "a green star", "a pink ring")


@pytest.fixture(scope="module")
def clips(tmp_path_factory, write_video) -> VideoDataset:
    """Eight short videos of moving noise, four captions, two classes that differ in brightness."""
    import numpy as np

    folder = tmp_path_factory.mktemp("clips")
    rng = np.random.default_rng(0)
    records = []
    for i in range(8):
        frames = rng.integers(0, 60, (6, 48, 48, 3)) + (150 if i % 2 else 0)
        path = write_video(folder / f"{i}.mp4", frames.astype(np.uint8))
        records.append(Record(path, (WORDS[i % 4], WORDS[(i + 1) % 4]), i % 2))
    return VideoDataset(tuple(records), ("dark", "bright"), "noise")


@pytest.fixture(scope="module")
def tower() -> Backbone:
    return tiny.backbone()


def fresh(tower):
    torch.manual_seed(1)
    return attach(tower, branch_kwargs={"depth": 2})


def unlabelled(clips):
    return VideoDataset(tuple(replace(r, label=None) for r in clips), (), "unlabelled")


def config(**changes):
    return replace(TrainConfig(epochs=2, batch_size=4, lr=1e-3, data_config=DATA_CONFIG), **changes)


def weights(model):
    return {name: p.detach().clone() for name, p in model.branch.named_parameters()}


def test_arrays_and_files_train_to_the_same_weights(tower, clips):
    arrays = VideoDataset.from_arrays(
        [read(record.path) for record in clips],
        [record.captions for record in clips],
        labels=[clips.classes[record.label] for record in clips],
        classes=clips.classes,
    )
    trained = []
    for data in (clips, arrays):
        model = fresh(tower)
        train(model, data, config=config(epochs=1), progress=False)
        trained.append(weights(model))
    assert all(torch.equal(trained[0][name], trained[1][name]) for name in trained[0])


def test_recognition_learns_to_tell_two_classes(tower, clips):
    model = fresh(tower)
    settings = config(task="recognition", epochs=6, head_lr=1e-2, cache_taps=True, validate_every=6)
    result = train(model, clips, clips, settings, progress=False)
    assert result.history[-1]["loss"] < result.history[0]["loss"]
    assert evaluate_recognition(model, clips, DATA_CONFIG)["top-1"] == 100.0
    assert model.training_record["task"] == "recognition"
    assert not model.training


def test_cached_taps_train_and_score_exactly_as_live_clips(tower, clips):
    """The tower is frozen and the frames are the same; only the source of the taps differs."""
    store = encode_dataset(fresh(tower), clips, DATA_CONFIG)
    live, cached = fresh(tower), fresh(tower)
    a = embed_videos(live, clips, DATA_CONFIG).video
    b = embed_videos(cached, store).video
    assert torch.equal(a, b)
    results = [
        train(fresh(tower), data, None, config(captions_per_video=0, cache_taps=True), progress=False)
        for data in (clips, store)
    ]
    assert [h["loss"] for h in results[0].history] == [h["loss"] for h in results[1].history]


class Pause:
    """Callback that waits in the fifth step, for the process to be killed."""

    def on_step_end(self, state: TrainState) -> None:
        if state.step == 5:
            time.sleep(120)


def execute(csv: Path, out: Path, callbacks: Sequence[Callback] = ()) -> None:
    """Start a run or resume it, on one thread, so that sums do not depend on the machine."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        data = open_dataset("csv", csv)
        model = fresh(tiny.backbone())
        settings = config(batch_size=2, checkpoint_every=3)
        train(model, data, data, settings, out=out, resume=True, progress=False, callbacks=callbacks)
    finally:
        torch.set_num_threads(threads)


def test_a_run_killed_in_mid_epoch_and_resumed_gives_the_same_bits(clips, tmp_path):
    rows = "".join(f"{r.path},{c},{clips.classes[r.label]}\n" for r in clips for c in r.captions)
    csv = tmp_path / "clips.csv"
    csv.write_text("path,caption,label\n" + rows)
    execute(csv, tmp_path / "whole")
    # A fork loads nothing again; torch trains in one only on Linux and where no GPU is visible.
    method = "fork" if sys.platform == "linux" and not torch.cuda.is_available() else "spawn"
    killed = multiprocessing.get_context(method).Process(target=execute, args=(csv, tmp_path / "killed", [Pause()]))
    killed.start()
    checkpoint = tmp_path / "killed" / "checkpoint.pt"
    deadline = time.monotonic() + 120
    # The first checkpoint is written after 3 of the 4 batches of an epoch.
    while not checkpoint.exists() and killed.is_alive() and time.monotonic() < deadline:
        time.sleep(0.002)
    killed.kill()
    killed.join(timeout=30)
    assert killed.exitcode == -signal.SIGKILL
    assert not (tmp_path / "killed" / "best").exists()
    position = torch.load(checkpoint, weights_only=True)["position"]
    assert 0 < 4 * position["epoch"] + position["batch"] <= 5
    execute(csv, tmp_path / "killed")
    expected, got = (load_file(tmp_path / out / "best" / "branch.safetensors") for out in ("whole", "killed"))
    assert expected.keys() == got.keys()
    assert all(torch.equal(expected[k], got[k]) for k in expected)
    histories = [json.loads((tmp_path / out / "history.json").read_text()) for out in ("whole", "killed")]
    assert histories[0] == histories[1]


def test_training_shortens_captions_like_the_protocol(tower, clips):
    long = tuple(replace(r, captions=("a very " * 9 + r.captions[0],)) for r in clips)
    captions = [r.captions[0] for r in long]
    data = replace(clips, records=long, protocol_spec=ProtocolSpec(tokens=6))
    precision = DATA_CONFIG.precision
    cut = embed_texts(fresh(tower), captions, tokens=6, precision=precision)
    assert torch.equal(open_batches(fresh(tower), data, config(), progress=False).texts.table, cut)
    assert not torch.equal(cut, embed_texts(fresh(tower), captions, precision=precision))
    with_tokens = config(data_config=replace(DATA_CONFIG, tokens=9))
    overridden = embed_texts(fresh(tower), captions, tokens=9, precision=precision)
    assert torch.equal(open_batches(fresh(tower), data, with_tokens, progress=False).texts.table, overridden)


def test_a_checkpoint_of_another_run_is_refused(tower, clips, tmp_path):
    train(fresh(tower), clips, None, config(epochs=1), out=tmp_path, progress=False)
    with (
        lock_folder(tmp_path),
        pytest.raises(FileExistsError, match=f"another run is writing to {tmp_path}; wait until"),
    ):
        train(fresh(tower), clips, None, config(epochs=1), out=tmp_path, resume=True, progress=False)
    with pytest.raises(
        FileExistsError, match=r"holds a training run; continue it \(resume=True\), or choose another out"
    ):
        train(fresh(tower), clips, None, config(epochs=1), out=tmp_path, progress=False)
    with pytest.raises(CheckpointError, match=r"another config \(lr: 0.001 saved, 0.002 now\)"):
        train(fresh(tower), clips, None, config(epochs=1, lr=2e-3), out=tmp_path, resume=True, progress=False)


def test_a_run_among_the_videos_of_the_data_is_refused_before_a_file_is_written(tower, clips):
    folder = clips[0].path.parent
    before = sorted(folder.iterdir())
    captionless = VideoDataset((Record(Path("elsewhere.mp4"), ("a",)),))
    for out in (folder, folder.parent, folder / ".." / folder.name):
        for parts in ((clips, None), (captionless, clips)):
            with pytest.raises(ValueError, match="out must be a folder without the videos of the data, got "):
                train(fresh(tower), *parts, config(), out=out, progress=False)
    assert sorted(folder.iterdir()) == before


def test_a_run_is_resumed_only_from_the_source_of_clips_it_started_with(tower, clips, tmp_path):
    taps = TapCache(tmp_path / "taps")
    run = {"out": tmp_path / "run", "progress": False}
    first = train(fresh(tower), clips, clips, config(epochs=1), cache=taps, **run)
    for cache, other in (
        (None, "videos"),
        (TapCache(tmp_path / "other", kind="int8"), "a tap cache of kind int8 and mode taps"),
        (TapCache(tmp_path / "other", mode="first_layer"), "a tap cache of kind fp32 and mode first_layer"),
    ):
        message = (
            f"was trained from a tap cache of kind fp32 and mode taps, this run reads {other}; give the same source"
        )
        message += r" \(--cache DIR, in Python cache=\)$" if cache is None else "$"
        with pytest.raises(CheckpointError, match=message):
            train(fresh(tower), clips, clips, config(epochs=1), cache=cache, resume=True, **run)
    assert not (tmp_path / "other").exists(), "refused before anything is encoded"
    store = taps.store(fresh(tower), clips, DATA_CONFIG)
    again = train(fresh(tower), store, store, config(epochs=1), resume=True, **run)
    assert again.history == first.history


def test_a_run_from_taps_in_memory_is_resumed_from_a_store(tower, clips, tmp_path):
    run, settings = {"out": tmp_path, "progress": False}, config(epochs=1, cache_taps=True)
    first = train(fresh(tower), clips, None, settings, **run)
    store = encode_dataset(fresh(tower), clips, DATA_CONFIG)
    assert train(fresh(tower), store, None, settings, resume=True, **run).history == first.history


@pytest.mark.parametrize("content", [{"a": 1}, [1, 2]])
def test_a_file_other_than_a_checkpoint_is_refused(tower, clips, tmp_path, content):
    torch.save(content, tmp_path / "checkpoint.pt")
    with pytest.raises(CheckpointError, match=r"checkpoint\.pt is no checkpoint of a training run"):
        train(fresh(tower), clips, None, config(epochs=1), out=tmp_path, resume=True, progress=False)


def test_a_checkpoint_without_its_source_of_clips_is_resumed(tower, clips, tmp_path):
    run = {"out": tmp_path, "progress": False}
    train(fresh(tower), clips, None, config(epochs=1), **run)
    state = torch.load(tmp_path / "checkpoint.pt", weights_only=True)
    settings = {name: value for name, value in json.loads(state["config"]).items() if name != "cache_views"}
    state["config"] = json.dumps(settings, sort_keys=True)  # like a checkpoint older than that setting
    torch.save({k: v for k, v in state.items() if k not in ("origin", "readable")}, tmp_path / "checkpoint.pt")
    seal_archive(tmp_path / "checkpoint.pt")
    assert train(fresh(tower), clips, None, config(epochs=1), resume=True, **run).best_epoch == 1


@pytest.mark.parametrize(
    "changes", [{"epochs": 1}, {"epochs": 50, "patience": 1, "lr": 1e-9}], ids=["epochs", "patience"]
)
def test_resuming_a_finished_run_returns_its_result_without_opening_clips(tower, clips, tmp_path, monkeypatch, changes):
    run = {"out": tmp_path / "run", "cache": TapCache(tmp_path / "taps"), "progress": False}
    model = fresh(tower)
    first = train(model, clips, clips, config(**changes), **run)
    assert len(first.history) < 50
    shutil.rmtree(tmp_path / "taps")
    monkeypatch.setattr("clipvid.training.loop.open_batches", None)
    again = fresh(tower)
    result = train(again, clips, clips, config(**changes), resume=True, **run)
    assert result.already_finished
    assert replace(result, seconds=first.seconds, already_finished=False) == first
    assert all(torch.equal(value, weights(model)[name]) for name, value in weights(again).items())
    assert again.training_record == model.training_record
    assert not (tmp_path / "taps").exists()


def test_a_run_is_not_resumed_if_other_clips_are_readable(tower, clips, tmp_path, monkeypatch):
    (tmp_path / "broken.mp4").write_bytes(b"not a video")
    data = replace(clips, records=(*clips.records, Record(tmp_path / "broken.mp4", ("a red circle",), 0)))
    settings = config(data_config=replace(DATA_CONFIG, unreadable="skip"))
    run = {"out": tmp_path / "run", "cache": TapCache(tmp_path / "taps"), "progress": False}
    save = Run.save

    def save_and_stop(run: Run) -> None:
        save(run)
        raise KeyboardInterrupt  # not a signal, which background processes may ignore

    monkeypatch.setattr(Run, "save", save_and_stop)
    with pytest.raises(KeyboardInterrupt):
        train(fresh(tower), data, None, settings, **run)
    shutil.copy(clips.records[0].path, tmp_path / "broken.mp4")
    with pytest.raises(CheckpointError, match="was trained when other clips could be read"):
        train(fresh(tower), data, None, settings, resume=True, **run)


def test_a_full_disk_raises_a_clear_error(tower, clips, tmp_path):
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))  # less than a checkpoint needs
    try:
        with pytest.raises(
            OSError, match=r"checkpoint.pt cannot be written \(.+\); make room, or choose another folder"
        ):
            train(fresh(tower), clips, None, config(epochs=1), out=tmp_path, progress=False)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert not list(tmp_path.glob("*checkpoint*"))


def test_the_best_epoch_is_restored_and_saved(tower, clips, tmp_path):
    model = fresh(tower)
    result = train(model, clips, clips, config(), out=tmp_path, progress=False)
    assert result.best_score == max(h["score"] for h in result.history)
    saved = load(tmp_path / "best", base=tower)
    assert evaluate_retrieval(saved, clips, DATA_CONFIG)["R@1"] == pytest.approx(result.best_score)
    assert list((tmp_path / "tensorboard").iterdir())


def test_training_refuses_unusable_data_and_settings(tower, clips):
    bare = VideoDataset(tuple(replace(r, captions=(), label=None) for r in clips), clips.classes, "bare")
    with pytest.raises(DataError, match=r"retrieval needs two or more clips with a caption each; 8 of 8 in bare"):
        train(fresh(tower), bare, None, config(), progress=False)
    with pytest.raises(DataError, match="recognition needs two or more"):
        train(fresh(tower), unlabelled(clips), None, config(task="recognition"), progress=False)
    with pytest.raises(ValueError, match="nothing to train: branch 'mean'"):
        train(attach(tower, "mean"), clips, None, config(), progress=False)
    with pytest.raises(ValueError, match="warmup must be a fraction"):
        TrainConfig(warmup=2.0)


def test_an_unreadable_video_stops_training_or_is_left_out_by_name(tower, clips, tmp_path):
    (tmp_path / "broken.mp4").write_bytes(b"not a video")
    data = replace(clips, records=(*clips.records, Record(tmp_path / "broken.mp4", ("a red circle",), 0)))
    with pytest.raises(VideoError, match=r"broken\.mp4"):
        train(fresh(tower), data, None, config(epochs=1), progress=False)
    skip = replace(DATA_CONFIG, unreadable="skip")
    # Validation only chooses an epoch, so the protocol's number of videos does not apply.
    protocol = replace(data, protocol_spec=ProtocolSpec(videos=9))
    for cached, training_data in ((False, data), (True, clips)):
        settings = config(epochs=1, data_config=skip, batch_size=9, cache_taps=cached)
        result = train(fresh(tower), training_data, protocol, settings, progress=False)
        assert [error.path.name for error in result.unreadable] == ["broken.mp4"]
        assert result.best_score is not None
    retrieval = evaluate_retrieval(fresh(tower), data, skip)
    assert retrieval.n_videos == 8
    assert [e.path.name for e in retrieval.unreadable] == ["broken.mp4"]
    assert "1 unreadable and left out" in str(retrieval)


def test_a_batch_of_unreadable_videos_is_skipped_and_counts_in_the_batch_order(tower, clips, tmp_path, monkeypatch):
    """A run resumed after it continues with the next batch and repeats none."""
    for name in ("x.mp4", "y.mp4"):
        (tmp_path / name).write_bytes(b"not a video")
    broken = tuple(Record(tmp_path / name, ("a red circle",), 0) for name in ("x.mp4", "y.mp4"))
    data = replace(clips, records=(*broken, *clips.records[:6]))
    settings = config(batch_size=2, keep_together=2, data_config=replace(DATA_CONFIG, unreadable="skip"))
    live = open_batches(fresh(tower), data, settings, progress=False)
    skipped = live.order(0).index([0, 1])
    assert [batch.index for batch in live.batches(0, start=0)] == [number for number in range(4) if number != skipped]
    assert [batch.index for batch in live.batches(0, start=2)] == [number for number in (2, 3) if number != skipped]
    checkpoints: list[int] = []
    monkeypatch.setattr(Run, "checkpoint_if_due", lambda run: checkpoints.append(run.batch))
    train(fresh(tower), data, None, replace(settings, epochs=1), progress=False)
    assert checkpoints == [number + 1 for number in range(4) if number != skipped], "a checkpoint names the next batch"


def test_an_epoch_without_a_readable_video_stops_training(tower, clips, tmp_path):
    (tmp_path / "x.mp4").write_bytes(b"not a video")
    data = replace(clips, records=tuple(replace(r, path=tmp_path / "x.mp4") for r in clips))
    with pytest.raises(DataError, match="no training video could be read in epoch 1"):
        train(fresh(tower), data, None, config(data_config=replace(DATA_CONFIG, unreadable="skip")), progress=False)


def test_a_branch_reads_the_last_levels_of_a_deeper_store(tower, clips):
    store = encode_dataset(attach(tower, branch_kwargs={"depth": 3}), clips, DATA_CONFIG)
    assert store.read_by(attach(tower, branch_kwargs={"depth": 1})).taps.patches[0] is store.taps.patches[-1], (
        "not copied"
    )
    blind = attach(tower, "mean", branch_kwargs={"hidden": 8})
    train(blind, store, store, config(epochs=1), progress=False)
    live, stored = (embed_videos(blind, data, DATA_CONFIG).video for data in (clips, store))
    assert torch.equal(live, stored)


def test_batch_order_keeps_neighbours_together_and_depends_on_seed_and_epoch():
    settings = TrainConfig(batch_size=4, keep_together=2)
    batches = batch_order(12, settings, epoch=0)
    assert sorted(i for b in batches for i in b) == list(range(12))
    assert all(b[i] + 1 == b[i + 1] and b[i] % 2 == 0 for b in batches for i in (0, 2))
    assert batch_order(12, settings, epoch=0) == batches != batch_order(12, settings, epoch=1)


def test_schedule_rises_then_falls_to_zero():
    rates = [schedule(i / 100, warmup=0.1) for i in range(101)]
    assert rates[0] > 0
    assert max(rates) == pytest.approx(1.0, abs=1e-3)
    assert rates[:11] == sorted(rates[:11])
    assert rates[11:] == sorted(rates[11:], reverse=True)
    assert rates[100] == pytest.approx(0.0, abs=1e-9)


def test_accumulating_two_half_batches_equals_one_batch(tower, clips, monkeypatch):
    """Recognition: the mean of two half-batch gradients equals the gradient of the full batch."""
    gradients = []

    def record(optimizer, *_, **__):
        gradients.append(
            [p.grad.clone() for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
        )

    monkeypatch.setattr(torch.optim.AdamW, "step", record)
    for changes in ({"batch_size": 8}, {"batch_size": 4, "accumulate_grad_batches": 2}):
        model = fresh(tower)
        for layer in model.branch.layers:
            layer.drop_path = layer.steps[0].drop_path = 0.0
        train(model, clips, None, config(task="recognition", epochs=1, cache_taps=True, **changes), progress=False)
    assert len(gradients) == 2
    assert max(float(g.abs().max()) for g in gradients[0]) > 1e-3
    for full, halves in zip(*gradients, strict=True):
        torch.testing.assert_close(halves, full, atol=1e-6, rtol=1e-4)


def test_a_collapsed_model_scores_chance():
    metrics = retrieval_metrics(torch.ones(50, 50), torch.arange(50))
    assert metrics.t2v["R@1"] == pytest.approx(2.0)
    assert metrics.v2t["R@10"] == pytest.approx(20.0)


def test_zero_shot_is_recognition_with_class_names(tower, clips):
    result = evaluate_zero_shot(fresh(tower), clips, DATA_CONFIG, templates=("a {} clip",))
    assert result.metrics.n == 8
    assert 0 <= result["top-1"] <= 100
    with pytest.raises(DataError, match=r"has no class names"):
        evaluate_zero_shot(fresh(tower), unlabelled(clips), DATA_CONFIG)


def test_a_run_is_not_resumed_with_another_similarity(tower, clips, tmp_path):
    train(fresh(tower), clips, None, config(epochs=1), out=tmp_path / "run", progress=False)
    other = attach(tower, branch_kwargs={"depth": 2}, similarity="mug")
    with pytest.raises(CheckpointError, match="another branch or similarity"):
        train(other, clips, None, config(epochs=1), out=tmp_path / "run", resume=True, progress=False)


def test_position_tables_norms_and_biases_have_no_weight_decay():
    from clipvid.training.optim import UNDECAYED

    spared = ["branch.position.time", "branch.time", "stem.space", "clip.visual.positional_embedding", "stem.cls"]
    assert all(UNDECAYED.search(name) for name in [*spared, "decoder.ffn1.bias", "decoder.norm_weight"])
    decayed = ["decoder.time.0.weight", "layers.0.block.attention.qkv.weight", "fusion.gate.weight"]
    assert not any(UNDECAYED.search(name) for name in decayed)
