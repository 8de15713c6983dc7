"""Commands that run a model on videos: embed and predict. Their docstrings are the help texts.

Contract: plain arguments in; a command prints its results and writes files, or raises. Heavy modules are imported when
a command runs. Knows nothing of parsing or exit codes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from json import dumps
from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter

from clipvid.cli import arguments, datasets, outputs
from clipvid.cli.parsing.options import (
    CLASSES,
    OUTPUT,
    Cache,
    Data,
    DataConfigOptions,
    Json,
    Model,
    ModelOptions,
    Run,
    Sources,
)
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
        out: file to write, ending in .safetensors; a file of the same name ending in .json has the paths, in the order
            of the rows, and the skipped files.
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
    from clipvid.models.inputs import require_finite

    tap_cache = arguments.named_cache(cache)
    video_model, resolved_config = _model_and_config(model, data_config, run.device)
    with outputs.profiled_to(profile_file, enabled=run.profile):
        clips = arguments.cached_clips(video_model, videos, resolved_config, tap_cache)
        embedded = embed_videos(video_model, clips, resolved_config, progress=True)
    require_finite(embedded.video)
    metadata = {
        "model": arguments.model_note(model.model, model.pretrained)["model"],
        "fingerprint": video_model.fingerprint,
        "paths": [str(r.path) for r in embedded.data],
        **_times_of(embedded.data),
        "skipped": {str(e.path): e.reason for e in embedded.unreadable},
    }
    _write_embeddings(Path(out), F.normalize(embedded.video, dim=-1), metadata)
    outputs.say(f"{pluralize(len(embedded.data), 'embedding')} of width {embedded.video.shape[1]} in {out}")
    outputs.show_unreadable(embedded.unreadable)


def _write_embeddings(out: Path, video: Any, metadata: Mapping[str, Any]) -> None:
    """Write embeddings, and their metadata as JSON, whose hash the embeddings' file has.

    Both are complete before either takes its place, and in between there is no JSON file: no interruption leaves one
    beside the embeddings of other videos.
    """
    from clipvid.runtime.files import atomic_file, write_tensors
    from clipvid.runtime.signals import uninterrupted
    from clipvid.runtime.storage.manifest import hash_bytes

    listing, content = out.with_suffix(".json"), f"{dumps(metadata, indent=2)}\n".encode()
    with uninterrupted(), atomic_file(listing) as listing_draft:
        listing_draft.write_bytes(content)
        with atomic_file(out) as draft:
            write_tensors(draft, {"video": video}, metadata={"listing": hash_bytes(content)})
            listing.unlink(missing_ok=True)


def predict(
    source: Sources,
    /,
    *,
    data: Data,
    model: Model,
    classes: Annotated[tuple[str, ...], Parameter(group=CLASSES, metavar="NAME|FILE")] = (),
    prompts: Annotated[str | None, Parameter(group=CLASSES, metavar="NAME|FILE")] = None,
    top: Annotated[int, Parameter(group=CLASSES)] = 5,
    data_config: DataConfigOptions,
    out: Annotated[str | None, Parameter(group=OUTPUT, metavar="FILE")] = None,
    overwrite: Annotated[bool, Parameter(group=OUTPUT)] = False,
    json: Json = False,
    run: Run,
) -> None:
    """Print the most probable classes of videos: those of a trained classifier, or class names of your choice.

    Examples:
        clipvid predict new.mp4 --model my-run/best
        clipvid predict "clips/*.mp4" --model ViT-B-32 --pretrained openai --classes "a dog runs" "a cat sleeps"
        clipvid predict my-videos --model my-run/best --top 1 --out predictions.csv

    Args:
        source: videos, folders that are searched for videos, patterns in quotes, csv files, or the root of a data set.
        classes: names to choose from, compared as text, or a text file with one per line; those of the model's
            classifier when left out.
        prompts: with classes, text around a class name, as for eval.
        top: number of classes to list per video.
        out: table of every video with its classes and probabilities; a file ending in .parquet, .csv or .json.
        overwrite: replace existing files of out and profile.
        data_config: other settings as in the model's training.
    """
    arguments.check_model(model.model, model.pretrained)
    arguments.check_data_config(data_config)
    class_names = _named_classes(classes, prompts, top=top)
    templates = {} if prompts is None else {"templates": arguments.named_prompts(prompts)}
    outputs.check_table("--out", out)
    profile = outputs.profile_path(out, enabled=run.profile)
    outputs.require_new(out, profile, overwrite=overwrite)
    videos = datasets.videos_of(source, data)

    from clipvid.features.embed import embed_videos
    from clipvid.models.predictions import predict_embeddings

    video_model = arguments.named_model(model.model, model.pretrained, device=run.device, default_branch="mean")
    if video_model.head is None and class_names is None:
        raise UsageError(
            "--classes must be given for a model without classifier; name classes, or give a --model that was trained "
            "with --task recognition"
        )
    resolved_config = replace(arguments.named_data_config(video_model, data_config), unreadable="skip")
    with outputs.json_printed(json) as print_json:
        with outputs.profiled_to(profile, enabled=run.profile):
            embedded = embed_videos(video_model, videos, resolved_config, progress=True)
            paths = [str(record.path) for record in embedded.data]
            predictions = predict_embeddings(video_model, embedded.video, paths, class_names, top=top, **templates)
        print_json(_listed(predictions, embedded.unreadable))
        _show(predictions, out, printed=not json)
    outputs.show_unreadable(embedded.unreadable)


def _show(predictions: Any, out: str | None, *, printed: bool) -> None:
    """Print predictions if `printed`, and write their table if a file is named."""
    if printed:
        outputs.say(*predictions.lines(), sep="\n")
    if out is not None:
        outputs.write_table(predictions.to_frame(), out)
        outputs.say(f"predictions: {out}")


def _named_classes(classes: Sequence[str], prompts: str | None, *, top: int) -> tuple[str, ...] | None:
    """Return the class names, or None for those of the model; raise UsageError for options that do not fit them."""
    outputs.at_least("--top", top, 1, "it is the number of classes listed per video")
    if prompts is not None and not classes:
        raise UsageError("--prompts are put around the names of --classes; give --classes, or leave them out")
    return arguments.named_classes(classes)


def _listed(predictions: Any, unreadable: Sequence[Any]) -> dict[str, Any]:
    """Return predictions and unreadable files for JSON."""
    rows = zip(predictions.videos, predictions, strict=True)
    return {
        "videos": [
            {"path": path, "classes": [{"name": name, "probability": probability} for name, probability in best]}
            for path, best in rows
        ],
        "skipped": {str(error.path): error.reason for error in unreadable},
    }


def _model_and_config(model: ModelOptions, data_config: Mapping[str, Any], device: str) -> tuple[Any, Any]:
    """Return the model and its data config with the given fields replaced, which skips and lists unreadable files."""
    video_model = arguments.named_model(model.model, model.pretrained, device=device, default_branch="mean")
    return video_model, replace(arguments.named_data_config(video_model, data_config), unreadable="skip")


def _times_of(data: Any) -> dict[str, list[float | None]]:
    """Return start and end of every clip, in seconds, if any is a part of a file."""
    times = {"start": [record.start for record in data], "end": [record.end for record in data]}
    return times if any(time is not None for each in times.values() for time in each) else {}
