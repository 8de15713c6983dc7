"""Commands about one model: what it costs (info), and what it learns (demo, train). Help texts are their docstrings.

Contract: plain arguments in; a command prints what it found and writes what was asked for, or raises. Heavy modules
load when a command runs. Knows nothing of parsing or exit codes.
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
"""Validation videos below which each is more than ten points of a score."""


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
    """Print what a base model and a branch on it cost: tower, taps, parameters, MACs, bytes; runs nothing.

    Args:
        model: name of an open_clip model, hf-hub: tag, local-dir: folder, clipvid-mini, or a folder that clipvid saved.
        pretrained: tag of its weights, which are not loaded: sizes do not depend on them.
        branch: stan (the default), mean, posterior, divided, vivit3, ...; an unknown name lists them all.
        depth: how many of the tower's last levels are tapped, or blocks copied.
        mixer: cross-frame module of stan and divided: attention, conv, conv_full or rsa.
        options: other options of the branch, as JSON.
        similarity: what retrieval compares: mean (the default), wti, mug or mug_simple.
        train_clip: the part of the base model that trains beside the branch: none, text, last:N or all.
        text_lora: rank of LoRA adapters on the text tower; 0 for none.
        frames: frames a clip.
    """
    chosen = {"branch": branch, "depth": depth, "mixer": mixer, "options": options, "similarity": similarity}
    check_names(model, branch)
    described = named_model(model, pretrained, chosen, shapes_only=True)
    if train_clip != "none" or text_lora:
        described.set_trainable(train_clip, text_lora=text_lora)
    print(described.trainable_summary(frames))


def fine_tune(  # not `train`: jsonargparse would look that up in the package, and load it
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
    """Fine-tune a branch for retrieval or recognition, or on videos alone; the base model stays as it is unless asked.

    Args:
        data: folder with one sub-folder a class, csv file (path, caption, label), or root of a named data set; with
            --task selfsup any folder of videos.
        out: folder for the trained model (out/best), checkpoints and curves.
        model: base model, as for info; or a folder that clipvid saved; clipvid-mini, for demonstration, when left out.
        pretrained: weights of the base model: a tag of open_clip or the path of a checkpoint.
        branch: stan (the default), mean, posterior, divided, vivit3, ...; an unknown name lists them all.
        depth: how many of the tower's last levels are tapped, or blocks copied.
        mixer: cross-frame module of stan and divided: attention, conv, conv_full or rsa.
        options: other options of the branch, as JSON.
        similarity: what retrieval compares: mean (the default), wti, mug or mug_simple.
        format: folder, videos, csv, or a protocol (msrvtt-1ka, didemo, k400, ...); guessed from data when left out.
        annotations: annotation file, or folder of the files, where they are not in or beside data; val has its own.
        split: split of the data to train on, where it has splits.
        val: data to validate on; without it and val_split, a part of the training videos is held out.
        val_split: split to validate on.
        val_fraction: share of the training videos to hold out, 0.1 when left out.
        shots: train on so many videos a class alone (2, 4, 8, 16), drawn by the seed; validate on the others.
        allow_missing: go on without videos that the annotations name and that are not there.
        cache: folder in which the frozen tower's taps are kept for this and later runs: each clip is encoded once.
        cache_kind: auto (when left out), the type of the precision; bf16, fp16, fp32, or int8, the smallest.
        cache_mode: taps (when left out); or first_layer, one level for all: less place, the last blocks run for each
        batch.
        device: auto (a GPU where there is one), cpu, cuda or mps.
        resume: go on from the last checkpoint in out; with more epochs than it was planned for, the learning rates of
            the rest are planned anew.
        profile: also print where the time went, and write it to out/profile.json.
        config: everything else about training.
    """
    check_names(model, branch, data=data)
    config = config or TrainConfig()
    _check_out(out, data, format, resume=resume)
    plain = "videos" if config.task == "selfsup" else "folder"
    note_format(data, format, plain=plain)
    kept = named_cache(cache, kind=cache_kind, mode=cache_mode)
    opened = partial(named_data, format=format, plain=plain, allow_missing=allow_missing)
    wanted = {"split": split, "annotations": annotations, "val": val, "val_split": val_split, "format": format}
    train_data, val_data = _train_and_val(opened, data, **wanted, fraction=val_fraction, shots=shots, seed=config.seed)
    place = named_device(device)
    if config.task != "retrieval":
        refuse(f"task {config.task} compares no texts", similarity=similarity)
    _say_first(out, val_data, config, resume=resume, drawn=val is None and val_split is None and shots is None)
    from clipvid.training.loop import train  # which takes seconds, and refuses none of the above

    chosen = {"branch": branch, "depth": depth, "mixer": mixer, "options": options, "similarity": similarity}
    video_model = _drawn_model(model, pretrained, chosen, seed=config.seed).to(place)
    with notes_shown(), profiled_to(Path(out) / "profile.json", asked=profile):
        result = train(video_model, train_data, val_data, config, out=out, resume=resume, cache=kept, accelerator=place)
    if result.nothing_left:
        print(f"nothing was left to train: {_why_over(result, config)}")
    print(f"best epoch {_told(result, val_data, train_data)}; model saved to {Path(out) / 'best'}")
    show_unreadable(result.unreadable)


def _drawn_model(model: str | None, pretrained: str | None, chosen: dict[str, Any], *, seed: int) -> Any:
    """Return the model, the branch's first weights drawn by the seed."""
    import torch

    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)  # weights are drawn on the CPU
        return named_model(model, pretrained, chosen)


