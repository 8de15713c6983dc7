"""Where retrieval fails, as a page to look at: every query whose video was not found first, with film strips.

Contract: an evaluation that kept its best videos in, one HTML file out that needs nothing else (pictures inside, no
script, no address). Videos are read again for their strips; one that cannot be read is named in its place. Knows
nothing of models.
"""

from __future__ import annotations

import base64
from collections.abc import Callable
from functools import cache
from html import escape
from pathlib import Path

import numpy as np

from clipvid.data.records import Record
from clipvid.errors import VideoError
from clipvid.evaluation.metrics import RetrievalMetrics
from clipvid.evaluation.results import EvaluationResult
from clipvid.runtime.files import atomic_file
from clipvid.video.decode import read_part
from clipvid.video.sampling import sample
from clipvid.video.thumbnails import jpeg_strip

STYLE = """
body { font: 15px/1.45 system-ui, sans-serif; margin: 2rem auto; max-width: 1240px; padding: 0 1rem; color: #1b1f24; }
h1 { font-size: 1.35rem; } pre { background: #f4f6f8; padding: .8rem; overflow-x: auto; font-size: 13px; }
section { border-top: 1px solid #d8dee4; padding: .9rem 0 1.1rem; }
h2 { font-size: 1.05rem; margin: 0 0 .5rem; } h2 small { font-weight: normal; color: #57606a; }
figure { margin: .3rem 0; display: flex; flex-wrap: wrap; gap: .2rem .8rem; align-items: center; }
figure img { height: 64px; max-width: 100%; object-fit: contain; border-radius: 3px; border: 3px solid #d0d7de; }
figure.right img { border-color: #1a7f37; } figcaption { font-size: 13px; color: #57606a; overflow-wrap: anywhere; }
figure.right figcaption { color: #1a7f37; font-weight: 600; }
"""
FRAMES = 6
"""Frames of a strip."""


def write_report(
    evaluation: EvaluationResult[RetrievalMetrics], path: str | Path, *, queries: int = 50, progress: bool = False
) -> Path:
    """Write the `queries` captions that text-to-video retrieval failed worst, worst first.

    Each comes with the rank of its video, a strip of that video, and strips of the videos found instead. Raises
    ValueError for an evaluation that did not keep the best videos of its queries (`evaluate_retrieval(best=5)`).
    """
    from tqdm import tqdm

    found = evaluation.top_results
    if found is None or not isinstance(evaluation.metrics, RetrievalMetrics):
        raise ValueError("this evaluation kept no videos to show; evaluate retrieval with best=5 or so")
    if queries < 1:
        raise ValueError(f"queries is a number of captions to show, from 1, got {queries}")
    ranks = evaluation.metrics.t2v.ranks
    order = np.argsort(-ranks, kind="stable")
    failed = [int(query) for query in order if ranks[query] > 1]
    strip = cache(_strip)
    sections = []
    for query in tqdm(failed[:queries], desc="report", unit="query", disable=not progress):
        right = found.relevant_videos(query)
        figures = [_figure(found.data[video], strip, right=True, text="right:") for video in right[:3]]
        for place, video in enumerate(found.best[query], start=1):
            figures.append(_figure(found.data[int(video)], strip, right=int(video) in right, text=f"no. {place}:"))
        head = f"<h2>{escape(found.texts[query])} <small>rank of its video: {ranks[query]:g}</small></h2>"
        sections.append(f"<section>{head}{''.join(figures)}</section>")
    shown = f"the {len(sections)} worst of them" if len(failed) > len(sections) else "all of them, the worst first"
    summary = f"{len(failed)} of {len(ranks)} captions did not find their video first" + (
        f"; here are {shown}." if failed else "."
    )
    what = f"{evaluation.metadata.model['base']}, {evaluation.metadata.model['branch']}"
    title = f"{escape(evaluation.metadata.data)}: captions that did not find their video ({escape(what)})"
    page = (
        f'<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8"><title>{title}</title><style>{STYLE}</style>'
        f"</head><body><h1>{title}</h1><pre>{escape(str(evaluation))}</pre><p>{summary}</p>{''.join(sections)}"
        "</body></html>\n"
    )
    with atomic_file(path) as beside:
        beside.write_text(page, encoding="utf-8")
    return Path(path)


def _figure(record: Record, strip: Callable[[Record], str | VideoError], *, right: bool, text: str) -> str:
    picture = strip(record)
    part = "" if record.start is None and record.end is None else f", {record.start or 0:g} to {record.end or 'end'} s"
    said = f"<figcaption>{text} {escape(record.path.name)}{part}</figcaption>"
    if isinstance(picture, VideoError):
        return f"<figure>{said}<figcaption>{escape(picture.reason)}</figcaption></figure>"
    kind = ' class="right"' if right else ""
    return f'<figure{kind}><img alt="" loading="lazy" src="data:image/jpeg;base64,{picture}">{said}</figure>'


def _strip(record: Record) -> str | VideoError:
    """The film strip in base64, or why there is none."""

    def choose(total: int) -> list[int]:
        return sample("uniform", total, min(total, FRAMES))

    try:
        frames = read_part(record.path, choose, start=record.start, end=record.end)
    except VideoError as error:
        return error
    return base64.b64encode(jpeg_strip(frames)).decode()
