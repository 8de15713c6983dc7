"""Command to search an index: search. Its docstring is the help text.

Contract: plain arguments in; a command prints its results and writes files, or raises. Heavy modules are imported when
a command runs. Knows nothing of parsing or exit codes.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter

from clipvid.cli import arguments, outputs
from clipvid.cli.parsing.options import RUN, SEARCH, Json, named
from clipvid.errors import UsageError


def search(
    index: str,
    query: str | None = None,
    /,
    *,
    queries: Annotated[str | None, Parameter(group=SEARCH, metavar="FILE")] = None,
    video: Annotated[bool, Parameter(group=SEARCH)] = False,
    k: Annotated[int, Parameter(group=SEARCH, alias="-k")] = 5,
    where: Annotated[str | None, Parameter(group=SEARCH, metavar="FILTER")] = None,
    rerank: Annotated[int, Parameter(group=SEARCH)] = 0,
    root: Annotated[str | None, Parameter(group=SEARCH, metavar="DIR")] = None,
    device: Annotated[str, named("device"), Parameter(group=RUN)] = "auto",
    json: Json = False,
) -> None:
    """Find the videos of an index that match a sentence, or that are similar to another video.

    Examples:
        clipvid search my-index "a dog runs on the beach"
        clipvid search my-index my-videos/dog.mp4 --video -k 10
        clipvid search my-index "a red circle" --where 'label = "moves left"'
        clipvid search my-index --queries sentences.txt --json

    Args:
        index: folder that `clipvid index build` made.
        query: a sentence in quotes; or the path of a video, with --video.
        queries: text file of queries, one per line, instead of QUERY; the hits of each are printed below it.
        video: queries are videos.
        k: number of hits to print.
        where: filter on the columns path and label, such as 'label in ("dog", "cat") and not path = "a.mp4"'. Videos
            have labels if they were indexed from class folders (--format folder) or a table.
        rerank: number of first hits to decode again and sort by the model's token-wise similarity.
        root: folder of the videos, if they have moved.
        device: auto is a GPU if there is one.
    """
    outputs.at_least("--k", k, 1, "it is the number of hits")
    outputs.at_least("--rerank", rerank, 0, "it is a number of hits, 0 for none")
    if video and rerank:
        raise UsageError(f"--rerank compares words with frames, but the query is a video; leave out --rerank {rerank}")
    _check_filter(where)
    texts = _queries_of(query, queries)
    for text in texts:
        _check_query(text, is_video=video)
    arguments.require_index(index)
    from clipvid.search.index import VideoIndex

    with outputs.json_printed(json) as print_json:
        video_index = VideoIndex.load(index, arguments.index_model(index, device), root=root)
        with outputs.notes_shown():
            if video:
                every = [video_index.search_video(path, k=k, where=where) for path in texts]
            else:
                every = video_index.search(texts, k=k, rerank=rerank, where=where)
        contents = [hits.to_dict() for hits in every]
        print_json(contents if queries is not None else contents[0])
        if not json:
            _print_hits(every, named=queries is not None)


def _print_hits(every: Sequence[Any], *, named: bool) -> None:
    """Print the hits of every query; with `named` each query as a line above its hits."""
    for number, hits in enumerate(every):
        if named:
            outputs.say(f"{'' if number == 0 else chr(10)}{hits.query}")
        for hit in hits:
            outputs.say(hit)


def _check_filter(where: str | None) -> None:
    """Raise UsageError for a filter that cannot be read, or that names an unknown column."""
    if where is not None:
        from clipvid.search.queries.filters import COLUMNS, parse

        try:
            parse(where, COLUMNS)
        except ValueError as error:
            raise UsageError(f"--where: {error}") from error


def _queries_of(query: str | None, path: str | None) -> Sequence[str]:
    """Return the query, or those of a file; raise UsageError for both or neither."""
    if query is not None and path is not None:
        raise UsageError(f"QUERY and --queries exclude each other, got {query!r} and {path}; leave out one of them")
    if path is None:
        if query is None:
            raise UsageError("QUERY is missing; write clipvid search INDEX QUERY, or give --queries FILE")
        return [query]
    return arguments.read_lines("--queries", path, "query")


def _check_query(query: str, *, is_video: bool) -> None:
    """Raise UsageError for an empty query, a video that does not exist, and a sentence that is a file."""
    if not query.strip():
        raise UsageError("QUERY is empty; describe what the video should show")
    if is_video:
        if not os.path.exists(query):
            raise UsageError(f"{query} does not exist; with --video QUERY must be the path of a video")
        return
    if os.path.isfile(query):  # a sentence may be too long for a file name
        raise UsageError(f"{query} is a file; add --video to look for videos like it, or write a sentence")
    if " " not in query and "." in query:
        from clipvid.data.files import is_video as is_video_name

        if is_video_name(Path(query)):
            raise UsageError(
                f"{query} looks like a video file, but does not exist; correct the path, or write a sentence"
            )