def _check_out(out: str, data: str, format: str | None, *, resume: bool) -> None:
    """Refuse an out that cannot be written, holds a run that is not to go on, or whose files would be read as data."""
    require_writable(Path(out) / "best", folder=True)
    if not resume and (Path(out) / CHECKPOINT).exists():
        raise FileExistsError(f"{out} holds a training run; give --resume true to go on with it, or another --out")
    folder = Path(data).resolve()
    searched = folder.is_dir() and format in (None, "folder", "videos") and not any(folder.glob("*.csv"))
    if searched and folder in (Path(out).resolve(), *Path(out).resolve().parents):
        raise ValueError(f"out {out} would lie among the videos of {data}; choose another out")


def _say_first(out: str, val_data: Any, config: TrainConfig, *, resume: bool, drawn: bool) -> None:
    """Print notes that a user might not expect of this run; `drawn` where the validation videos were split off for
    it."""
    notes = []
    if resume and not (Path(out) / CHECKPOINT).exists():
        notes.append(f"{out} holds no run to resume; starting one")
    if config.task != "selfsup" and config.epochs > config.validate_every and len(val_data) < FEW:
        more = "hold out more with --val_fraction, or give --val" if drawn else "give more of them"
        what = f"{pluralize(len(val_data), 'validation video')} will choose the best epoch"
        notes.append(f"{what}, and one of them is {100 / len(val_data):.0f} points of its score; {more}")
    if config.compile:
        notes.append("the first steps compile the branch, which takes a minute or more")
    for note in notes:
        print(f"note: {note}", file=sys.stderr)


def _train_and_val(
    opened: Callable[..., Any],
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
    """Return training and validation data: as named, else a part of the training data is held out."""
    held_out = {"--val": val, "--val_split": val_split, "--shots": shots}
    if others := [name for name, value in held_out.items() if value is not None]:
        refuse(f"{others[0]} says what to validate on", val_fraction=fraction)
    if split is None and (there := splits_of(data, format)):
        raise ValueError(f"{data} has splits {', '.join(there)}; give --split, the one to train on, and --val_split")
    whole = opened(data, split=split, annotations=annotations)
    if val is not None or val_split is not None:
        if val is None and split is None:
            raise ValueError(
                "val_split without split would train on the validation videos too; give --split, such as train"
            )
        own = annotations if val is None else None
        other = opened(val or data, split=val_split, classes=whole.classes, annotations=own)
        return (whole if shots is None else whole.few_shot(shots, seed=seed)), other
    if shots is None:
        return whole.split(0.1 if fraction is None else fraction, seed=seed)
    few = whole.few_shot(shots, seed=seed)
    seen = {record.path for record in few}
    others = whole.subset(i for i, record in enumerate(whole) if record.path not in seen)
    if not len(others):
        raise ValueError(f"{shots} shots take all {len(whole)} videos; give --val, or fewer shots")
    return few, others


def _why_over(result: Any, config: TrainConfig) -> str:
    """Say why a run that was resumed trains no more, and which setting would let it."""
    done = len(result.history)
    if done >= config.epochs:
        return f"{pluralize(done, 'epoch')} of {config.epochs} done; give more with --epochs"
    return f"patience {config.patience} ended it after epoch {done}; give more with --patience"


def _told(result: Any, val_data: Any, train_data: Any) -> str:
    """Describe the best epoch and its score; self-supervision is scored by its loss, which counts with a minus."""
    if result.best_score is None:
        return str(result.best_epoch)
    loss = result.score_name == SCORES["selfsup"]
    score = f"loss {-result.best_score:.3f}" if loss else f"{result.score_name} {result.best_score:.1f}"
    return f"{result.best_epoch}, {score} on {_of_whom(val_data, train_data)}"


def _of_whom(val_data: Any, train_data: Any) -> str:
    """Describe the number of videos behind the score, and if the model was trained on them."""
    seen = {record.path.resolve() for record in train_data}
    known = sum(record.path.resolve() in seen for record in val_data)
    note = f", {'all' if known == len(val_data) else known} of them trained on" if known else ""
    return f"{pluralize(len(val_data), 'validation video')}{note}"
