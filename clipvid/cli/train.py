"""Commands for one model: info and train. Their docstrings are the help texts.

Contract: plain arguments in; a command prints its results and writes files, or raises. Heavy modules are imported when
a command runs. Knows nothing of parsing or exit codes.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from clipvid.cli.arguments import (
    check_names,
    named_cache,
    named_data,
    named_device,
    named_model,
    note_format,
    notes_shown,
    profiled_to,
    refuse,
    show_unreadable,
    splits_of,
)
from clipvid.config.settings import CHECKPOINT, SCORES, TrainConfig
from clipvid.runtime.files import require_writable
from clipvid.runtime.text import pluralize

FEW = 10
"""Number of validation videos below which a single one decides more than ten points of a score."""


def info(
    model: str,
    pretrained: str | None = None,
    branch: str | None = None,
    depth: int | None = None,
    mixer: str | None = None,
    options: dict[str, Any] | None = None,
    similarity: str | None = None,
    train_clip: str = "none",
    text_lora: int = 0,
    frames: int = 12,
) -> None:
    """Print the size of a base model with a branch: tower, taps, parameters, MACs, bytes; the model does not run.

    Args:
        model: name of an open_clip model, hf-hub: tag, local-dir: folder, clipvid-mini, or a folder that clipvid saved.
        pretrained: tag of its weights; they are not loaded, because sizes do not depend on them.
        branch: stan (the default), mean, posterior, divided, vivit3, ...; an unknown name lists them all.
        depth: number of the tower's last levels that are tapped, or of blocks that are copied.
        mixer: cross-frame module of stan and divided: attention, conv, conv_full or rsa.
        options: other options of the branch, as JSON.
        similarity: similarity of retrieval: mean (the default), wti, mug or mug_simple.
        train_clip: part of the base model that is trained with the branch: none, text, last:N or all.
        text_lora: rank of LoRA adapters on the text tower; 0 for none.
        frames: frames per clip.
    """
    model_options = {"branch": branch, "depth": depth, "mixer": mixer, "options": options, "similarity": similarity}
    check_names(model, branch)
    described = named_model(model, pretrained, model_options, shapes_only=True)
    if train_clip != "none" or text_lora:
        described.set_trainable(train_clip, text_lora=text_lora)
    print(described.trainable_summary(frames))


def fine_tune(  # not named `train`, because jsonargparse would look that name up in the package and import it
    data: str,
    out: str = "clipvid-run",
    model: str | None = None,
    pretrained: str | None = None,
    branch: str | None = None,
    depth: int | None = None,
    mixer: str | None = None,
    options: dict[str, Any] | None = None,
    similarity: str | None = None,
    format: str | None = None,
    annotations: str | None = None,
    split: str | None = None,
    val: str | None = None,
    val_split: str | None = None,
    val_fraction: float | None = None,
    shots: int | None = None,
    allow_missing: bool = False,
    cache: str | None = None,
    cache_kind: str | None = None,
    cache_mode: str | None = None,
    device: str = "auto",
    resume: bool = False,
    profile: bool = False,
    config: TrainConfig | None = None,
) -> None:
    """Fine-tune a branch for retrieval or recognition, or self-supervised; the base model stays frozen by default.

    Args:
        data: folder with one sub-folder per class, csv file (path, caption, label), or root of a named data set; with
            --task selfsup any folder of videos.
        out: folder for the trained model (out/best), checkpoints and curves.
        model: base model, as for info; or a folder that clipvid saved; clipvid-mini, for demonstration, when left out.
        pretrained: weights of the base model: a tag of open_clip or the path of a checkpoint.
        branch: stan (the default), mean, posterior, divided, vivit3, ...; an unknown name lists them all.
        depth: number of the tower's last levels that are tapped, or of blocks that are copied.
        mixer: cross-frame module of stan and divided: attention, conv, conv_full or rsa.
        options: other options of the branch, as JSON.
        similarity: similarity of retrieval: mean (the default), wti, mug or mug_simple.
        format: folder, videos, csv, or a protocol (msrvtt-1ka, didemo, k400, ...); guessed from data when left out.
        annotations: annotation file, or folder of the files, if they are not in or beside data; not used for val.
        split: split of the data to train on, if it has splits.
        val: data to validate on; without it and val_split, a part of the training videos is held out.
        val_split: split to validate on.
        val_fraction: fraction of the training videos to hold out, 0.1 when left out.
        shots: train on this number of videos per class only (2, 4, 8, 16), sampled by the seed; validate on the others.
        allow_missing: ignore videos that are in the annotations but do not exist.
        cache: folder in which the frozen tower's taps are cached for this and later runs; each clip is encoded once.
        cache_kind: auto (when left out), the type of the precision; bf16, fp16, fp32, or int8, the smallest.
        cache_mode: taps (when left out); or first_layer, smaller: one level is stored, the last blocks run per batch.
        device: auto (a GPU if there is one), cpu, cuda or mps.
        resume: continue from the last checkpoint in out; more epochs than before change the remaining learning rates.
        profile: also print the time per stage, and write it to out/profile.json.
        config: all other settings of training.
    """
    check_names(model, branch, data=data)
    config = config or TrainConfig()
    _check_out(out, data, format, resume=resume)
    default_format = "videos" if config.task == "selfsup" else "folder"
    note_format(data, format, default_format=default_format)
    taps = named_cache(cache, kind=cache_kind, mode=cache_mode)
    opener = partial(named_data, format=format, default_format=default_format, allow_missing=allow_missing)
    splits = {"split": split, "annotations": annotations, "val": val, "val_split": val_split, "format": format}
    train_data, val_data = _train_and_val(opener, data, **splits, fraction=val_fraction, shots=shots, seed=config.seed)
    device = named_device(device)
    if config.task != "retrieval":
        refuse(f"task {config.task} compares no texts", similarity=similarity)
    _print_notes(out, val_data, config, resume=resume, held_out=val is None and val_split is None and shots is None)
    from clipvid.training.loop import train  # imported late: it takes seconds, and no check above needs it

    model_options = {"branch": branch, "depth": depth, "mixer": mixer, "options": options, "similarity": similarity}
    video_model = _initialised_model(model, pretrained, model_options, seed=config.seed).to(device)
    with notes_shown(), profiled_to(Path(out) / "profile.json", enabled=profile):
        result = train(
            video_model, train_data, val_data, config, out=out, resume=resume, cache=taps, accelerator=device
        )
    if result.already_finished:
        print(f"nothing was left to train: {_stop_reason(result, config)}")
    print(f"best epoch {_describe_best(result, val_data, train_data)}; model saved to {Path(out) / 'best'}")
    show_unreadable(result.unreadable)


def _initialised_model(model: str | None, pretrained: str | None, options: dict[str, Any], *, seed: int) -> Any:
    """Return the model with the branch's initial weights sampled by the seed."""
    import torch

    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)  # weights are sampled on the CPU
        return named_model(model, pretrained, options)


