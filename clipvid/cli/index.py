"""Commands of a search index: index build, add, refresh, remove, verify. Their docstrings are the help texts.

Contract: plain arguments in; a command prints its results and writes files, or raises. Heavy modules are imported when
a command runs. Knows nothing of parsing or exit codes.
"""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter

from clipvid.cli import arguments, datasets, outputs
from clipvid.cli.parsing.names import suggestion
from clipvid.cli.parsing.options import OUTPUT, SEARCH, Data, Model, ModelOptions, Run, Sources, named
from clipvid.errors import CheckpointError, UsageError
from clipvid.runtime.display.names import show
from clipvid.runtime.storage.folder_lock import lock_folder
from clipvid.runtime.text import pluralize
from clipvid.search.stores import FAISS_KINDS

NO_MANIFEST = "the index has an older format without a manifest; clipvid index add saves it with one"
"""Reason for which the files of an index cannot be verified."""


def build_index(
    source: Sources,
    /,
    *,
    data: Data,
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
        clipvid index build my-classes --format folder    # with labels, for clipvid search --where

    Args:
        source: as for embed.
        frames: frames per video; as in the model's training when left out.
        store: where vectors are kept and compared: faiss, or a store of a plugin.
        kind: kind of index in the store. flat (when left out) compares a query with every video; faiss's ivf and hnsw
            are faster on hundreds of thousands of videos, and may miss some.
        precision: for videos and queries; auto, when left out, is bf16 if the hardware supports it.
        workers: processes that decode; 0 decodes in threads of this process.
        out: folder of the index.
    """
    arguments.check_model(model.model, model.pretrained)
    _check_workers(workers)
    outputs.at_least("--frames", frames, 1, "leave it out for the model's own number")
    # The store's own check would import numpy, which a wrong command line must not wait for.
    if kind is not None and store == "faiss" and kind not in FAISS_KINDS:
        raise UsageError(f"--kind must be one of {', '.join(FAISS_KINDS)}, got {kind!r}{suggestion(kind, FAISS_KINDS)}")
    outputs.require_writable(out, folder=True)
    _check_index_folder(Path(out))
    videos = datasets.videos_of(source, data)
    with lock_folder(out, outside=True):
        _check_index_folder(Path(out))  # again, because another process may have built one meanwhile
        settings = {"frames": frames, "store": store, "kind": kind, "precision": precision}
        index = _new_index(model, device=run.device, settings=settings)
        _fill(index, videos, out, workers=workers, profile=run.profile)


def add_to_index(
    source: Sources,
    /,
    *,
    data: Data,
    root: Annotated[str | None, Parameter(group=SEARCH, metavar="DIR")] = None,
    workers: Annotated[int, Parameter(group=SEARCH)] = 0,
    out: Annotated[str, Parameter(group=OUTPUT, metavar="DIR")] = "clipvid-index",
    run: Run,
) -> None:
    """Add videos to a search index, skipping those that it has; also finishes a build that was interrupted.

    Examples:
        clipvid index add new-videos --out my-index

    Args:
        source: as for embed.
        root: folder of the videos that the index has, if they have moved.
        workers: processes that decode; 0 decodes in threads of this process.
        out: folder of the index, which stores its model, frames, kind and precision.
    """
    _check_workers(workers)
    outputs.require_writable(out, folder=True)
    arguments.require_index(out, source="SOURCE")
    videos = datasets.videos_of(source, data)
    with lock_folder(out, outside=True):
        from clipvid.search.index import VideoIndex

        index = VideoIndex.load(out, arguments.index_model(out, run.device), root=root)
        _fill(index, videos, out, workers=workers, profile=run.profile)


def refresh_index(
    index: str,
    /,
    *,
    root: Annotated[str | None, Parameter(group=SEARCH, metavar="DIR")] = None,
    remove_all: Annotated[bool, Parameter(group=SEARCH, negative="")] = False,
    workers: Annotated[int, Parameter(group=SEARCH)] = 0,
    run: Run,
) -> None:
    """Embed again the videos of an index whose files have changed, and remove those whose files have gone.

    Skipped files are tried again. New files are not looked for: clipvid index add adds them. Videos stay whose files
    the system refuses to look up.

    Examples:
        clipvid index refresh my-index

    Args:
        index: folder that `clipvid index build` made.
        root: folder of the videos, if they have moved.
        remove_all: remove all videos if all have gone; without it this is refused, since their volume may be missing.
        workers: processes that decode; 0 decodes in threads of this process.
    """
    _check_workers(workers)
    with (
        _changed(index, root=root, device=run.device) as video_index,
        outputs.profiled_to(f"{index.rstrip('/')}.profile.json", enabled=run.profile),
    ):
        data_config = replace(video_index.data_config, unreadable="skip", workers=workers)
        refreshed = video_index.refresh(data_config, remove_all=remove_all)
    for path in refreshed.gone:
        outputs.say(f"removed {show(path)}, whose file has gone")
    for path in refreshed.unreadable:
        outputs.say(f"left {show(path)}, whose file cannot be looked up")
    outputs.say(f"{pluralize(len(refreshed.embedded), 'video')} embedded again, {len(refreshed.gone)} removed")
    outputs.show_unreadable(refreshed.skipped)


def remove_from_index(
    index: str,
    videos: list[str],
    /,
    *,
    root: Annotated[str | None, Parameter(group=SEARCH, metavar="DIR")] = None,
) -> None:
    """Remove videos from an index; their files stay. Needs no model.

    Examples:
        clipvid index remove my-index my-videos/dog.mp4 my-videos/cat.mp4

    Args:
        index: folder that `clipvid index build` made.
        videos: paths of the videos, as clipvid search prints them.
        root: folder of the videos, if they have moved.
    """
    arguments.require_index(index, source="SOURCE")
    with lock_folder(index, outside=True):
        from clipvid.search.folder.saved import changing_contents

        with changing_contents(index, root=root) as contents:
            n_removed = contents.remove(_indexed(videos, contents.paths, index=index))
            n_left = len(contents)
    outputs.say(f"{pluralize(n_removed, 'video')} removed, {n_left} left")


def _indexed(names: Sequence[str], paths: Sequence[Path], *, index: str) -> list[Path]:
    """Return the indexed videos of these names, paths as they are or as printed; UsageError for any other name."""
    indexed, shown = set(paths), defaultdict[str, list[Path]](list)
    for path in paths:
        shown[show(path)].append(path)
    videos = []
    for name in names:
        absolute = os.path.abspath(name)
        exact = [path for path in (Path(absolute), Path(name)) if path in indexed]
        matches = exact or shown.get(show(absolute)) or shown.get(name) or []
        if not exact and len(matches) > 1:
            raise UsageError(f"{name} is how {len(matches)} videos of {index} are printed; remove them in Python")
        if not matches:
            raise UsageError(f"{name} is not in {index}, so nothing was removed; clipvid search prints the paths")
        videos.append(matches[0])
    return videos


def verify_index(index: str, /) -> None:
    """Compare all files of an index with their hashes, and its videos with the content that was embedded.

    Exits with 1 if the index is damaged or a video has changed or gone. Needs no model.

    Examples:
        clipvid index verify my-index

    Args:
        index: folder that `clipvid index build` made.
    """
    from clipvid.search.folder.verify import verified

    report = verified(Path(index))
    for path, state in report.outdated.items():
        outputs.say(f"{state} {show(path)}")
    files = f"{pluralize(report.files, 'file')} as written" if report.files else f"files not compared: {NO_MANIFEST}"
    outputs.say(f"{pluralize(report.videos, 'video')}, {files}")
    n_unreadable = sum(state == "unreadable" for state in report.outdated.values())
    if n_unreadable == len(report.outdated) > 0:
        raise CheckpointError(
            f"{pluralize(n_unreadable, 'video')} of {index} cannot be looked up; check the volume and its permissions"
        )
    if report.outdated:
        raise CheckpointError(
            f"{pluralize(len(report.outdated) - n_unreadable, 'video')} of {index} changed or gone; clipvid index "
            f"refresh {index} embeds them again"
        )


@contextmanager
def _changed(index: str, *, root: str | None, device: str) -> Iterator[Any]:
    """Load an index under its lock, and save it at the end."""
    arguments.require_index(index, source="SOURCE")
    with lock_folder(index, outside=True):
        from clipvid.search.index import VideoIndex

        with VideoIndex.changing(index, arguments.index_model(index, device), root=root) as video_index:
            yield video_index


def _check_workers(workers: int) -> None:
    outputs.at_least("--workers", workers, 0, "0 decodes in this process")


def _fill(index: Any, videos: Any, out: str, *, workers: int, profile: bool) -> None:
    """Embed the videos that the index does not have, and save it, also after an interruption."""
    before = len(index)
    with index.saving_to(out), outputs.profiled_to(f"{out.rstrip('/')}.profile.json", enabled=profile):
        data_config = replace(index.data_config, unreadable="skip", workers=workers)
        index.add(videos, data_config, existing="skip")
    if not len(index):
        outputs.show_unreadable(index.skipped)
        raise ValueError(f"no video in {videos.name} could be read; clipvid data check shows why")
    added = f" ({len(index) - before} added)" if before else ""
    outputs.say(f"{pluralize(len(index), 'video')} in {out}{added}")
    outputs.show_unreadable(index.skipped)


def _check_index_folder(out: Path) -> None:
    """Raise FileExistsError for an existing index and for a folder of other files."""
    if arguments.has_index(out):
        raise FileExistsError(
            f"{out} holds an index; extend it with clipvid index add, delete it, or give another --out"
        )
    if out.exists() and any(out.iterdir()):
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
