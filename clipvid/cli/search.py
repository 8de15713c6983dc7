"""Commands to embed and search videos: embed and search. Their docstrings are the help texts.

Contract: plain arguments in; a command prints its results and writes files, or raises. Heavy modules are imported when
a command runs. Knows nothing of parsing or exit codes.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace
from json import dumps
from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter

from clipvid.cli import arguments, datasets, outputs
from clipvid.cli.parsing.options import (
    OUTPUT,
    RUN,
    SEARCH,
    Cache,
    Data,
    DataConfigOptions,
    Json,
    Model,
    Run,
    Sources,
    named,
)
from clipvid.config.settings import INDEX
from clipvid.errors import UsageError
from clipvid.runtime.text import pluralize


def embed(
    source: Sources,
    /,
    *,
    data: Data,
    model: Model,
    data_config: DataConfigOptions,
    cache: Cache,
    out: Annotated[str, Parameter(group=OUTPUT, metavar="FILE")] = "embeddings.safetensors",
    overwrite: Annotated[bool, Parameter(group=OUTPUT)] = False,
    run: Run,
) -> None:
    """Write one embedding per video to a safetensors file (`video`, n x E, L2-normalised), and the paths to JSON.

    Examples:
        clipvid embed my-videos --model my-run/best --out embeddings.safetensors
        clipvid embed "my-videos/*.mp4" more-videos --data-config.frames 8
        clipvid embed captions.csv --columns path=video_path caption=text

    Args:
        source: videos, folders that are searched for videos, csv files, or the root of a named data set. Patterns in
            quotes, such as "clips/*.mp4", are expanded.
        out: file to write, ending in .safetensors; paths and skipped files go to the same name ending in .json.
        overwrite: replace existing files of out and profile.
        data_config: other settings as in the model's training.
    """
    arguments.check_model(model.model, model.pretrained)
    arguments.check_cache(cache)
    arguments.check_data_config(data_config)
    if not out.endswith(".safetensors"):
        raise UsageError(f"--out must end in .safetensors, got {out}; rename it")
    profile_file = outputs.profile_path(out, enabled=run.profile)
    outputs.require_new(out, Path(out).with_suffix(".json"), profile_file, overwrite=overwrite)
    videos = datasets.videos_of(source, data)

    import torch.nn.functional as F

    from clipvid.features.embed import embed_videos
    from clipvid.runtime.files import atomic_file, write_tensors

    tap_cache = arguments.named_cache(cache)
    clips = _clips_of(videos)
    video_model = arguments.named_model(model.model, model.pretrained, device=run.device, default_branch="mean")
    resolved_config = replace(arguments.named_data_config(video_model, data_config), unreadable="skip")
    with outputs.profiled_to(profile_file, enabled=run.profile):
        clips = arguments.cached_clips(video_model, clips, resolved_config, tap_cache)
        embedded = embed_videos(video_model, clips, resolved_config, progress=True)
    metadata = {
        "model": arguments.model_note(model.model, model.pretrained)["model"],
        "fingerprint": video_model.fingerprint,
        "paths": [str(r.path) for r in embedded.data],
        **_times_of(embedded.data),
        "skipped": {str(e.path): e.reason for e in embedded.unreadable},
    }
    with atomic_file(out) as draft:
        write_tensors(draft, {"video": F.normalize(embedded.video, dim=-1)})
    with atomic_file(Path(out).with_suffix(".json")) as draft:
        draft.write_text(dumps(metadata, indent=2) + "\n", encoding="utf-8")
    print(f"{pluralize(len(embedded.data), 'embedding')} of width {embedded.video.shape[1]} in {out}")
    outputs.show_unreadable(embedded.unreadable)


def _clips_of(videos: Any) -> Any:
    """Return a data set of the videos that are named by their paths; a data set as it is."""
    from clipvid.data.records import Record, VideoDataset
    from clipvid.search.videos import video_files

    if isinstance(videos, VideoDataset):
        return videos
    return VideoDataset(tuple(Record(path) for path in video_files(videos)), name="videos")


def _times_of(data: Any) -> dict[str, list[float | None]]:
    """Return start and end of every clip, in seconds, if any is a part of a file."""
    times = {"start": [record.start for record in data], "end": [record.end for record in data]}
    return times if any(time is not None for each in times.values() for time in each) else {}


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
    if not (Path(index) / INDEX).is_file():
        raise UsageError(f"{index} holds no index (no {INDEX}); clipvid index build VIDEOS --out {index} makes one")
    from clipvid.search.index import VideoIndex

    with outputs.json_printed(json) as print_json:
        video_index = VideoIndex.load(index, arguments.index_model(index, device))
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
            print(f"{'' if number == 0 else chr(10)}{hits.query}")
        for hit in hits:
            print(f"{hit.rank:>3}  {hit.score:.3f}  {hit.path}")


def _check_filter(where: str | None) -> None:
    """Raise UsageError for a filter that cannot be read, or that names an unknown column."""
    if where is not None:
        from clipvid.search.filters import COLUMNS, parse

        try:
            parse(where, COLUMNS)
        except ValueError as error:
            raise UsageError(f"--where: {error}") from error


def _queries_of(query: str | None, path: str | None) -> list[str]:
    """Return the query, or those of a file; raise UsageError for both or neither."""
    if query is not None and path is not None:
        raise UsageError(f"QUERY and --queries exclude each other, got {query!r} and {path}; leave out one of them")
    if path is None:
        if query is None:
            raise UsageError("QUERY is missing; write clipvid search INDEX QUERY, or give --queries FILE")
        return [query]
    if not os.path.exists(path):
        raise UsageError(f"--queries {path} does not exist; correct the path")
    try:
        lines = Path(path).read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise UsageError(
            f"--queries {path} cannot be read: {(error.strerror or 'error').lower()}; give a text file"
        ) from error
    except UnicodeDecodeError as error:
        raise UsageError(f"--queries {path} is not UTF-8 text; write one query per line") from error
    if not (texts := [line.strip() for line in lines if line.strip()]):
        raise UsageError(f"--queries {path} holds no query; write one per line")
    return texts


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
