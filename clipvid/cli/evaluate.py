"""Commands about figures: eval, compare, summarize and data check. Help texts come from their docstrings.

Contract: plain arguments in; a command prints what it found and writes what was asked for, or raises. Heavy modules
load when a command runs. Knows nothing of parsing or exit codes.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from clipvid.cli.arguments import (
    check_names,
    kept_clips,
    named_cache,
    named_data,
    named_model,
    named_prompts,
    named_reading,
    note_format,
    profile_of,
    profiled_to,
    require_new,
    show_unreadable,
    splits_of,
)
from clipvid.errors import DataError
from clipvid.runtime.files import require_writable
from clipvid.runtime.text import pluralize


def evaluate(
    data: str,
    model: str | None = None,
    pretrained: str | None = None,
    task: str | None = None,
    format: str | None = None,
    annotations: str | None = None,
    split: str | None = None,
    zero_shot: bool = False,
    prompts: str | None = None,
    by_class: bool = False,
    rerank: int | None = None,
    dual_softmax: float | None = None,
    bank: str | None = None,
    allow_missing: bool = False,
    out: str | None = None,
    report: str | None = None,
    report_queries: int = 50,
    cache: str | None = None,
    cache_kind: str | None = None,
    cache_mode: str | None = None,
    overwrite: bool = False,
    device: str = "auto",
    profile: bool = False,
    data_config: dict[str, Any] | None = None,
) -> None:
    """Score a model: retrieval where videos have captions, recognition where the model has a classifier.

    Args:
        data: as for train.
        model: a folder that clipvid saved, or a base model (its frame-mean); clipvid-mini, as for train, when left out.
        pretrained: weights of a base model.
        task: retrieval or recognition; guessed from the model when left out.
        format: folder, csv, or a protocol (msrvtt-1ka, didemo, k400, ...); guessed from data when left out.
        annotations: annotation file, or folder of the files, where they are not in or beside data.
        split: split of the data.
        zero_shot: recognise by class names instead of a trained classifier.
        prompts: with zero_shot, words around a name: video, name, photo, person, or a file of them, one a line with {}.
        by_class: also print recognition class by class, the worst first.
        rerank: score only so many of each query's best by the model's token-wise similarity, not all pairs.
        dual_softmax: also show figures after a dual softmax of this temperature (100), which sees all queries at once.
        bank: also show figures after QB-Norm with the captions of this split of the data (train) as its bank.
        allow_missing: score a protocol with fewer videos than it has; N then stands beside every figure.
        out: JSON file for the result, which `clipvid compare` reads.
        report: HTML file for the captions that did not find their video, with film strips.
        report_queries: how many of them, the worst first.
        cache: folder of a tap cache, as for train: what is there is read, what is missing encoded and kept.
        cache_kind: auto (when left out), bf16, fp16, fp32 or int8, as that cache was made; auto follows the precision.
        cache_mode: taps (when left out) or first_layer, as that cache was made.
        overwrite: replace the files of out, report and profile where they are there.
        device: auto (a GPU where there is one), cpu, cuda or mps.
        profile: also print where the time went, and write it beside out, in a file ending in .profile.json.
        reading: how clips are read, such as --data_config.frames 8; the rest as the model was trained or the protocol
        says.
    """
    check_names(model, data=data)
    require_new(out, report, profile_of(out, asked=profile), overwrite=overwrite)
    _check_numbers(report_queries, dual_softmax)
    kept = named_cache(cache, kind=cache_kind, mode=cache_mode)
    video_model = named_model(model, pretrained, device=device, plain="mean")
    task = task or ("recognition" if zero_shot or video_model.head is not None else "retrieval")
    head = None if task == "retrieval" or zero_shot else video_model.head
    note_format(data, format)
    _ask_for_split(data, format, split)
    opened = partial(named_data, data, format=format, annotations=annotations)
    videos = opened(split=split, classes=None if head is None else head.classes, allow_missing=allow_missing)
    score = _scorer(task, zero_shot=zero_shot)
    _of_recognition(task, zero_shot=zero_shot, by_class=by_class, prompts=prompts)
    extras = _of_retrieval(task, rerank=rerank, dual_softmax=dual_softmax, bank=bank, report=report)
    extras |= {} if prompts is None else {"templates": named_prompts(prompts)}
    extras |= {} if bank is None else {"bank": _captions_of(bank, opened, annotations)}
    _check_scorable(video_model, videos, task, zero_shot=zero_shot, extras=extras)
    told = named_reading(video_model, data_config, videos.protocol_spec)
    with profiled_to(profile_of(out, asked=profile), asked=profile):
        found = score(video_model, kept_clips(video_model, videos, told, kept), told, progress=True, **extras)
    print(found)
    if by_class:
        print(found.class_table())
    _tell(found, out, report, queries=report_queries)


def _scorer(task: str, *, zero_shot: bool) -> Callable[..., Any]:
    """Return the function that scores a task; raise ValueError for an unknown task."""
    from clipvid.evaluation import recognition, retrieval

    recognise = recognition.evaluate_zero_shot if zero_shot else recognition.evaluate_recognition
    scorers: dict[str, Callable[..., Any]] = {"retrieval": retrieval.evaluate_retrieval, "recognition": recognise}
    if task not in scorers:
        raise ValueError(f"unknown task {task!r}; choose one of {', '.join(scorers)}")
    return scorers[task]


def _check_scorable(model: Any, videos: Any, task: str, *, zero_shot: bool, extras: dict[str, Any]) -> None:
    """Raise what scoring would refuse, before a cache is filled; where the other task is meant, say how to ask for
    it."""
    from clipvid.evaluation import recognition, retrieval

    captioned, labelled = any(r.captions for r in videos), any(r.label is not None for r in videos)
    if task == "retrieval" and labelled and not captioned:
        raise DataError(
            f"{videos.name} has classes and no captions, which retrieval compares; give --zero_shot true to recognise "
            "classes by their names, or a --model that was trained with --task recognition"
        )
    if task == "recognition" and captioned and not labelled:
        raise DataError(f"{videos.name} has captions and no classes; give --task retrieval to score this model by them")
    if task == "recognition":
        recognition.check_recognition(model, videos, zero_shot=zero_shot)
    else:
        retrieval.check_retrieval(
            model, videos, **{k: v for k, v in extras.items() if k in ("rerank", "dual_softmax", "bank")}
        )


def _tell(found: Any, out: str | None, report: str | None, *, queries: int) -> None:
    """Print the files that were left out, and write the files that were asked for."""
    show_unreadable(found.unreadable)
    if out is not None:
        print(f"result: {found.save(out)}")
    if report is not None:
        from clipvid.evaluation.html_report import write_report

        print(f"report: {write_report(found, report, queries=queries, progress=True)}")


def _captions_of(split: str, opened: Callable[..., Any], annotations: str | None) -> list[str]:
    """Those of a split, whose videos need not be there."""
    if annotations is not None and Path(annotations).is_file():
        raise ValueError(f"{annotations} is read whole, also for --bank {split}; give the folder of the files")
    return [caption for record in opened(split=split, check_files=False) for caption in record.captions]


def _ask_for_split(data: str, format: str | None, split: str | None) -> None:
    """ValueError for a table of several splits, of which none is named; a protocol has a usual one."""
    if split is None and format in (None, "csv") and (there := splits_of(data, format)):
        raise ValueError(f"{data} has splits {', '.join(there)}; give --split, the one to score on")


def _check_numbers(queries: int, dual_softmax: float | None) -> None:
    """Raise ValueError for numbers that would otherwise fail after hours."""
    if queries < 1:
        raise ValueError(f"report_queries starts at 1, got {queries}")
    from clipvid.evaluation.retrieval import check_dual_softmax

    check_dual_softmax(dual_softmax)


def _of_recognition(task: str, *, zero_shot: bool, by_class: bool, prompts: str | None) -> None:
    """ValueError for what only recognition has, where the task is another."""
    if task != "recognition":
        for name in [name for name, asked in (("zero_shot", zero_shot), ("by_class", by_class)) if asked]:
            raise ValueError(f"{name}: only recognition has classes, the task is {task}; leave it out")
    if prompts is not None and not zero_shot:
        raise ValueError("prompts are for recognition by class names; give --zero_shot true, or leave them out")


def _of_retrieval(task: str, **asked: Any) -> dict[str, Any]:
    """Return the extra options of retrieval; raise ValueError where the task is another."""
    extras = {name: value for name, value in asked.items() if value is not None}
    if task == "retrieval":
        best = {"best": 5} if extras.pop("report", None) else {}
        return {**extras, **best, "hubs": True}
    if extras:
        raise ValueError(f"{', '.join(extras)}: only retrieval has this, the task is {task}; leave it out")
    return {}


def compare(a: str, b: str, draws: int = 10_000, seed: int = 0) -> None:
    """Print two results side by side, with the p-value of every difference (paired bootstrap over the queries).

    Args:
        a: JSON file that `clipvid eval --out` wrote.
        b: another, of the same data.
        draws: how often the queries are drawn again.
        seed: of the draws.
    """
    from clipvid.evaluation.compare import compare as side_by_side
    from clipvid.evaluation.results import read_result

    print(side_by_side(read_result(a), read_result(b), n=draws, seed=seed))


def summarize(results: list[str]) -> None:
    """Print mean and standard deviation of every figure over results of runs that differ in their seed.

    Args:
        results: JSON files that `clipvid eval --out` wrote, of the same data.
    """
    from clipvid.evaluation.compare import summarize as over_runs
    from clipvid.evaluation.results import read_result

    print(over_runs([read_result(result) for result in results]))


def check_data(
    name: str,
    root: str,
    split: str | None = None,
    annotations: str | None = None,
    out: str | None = None,
    workers: int = 0,
    limit: float = 60.0,
    longest: int | None = None,
) -> None:
    """Look at every video of a data set before anything is measured: what is missing, unreadable, odd or twice there.

    Args:
        name: a protocol (msrvtt-1ka, didemo, k400, ...), folder, videos or csv.
        root: folder of the videos.
        split: split of the data; a protocol's usual one when left out.
        annotations: the annotation file, or the folder of the files, where they are not in or beside root.
        out: folder for report.json and the log, clipvid-check/NAME when left out, after the data set; a second run
            decodes new and changed files only.
        workers: processes that decode; 0 takes one a core.
        limit: seconds that a file may take.
        longest: list captions of more words than this.
    """
    from clipvid.data.check import REPORT, check
    from clipvid.data.open import none_there, read_dataset

    require_writable(Path(out or "clipvid-check") / REPORT)
    data = read_dataset(name, root, split=split, annotations=annotations, allow_missing=True)
    if out is None:
        own = data.name if data.name.startswith(name) else f"{name} {data.name}"
        out = str(Path("clipvid-check", re.sub(r"[^\w.]+", "-", own).strip("-.")))
    report = check(data, out, workers=workers, limit=limit, longest=longest, root=root, progress=True)
    print(report)
    print(f"report: {Path(out) / REPORT}")
    if data.missing and not len(data):
        raise DataError(f"{report.expected} of {report.expected} videos are missing; {none_there(root)}")
    if not report.healthy:
        lacking = f"{pluralize(len(report.missing), 'video')} {'is' if len(report.missing) == 1 else 'are'} missing"
        raise DataError(
            f"{lacking} and {len(report.unreadable)} cannot be read; figures would be over fewer videos than others "
            "have"
        )
