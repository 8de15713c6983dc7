"""Command to train a model: train. Its docstring is the help text.

Contract: plain arguments in; a command prints its results and writes files, or raises. Heavy modules are imported when
a command runs. Knows nothing of parsing or exit codes.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter

from clipvid.cli import arguments, datasets, outputs
from clipvid.cli.parsing.options import (
    DATA,
    OUTPUT,
    TRAINING,
    Branch,
    Cache,
    Data,
    Given,
    Model,
    Run,
    Settings,
    Sources,
    build_config,
)
from clipvid.config.settings import CHECKPOINT, SCORES, TrainConfig
from clipvid.data.files import tables_in
from clipvid.errors import UsageError
from clipvid.runtime.text import pluralize

FEW = 10
"""Number of validation videos below which a single one decides more than ten points of a score."""


def train(
    source: Sources,
    /,
    *,
    data: Data,
    val: Annotated[tuple[str, ...], Parameter(group=DATA, metavar="SOURCE")] = (),
    val_split: Annotated[str | None, Parameter(group=DATA, metavar="NAME")] = None,
    val_fraction: Annotated[float | None, Parameter(group=DATA)] = None,
    shots: Annotated[int | None, Parameter(group=DATA)] = None,
    model: Model,
    branch: Branch,
    settings: Annotated[Given[TrainConfig], Settings],
    cache: Cache,
    out: Annotated[str, Parameter(group=OUTPUT, metavar="DIR")] = "clipvid-run",
    resume: Annotated[bool, Parameter(group=TRAINING)] = False,
    run: Run,
) -> None:
    """Fine-tune a branch for retrieval or recognition, or self-supervised; the base model stays frozen by default.

    Examples:
        clipvid train my-videos --task recognition --model ViT-B-32 --pretrained openai --out my-run
        clipvid train captions.csv --model ViT-B-32 --pretrained openai --batch-size 64 --data-config.frames 8
        clipvid train my-videos --config options.yaml --out my-run --resume

    Args:
        source: folders with one sub-folder per class, csv files (path, caption, label), or the root of a named data
            set; with --task selfsup any folders of videos. Patterns in quotes, such as "clips/*.csv", are expanded.
        val: data to validate on; without it and val_split, a part of the training videos is held out.
        val_split: split to validate on.
        val_fraction: fraction of the training videos to hold out, 0.1 when left out.
        shots: train on this number of videos per class only (2, 4, 8, 16), sampled by the seed; validate on the others.
        out: folder for the trained model (out/best), checkpoints and curves.
        resume: continue from the last checkpoint in out; more epochs than before change the remaining learning rates.
    """
    config = _checked_config(settings, model, branch, cache)
    _check_val_options(val, val_split=val_split, fraction=val_fraction, shots=shots, split=data.split)
    default_format = "videos" if config.task == "selfsup" else "folder"
    sources = datasets.data_of(source, data, default_format=default_format)
    _check_out(out, source, data.format, resume=resume)
    datasets.note_format(sources, data, default_format=default_format)
    taps = arguments.named_cache(cache)
    opener = partial(datasets.named_data, data=data, default_format=default_format)
    train_data, val_data = _train_and_val(
        opener,
        sources,
        data,
        val=datasets.sources_of(val) if val else None,
        val_split=val_split,
        fraction=val_fraction,
        shots=shots,
        seed=config.seed,
    )
    device = arguments.named_device(run.device)
    held_out = not val and val_split is None and shots is None
    _print_notes(out, val_data, config, resume=resume, held_out=held_out)
    from clipvid.training.loop import train  # imported late: it takes seconds, and no check above needs it

    video_model = _initialised_model(model.model, model.pretrained, branch.given(), seed=config.seed).to(device)
    with outputs.notes_shown(), outputs.profiled_to(Path(out) / "profile.json", enabled=run.profile):
        result = train(
            video_model, train_data, val_data, config, out=out, resume=resume, cache=taps, accelerator=device
        )
    _print_result(result, config, out, train_data=train_data, val_data=val_data)


def _checked_config(settings: Given[TrainConfig], model: Model, branch: Branch, cache: Cache) -> TrainConfig:
    """Return the settings of training; raise UsageError for options that are wrong or contradict each other."""
    arguments.check_model(model.model, model.pretrained)
    arguments.check_cache(cache)
    config = build_config(TrainConfig, settings)
    if config.task != "retrieval":
        arguments.refuse(f"--task {config.task} compares no texts", similarity=branch.similarity)
    arguments.check_branch(model.model, branch)
    if cache.cache is not None and config.cache_taps:
        raise UsageError("--cache stores taps on disk, and --cache-taps in memory; leave out one of them")
    return config


def _print_result(result: Any, config: TrainConfig, out: str, *, train_data: Any, val_data: Any) -> None:
    """Print why training ended, the best epoch and the unreadable files."""
    if result.already_finished:
        outputs.say(f"nothing was left to train: {_stop_reason(result, config)}")
    elif len(result.history) < config.epochs:
        outputs.say(f"training ended early: {_stop_reason(result, config)}")
    outputs.say(f"best epoch {_describe_best(result, val_data, train_data)}; model saved to {Path(out) / 'best'}")
    outputs.show_unreadable(result.unreadable)


def _initialised_model(model: str | None, pretrained: str | None, options: dict[str, Any], *, seed: int) -> Any:
    """Return the model with the branch's initial weights sampled by the seed."""
    import torch

    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)  # weights are sampled on the CPU
        return arguments.named_model(model, pretrained, options)


