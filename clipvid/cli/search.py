"""Commands that make one's own videos findable: embed, index and search. Help texts come from their docstrings.

Contract: plain arguments in; a command prints what it found and writes what was asked for, or raises. Heavy modules
load when a command runs. Knows nothing of parsing or exit codes.
"""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

from clipvid.cli.arguments import (
    check_names,
    index_model,
    kept_clips,
    lasting,
    named_cache,
    named_model,
    named_reading,
    profile_of,
    profiled_to,
    refuse,
    require_new,
    show_unreadable,
)
from clipvid.config.settings import INDEX
from clipvid.runtime.files import lock_folder, require_writable
from clipvid.runtime.text import pluralize


def embed(
    videos: str,
    out: str = "embeddings.safetensors",
    model: str | None = None,
    pretrained: str | None = None,
    taps: str | None = None,
    cache_kind: str | None = None,
    cache_mode: str | None = None,
    overwrite: bool = False,
    device: str = "auto",
    profile: bool = False,
    data_config: dict[str, Any] | None = None,
) -> None:
    """Write one embedding a video to a safetensors file (`video`, n x E, L2-normalised), with paths beside it in JSON.

    Args:
        videos: a file, or a folder that is searched for videos.
        out: file to write, ending in .safetensors; paths and skipped files go to the same name ending in .json.
        model: a folder that clipvid saved, or a base model; clipvid-mini, which is for demonstration, when left out.
        pretrained: weights of a base model.
        taps: folder of a tap cache (`clipvid train --cache`): what is there is read, what is missing encoded and kept.
        cache_kind: auto (when left out), bf16, fp16, fp32 or int8, as that cache was made; auto follows the precision.
        cache_mode: taps (when left out) or first_layer, as that cache was made.
        overwrite: replace the files of out and profile where they are there.
        device: auto (a GPU where there is one), cpu, cuda or mps.
        profile: also print where the time went, and write it beside out, in a file ending in .profile.json.
        reading: how clips are read, by name, such as --data_config.frames 8; the rest as the model was trained.
    """
    check_names(model)
    if not out.endswith(".safetensors"):
        raise ValueError(f"out must end in .safetensors, got {out}")
    profile_at = profile_of(out, asked=profile)
    require_new(out, Path(out).with_suffix(".json"), profile_at, overwrite=overwrite)

    import torch.nn.functional as F

    from clipvid.data.records import Record, VideoDataset
    from clipvid.features.embed import embed_videos
    from clipvid.runtime.files import atomic_file, write_tensors

    kept = named_cache(taps, kind=cache_kind, mode=cache_mode, option="taps")
    paths = _videos_in(Path(videos))
    video_model = named_model(model, pretrained, device=device, plain="mean")
    told = replace(named_reading(video_model, data_config), unreadable="skip")
    clips = VideoDataset(tuple(Record(path) for path in paths), name="videos")
    with profiled_to(profile_at, asked=profile):
        clips = kept_clips(video_model, clips, told, kept)
        found = embed_videos(video_model, clips, told, progress=True)
    facts = {
        "model": lasting(model, pretrained)["model"],
        "fingerprint": video_model.fingerprint,
        "paths": [str(r.path) for r in found.data],
        "skipped": {str(e.path): e.reason for e in found.unreadable},
    }
    with atomic_file(out) as beside:
        write_tensors(beside, {"video": F.normalize(found.video, dim=-1)})
    with atomic_file(Path(out).with_suffix(".json")) as beside:
        beside.write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")
    print(f"{pluralize(len(found.data), 'embedding')} of width {found.video.shape[1]} in {out}")
    show_unreadable(found.unreadable)


def _videos_in(place: Path) -> list[Path]:
    """Return the video, or those of a folder; raise ValueError for a path without one, such as a table."""
    from clipvid.data.files import find_clips

    if not place.exists():
        raise FileNotFoundError(f"{place} does not exist; give a video or a folder of videos")
    found = find_clips(place) if place.is_dir() else [place]
    tables = [path for path in (found or sorted(place.iterdir())) if path.suffix.lower() == ".csv"]
    if tables:
        raise ValueError(f"{tables[0]} is a table, and embed takes videos themselves; give a video or a folder of them")
    if not found:
        raise ValueError(f"{place} holds no video; give a video or a folder of videos")
    return found


