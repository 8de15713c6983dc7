"""Commands for evaluation: eval, compare and summarize. Their docstrings are the help texts.

Contract: plain arguments in; a command prints its results and writes files, or raises. Heavy modules are imported when
a command runs. Knows nothing of parsing or exit codes.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Literal

from cyclopts import Parameter

from clipvid.cli import arguments, datasets, outputs
from clipvid.cli.parsing.options import (
    OUTPUT,
    SCORES,
    Cache,
    Data,
    DataConfigOptions,
    Json,
    Model,
    ResultFiles,
    Run,
    Sources,
)
from clipvid.errors import DataError, UsageError

Results = Annotated[tuple[str, ...], Parameter(metavar="RESULT")]
REPORTED = 50
"""Number of failures in a report by default."""


def evaluate(
    source: Sources,
    /,
    *,
    data: Data,
    model: Model,
    task: Annotated[Literal["retrieval", "recognition"] | None, Parameter(group=SCORES)] = None,
    zero_shot: Annotated[bool, Parameter(group=SCORES)] = False,
    prompts: Annotated[str | None, Parameter(group=SCORES, metavar="NAME|FILE")] = None,
    by_class: Annotated[bool, Parameter(group=SCORES)] = False,
    rerank: Annotated[int | None, Parameter(group=SCORES)] = None,
    dual_softmax: Annotated[float | None, Parameter(group=SCORES)] = None,
    bank: Annotated[str | None, Parameter(group=SCORES, metavar="SPLIT")] = None,
    data_config: DataConfigOptions,
    cache: Cache,
    files: ResultFiles,
    json: Json = False,
    run: Run,
) -> None:
    """Evaluate a model: retrieval if videos have captions, recognition if the model has a classifier.

    Examples:
        clipvid eval my-test-videos --model my-run/best --out result.json
        clipvid eval MSRVTT/videos --format msrvtt-1ka --model my-run/best --report failures.html
        clipvid eval my-videos --model ViT-B-32 --pretrained openai --task recognition --zero-shot
        clipvid eval captions.csv --columns path=video_path caption=text --per-query queries.parquet

    Args:
        source: as for train.
        task: guessed from the model when left out.
        zero_shot: recognise by class names instead of a trained classifier.
        prompts: with zero_shot, text around a class name: video, name, photo, person, or a file with one prompt per
            line, {} standing for the name.
        by_class: also print recognition metrics per class, the worst first.
        rerank: apply the model's token-wise similarity only to this number of best videos per query, not to all pairs.
        dual_softmax: also show metrics after a dual softmax of this temperature (100), which needs all queries at once.
        bank: also show metrics after QB-Norm with the captions of this split of the data (train) as its bank.
        data_config: defaults from the model or the protocol.
    """
    _check_early(model, data_config, cache, files)
    given_task = task or ("recognition" if zero_shot else None)
    retrieval_options = {"rerank": rerank, "dual_softmax": dual_softmax, "bank": bank}
    _check_options(given_task, retrieval_options, by_class_name=zero_shot, by_class=by_class, prompts=prompts)
    sources = datasets.data_of(source, data)
    profile = outputs.profile_path(files.out, enabled=run.profile)
    outputs.require_new(files.out, files.report, files.per_query, profile, overwrite=files.overwrite)
    datasets.note_format(sources, data)
    datasets.require_split(sources, data, advice="the one to score on", protocols=False)
    tap_cache = arguments.named_cache(cache)
    video_model = arguments.named_model(model.model, model.pretrained, device=run.device, default_branch="mean")
    resolved_task = task or ("recognition" if zero_shot or video_model.head is not None else "retrieval")
    head = None if resolved_task == "retrieval" or zero_shot else video_model.head
    videos = datasets.named_data(sources, data, classes=None if head is None else head.classes)
    score = _scorer(resolved_task, by_class_name=zero_shot)
    _check_class_options(resolved_task, by_class_name=zero_shot, by_class=by_class)
    extras = _retrieval_options(resolved_task, retrieval_options)
    extras |= {"best": 5} if resolved_task == "retrieval" and files.report is not None else {}
    extras |= {} if prompts is None else {"templates": arguments.named_prompts(prompts)}
    extras |= {} if bank is None else {"bank": _bank_captions(bank, sources, data)}
    _check_scorable(video_model, videos, resolved_task, by_class_name=zero_shot, extras=extras)
    resolved_config = arguments.named_data_config(video_model, data_config, videos.protocol_spec)
    with outputs.json_printed(json) as print_json:
        with outputs.profiled_to(profile, enabled=run.profile):
            clips = arguments.cached_clips(video_model, videos, resolved_config, tap_cache)
            result = score(video_model, clips, resolved_config, progress=True, **extras)
        print_json(result.to_dict())
        if not json:
            outputs.say(result, *([result.class_table()] if by_class else []), sep="\n")
        _write_outputs(result, files)


def _check_early(model: Model, data_config: DataConfigOptions, cache: Cache, files: ResultFiles) -> None:
    """Raise UsageError for wrong values of shared options, before anything heavy is imported."""
    arguments.check_model(model.model, model.pretrained)
    arguments.check_cache(cache)
    arguments.check_data_config(data_config)
    _check_report(files)


def _scorer(task: str, *, by_class_name: bool) -> Callable[..., Any]:
    """Return the function that scores a task."""
    from clipvid.evaluation import recognition, retrieval

    recognise = recognition.evaluate_zero_shot if by_class_name else recognition.evaluate_recognition
    scorers: dict[str, Callable[..., Any]] = {"retrieval": retrieval.evaluate_retrieval, "recognition": recognise}
    return scorers[task]


def _check_scorable(model: Any, videos: Any, task: str, *, by_class_name: bool, extras: dict[str, Any]) -> None:
    """Raise the errors of scoring before a cache is filled.

    If the data fit the other task only, the message names the option that selects it.
    """
    from clipvid.evaluation import recognition, retrieval

    captioned, labelled = any(r.captions for r in videos), any(r.label is not None for r in videos)
    if task == "retrieval" and labelled and not captioned:
        raise DataError(
            f"{videos.name} has classes and no captions, which retrieval compares; give --zero-shot to recognise "
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


def _write_outputs(result: Any, files: ResultFiles) -> None:
    """Print the unreadable files, and write the result, the report and the table of queries."""
    outputs.show_unreadable(result.unreadable)
    if files.out is not None:
        outputs.say(f"result: {result.save(files.out)}")
    if files.report is not None:
        from clipvid.evaluation.html_report import write_report

        queries = files.report_queries or REPORTED
        outputs.say(f"report: {write_report(result, files.report, queries=queries, progress=True)}")
    if files.per_query is not None:
        outputs.write_table(result.per_query(), files.per_query)
        outputs.say(f"queries: {files.per_query}")


def _bank_captions(split: str, sources: datasets.Sources, data: Data) -> list[str]:
    """Return the captions of a split; its videos may be missing."""
    if data.annotations is not None and Path(data.annotations).is_file():
        raise ValueError(
            f"{data.annotations} is a single file, and --bank {split} needs the folder of the files; give that"
        )
    records = datasets.named_data(sources, data, split=split, allow_missing=False, check_files=False)
    return [caption for record in records for caption in record.captions]


def _check_report(files: ResultFiles) -> None:
    """Raise UsageError for a number of queries that is out of range or without a report, and for a table's suffix."""
    queries = files.report_queries
    if queries is not None and files.report is None:
        raise UsageError(f"--report-queries {queries} is for --report, which is not given; give --report FILE too")
    outputs.at_least("--report-queries", queries, 1, "leave out --report for no report")
    outputs.check_table("--per-query", files.per_query)


