"""Commands that explain: demo, info and list. Their docstrings are the help texts.

Contract: plain arguments in; a command prints its results and writes files, or raises. Heavy modules are imported when
a command runs. Knows nothing of parsing or exit codes.
"""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

from cyclopts import Parameter

from clipvid import registry
from clipvid.cli import arguments, outputs
from clipvid.cli.parsing.layout import table
from clipvid.cli.parsing.options import MODEL, Branch, Json, build_config
from clipvid.config.settings import check_train_clip
from clipvid.errors import UsageError
from clipvid.runtime.storage.folder_lock import lock_folder


class Kind(NamedTuple):
    """Names of one kind: the option that takes one, and their registry; None for models, which are open_clip's."""

    option: str
    members: registry.Registry | None = None


KINDS = {
    "models": Kind("--model"),
    "branches": Kind("--branch", registry.BRANCHES),
    "mixers": Kind("--mixer", registry.MIXERS),
    "tasks": Kind("--task", registry.OBJECTIVES),
    "formats": Kind("--format", registry.READERS),
    "protocols": Kind("--format", registry.PROTOCOLS),
    "decoders": Kind("--data-config.backend", registry.DECODERS),
    "stores": Kind("--store", registry.STORES),
}
"""Kinds of names that `clipvid list` shows."""
KindName = Literal["models", "branches", "mixers", "tasks", "formats", "protocols", "decoders", "stores"]


def demo(
    *,
    out: Annotated[str, Parameter(metavar="DIR")] = "clipvid-demo",
    train_clips: int = 4000,
    test_clips: int = 400,
    epochs: int = 4,
    seed: int = 0,
) -> None:
    """Train, evaluate and search on videos that the demo renders itself; needs no download and no GPU.

    Examples:
        clipvid demo
        clipvid demo --train-clips 400 --test-clips 100 --epochs 2    # a minute

    Args:
        out: folder for videos, models, plots, index and results.json; a second run reuses the videos.
        train_clips: number of training clips, even, because each clip comes with its reversed copy.
        test_clips: number of test clips, even, from 10 to 5120.
        epochs: passes over the training clips for retrieval; recognition trains for half as many. The order-blind
            baseline trains five times as long on each task.
        seed: seed of videos, weights and order.
    """
    outputs.check_seed(seed)
    from clipvid.demo.tour import DemoConfig, run

    outputs.require_writable(Path(out) / "results.json")
    clips = {"train_clips": train_clips, "test_clips": test_clips}
    config = build_config(DemoConfig, {**clips, "epochs": epochs, "baseline_epochs": 5 * epochs, "seed": seed})
    with lock_folder(out):
        run(out, config)


def info(
    model: str,
    /,
    *,
    pretrained: Annotated[str | None, Parameter(group=MODEL, metavar="TAG")] = None,
    branch: Branch,
    train_clip: Annotated[str, Parameter(group=MODEL, metavar="PART")] = "none",
    text_lora: Annotated[int, Parameter(group=MODEL, metavar="RANK")] = 0,
    frames: int = 12,
    json: Json = False,
) -> None:
    """Print the size of a base model with a branch: tower, taps, parameters, MACs, bytes; the model does not run.

    Examples:
        clipvid info ViT-B-16 --branch stan-release
        clipvid info ViT-B-16 --branch divided --train-clip last:6

    Args:
        model: name of an open_clip model, hf-hub: tag, local-dir: folder, clipvid-mini, or a folder that clipvid saved.
        pretrained: tag of its weights; they are not loaded, because sizes do not depend on them.
        train_clip: part of the base model that is trained with the branch: none, text, last:N or all.
        text_lora: rank of LoRA adapters on the text tower; 0 for none.
        frames: frames per clip.
    """
    arguments.check_model(model)
    arguments.check_branch(model, branch)
    _check_info_numbers(train_clip, text_lora=text_lora, frames=frames)
    described = arguments.named_model(model, pretrained, branch.given(), shapes_only=True)
    if train_clip != "none" or text_lora:
        described.set_trainable(train_clip, text_lora=text_lora)
    summary = described.trainable_summary(frames)
    with outputs.json_printed(json) as print_json:
        print_json(asdict(summary))
        if not json:
            outputs.say(summary)


def _check_info_numbers(train_clip: str, *, text_lora: int, frames: int) -> None:
    """Raise UsageError for numbers out of range, before a model is built."""
    outputs.at_least("--frames", frames, 1, "the published models read 8 to 32")
    outputs.at_least("--text-lora", text_lora, 0, "it is a rank, 0 for none")
    try:
        check_train_clip("--train-clip", train_clip)
    except ValueError as error:
        raise UsageError(str(error)) from error


def list_names(
    kind: Annotated[KindName | None, Parameter(metavar="KIND")] = None,
    pattern: Annotated[str, Parameter(metavar="PATTERN")] = "*",
    /,
    *,
    json: Json = False,
) -> None:
    """List the names that options take, each with a summary: branches, mixers, protocols, models, ...

    Names that installed plugins add are included.

    Examples:
        clipvid list
        clipvid list branches "vivit*"
        clipvid list models "*b-32*" --json

    Args:
        kind: kind of names; without it, all kinds are listed with the option that takes each.
        pattern: shell pattern in quotes that names must match, in lower or upper case.
    """
    with outputs.json_printed(json) as print_json:
        rows = _kinds() if kind is None else _names(kind, pattern)
        print_json(rows)
        if not json:
            outputs.say(table([(row["name"], row["summary"]) for row in rows]))


def _kinds() -> list[dict[str, Any]]:
    """Return every kind with the option that takes its names, and the names of members."""
    rows = []
    for name, (option, members) in KINDS.items():
        names = None if members is None else members.names()
        summary = f"{option}: {', '.join(names or ['clipvid-mini', 'and the models of open_clip'])}"
        rows.append({"name": name, "option": option, "names": names, "summary": summary})
    return rows


def _names(kind: str, pattern: str) -> list[dict[str, Any]]:
    """Return the names of a kind that match a pattern, with their summaries; raise UsageError if there is none."""
    members = KINDS[kind].members
    if members is None:
        from clipvid.models.backbone.names import MINI
        from clipvid.models.backbone.open_clip import MINI_SUMMARY, list_models

        models = list_models(pattern)
        rows: list[dict[str, Any]] = [
            {"name": name, "pretrained": tags, "summary": MINI_SUMMARY if name == MINI else ", ".join(tags)}
            for name, tags in ((name, models.pretrained[name]) for name in models)
        ]
    else:
        rows = [{"name": name, "summary": members.summary(name)} for name in members.names(pattern)]
    if not rows:
        raise UsageError(f"PATTERN must match one of the {kind}, got {pattern!r}; clipvid list {kind} shows all")
    return rows
