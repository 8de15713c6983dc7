"""Training of a branch: one visible loop on Lightning Fabric, resumable to the bit.

Contract: a model, data and a TrainConfig in; the model trained in place and a TrainResult out. Everything random is a
function of (seed, epoch, clip) or of torch's generator, whose state is saved, so a run that was killed and resumed ends
in the weights of one that was not. Knows nothing of decoding or of metrics' formulas.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager, nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import NoneType
from typing import Any

import torch

from clipvid.config import checks
from clipvid.config.settings import CHECKPOINT, TrainConfig
from clipvid.data.records import VideoDataset
from clipvid.errors import DataError
from clipvid.evaluation.results import data_hash
from clipvid.features.tap_cache import TapCache
from clipvid.features.taps.tap_store import TapStore, dataset_of
from clipvid.models.backbone import trainable
from clipvid.models.branches.base import LayeredBranch
from clipvid.models.heads import LinearClassifier, TextClassifier
from clipvid.models.video_clip import VideoCLIP, require_video_clip
from clipvid.runtime.optional import require
from clipvid.runtime.precision import resolve
from clipvid.runtime.storage.folder_lock import lock_folder
from clipvid.runtime.text import pluralize
from clipvid.training.batches import TrainBatches, encode_taps, open_batches, open_pairs
from clipvid.training.history import TrainResult
from clipvid.training.hooks import Callback, Hooks, Logger, Loss, OptimizerFactory
from clipvid.training.objectives import move, recover
from clipvid.training.tasks import needs_of
from clipvid.training.trainer import Run


def train(
    model: VideoCLIP,
    train_data: VideoDataset | TapStore,
    val_data: VideoDataset | TapStore | None = None,
    config: TrainConfig | None = None,
    *,
    out: str | Path | None = None,
    resume: bool = False,
    cache: TapCache | None = None,
    progress: bool = True,
    accelerator: str = "auto",
    loss: Loss | None = None,
    optimizer: OptimizerFactory | None = None,
    callbacks: Sequence[Callback] = (),
    logger: Logger | None = None,
) -> TrainResult:
    """Train the model's branch (and heads) in place, and the part of CLIP that `config.train_clip` names.

    The model is in train mode during each epoch, and in eval mode afterwards.

    With `val_data` the model gets the weights of the epoch with the best score, otherwise those of the last epoch.
    `out` receives checkpoints, the best model (`out/best`), history.json and, if tensorboard is installed, its curves.
    Taps are read from `cache` and written to it. torch's random generators are restored afterwards.

    `loss`, `optimizer`, `callbacks` and `logger` replace or extend the parts of training that `clipvid.training.hooks`
    describes. A run is resumed only with the same loss and optimizer, by name.

    `resume` continues from the last checkpoint in `out`. For a finished run the same result is returned again
    (`already_finished`), without the list of unreadable clips. With more epochs the run continues, and its remaining
    learning rates are rescheduled (`rescheduled`, and a ClipvidWarning), so it does not equal a run that had as many
    epochs from the start. Settings that change no step and no score, such as the workers, may differ.

    Raises, before any clip is decoded, DataError for data that the task cannot use, CheckpointError for a checkpoint of
    another run, with each setting that differs, FileExistsError for a run that would be overwritten or that another
    process is writing, MissingExtraError without lightning-fabric, TypeError for hooks without the needed methods; and
    after decoding, CheckpointError for other readable clips than the checkpoint's, FloatingPointError if it diverges.
    """
    _check_arguments(model, train_data, val_data, config=config, out=out, cache=cache)
    config, hooks = config or TrainConfig(), Hooks(loss, optimizer, callbacks, logger)
    if cache is not None and config.cache_taps:
        raise ValueError("cache stores taps on disk, and cache_taps in memory; leave out one of them")
    if cache is not None:
        replace(config, cache_taps=True)  # raises ValueError for settings that cached taps do not allow
    with nullcontext() if out is None else lock_folder(out):
        if out is not None and not resume:
            _check_new(Path(out), train_data, val_data)
        fabric = _fabric(config, accelerator)
        with _seeded(config.seed, fabric.device):
            return _train(
                model,
                train_data,
                val_data,
                config,
                fabric=fabric,
                out=None if out is None else Path(out),
                resume=resume,
                cache=cache,
                progress=progress,
                hooks=hooks,
            )


def _check_arguments(
    model: object, train_data: Any, val_data: Any, *, config: object, out: object, cache: object
) -> None:
    """Raise ValueError for arguments of `train` of another type."""
    require_video_clip(model)
    dataset_of(train_data)
    if val_data is not None:
        advice = "pass settings as config="
        checks.of_type("val_data", val_data, (VideoDataset, TapStore), must="a VideoDataset or None", advice=advice)
    advice = "build it by clipvid.TrainConfig(task=...)"
    checks.of_type("config", config, (TrainConfig, NoneType), must="a TrainConfig", advice=advice)
    checks.of_type("cache", cache, (TapCache, NoneType), must="a TapCache", advice="build it by TapCache(folder)")
    if out is not None:
        checks.path("out", out)


def _check_new(out: Path, *parts: VideoDataset | TapStore | None) -> None:
    """Raise FileExistsError if `out` holds a run, and ValueError if videos of the data are in it or below it.

    The folders of a run would count as classes when a folder of videos is opened again.
    """
    if (out / CHECKPOINT).exists():
        raise FileExistsError(f"{out} holds a training run; continue it (resume=True), or choose another out")
    datasets = [dataset_of(part) for part in parts if part is not None]
    folders = {record.path.parent for data in datasets for record in data if record.array is None}
    resolved = out.resolve()
    for folder in map(Path.resolve, folders):
        if resolved in (folder, *folder.parents):
            raise ValueError(f"out must be a folder without the videos of the data, got {out}; choose another out")


def _train(
    model: VideoCLIP,
    train_data: VideoDataset | TapStore,
    val_data: VideoDataset | TapStore | None,
    config: TrainConfig,
    *,
    fabric: Any,
    out: Path | None,
    resume: bool,
    cache: TapCache | None,
    progress: bool,
    hooks: Hooks,
) -> TrainResult:
    """Run `train` once its settings are checked and its folder is locked."""
    start = time.perf_counter()
    fabric.strategy.setup_environment()  # selects the device; Fabric would do it as it moves a module
    move(model, fabric.device)
    _prepare_head(model, train_data, config)
    _set_trainable(model, config, (train_data, val_data))
    _set_activation_checkpointing(model, on=config.activation_checkpointing)
    _check_compile(model, config)
    parts = [part for part in (train_data, val_data) if part is not None]
    origin = " and ".join(dict.fromkeys(_origin(model, part, cache, config) for part in parts))
    run = Run(model, config, fabric, out=out, clips=_clips_hash(parts), origin=origin, hooks=hooks)
    state = run.read_last_checkpoint() if resume else None
    if run.is_over():
        return run.finish(seconds=time.perf_counter() - start, unreadable=())
    _check_validation(model, val_data, config)
    source = open_batches(model, train_data, config, cache=cache, progress=progress)
    if val_data is not None:
        val_data = _for_validation(encode_taps(model, val_data, config, cache, progress=progress))
    readable = [source.data, *([] if val_data is None else [val_data])]
    run.prepare(steps_per_epoch=len(source.order(0)), readable=_clips_hash(readable))
    if state is not None:
        run.restore(state)
    del state  # frees memory: the run has copied the weights and the optimizer's state
    with _compiled(model.branch, config):
        _fit(run, source, val_data, progress=progress)
    errors = [*source.unreadable, *(val_data.unreadable if isinstance(val_data, TapStore) else ())]
    error_by_path = {error.path: error for error in errors}
    result = run.finish(seconds=time.perf_counter() - start, unreadable=tuple(error_by_path.values()))
    run.call("on_train_end")
    return result


def _fabric(config: TrainConfig, accelerator: str) -> Any:
    """Return a Fabric of one device in the precision of `config`; raise MissingExtraError without lightning-fabric."""
    library = require("lightning_fabric", extra="train", why="training")
    one_device = partial(library.Fabric, accelerator=accelerator, devices=1)
    fabric = one_device(precision="32-true")
    device = fabric.device
    precision = resolve(config.data_config.precision, device)
    if precision == "32-true":
        return fabric
    # For fp16 on a CPU, Fabric warns and uses bf16, but only if it makes the precision plugin itself.
    if (precision, device.type) == ("16-mixed", "cpu"):
        return one_device(precision=precision)
    # Fabric logs the precision on every run unless it is given a plugin.
    return one_device(plugins=[library.plugins.MixedPrecision(precision, device.type)])


@contextmanager
def _seeded(seed: int, device: torch.device) -> Iterator[None]:
    """Seed torch's generators of the CPU and of `device` for the block, and restore them after it."""
    gpus = range(torch.cuda.device_count()) if device.type == "cuda" else ()
    with torch.random.fork_rng(devices=gpus), ExitStack() as after:
        torch.default_generator.manual_seed(seed)  # torch.manual_seed would also reseed devices that do not train
        if gpus:
            torch.cuda.manual_seed_all(seed)
        if device.type == "mps":
            after.callback(torch.mps.set_rng_state, torch.mps.get_rng_state())
            torch.mps.manual_seed(seed)
        yield


