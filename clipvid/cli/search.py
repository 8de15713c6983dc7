"""Commands to embed, index and search videos. Their docstrings are the help texts.

Contract: plain arguments in; a command prints its results and writes files, or raises. Heavy modules are imported when
a command runs. Knows nothing of parsing or exit codes.
"""

from __future__ import annotations

import os
from dataclasses import replace
from json import dumps
from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter

from clipvid.cli import arguments, datasets, outputs
from clipvid.cli.parsing.names import suggestion
from clipvid.cli.parsing.options import (
    OUTPUT,
    RUN,
    SEARCH,
    Cache,
    DataConfigOptions,
    Json,
    Model,
    ModelOptions,
    Run,
    Sources,
    named,
)
from clipvid.config.settings import INDEX
from clipvid.errors import UsageError
from clipvid.runtime.files import lock_folder, require_writable
from clipvid.runtime.text import pluralize
from clipvid.search.stores import FAISS_KINDS


def embed(
    source: Sources,
    /,
    *,
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

    Args:
        source: videos, and folders that are searched for videos. Patterns in quotes, such as "clips/*.mp4", are
            expanded.
        out: file to write, ending in .safetensors; paths and skipped files go to the same name ending in .json.
        overwrite: replace existing files of out and profile.
        data_config: other settings as in the model's training.
    """
    arguments.check_model(model.model, model.pretrained)
    arguments.check_cache(cache)
    if not out.endswith(".safetensors"):
        raise UsageError(f"--out must end in .safetensors, got {out}; rename it")
    profile_file = outputs.profile_path(out, enabled=run.profile)
    outputs.require_new(out, Path(out).with_suffix(".json"), profile_file, overwrite=overwrite)
    sources = datasets.sources_of(source)

    import torch.nn.functional as F

    from clipvid.data.records import Record, VideoDataset
    from clipvid.features.embed import embed_videos
    from clipvid.runtime.files import atomic_file, write_tensors

    tap_cache = arguments.named_cache(cache)
    folders = [sources] if isinstance(sources, str) else sources
    paths = [path for folder in folders for path in _videos_in(Path(folder))]
    video_model = arguments.named_model(model.model, model.pretrained, device=run.device, default_branch="mean")
    resolved_config = replace(arguments.named_data_config(video_model, data_config), unreadable="skip")
    clips = VideoDataset(tuple(Record(path) for path in dict.fromkeys(paths)), name="videos")
    with outputs.profiled_to(profile_file, enabled=run.profile):
        clips = arguments.cached_clips(video_model, clips, resolved_config, tap_cache)
        embedded = embed_videos(video_model, clips, resolved_config, progress=True)
    metadata = {
        "model": arguments.model_note(model.model, model.pretrained)["model"],
        "fingerprint": video_model.fingerprint,
        "paths": [str(r.path) for r in embedded.data],
        "skipped": {str(e.path): e.reason for e in embedded.unreadable},
    }
    with atomic_file(out) as draft:
        write_tensors(draft, {"video": F.normalize(embedded.video, dim=-1)})
    with atomic_file(Path(out).with_suffix(".json")) as draft:
        draft.write_text(dumps(metadata, indent=2) + "\n", encoding="utf-8")
    print(f"{pluralize(len(embedded.data), 'embedding')} of width {embedded.video.shape[1]} in {out}")
    outputs.show_unreadable(embedded.unreadable)


def _videos_in(path: Path) -> list[Path]:
    """Return the video, or the videos of a folder; raise an error for a path without videos, such as a table."""
    from clipvid.data.files import find_clips

    if not path.exists():
        raise FileNotFoundError(f"{path} does not exist; give a video or a folder of videos")
    files = find_clips(path) if path.is_dir() else [path]
    tables = [file for file in (files or sorted(path.iterdir())) if file.suffix.lower() == ".csv"]
    if tables:
        raise ValueError(f"{tables[0]} is a table, and embed takes videos; give a video or a folder of videos")
    if not files:
        raise ValueError(f"{path} holds no video; give a video or a folder of videos")
    return files


def build_index(
    source: Sources,
    /,
    *,
    model: Model,
    frames: Annotated[int | None, Parameter(group=SEARCH)] = None,
    store: Annotated[str, named("store"), Parameter(group=SEARCH)] = "faiss",
    kind: Annotated[str | None, Parameter(group=SEARCH)] = None,
    precision: Annotated[str | None, named("precision"), Parameter(group=SEARCH)] = None,
    workers: Annotated[int, Parameter(group=SEARCH)] = 0,
    out: Annotated[str, Parameter(group=OUTPUT, metavar="DIR")] = "clipvid-index",
    run: Run,
) -> None:
    """Build a search index of videos and folders of videos; unreadable files are listed with the reason.

    Examples:
        clipvid index build my-videos --model ViT-B-32 --pretrained openai --out my-index
        clipvid index build "clips/*.mp4" more-clips --kind hnsw

    Args:
        source: videos, and folders that are searched for videos. Patterns in quotes, such as "clips/*.mp4", are
            expanded.
        frames: frames per video; as in the model's training when left out.
        store: where vectors are kept and compared: faiss, or a store of a plugin.
        kind: kind of index in the store. flat (when left out) compares a query with every video; faiss's ivf and hnsw
            are faster on hundreds of thousands of videos, and may miss some.
        precision: for videos and queries; auto, when left out, is bf16 if the hardware supports it.
        workers: processes that decode; 0 decodes in threads of this process.
        out: folder of the index.
    """
    arguments.check_model(model.model, model.pretrained)
    if frames is not None and frames < 1:
        raise UsageError(f"--frames must be an integer >= 1, got {frames}; leave it out for the model's own number")
    if kind is not None and store == "faiss" and kind not in FAISS_KINDS:
        raise UsageError(f"--kind must be one of {', '.join(FAISS_KINDS)}, got {kind!r}{suggestion(kind, FAISS_KINDS)}")
    sources = datasets.sources_of(source)
    require_writable(out, folder=True)
    with lock_folder(out, outside=True):
        _check_index_folder(Path(out), exists=(Path(out) / INDEX).is_file())
        settings = {"frames": frames, "store": store, "kind": kind, "precision": precision}
        index = _new_index(model, device=run.device, settings=settings)
        _fill(index, sources, out, workers=workers, profile=run.profile)


def add_to_index(
    source: Sources,
    /,
    *,
    workers: Annotated[int, Parameter(group=SEARCH)] = 0,
    out: Annotated[str, Parameter(group=OUTPUT, metavar="DIR")] = "clipvid-index",
    run: Run,
) -> None:
    """Add videos to a search index, skipping those that it has; also finishes a build that was interrupted.

    Examples:
        clipvid index add new-videos --out my-index

    Args:
        source: videos, and folders that are searched for videos. Patterns in quotes, such as "clips/*.mp4", are
            expanded.
        workers: processes that decode; 0 decodes in threads of this process.
        out: folder of the index, which stores its model, frames, kind and precision.
    """
    sources = datasets.sources_of(source)
    require_writable(out, folder=True)
    if not (Path(out) / INDEX).is_file():
        raise FileNotFoundError(f"{out} holds no index (no {INDEX}); clipvid index build SOURCE --out {out} makes one")
    with lock_folder(out, outside=True):
        from clipvid.search.index import VideoIndex

        index = VideoIndex.load(out, arguments.index_model(out, run.device))
        _fill(index, sources, out, workers=workers, profile=run.profile)


def _fill(index: Any, sources: str | list[str], out: str, *, workers: int, profile: bool) -> None:
    """Embed the videos of the sources that the index does not have, and save it, also after an interruption."""
    with index.saving_to(out), outputs.profiled_to(f"{out.rstrip('/')}.profile.json", enabled=profile):
        data_config = replace(index.data_config, unreadable="skip", workers=workers)
        index.add(sources, data_config, existing="skip")
    if not len(index):
        outputs.show_unreadable(index.skipped)
        names = sources if isinstance(sources, str) else ", ".join(sources)
        raise ValueError(f"no video in {names} could be read, so there is nothing to index")
    print(f"{pluralize(len(index), 'video')} in {out}")
    outputs.show_unreadable(index.skipped)


def _check_index_folder(out: Path, *, exists: bool) -> None:
    """Raise FileExistsError for an existing index and for a folder of other files."""
    if exists:
        raise FileExistsError(f"{out} holds an index; extend it with clipvid index add, or give another --out")
    if not exists and out.exists() and any(out.iterdir()):
        raise FileExistsError(f"{out} holds other files, and an index needs a separate folder; give another --out")


def _new_index(model: ModelOptions, *, device: str, settings: dict[str, Any]) -> Any:
    """Return an empty index for the named model; settings that are None are taken from the model's training."""
    from clipvid.features.encode import trained_data_config
    from clipvid.search.index import VideoIndex

    video_model = arguments.named_model(model.model, model.pretrained, device=device, default_branch="mean")
    data_config = trained_data_config(video_model)
    changes = {name: settings[name] for name in ("frames", "precision") if settings[name] is not None}
    index = VideoIndex(
        video_model, replace(data_config, **changes), store=settings["store"], kind=settings["kind"] or "flat"
    )
    index.note = arguments.model_note(model.model, model.pretrained)
    return index


def search(
    index: str,
    query: str,
    /,
    *,
    video: Annotated[bool, Parameter(group=SEARCH)] = False,
    k: Annotated[int, Parameter(group=SEARCH, alias="-k")] = 5,
    rerank: Annotated[int, Parameter(group=SEARCH)] = 0,
    device: Annotated[str, named("device"), Parameter(group=RUN)] = "auto",
    json: Json = False,
) -> None:
    """Find the videos of an index that match a sentence, or that are similar to another video.

    Examples:
        clipvid search my-index "a dog runs on the beach"
        clipvid search my-index my-videos/dog.mp4 --video -k 10

    Args:
        index: folder that `clipvid index build` made.
        query: a sentence; or the path of a video, with --video.
        video: the query is a video.
        k: number of hits to print.
        rerank: number of first hits to decode again and sort by the model's token-wise similarity.
        device: auto is a GPU if there is one.
    """
    if k < 1:
        raise UsageError(f"--k must be an integer >= 1, got {k}; it is the number of hits")
    if video and rerank:
        raise UsageError(f"--rerank compares words with frames, but the query is a video; leave out --rerank {rerank}")
    if not video:
        _check_sentence(query)
    from clipvid.search.index import VideoIndex

    with outputs.json_printed(json) as print_json:
        video_index = VideoIndex.load(index, arguments.index_model(index, device))
        hits = video_index.search_video(query, k=k) if video else video_index.search(query, k=k, rerank=rerank)
        print_json(hits.to_dict())
        for hit in [] if json else hits:
            print(f"{hit.rank:>3}  {hit.score:.3f}  {hit.path}")


def _check_sentence(query: str) -> None:
    """Raise UsageError for a query that is a file; a sentence may be too long for a file name."""
    if os.path.isfile(query):
        raise UsageError(f"{query} is a file; add --video to look for videos like it, or write a sentence")
    if " " not in query and "." in query:
        from clipvid.data.files import is_video

        if is_video(Path(query)):
            raise UsageError(
                f"{query} looks like a video file, but does not exist; correct the path, or write a sentence"
            )
