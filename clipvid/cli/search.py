"""Commands to embed, index and search videos. Their docstrings are the help texts.

Contract: plain arguments in; a command prints its results and writes files, or raises. Heavy modules are imported when
a command runs. Knows nothing of parsing or exit codes.
"""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

from clipvid.cli.arguments import (
    cached_clips,
    check_names,
    index_model,
    model_note,
    named_cache,
    named_data_config,
    named_model,
    profile_path,
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
    """Write one embedding per video to a safetensors file (`video`, n x E, L2-normalised), and the paths to JSON.

    Args:
        videos: a file, or a folder that is searched for videos.
        out: file to write, ending in .safetensors; paths and skipped files go to the same name ending in .json.
        model: a folder that clipvid saved, or a base model; clipvid-mini, which is for demonstration, when left out.
        pretrained: weights of a base model.
        taps: folder of a tap cache (`clipvid train --cache`): cached taps are read, missing ones encoded and stored.
        cache_kind: auto (when left out), bf16, fp16, fp32 or int8, as that cache was made; auto follows the precision.
        cache_mode: taps (when left out) or first_layer, as that cache was made.
        overwrite: replace existing files of out and profile.
        device: auto (a GPU if there is one), cpu, cuda or mps.
        profile: also print the time per stage, and write it next to out, in a file ending in .profile.json.
        data_config: how clips are read, such as --data_config.frames 8; other settings as in the model's training.
    """
    check_names(model)
    if not out.endswith(".safetensors"):
        raise ValueError(f"out must end in .safetensors, got {out}")
    profile_file = profile_path(out, enabled=profile)
    require_new(out, Path(out).with_suffix(".json"), profile_file, overwrite=overwrite)

    import torch.nn.functional as F

    from clipvid.data.records import Record, VideoDataset
    from clipvid.features.embed import embed_videos
    from clipvid.runtime.files import atomic_file, write_tensors

    tap_cache = named_cache(taps, kind=cache_kind, mode=cache_mode, option="taps")
    paths = _videos_in(Path(videos))
    video_model = named_model(model, pretrained, device=device, default_branch="mean")
    resolved_config = replace(named_data_config(video_model, data_config), unreadable="skip")
    clips = VideoDataset(tuple(Record(path) for path in paths), name="videos")
    with profiled_to(profile_file, enabled=profile):
        clips = cached_clips(video_model, clips, resolved_config, tap_cache)
        embedded = embed_videos(video_model, clips, resolved_config, progress=True)
    metadata = {
        "model": model_note(model, pretrained)["model"],
        "fingerprint": video_model.fingerprint,
        "paths": [str(r.path) for r in embedded.data],
        "skipped": {str(e.path): e.reason for e in embedded.unreadable},
    }
    with atomic_file(out) as draft:
        write_tensors(draft, {"video": F.normalize(embedded.video, dim=-1)})
    with atomic_file(Path(out).with_suffix(".json")) as draft:
        draft.write_text(json.dumps(metadata, indent=2) + "\n", encoding="utf-8")
    print(f"{pluralize(len(embedded.data), 'embedding')} of width {embedded.video.shape[1]} in {out}")
    show_unreadable(embedded.unreadable)


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
    """Build a search index of a video or a folder of videos; unreadable files are listed with the reason.

    Args:
        videos: a file, or a folder that is searched for videos.
        out: folder of the index.
        model: a folder that clipvid saved, or a base model; clipvid-mini, which is for demonstration, when left out.
        pretrained: weights of a base model.
        frames: frames per video; as in the model's training when left out.
        workers: processes that decode; 0 decodes in threads of this process.
        device: auto (a GPU if there is one), cpu, cuda or mps.
        add: extend the index in out, skipping files that it has; use it to finish an interrupted run.
        kind: flat (when left out) compares a query with every video; ivf and hnsw are faster on hundreds of thousands
            of videos, and may miss some.
        profile: also print the time per stage, and write it next to out, in a file ending in .profile.json.
        precision: auto (when left out), bf16-mixed, 16-mixed or 32-true, for videos and queries; auto is bf16 if the
            hardware supports it.
    """
    check_names(model)
    if not Path(videos).exists():
        raise FileNotFoundError(f"{videos} does not exist; give a video or a folder of videos")
    require_writable(out, folder=True)
    exists = (Path(out) / INDEX).is_file()
    if add and exists:
        fixed = {"model": model, "pretrained": pretrained, "frames": frames, "kind": kind, "precision": precision}
        refuse(f"{out} stores its model, frames, kind and precision", **fixed)
    with lock_folder(out, outside=True):
        _check_index_folder(Path(out), exists=exists, add=add)
        if add:
            from clipvid.search.index import VideoIndex

            index = VideoIndex.load(out, index_model(out, device))
        else:
            settings = {"frames": frames, "kind": kind, "precision": precision}
            index = _new_index(model, pretrained, device=device, settings=settings)
        # saving_to saves the index also after an interruption
        with index.saving_to(out), profiled_to(f"{out.rstrip('/')}.profile.json", enabled=profile):
            data_config = replace(index.data_config, unreadable="skip", workers=workers)
            index.add(Path(videos), data_config, existing="skip")
    if not len(index):
        show_unreadable(index.skipped)
        raise ValueError(f"no video in {videos} could be read, so there is nothing to index")
    print(f"{pluralize(len(index), 'video')} in {out}")
    show_unreadable(index.skipped)


def _check_index_folder(out: Path, *, exists: bool, add: bool) -> None:
    """Raise FileExistsError for an existing index without `add`, and for a folder of other files."""
    if exists and not add:
        raise FileExistsError(f"{out} holds an index; give --add true to extend it, or another --out")
    if not exists and out.exists() and any(out.iterdir()):
        raise FileExistsError(f"{out} holds other files, and an index needs a separate folder; give another --out")


def _new_index(model: str | None, pretrained: str | None, *, device: str, settings: dict[str, Any]) -> Any:
    """Return an empty index for the named model; settings that are None are taken from the model's training."""
    from clipvid.features.encode import trained_data_config
    from clipvid.search.index import VideoIndex

    video_model = named_model(model, pretrained, device=device, default_branch="mean")
    data_config = trained_data_config(video_model)
    changes = {name: settings[name] for name in ("frames", "precision") if settings[name] is not None}
    index = VideoIndex(video_model, replace(data_config, **changes), kind=settings["kind"] or "flat")
    index.note = model_note(model, pretrained)
    return index


def search(index: str, query: str, video: bool = False, k: int = 5, rerank: int = 0, device: str = "auto") -> None:
    """Find the videos of an index that match a sentence, or that are similar to another video.

    Args:
        index: folder that `clipvid index` made.
        query: a sentence; or the path of a video, with --video true.
        video: the query is a video.
        k: number of hits to print.
        rerank: number of first hits to decode again and sort by the model's token-wise similarity.
        device: auto (a GPU if there is one), cpu, cuda or mps.
    """
    from clipvid.data.files import is_video
    from clipvid.search.index import VideoIndex

    if not video and os.path.isfile(query):  # False, without an error, for a sentence too long for a file name
        raise ValueError(f"{query} is a file; add --video true to look for videos like it, or write a sentence")
    if not video and is_video(Path(query)):
        raise ValueError(f"{query} looks like a video file, but does not exist; correct the path, or write a sentence")
    video_index = VideoIndex.load(index, index_model(index, device))
    if video and rerank:
        raise ValueError(f"rerank compares words with frames, but the query is a video; leave out --rerank {rerank}")
    hits = video_index.search_video(query, k=k) if video else video_index.search(query, k=k, rerank=rerank)
    for hit in hits:
        print(f"{hit.rank:>3}  {hit.score:.3f}  {hit.path}")