def _check_compile(model: VideoCLIP, config: TrainConfig) -> None:
    """Raise ValueError, before anything is encoded, if torch.compile would fail at the first step."""
    if model.branch._compiled_call_impl is not None and (config.micro_batch_size or config.activation_checkpointing):
        raise ValueError(
            "the branch is compiled, and its second pass would draw other random numbers; leave out "
            "micro_batch_size and activation_checkpointing, or train a branch that is not compiled"
        )
    if config.compile and model.device.type == "cpu":
        from torch._inductor.cpp_builder import get_cpp_compiler

        try:
            get_cpp_compiler()
        except RuntimeError as error:
            raise ValueError(
                "compile needs a C++ compiler such as g++ on a CPU, and none is installed; leave it out"
            ) from error


@contextmanager
def _compiled(branch: Any, config: TrainConfig) -> Iterator[None]:
    """Compile the branch for the block, if `config` asks for it."""
    before = branch._compiled_call_impl
    if config.compile:
        branch.compile()
    try:
        yield
    finally:
        branch._compiled_call_impl = before


def _fit(run: Run, source: TrainBatches, val_data: VideoDataset | TapStore | None, *, progress: bool) -> None:
    """Train from the run's position to the end of its last epoch.

    Raises FloatingPointError for a run that diverges, after loading the weights of its best epoch if it has one.
    """
    try:
        _fit_epochs(run, source, val_data, progress=progress)
    except FloatingPointError as error:
        raise FloatingPointError(f"{error}; {recover(run.objective, run.best)}") from error