def _check_out(out: str, data: str, format: str | None, *, resume: bool) -> None:
    """Raise an error if `out` cannot be written, holds a run without `resume`, or lies among the training videos."""
    require_writable(Path(out) / "best", folder=True)
    if not resume and (Path(out) / CHECKPOINT).exists():
        raise FileExistsError(f"{out} holds a training run; give --resume true to continue it, or another --out")
    folder = Path(data).resolve()
    is_searched = folder.is_dir() and format in (None, "folder", "videos") and not any(folder.glob("*.csv"))
    if is_searched and folder in (Path(out).resolve(), *Path(out).resolve().parents):
        raise ValueError(f"out {out} would lie among the videos of {data}; choose another out")


def _print_notes(out: str, val_data: Any, config: TrainConfig, *, resume: bool, held_out: bool) -> None:
    """Print notes on surprising effects of this run; `held_out` is for validation videos out of the training data."""
    notes = []
    if resume and not (Path(out) / CHECKPOINT).exists():
        notes.append(f"{out} holds no run to resume; starting one")
    if config.task != "selfsup" and config.epochs > config.validate_every and len(val_data) < FEW:
        advice = "hold out more with --val_fraction, or give --val" if held_out else "give more of them"
        effect = f"{pluralize(len(val_data), 'validation video')} will choose the best epoch"
        notes.append(f"{effect}, and one of them is {100 / len(val_data):.0f} points of its score; {advice}")
    if config.compile:
        notes.append("the first steps compile the branch, which takes a minute or more")
    for note in notes:
        print(f"note: {note}", file=sys.stderr)


def _train_and_val(
    opener: Callable[..., Any],
    data: str,
    *,
    format: str | None,
    split: str | None,
    annotations: str | None,
    val: str | None,
    val_split: str | None,
    fraction: float | None,
    shots: int | None,
    seed: int,
) -> tuple[Any, Any]:
    """Return training and validation data; without a named validation set, part of the training data is held out."""
    selecting_options = {"--val": val, "--val_split": val_split, "--shots": shots}
    if selecting := [name for name, value in selecting_options.items() if value is not None]:
        refuse(f"{selecting[0]} selects the validation data", val_fraction=fraction)
    if split is None and (splits := splits_of(data, format)):
        raise ValueError(f"{data} has splits {', '.join(splits)}; give --split, the one to train on, and --val_split")
    train_data = opener(data, split=split, annotations=annotations)
    if val is not None or val_split is not None:
        if val is None and split is None:
            raise ValueError(
                "val_split without split would train on the validation videos too; give --split, such as train"
            )
        val_annotations = annotations if val is None else None
        val_data = opener(val or data, split=val_split, classes=train_data.classes, annotations=val_annotations)
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
    """Return the reason why a resumed run has nothing left to train, and the setting that would continue it."""
    done = len(result.history)
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