def _check_options(
    task: str | None,
    retrieval_options: dict[str, Any],
    *,
    by_class_name: bool,
    by_class: bool,
    prompts: str | None,
) -> None:
    """Raise UsageError for options out of range or without effect, before anything heavy is imported."""
    if task is not None:
        _check_class_options(task, by_class_name=by_class_name, by_class=by_class)
    if prompts is not None and not by_class_name:
        raise UsageError("--prompts are for recognition by class names; give --zero-shot, or leave them out")
    if prompts is not None:
        arguments.named_prompts(prompts)
    _check_numbers(rerank=retrieval_options["rerank"], dual_softmax=retrieval_options["dual_softmax"])
    if task is not None:
        _retrieval_options(task, retrieval_options)


def _check_class_options(task: str, *, by_class_name: bool, by_class: bool) -> None:
    """Raise UsageError for options of recognition with another task."""
    for name, is_set in (("--zero-shot", by_class_name), ("--by-class", by_class)):
        if task != "recognition" and is_set:
            raise UsageError(f"{name}: only recognition has classes, the task is {task}; leave it out")


def _check_numbers(*, rerank: int | None, dual_softmax: float | None) -> None:
    """Raise UsageError for numbers out of range, before a model is loaded."""
    outputs.at_least("--rerank", rerank, 1, "it is a number of videos per query")
    if dual_softmax is not None and not 0 < dual_softmax < math.inf:
        raise UsageError(f"--dual-softmax must be a finite number > 0, got {dual_softmax}; 100 is usual")