def index(
    videos: str,
    out: str = "clipvid-index",
    model: str | None = None,
    pretrained: str | None = None,
    frames: int | None = None,
    workers: int = 0,
    device: str = "auto",
    add: bool = False,
    kind: str | None = None,
    profile: bool = False,
    precision: str | None = None,
) -> None:
    """Build a search index over files and folders of videos; files that cannot be read are listed with their reason.

    Args:
        videos: a file, or a folder that is searched for videos.
        out: folder of the index.
        model: a folder that clipvid saved, or a base model; clipvid-mini, which is for demonstration, when left out.
        pretrained: weights of a base model.
        frames: frames a video; as the model was trained when left out.
        workers: processes that decode; 0 decodes in threads of this one.
        device: auto (a GPU where there is one), cpu, cuda or mps.
        add: go on with the index that out holds, skipping files it has; an interrupted run is finished this way.
        kind: flat (when left out) compares a query with every video; ivf and hnsw answer sooner among hundreds of
            thousands of videos, and may miss some.
        profile: also print where the time went, and write it beside out, in a file ending in .profile.json.
        precision: auto (when left out), bf16-mixed, 16-mixed or 32-true, of videos and queries alike; auto is bf16
            where the hardware has it.
    """
    check_names(model)
    if not Path(videos).exists():
        raise FileNotFoundError(f"{videos} does not exist; give a video or a folder of videos")
    require_writable(out, folder=True)
    exists = (Path(out) / INDEX).is_file()
    if add and exists:
        given = {"model": model, "pretrained": pretrained, "frames": frames, "kind": kind, "precision": precision}
        refuse(f"{out} knows its model, frames, kind and precision", **given)
    with lock_folder(out, outside=True):
        _check_index_folder(Path(out), exists=exists, add=add)
        if add:
            from clipvid.search.index import VideoIndex

            index = VideoIndex.load(out, index_model(out, device))
        else:
            settings = {"frames": frames, "kind": kind, "precision": precision}
            index = _new_index(model, pretrained, device=device, settings=settings)
        # An interruption leaves a saved index
        with index.saving_to(out), profiled_to(f"{out.rstrip('/')}.profile.json", asked=profile):
            index.add(Path(videos), existing="skip", unreadable="skip", workers=workers)
    if not len(index):
        show_unreadable(index.skipped)
        raise ValueError(f"no video in {videos} could be read, so there is nothing to index")
    print(f"{pluralize(len(index), 'video')} in {out}")
    show_unreadable(index.skipped)


def _check_index_folder(out: Path, *, exists: bool, add: bool) -> None:
    """Raise FileExistsError for an index that is not to be extended, and for a folder of other files."""
    if exists and not add:
        raise FileExistsError(f"{out} holds an index; give --add true to go on with it, or another --out")
    if not exists and out.exists() and any(out.iterdir()):
        raise FileExistsError(f"{out} holds other files, and an index needs a folder of its own; give another --out")


def _new_index(model: str | None, pretrained: str | None, *, device: str, settings: dict[str, Any]) -> Any:
    """Return an empty index of the named model, with its data config where `settings` leave it open."""
    from clipvid.features.encode import trained_data_config
    from clipvid.search.index import VideoIndex

    video_model = named_model(model, pretrained, device=device, plain="mean")
    data_config = trained_data_config(video_model)
    index = VideoIndex(
        video_model,
        frames=data_config.frames if settings["frames"] is None else settings["frames"],
        sampler=data_config.sampler,
        kind=settings["kind"] or "flat",
        precision=settings["precision"] or "auto",
    )
    index.note = lasting(model, pretrained)
    return index


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
    from clipvid.data.files import is_video
    from clipvid.search.index import VideoIndex

    if not video and os.path.isfile(query):  # which a sentence too long for a name is not
        raise ValueError(f"{query} is a file; add --video true to look for videos like it, or write a sentence")
    if not video and is_video(Path(query)):
        raise ValueError(f"{query} is named as a video, and no such file is here; mend its path, or write a sentence")
    found = VideoIndex.load(index, index_model(index, device))
    if video and rerank:
        raise ValueError(f"rerank compares words with frames, the query is a video; leave out --rerank {rerank}")
    hits = found.search_video(query, k=k) if video else found.search(query, k=k, rerank=rerank)
    for hit in hits:
        print(f"{hit.rank:>3}  {hit.score:.3f}  {hit.path}")
