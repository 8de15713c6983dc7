"""What the command line can do: one function a command, and what they share. Help texts come from their docstrings.

Contract: plain arguments in; a command prints what it found and writes what was asked for, or raises. Heavy modules
load when a command runs. Knows nothing of parsing or exit codes.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from clipvid._arguments import index_model, named_data, named_device, named_model, named_prompts, refuse
from clipvid.config import Reading, TrainConfig
from clipvid.errors import DataError


def demo(
    out: str = "clipvid-demo", train_clips: int = 4000, test_clips: int = 400, epochs: int = 4, seed: int = 0
) -> None:
    """Train, evaluate and search on videos that the demo renders itself; needs no download and no GPU.

    Args:
        out: folder for videos, models, plots, index and results.json; a second run reuses the videos.
        train_clips: clips to train on, an even number: each comes with itself played backwards.
        test_clips: clips to score on, an even number.
        epochs: passes over the training clips for retrieval; recognition goes on for half as many. The order-blind
            baseline gets five times as many for each.
        seed: of videos, weights and order.
    """
    from clipvid.demo import Plan, run

    plan = Plan(train_clips=train_clips, test_clips=test_clips, epochs=epochs, baseline_epochs=5 * epochs, seed=seed)
    run(out, plan)


def info(
    model: str,
    branch: str | None = None,
    depth: int | None = None,
    mixer: str | None = None,
    options: dict[str, Any] | None = None,
    similarity: str | None = None,
    freeze: str = "all",
    text_lora: int = 0,
    frames: int = 8,
) -> None:
    """Print what a base model and a branch on it cost: tower, taps, parameters, MACs, bytes; runs nothing.

    Args:
        model: name of an open_clip model, hf-hub: tag, local-dir: folder, clipvid-mini, or a folder that clipvid saved.
        branch: stan (the default), mean, posterior, divided, vivit3, ...; an unknown name lists them all.
        depth: how many of the tower's last levels are tapped, or blocks copied.
        mixer: cross-frame module of stan and divided: attention, conv, conv_full or rsa.
        options: other options of the branch, as JSON.
        similarity: what retrieval compares: mean (the default), wti, mug or mug_simple.
        freeze: what of the base model stays frozen in training: all, visual, last:N or none.
        text_lora: rank of LoRA adapters on the text tower; 0 for none.
        frames: frames a clip.
    """
    chosen = {"branch": branch, "depth": depth, "mixer": mixer, "options": options, "similarity": similarity}
    described = named_model(model, chosen=chosen, shapes_only=True)
    if freeze != "all" or text_lora:
        described.unfreeze(freeze, text_lora=text_lora)
    print(described.trainable_summary(frames))


def fine_tune(  # not `train`: jsonargparse would look that up in the package, and load it
    data: str,
    out: str = "clipvid-run",
    model: str = "clipvid-mini",
    pretrained: str | None = None,
    branch: str | None = None,
    depth: int | None = None,
    mixer: str | None = None,
    options: dict[str, Any] | None = None,
    similarity: str | None = None,
    format: str | None = None,
    split: str | None = None,
    val: str | None = None,
    val_split: str | None = None,
    val_fraction: float = 0.1,
    shots: int | None = None,
    allow_missing: bool = False,
    device: str = "auto",
    resume: bool = False,
    config: TrainConfig | None = None,
) -> None:
    """Fine-tune a branch for retrieval or recognition, or on videos alone; the base model stays as it is unless asked.

    Args:
        data: folder with one sub-folder a class, csv file (path, caption, label), or root of a named data set; with
            --task selfsup any folder of videos.
        out: folder for the trained model (out/best), checkpoints and curves.
        model: base model, as for info; or a folder that clipvid saved, to go on from.
        pretrained: weights of the base model: a tag of open_clip or the path of a checkpoint.
        branch: stan (the default), mean, posterior, divided, vivit3, ...; an unknown name lists them all.
        depth: how many of the tower's last levels are tapped, or blocks copied.
        mixer: cross-frame module of stan and divided: attention, conv, conv_full or rsa.
        options: other options of the branch, as JSON.
        similarity: what retrieval compares: mean (the default), wti, mug or mug_simple.
        format: folder, videos, csv, or a protocol (msrvtt-1ka, didemo, k400, ...); guessed from data when left out.
        split: split of the data to train on, where it has splits.
        val: data to validate on; without it and val_split, a part of the training videos is held out.
        val_split: split to validate on.
        val_fraction: share of the training videos to hold out.
        shots: train on so many videos a class alone (2, 4, 8, 16), drawn by the seed; validate on the others.
        allow_missing: go on without videos that the annotations name and that are not there.
        device: auto (a GPU where there is one), cpu, cuda or mps.
        resume: go on from the last checkpoint in out.
        config: everything else about training.
    """
    from clipvid.training import train

    config = config or TrainConfig()
    if val_split is not None and val is None and split is None:
        raise ValueError(
            "val_split without split would train on the validation videos too; give --split, such as train"
        )
    plain = "videos" if config.task == "selfsup" else "folder"
    train_data = named_data(data, format, split, plain=plain, allow_missing=allow_missing)
    if val is not None or val_split is not None:
        classes = train_data.classes
        val_data = named_data(val or data, format, val_split, classes=classes, plain=plain, allow_missing=allow_missing)
        train_data = train_data if shots is None else train_data.few_shot(shots, seed=config.seed)
    elif shots is not None:
        whole, train_data = train_data, train_data.few_shot(shots, seed=config.seed)
        seen = {record.path for record in train_data}
        val_data = whole.subset(i for i, record in enumerate(whole) if record.path not in seen)
        if not len(val_data):
            raise ValueError(f"{shots} shots take all {len(whole)} videos; give --val, or fewer shots")
    else:
        train_data, val_data = train_data.split(val_fraction, seed=config.seed)
    accelerator = named_device(device)
    chosen = {"branch": branch, "depth": depth, "mixer": mixer, "options": options, "similarity": similarity}
    video_model = named_model(model, pretrained, chosen)
    result = train(video_model, train_data, val_data, config, out=out, resume=resume, accelerator=accelerator)
    best = (
        ""
        if result.best_score is None
        else f", {result.score_name} {result.best_score:.1f} on {len(val_data)} held-out videos"
    )
    print(f"best epoch {result.best_epoch}{best}; model saved to {Path(out) / 'best'}")
    _report(result.unreadable)


def evaluate(
    data: str,
    model: str = "clipvid-mini",
    pretrained: str | None = None,
    task: str | None = None,
    format: str | None = None,
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
    device: str = "auto",
    reading: Reading | None = None,
) -> None:
    """Score a model: retrieval where videos have captions, recognition where the model has a classifier.

    Args:
        data: as for train.
        model: a folder that clipvid saved, or a base model, whose frame-mean is then scored.
        pretrained: weights of a base model.
        task: retrieval or recognition; guessed from the model when left out.
        format: folder, csv, or a protocol (msrvtt-1ka, didemo, k400, ...); guessed from data when left out.
        split: split of the data.
        zero_shot: recognise by class names instead of a trained classifier.
        prompts: with zero_shot, the words around a name: video (the default), name, photo, person, or a text file with
            one a line and {} for the name.
        by_class: also print recognition class by class, the worst first.
        rerank: score only so many of each query's best by the model's token-wise similarity, not all pairs.
        dual_softmax: also show figures after a dual softmax of this temperature (100), which sees all queries at once.
        bank: also show figures after QB-Norm with the captions of this split of the data (train) as its bank.
        allow_missing: score a protocol with fewer videos than it has; N then stands beside every figure.
        out: JSON file for the result card, which `clipvid compare` reads.
        report: HTML file for the captions that did not find their video, with film strips.
        report_queries: how many of them, the worst first.
        device: auto (a GPU where there is one), cpu, cuda or mps.
        reading: how clips are read; as the model was trained when nothing of it is given.
    """
    from clipvid import evaluate as ev

    video_model = named_model(model, pretrained, device=device, plain="mean")
    task = task or ("recognition" if zero_shot or video_model.head is not None else "retrieval")
    classes = None if task == "retrieval" or video_model.head is None or zero_shot else video_model.head.classes
    videos = named_data(data, format, split, classes=classes, allow_missing=allow_missing)
    scorers = {
        "retrieval": ev.evaluate_retrieval,
        "recognition": ev.zero_shot if zero_shot else ev.evaluate_recognition,
    }
    if task not in scorers:
        raise ValueError(f"unknown task {task!r}; choose one of {', '.join(scorers)}")
    if by_class and task != "recognition":
        raise ValueError(f"by_class: only recognition has classes, the task is {task}; leave it out")
    if prompts is not None and not zero_shot:
        raise ValueError("prompts are for recognition by class names; give --zero_shot true, or leave them out")
    if report_queries < 1 or (report is not None and Path(report).is_dir()):
        raise ValueError(f"report is an HTML file and report_queries starts at 1, got {report} and {report_queries}")
    extras = _of_retrieval(task, rerank=rerank, dual_softmax=dual_softmax, bank=bank, report=report)
    extras |= {} if prompts is None else {"templates": named_prompts(prompts)}
    if bank is not None:
        read = named_data(data, format, bank, check_files=False)
        extras["bank"] = [caption for record in read for caption in record.captions]
    found = scorers[task](video_model, videos, reading, progress=True, **extras)
    print(found)
    if by_class:
        print(found.class_table())
    _report(found.unreadable)
    if out is not None:
        print(f"result card: {found.save(out)}")
    if report is not None:
        from clipvid.report import write_report

        print(f"report: {write_report(found, report, queries=report_queries, progress=True)}")


def _of_retrieval(task: str, **asked: Any) -> dict[str, Any]:
    """What retrieval is asked beside its figures; ValueError where the task is another."""
    extras = {name: value for name, value in asked.items() if value is not None}
    if task == "retrieval":
        best = {"best": 5} if extras.pop("report", None) else {}
        return {**extras, **best, "hubs": True}
    if extras:
        raise ValueError(f"{', '.join(extras)}: only retrieval has this, the task is {task}; leave it out")
    return {}


def compare(a: str, b: str, draws: int = 10_000, seed: int = 0) -> None:
    """Print two result cards side by side, with the p-value of every difference (paired bootstrap over the queries).

    Args:
        a: JSON file that `clipvid eval --out` wrote.
        b: another, of the same data.
        draws: how often the queries are drawn again.
        seed: of the draws.
    """
    from clipvid.cards import compare as side_by_side
    from clipvid.cards import read_card

    print(side_by_side(read_card(a), read_card(b), n=draws, seed=seed))


def summarize(cards: list[str]) -> None:
    """Print mean and standard deviation of every figure over result cards of runs that differ in their seed.

    Args:
        cards: JSON files that `clipvid eval --out` wrote, of the same data.
    """
    from clipvid.cards import read_card
    from clipvid.cards import summarize as over_runs

    print(over_runs([read_card(card) for card in cards]))


def check_data(
    name: str,
    root: str,
    split: str | None = None,
    annotations: str | None = None,
    out: str = "clipvid-check",
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
        out: folder for report.json and the log; a second run decodes new and changed files only.
        workers: processes that decode; 0 takes one a core.
        limit: seconds that a file may take.
        longest: list captions of more words than this.
    """
    from clipvid.data.doctor import REPORT, check
    from clipvid.data.readers import open_dataset

    data = open_dataset(name, root, split=split, annotations=annotations, allow_missing=True)
    report = check(data, out, workers=workers, limit=limit, longest=longest, progress=True)
    print(report)
    print(f"report: {Path(out) / REPORT}")
    if not report.healthy:
        raise DataError(
            f"{len(report.missing)} videos are missing and {len(report.unreadable)} cannot be read; figures would be "
            "over fewer videos than others have"
        )


