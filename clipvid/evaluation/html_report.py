"""HTML report of failures, with film strips: captions whose video does not have rank 1, and clips with a wrong class.

Contract: an evaluation with the scores of its queries in, one self-contained HTML file out (embedded pictures, no
script, no link). Videos are decoded again for their strips; an unreadable one is listed with the reason. Knows nothing
of models.
"""

from __future__ import annotations

import base64
from collections.abc import Callable
from functools import cache
from html import escape
from pathlib import Path
from typing import Any

import numpy as np

from clipvid.data.dataset import read_record
from clipvid.data.records import Record
from clipvid.errors import VideoError
from clipvid.evaluation.metrics import RecognitionMetrics, RetrievalMetrics
from clipvid.evaluation.per_query import RecognitionQueries
from clipvid.evaluation.results import EvaluationResult
from clipvid.runtime.display.names import as_utf8
from clipvid.runtime.display.progress import progress_bar
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
table { font-size: 13px; border-spacing: .8rem 0; margin: .3rem -.8rem; } tr.right { color: #1a7f37; font-weight: 600; }
td:last-child { text-align: right; font-variant-numeric: tabular-nums; }
"""
FRAMES = 6
"""Number of frames per film strip."""
CLASSES = 5
"""Number of classes whose probability is shown for a clip; its label is added if it is not among them."""


def write_report(
    evaluation: EvaluationResult[RetrievalMetrics] | EvaluationResult[RecognitionMetrics],
    path: str | Path,
    *,
    queries: int = 50,
    progress: bool = False,
) -> Path:
    """Write a page of the failures of an evaluation, worst first, at most `queries`; return its path.

    Retrieval: the captions whose video does not have text-to-video rank 1, each with the rank, a film strip of that
    video, and film strips of the best-ranked videos. Recognition: the clips whose label is not predicted, each with
    label, prediction, the highest probabilities and a film strip. Raises ValueError for retrieval without `top_results`
    (request them with `evaluate_retrieval(best=5)`), and for a result that holds no scores.
    """
    if queries < 1:
        raise ValueError(f"queries must be an integer >= 1, got {queries}; give the number of failures to show")
    strip = cache(_strip)  # a video can be among the best of several queries
    if isinstance(evaluation.queries, RecognitionQueries):
        failures, subject, failed = _WrongClips(evaluation.queries, strip), "clips", "were not recognised"
    else:
        failures, subject, failed = _WrongCaptions(evaluation, strip), "captions", "did not rank their video first"
    shown = failures.order[:queries]
    sections = []
    with progress_bar(len(shown), "report", unit="query", shown=progress) as bar:
        for query in shown:
            sections.append(f"<section>{failures.section(int(query))}</section>")
            bar.update()
    count = len(failures.order)
    selection = f"the {len(shown)} worst of them" if count > len(shown) else "all of them, the worst first"
    summary = f"{count} of {failures.total} {subject} {failed}" + (f"; shown: {selection}." if shown else ".")
    model = f"{evaluation.metadata.model['base']}, {evaluation.metadata.model['branch']}"
    title = f"{escape(evaluation.metadata.data)}: {subject} that {failed} ({escape(model)})"
    page = (
        f'<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8"><title>{title}</title><style>{STYLE}</style>'
        f"</head><body><h1>{title}</h1><pre>{escape(str(evaluation))}</pre><p>{summary}</p>{''.join(sections)}"
        "</body></html>\n"
    )
    with atomic_file(path) as partial:
        partial.write_text(as_utf8(page), encoding="utf-8")
    return Path(path)


Strip = Callable[[Record], "str | VideoError"]
"""A function that returns the film strip of a clip as a JPEG in base64, or the error of an unreadable one."""


class _WrongCaptions:
    """Captions whose video does not have rank 1; `order` has their rows, the worst rank first."""

    def __init__(self, evaluation: EvaluationResult[Any], strip: Strip) -> None:
        if evaluation.top_results is None or not isinstance(evaluation.metrics, RetrievalMetrics):
            raise ValueError(
                "evaluation must be a retrieval result with top_results, or a recognition result with scores; get one "
                "from evaluate_retrieval with best=5, evaluate_recognition or evaluate_zero_shot"
            )
        self.top_results, self.strip = evaluation.top_results, strip
        self.ranks = evaluation.metrics.t2v.ranks
        self.total = len(self.ranks)
        self.order = [int(query) for query in np.argsort(-self.ranks, kind="stable") if self.ranks[query] > 1]

    def section(self, query: int) -> str:
        """Return the caption, the strips of its videos, and those of the best-ranked videos, as HTML."""
        top_results = self.top_results
        relevant = top_results.relevant_videos(query)
        figures = [_figure(top_results.data[video], self.strip, right=True, label="right: ") for video in relevant[:3]]
        for rank, video in enumerate(top_results.best[query].tolist(), start=1):
            right = video in relevant
            figures.append(_figure(top_results.data[video], self.strip, right=right, label=f"no. {rank}: "))
        head = f"{escape(top_results.texts[query])} <small>rank of its video: {self.ranks[query]:g}</small>"
        return f"<h2>{head}</h2>{''.join(figures)}"


class _WrongClips:
    """Clips whose label is not predicted; `order` has their rows, the worst rank and the surest prediction first."""

    def __init__(self, queries: RecognitionQueries, strip: Strip) -> None:
        self.queries, self.strip = queries, strip
        self.probabilities, self.table = queries.probabilities, queries.frame()
        self.total = len(self.table)
        wrong = self.table.loc[~self.table["correct"]]
        self.order = [int(row) for row in wrong.sort_values(by=["rank", "probability"], ascending=False).index]

    def section(self, query: int) -> str:
        """Return label, prediction and film strip of a clip, and its highest probabilities as bars, as HTML."""
        row = self.table.iloc[query]
        mistake = f"predicted: {escape(row['prediction'])}; rank of the label: {row['rank']:g}"
        best = np.argsort(-self.probabilities[query], kind="stable")[:CLASSES].tolist()
        label = int(self.queries.labels[query])
        lines = []
        for index in best if label in best else [*best, label]:
            share, name = 100 * self.probabilities[query, index], escape(self.queries.classes[index])
            html_class = ' class="right"' if index == label else ""
            bar = f'<td><meter max="100" value="{share:.1f}"></meter></td>'
            lines.append(f"<tr{html_class}><td>{name}</td>{bar}<td>{share:.1f} %</td></tr>")
        figure = _figure(self.queries.data[query], self.strip, right=False, label="")
        return f"<h2>{escape(row['label'])} <small>{mistake}</small></h2>{figure}<table>{''.join(lines)}</table>"


def _figure(record: Record, strip: Strip, *, right: bool, label: str) -> str:
    """Return a `figure` element with the film strip of a video, or with the reason why there is none."""
    picture = strip(record)
    times = "" if record.start is None and record.end is None else f", {record.start or 0:g} to {record.end or 'end'} s"
    caption = f"<figcaption>{label}{escape(record.path.name)}{times}</figcaption>"
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