def _retrieval_options(task: str, options: dict[str, Any]) -> dict[str, Any]:
    """Return the extra options of retrieval; raise UsageError if they are given for another task."""
    extras = {name: value for name, value in options.items() if value is not None}
    if task == "retrieval":
        return {**extras, "hubs": True}
    if extras:
        given = ", ".join(f"--{name.replace('_', '-')}" for name in extras)
        raise UsageError(f"{given}: only retrieval has this option, the task is {task}; leave it out")
    return {}


def compare(
    results: Results,
    /,
    *,
    resamples: int = 10_000,
    seed: int = 0,
    format: Annotated[Literal["text", "markdown", "latex", "csv"], Parameter(group=OUTPUT)] = "text",
    json: Json = False,
) -> None:
    """Print results side by side, with the p-value of every difference from the first (paired bootstrap over queries).

    Examples:
        clipvid compare a.json b.json
        clipvid compare a.json b.json c.json --format markdown

    Args:
        results: JSON files that `clipvid eval --out` wrote, of the same data.
        resamples: number of bootstrap samples.
        seed: seed of the bootstrap.
        format: format of the table.
    """
    outputs.at_least("--resamples", resamples, 1, "take 1000 or more")
    outputs.check_seed(seed)
    _check_results(results, "give those to compare")
    from clipvid.evaluation.compare import compare as compare_results
    from clipvid.evaluation.results import read_result

    names = [path if results.count(path) == 1 else f"{path} ({i})" for i, path in enumerate(results, start=1)]
    comparison = compare_results(*map(read_result, results), names=names, n_resamples=resamples, seed=seed)
    formats = {"markdown": comparison.to_markdown, "latex": comparison.to_latex, "csv": comparison.to_csv}
    with outputs.json_printed(json) as print_json:
        if json:
            print_json(comparison.to_dict())
        else:
            outputs.say(formats.get(format, comparison.__str__)().rstrip("\n"))


def _check_results(results: tuple[str, ...], advice: str) -> None:
    """Raise UsageError for fewer than two results, and for one that does not exist."""
    if len(results) < 2:
        raise UsageError(f"RESULT... must be two or more files, got {len(results)}; {advice}")
    if missing := [path for path in results if not Path(path).is_file()]:
        raise UsageError(f"there is no result {missing[0]}; write it with clipvid eval DATA --out {missing[0]}")


def summarize(results: Results, /) -> None:
    """Print mean and standard deviation of every metric over results of runs that differ in their seed.

    Args:
        results: JSON files that `clipvid eval --out` wrote, on the same data.
    """
    _check_results(results, "give runs of several seeds")
    from clipvid.evaluation.compare import summarize as over_runs
    from clipvid.evaluation.results import read_result

    outputs.say(over_runs(*map(read_result, results)))