def embed(
    videos: str,
    out: str = "embeddings.safetensors",
    model: str = "clipvid-mini",
    pretrained: str | None = None,
    device: str = "auto",
    reading: Reading | None = None,
) -> None:
    """Write one embedding a video to a safetensors file (`video`, n x E, L2-normalised), with paths beside it in JSON.

    Args:
        videos: a file, or a folder that is searched for videos.
        out: file to write, ending in .safetensors; paths and skipped files go to the same name ending in .json.
        model: a folder that clipvid saved, or a base model.
        pretrained: weights of a base model.
        device: auto (a GPU where there is one), cpu, cuda or mps.
        reading: how clips are read; as the model was trained when nothing of it is given.
    """
    import torch.nn.functional as F
    from safetensors.torch import save_file

    from clipvid._files import whole_file
    from clipvid.cache import trained_reading
    from clipvid.data.files import find_clips
    from clipvid.data.record import Record, VideoData
    from clipvid.evaluate import embed_videos

    if not out.endswith(".safetensors"):
        raise ValueError(f"out must end in .safetensors, got {out}")
    video_model = named_model(model, pretrained, device=device, plain="mean")
    paths = find_clips(Path(videos)) if Path(videos).is_dir() else [Path(videos)]
    if not paths:
        raise ValueError(f"no videos in {videos}")
    reading = replace(reading or trained_reading(video_model), unreadable="skip")
    found = embed_videos(video_model, VideoData(tuple(Record(p) for p in paths), name="videos"), reading, progress=True)
    facts = {
        "model": model,
        "fingerprint": video_model.fingerprint,
        "paths": [str(r.path) for r in found.data],
        "skipped": {str(e.path): e.reason for e in found.unreadable},
    }
    with whole_file(out) as beside:
        save_file({"video": F.normalize(found.video, dim=-1).contiguous()}, beside)
    with whole_file(Path(out).with_suffix(".json")) as beside:
        beside.write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")
    print(f"{len(found.data)} embeddings of width {found.video.shape[1]} in {out}")
    _report(found.unreadable)