def _fit_epochs(run: Run, source: TrainBatches, val_data: VideoDataset | TapStore | None, *, progress: bool) -> None:
    with run.bar(progress) as bar, run.logger() as logger, _eval_afterwards(run.model):
        run.call("on_train_start")
        while not run.is_over():
            run.model.train()
            with closing(source.batches(run.epoch, start=run.batch)) as batches:
                for batch in batches:
                    loss = run.step(batch)
                    bar.update(run.steps - bar.n)
                    bar.set_postfix_str(f"epoch={run.epoch + 1}, loss={loss:.3f}", refresh=False)
                    logger.log({"loss": loss, "lr": run.lr}, run.steps)
                    if run.is_stopped:
                        break
                    run.checkpoint_if_due()
            entry = run.end_epoch(val_data)
            logger.log({name: entry[name] for name in ("epoch", "score") if name in entry}, run.steps)


@contextmanager
def _eval_afterwards(model: VideoCLIP) -> Iterator[None]:
    """Set the model to eval mode after the block, also if training stops with an error."""
    try:
        yield
    finally:
        model.eval()


def _prepare_head(model: VideoCLIP, data: VideoDataset | TapStore, config: TrainConfig) -> None:
    """Give the model a classifier of the data's classes if the task needs one, unless its head is one already."""
    if config.task != "recognition":
        return
    dataset = dataset_of(data)
    if len(dataset.classes) < 2:
        count = pluralize(len(dataset.classes), "class")
        raise DataError(f"{dataset.name} has {count}; recognition needs two or more")
    kind = TextClassifier if config.classifier == "text" else LinearClassifier
    if isinstance(model.head, kind) and model.head.classes == tuple(dataset.classes):
        return
    if config.classifier == "text":
        model.head = model.text_classifier(dataset.classes, templates=config.templates)
    else:
        model.head = LinearClassifier(model.embed_dim, dataset.classes).to(model.device)


