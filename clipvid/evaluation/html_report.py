"""HTML report of failed retrieval queries: captions whose video does not have rank 1, with film strips.

Contract: an evaluation with `top_results` in, one self-contained HTML file out (embedded pictures, no script, no
link). Videos are decoded again for their strips; an unreadable one is listed with the reason. Knows nothing of models.
"""

from __future__ import annotations

import base64
from collections.abc import Callable
from functools import cache
from html import escape
from pathlib import Path

import numpy as np

from clipvid.data.dataset import read_record
from clipvid.data.records import Record
from clipvid.errors import VideoError
from clipvid.evaluation.metrics import RetrievalMetrics
from clipvid.evaluation.results import EvaluationResult
from clipvid.runtime.files import atomic_file
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
"""Number of frames per film strip."""


def write_report(
    evaluation: EvaluationResult[RetrievalMetrics], path: str | Path, *, queries: int = 50, progress: bool = False
) -> Path:
    """Write a page of the captions whose video has the worst text-to-video rank, worst first, at most `queries`.

    Each has the rank of its video, a film strip of that video, and film strips of the best-ranked videos. Raises
    ValueError for an evaluation without `top_results` (request them with `evaluate_retrieval(best=5)`).
    """
    from tqdm import tqdm

    top_results = evaluation.top_results
    if top_results is None or not isinstance(evaluation.metrics, RetrievalMetrics):
        raise ValueError(
            "evaluation must be a retrieval result with top_results; get one from evaluate_retrieval with best=5"
        )
    if queries < 1:
        raise ValueError(f"queries must be an integer >= 1, got {queries}; it is the number of captions to show")
    ranks = evaluation.metrics.t2v.ranks
    order = np.argsort(-ranks, kind="stable")
    failed = [int(query) for query in order if ranks[query] > 1]
    strip = cache(_strip)  # a video can be among the best of several queries
    sections = []
    for query in tqdm(failed[:queries], desc="report", unit="query", disable=not progress):
        relevant = top_results.relevant_videos(query)
        figures = [_figure(top_results.data[video], strip, right=True, label="right:") for video in relevant[:3]]
        for rank, video in enumerate(top_results.best[query], start=1):
            figures.append(
                _figure(top_results.data[int(video)], strip, right=int(video) in relevant, label=f"no. {rank}:")
            )
        head = f"<h2>{escape(top_results.texts[query])} <small>rank of its video: {ranks[query]:g}</small></h2>"
        sections.append(f"<section>{head}{''.join(figures)}</section>")
    shown = f"the {len(sections)} worst of them" if len(failed) > len(sections) else "all of them, the worst first"
    summary = f"{len(failed)} of {len(ranks)} captions did not rank their video first" + (
        f"; shown: {shown}." if failed else "."
    )
    model = f"{evaluation.metadata.model['base']}, {evaluation.metadata.model['branch']}"
    title = f"{escape(evaluation.metadata.data)}: captions that did not rank their video first ({escape(model)})"
    page = (
        f'<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8"><title>{title}</title><style>{STYLE}</style>'
        f"</head><body><h1>{title}</h1><pre>{escape(str(evaluation))}</pre><p>{summary}</p>{''.join(sections)}"
        "</body></html>\n"
    )
    with atomic_file(path) as partial:
        partial.write_text(page, encoding="utf-8")
    return Path(path)


def _figure(record: Record, strip: Callable[[Record], str | VideoError], *, right: bool, label: str) -> str:
    """Return a `figure` element with the film strip of a video, or with the reason why there is none."""
    picture = strip(record)
    times = "" if record.start is None and record.end is None else f", {record.start or 0:g} to {record.end or 'end'} s"
    caption = f"<figcaption>{label} {escape(record.path.name)}{times}</figcaption>"
    if isinstance(picture, VideoError):
        return f"<figure>{caption}<figcaption>{escape(picture.reason)}</figcaption></figure>"
    html_class = ' class="right"' if right else ""
    return f'<figure{html_class}><img alt="" loading="lazy" src="data:image/jpeg;base64,{picture}">{caption}</figure>'


def _strip(record: Record) -> str | VideoError:
    """Return the film strip as a JPEG in base64, or the error of an unreadable video."""

    def choose(total: int) -> list[int]:
        return sample("uniform", total, min(total, FRAMES))

    try:
        frames = read_record(record, choose)
    except VideoError as error:
        return error
    return base64.b64encode(jpeg_strip(frames)).decode()