def index(
    videos: str,
    out: str = "clipvid-index",
    model: str | None = None,
    pretrained: str | None = None,
    frames: int | None = None,
    workers: int = 0,
    device: str = "auto",
    add: bool = False,
) -> None:
    """Build a search index over files and folders of videos; files that cannot be read are listed with their reason.

    Args:
        videos: a file, or a folder that is searched for videos.
        out: folder of the index.
        model: a folder that clipvid saved, or a base model; clipvid-mini when left out.
        pretrained: weights of a base model.
        frames: frames a video; as the model was trained when left out.
        workers: processes that decode.
        device: auto (a GPU where there is one), cpu, cuda or mps.
        add: go on with the index that out holds, skipping files it has; an interrupted run is finished this way.
    """
    from clipvid.cache import trained_reading
    from clipvid.search import VideoIndex

    if not Path(videos).exists():
        raise FileNotFoundError(f"{videos} does not exist; give a video or a folder of videos")
    if add:
        refuse(f"{out} knows its model and its frames", model=model, pretrained=pretrained, frames=frames)
        found = VideoIndex.load(out, index_model(out, device))
    else:
        if Path(out).exists() and any(Path(out).iterdir()):
            raise FileExistsError(
                f"{out} holds an index or other files; give --add true to go on with it, or another --out"
            )
        name = model or "clipvid-mini"
        video_model = named_model(name, pretrained, device=device, plain="mean")
        reading = trained_reading(video_model)
        frames = reading.frames if frames is None else frames
        found = VideoIndex(video_model, frames=frames, sampler=reading.sampler)
        found.note = {"model": name, "pretrained": pretrained}
    with found.saving_to(out):  # what is embedded is kept when this is interrupted
        found.add(Path(videos), existing="skip", unreadable="skip", workers=workers)
    if not len(found):
        _report(found.skipped)
        raise ValueError(f"no video in {videos} could be read, so there is nothing to index")
    print(f"{len(found)} videos in {out}")
    _report(found.skipped)


def search(index: str, query: str, video: bool = False, k: int = 5, rerank: int = 0, device: str = "auto") -> None:
    """Find the videos of an index that fit a sentence, or that look like another video.

    Args:
        index: folder that `clipvid index` made.
        query: sentence to look for; or the path of a video, with --video true.
        video: the query is a video.
        k: how many hits to print.
        rerank: read so many of the first again and order them by the model's token-wise similarity.
        device: auto (a GPU where there is one), cpu, cuda or mps.
    """
    from clipvid.search import VideoIndex

    found = VideoIndex.load(index, index_model(index, device))
    if video and rerank:
        raise ValueError(f"rerank compares words with frames, the query is a video; leave out --rerank {rerank}")
    hits = found.search_video(query, k=k) if video else found.search(query, k=k, rerank=rerank)
    for hit in hits:
        print(f"{hit.rank:>3}  {hit.score:.3f}  {hit.path}")


def _report(unreadable: Sequence[Any]) -> None:
    """What was left out, and why, on standard error."""
    if unreadable:
        from clipvid.data.dataset import describe_unreadable

        print(describe_unreadable(unreadable), file=sys.stderr)