def _set_trainable(model: VideoCLIP, config: TrainConfig, data: Sequence[VideoDataset | TapStore | None]) -> None:
    """Set the part of the base model that trains; raise ValueError for cached taps of a tower that trains."""
    trains_text = needs_of(config.task) == "caption"
    if not trains_text and (config.text_lora or config.train_clip == "text"):
        raise ValueError(
            f"{config.task} trains no text, got train_clip={config.train_clip!r} and text_lora={config.text_lora}; "
            "choose train_clip none, last:N or all"
        )
    trainable.check_trainable(model.backbone)
    model.set_trainable(config.train_clip, text=trains_text, text_lora=config.text_lora)
    if model.backbone.visual_trains and any(isinstance(part, TapStore) for part in data):
        trainable.freeze(model.backbone)
        raise ValueError(
            f"train_clip {config.train_clip!r} trains the visual tower, so cached taps would be outdated; give the "
            "videos"
        )


def _set_activation_checkpointing(model: VideoCLIP, *, on: bool) -> None:
    """Set activation checkpointing of the branch and of the towers that train; raise ValueError if neither has it."""
    has_blocks = trainable.set_activation_checkpointing(model.backbone, on=on)
    model.branch.set_activation_checkpointing(on and (isinstance(model.branch, LayeredBranch) or not has_blocks))


def _clips_hash(parts: Sequence[VideoDataset | TapStore]) -> str:
    """Return a hash of these data sets."""
    return " ".join(data_hash(dataset_of(part)) for part in parts)


def _origin(model: VideoCLIP, part: VideoDataset | TapStore, cache: TapCache | None, config: TrainConfig) -> str:
    """Describe the source of the clips for the checkpoint: videos, taps in memory or a cache."""
    if isinstance(part, TapStore):
        return part.origin
    if cache is not None:
        return cache.origin(model, config.data_config)
    return TapStore.origin if config.cache_taps else "videos"


def _check_validation(model: VideoCLIP, data: VideoDataset | TapStore | None, config: TrainConfig) -> None:
    """Raise ValueError or DataError, before anything is encoded, for data that validation cannot use."""
    if needs_of(config.task) == "pairs" and data is not None:
        open_pairs(model, data, config, use="validation")
    if isinstance(data, TapStore) and data.augmented_views is not None:
        raise ValueError(
            f"the store of {data.data.name} holds augmented views for training; validate on the videos, or on a "
            "store of fixed views"
        )


def _for_validation(data: VideoDataset | TapStore) -> VideoDataset | TapStore:
    """Return the data with missing videos allowed: validation selects an epoch and reports no protocol's metric."""
    return replace(data, data=data.data.allowing_fewer()) if isinstance(data, TapStore) else data.allowing_fewer()