def _check_val_options(
    val: tuple[str, ...], *, val_split: str | None, fraction: float | None, shots: int | None, split: str | None
) -> None:
    """Raise UsageError for options of the validation data that contradict each other."""
    selecting = {"--val": val or None, "--val-split": val_split, "--shots": shots}
    if given := [name for name, value in selecting.items() if value is not None]:
        arguments.refuse(f"{given[0]} selects the validation data", val_fraction=fraction)
    if fraction is not None and not 0 < fraction < 1:
        raise UsageError(
            f"--val-fraction must be a fraction above 0 and below 1, got {fraction}; 0.1 holds out a tenth"
        )
    outputs.at_least("--shots", shots, 1, "it is a number of videos per class")
    if val_split is not None and not val and split is None:
        raise UsageError(
            "--val-split without --split would train on the validation videos too; give --split, such as train"
        )


def _check_out(out: str, sources: tuple[str, ...], format: str | None, *, resume: bool) -> None:
    """Raise an error if `out` cannot be written, holds a run without `resume`, or lies among the training videos."""
    outputs.require_writable(Path(out) / "best", folder=True)
    if not resume and (Path(out) / CHECKPOINT).exists():
        raise FileExistsError(f"{out} holds a training run; give --resume to continue it, or another --out")
    for source in sources:
        folder = Path(source).resolve()
        is_searched = folder.is_dir() and format in (None, "folder", "videos") and not tables_in(folder)
        if is_searched and folder in (Path(out).resolve(), *Path(out).resolve().parents):
            raise ValueError(f"--out {out} would lie among the videos of {source}; choose another --out")


def _print_notes(out: str, val_data: Any, config: TrainConfig, *, resume: bool, held_out: bool) -> None:
    """Print notes on surprising effects of this run; `held_out` is for validation videos out of the training data."""
    notes = []
    if resume and not (Path(out) / CHECKPOINT).exists():
        notes.append(f"{out} holds no run to resume; starting one")
    if config.task != "selfsup" and config.epochs > config.validate_every and len(val_data) < FEW:
        advice = "hold out more with --val-fraction, or give --val" if held_out else "give more of them"
        effect = f"{pluralize(len(val_data), 'validation video')} will choose the best epoch"
        notes.append(f"{effect}, and one of them is {100 / len(val_data):.0f} points of its score; {advice}")
    if config.compile:
        notes.append("the first steps compile the branch, which takes a minute or more")
    for note in notes:
        outputs.say(f"note: {note}", error=True)


def _train_and_val(
    opener: Callable[..., Any],
    sources: datasets.Sources,
    data: Data,
    *,
    val: datasets.Sources | None,
    val_split: str | None,
    fraction: float | None,
    shots: int | None,
    seed: int,
) -> tuple[Any, Any]:
    """Return training and validation data; without a named validation set, part of the training data is held out."""
    advice = "the one to train on, and --val-split"
    datasets.require_split(sources, data, advice=advice, protocols=True)
    train_data = opener(sources)
    if val is not None or val_split is not None:
        val_annotations = data.annotations if val is None else None
        val_data = opener(val or sources, split=val_split, classes=train_data.classes, annotations=val_annotations)
        return (train_data if shots is None else train_data.few_shot(shots, seed=seed)), val_data
    if shots is None:
        return train_data.split(0.1 if fraction is None else fraction, seed=seed)
    few = train_data.few_shot(shots, seed=seed)
    train_paths = {record.path for record in few}
    remaining = train_data.subset(i for i, record in enumerate(train_data) if record.path not in train_paths)
    if not len(remaining):
        raise ValueError(f"{shots} shots take all {len(train_data)} videos; give --val, or fewer shots")
    return few, remaining


def _stop_reason(result: Any, config: TrainConfig) -> str:
    """Return the reason why a run ended, and the setting that would continue it."""
    done = len(result.history)
    if result.ended_by_callback:
        return f"a callback ended it after epoch {done} of {config.epochs}; more --epochs continue it"
    if done >= config.epochs:
        return f"{pluralize(done, 'epoch')} of {config.epochs} done; give more with --epochs"
    return f"patience {config.patience} ended it after epoch {done}; give more with --patience"


def _describe_best(result: Any, val_data: Any, train_data: Any) -> str:
    """Describe the best epoch and its score; the score of self-supervision is its negative loss."""
    if result.best_score is None:
        return str(result.best_epoch)
    is_loss = result.score_name == SCORES["selfsup"]
    score = f"loss {-result.best_score:.3f}" if is_loss else f"{result.score_name} {result.best_score:.1f}"
    return f"{result.best_epoch}, {score} on {_describe_videos(val_data, train_data)}"


def _describe_videos(val_data: Any, train_data: Any) -> str:
    """Describe the number of validation videos, and how many of them the model was trained on."""
    train_paths = {record.path.resolve() for record in train_data}
    shared = sum(record.path.resolve() in train_paths for record in val_data)
    note = f", {'all' if shared == len(val_data) else shared} of them trained on" if shared else ""
    return f"{pluralize(len(val_data), 'validation video')}{note}"
