"""Commands for evaluation: eval, compare, summarize and data check. Their docstrings are the help texts.

Contract: plain arguments in; a command prints its results and writes files, or raises. Heavy modules are imported when
a command runs. Knows nothing of parsing or exit codes.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from clipvid.cli.arguments import (
    cached_clips,
    check_names,
    named_cache,
    named_data,
    named_data_config,
    named_model,
    named_prompts,
    note_format,
    profile_path,
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
    """Evaluate a model: retrieval if videos have captions, recognition if the model has a classifier.

    Args:
        data: as for train.
        model: a folder that clipvid saved, or a base model (its frame-mean); clipvid-mini, as for train, when left out.
        pretrained: weights of a base model.
        task: retrieval or recognition; guessed from the model when left out.
        format: folder, csv, or a protocol (msrvtt-1ka, didemo, k400, ...); guessed from data when left out.
        annotations: annotation file, or folder of the files, if they are not in or beside data.
        split: split of the data.
        zero_shot: recognise by class names instead of a trained classifier.
        prompts: with zero_shot, text around a class name: video, name, photo, person, or a file with one prompt per
            line, {} standing for the name.
        by_class: also print recognition metrics per class, the worst first.
        rerank: apply the model's token-wise similarity only to this number of best videos per query, not to all pairs.
        dual_softmax: also show metrics after a dual softmax of this temperature (100), which needs all queries at once.
        bank: also show metrics after QB-Norm with the captions of this split of the data (train) as its bank.
        allow_missing: score a protocol although some of its videos are missing; N is then printed with every metric.
        out: JSON file for the result, which `clipvid compare` reads.
        report: HTML file for the captions that did not find their video, with film strips.
        report_queries: number of captions in the report, the worst first.
        cache: folder of a tap cache, as for train: cached taps are read, missing ones are encoded and stored.
        cache_kind: auto (when left out), bf16, fp16, fp32 or int8, as that cache was made; auto follows the precision.
        cache_mode: taps (when left out) or first_layer, as that cache was made.
        overwrite: replace existing files of out, report and profile.
        device: auto (a GPU if there is one), cpu, cuda or mps.
        profile: also print the time per stage, and write it next to out, in a file ending in .profile.json.
        data_config: how clips are read, such as --data_config.frames 8; defaults from model or protocol.
    """
    check_names(model, data=data)
    require_new(out, report, profile_path(out, enabled=profile), overwrite=overwrite)
    _check_numbers(report_queries, dual_softmax)
    tap_cache = named_cache(cache, kind=cache_kind, mode=cache_mode)
    video_model = named_model(model, pretrained, device=device, default_branch="mean")
    task = task or ("recognition" if zero_shot or video_model.head is not None else "retrieval")
    head = None if task == "retrieval" or zero_shot else video_model.head
    note_format(data, format)
    _require_split(data, format, split)
    open_named = partial(named_data, data, format=format, annotations=annotations)
    videos = open_named(split=split, classes=None if head is None else head.classes, allow_missing=allow_missing)
    score = _scorer(task, by_class_name=zero_shot)
    _check_recognition_options(task, by_class_name=zero_shot, by_class=by_class, prompts=prompts)
    extras = _retrieval_options(task, rerank=rerank, dual_softmax=dual_softmax, bank=bank, report=report)
    extras |= {} if prompts is None else {"templates": named_prompts(prompts)}
    extras |= {} if bank is None else {"bank": _bank_captions(bank, open_named, annotations)}
    _check_scorable(video_model, videos, task, by_class_name=zero_shot, extras=extras)
    resolved_config = named_data_config(video_model, data_config, videos.protocol_spec)
    with profiled_to(profile_path(out, enabled=profile), enabled=profile):
        clips = cached_clips(video_model, videos, resolved_config, tap_cache)
        result = score(video_model, clips, resolved_config, progress=True, **extras)
    print(result)
    if by_class:
        print(result.class_table())
    _write_outputs(result, out, report, queries=report_queries)


def _scorer(task: str, *, by_class_name: bool) -> Callable[..., Any]:
    """Return the function that scores a task; raise ValueError for an unknown task."""
    from clipvid.evaluation import recognition, retrieval

    recognise = recognition.evaluate_zero_shot if by_class_name else recognition.evaluate_recognition
    scorers: dict[str, Callable[..., Any]] = {"retrieval": retrieval.evaluate_retrieval, "recognition": recognise}
    if task not in scorers:
        raise ValueError(f"unknown task {task!r}; choose one of {', '.join(scorers)}")
    return scorers[task]


def _check_scorable(model: Any, videos: Any, task: str, *, by_class_name: bool, extras: dict[str, Any]) -> None:
    """Raise the errors of scoring before a cache is filled.

    If the data fit the other task only, the message names the option that selects it.
    """
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
        recognition.check_recognition(model, videos, by_class_name=by_class_name)
    else:
        retrieval.check_retrieval(
            model, videos, **{k: v for k, v in extras.items() if k in ("rerank", "dual_softmax", "bank")}
        )


def _write_outputs(result: Any, out: str | None, report: str | None, *, queries: int) -> None:
    """Print the unreadable files, and write the result and the report."""
    show_unreadable(result.unreadable)
    if out is not None:
        print(f"result: {result.save(out)}")
    if report is not None:
        from clipvid.evaluation.html_report import write_report

        print(f"report: {write_report(result, report, queries=queries, progress=True)}")


def _bank_captions(split: str, open_named: Callable[..., Any], annotations: str | None) -> list[str]:
    """Return the captions of a split; its videos may be missing."""
    if annotations is not None and Path(annotations).is_file():
        raise ValueError(f"{annotations} is a single file, and --bank {split} needs the folder of the files; give that")
    return [caption for record in open_named(split=split, check_files=False) for caption in record.captions]


def _require_split(data: str, format: str | None, split: str | None) -> None:
    """Raise ValueError for a table with several splits and no --split; a protocol has a default split."""
    if split is None and format in (None, "csv") and (splits := splits_of(data, format)):
        raise ValueError(f"{data} has splits {', '.join(splits)}; give --split, the one to score on")


def _check_numbers(queries: int, dual_softmax: float | None) -> None:
    """Raise ValueError for numbers out of range, which would otherwise fail at the end of the evaluation."""
    if queries < 1:
        raise ValueError(f"report_queries must be an integer >= 1, got {queries}; leave out --report for no report")
    from clipvid.evaluation.retrieval import check_dual_softmax

    check_dual_softmax(dual_softmax)


def _check_recognition_options(task: str, *, by_class_name: bool, by_class: bool, prompts: str | None) -> None:
    """Raise ValueError for options of recognition with another task, and for prompts without --zero_shot."""
    if task != "recognition":
        for name in [name for name, is_set in (("zero_shot", by_class_name), ("by_class", by_class)) if is_set]:
            raise ValueError(f"{name}: only recognition has classes, the task is {task}; leave it out")
    if prompts is not None and not by_class_name:
        raise ValueError("prompts are for recognition by class names; give --zero_shot true, or leave them out")


def _retrieval_options(task: str, **options: Any) -> dict[str, Any]:
    """Return the extra options of retrieval; raise ValueError if they are given for another task."""
    extras = {name: value for name, value in options.items() if value is not None}
    if task == "retrieval":
        best = {"best": 5} if extras.pop("report", None) else {}
        return {**extras, **best, "hubs": True}
    if extras:
        raise ValueError(f"{', '.join(extras)}: only retrieval has this option, the task is {task}; leave it out")
    return {}


def compare(a: str, b: str, draws: int = 10_000, seed: int = 0) -> None:
    """Print two results side by side, with the p-value of every difference (paired bootstrap over queries).

    Args:
        a: JSON file that `clipvid eval --out` wrote.
        b: another result on the same data.
        draws: number of bootstrap samples.
        seed: seed of the bootstrap.
    """
    from clipvid.evaluation.compare import compare as side_by_side
    from clipvid.evaluation.results import read_result

    if draws < 1:
        raise ValueError(f"draws must be an integer >= 1, got {draws}; take 1000 or more")
    print(side_by_side(read_result(a), read_result(b), n=draws, seed=seed))


def summarize(results: list[str]) -> None:
    """Print mean and standard deviation of every metric over results of runs that differ in their seed.

    Args:
        results: JSON files that `clipvid eval --out` wrote, on the same data.
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
    """Decode every video of a data set and report missing, unreadable, suspicious and duplicate ones.

    Args:
        name: a protocol (msrvtt-1ka, didemo, k400, ...), folder, videos or csv.
        root: folder of the videos.
        split: split of the data; a protocol's default one when left out.
        annotations: the annotation file, or the folder of the files, if they are not in or beside root.
        out: folder for report.json and the log; clipvid-check/NAME of the data set when left out. A second run decodes
            only new and changed files.
        workers: processes that decode; 0 for one per core.
        limit: time limit per file in seconds.
        longest: list captions with more words than this.
    """
    from clipvid.data.check import REPORT, check
    from clipvid.data.open import advice_on_root, read_dataset

    require_writable(Path(out or "clipvid-check") / REPORT)
    data = read_dataset(name, root, split=split, annotations=annotations, allow_missing=True)
    if out is None:
        title = data.name if data.name.startswith(name) else f"{name} {data.name}"
        out = str(Path("clipvid-check", re.sub(r"[^\w.]+", "-", title).strip("-.")))
    report = check(data, out, workers=workers, limit=limit, longest=longest, root=root, progress=True)
    print(report)
    print(f"report: {Path(out) / REPORT}")
    if data.missing and not len(data):
        raise DataError(f"{report.expected} of {report.expected} videos are missing; {advice_on_root(root)}")
    if not report.healthy:
        lacking = f"{pluralize(len(report.missing), 'video')} {'is' if len(report.missing) == 1 else 'are'} missing"
        raise DataError(
            f"{lacking} and {len(report.unreadable)} cannot be read; metrics over fewer videos are not comparable"
        )
