"""Arguments of commands resolved to devices, models and data sets, and the report of files that were left out.

Contract: words in, objects out, or a ValueError that says which option to change; what could not be read goes to
standard error. Heavy modules load when they are needed. Knows nothing of what a command does with them.
"""

from __future__ import annotations

import json
import os
import sys
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from clipvid.models.backbone.names import MINI, builtin_names, check_branch, check_name
from clipvid.runtime.files import require_writable

DEFAULT_MODEL = MINI
"""The model of a command that names none; the command says so."""


def named_model(
    name: str | None,
    pretrained: str | None = None,
    chosen: Mapping[str, Any] | None = None,
    *,
    device: str = "cpu",
    plain: str = "stan",
    shapes_only: bool = False,
) -> Any:
    """Return a saved model where `name` is a folder of one, else the base model of that name with a branch.

    Without a name it is DEFAULT_MODEL, which standard error then says: it is no model for videos of one's own.
    `chosen` are options of `create_model`, None for those not asked for; `plain` is the branch where none is; with
    `shapes_only` a base model has no weights.
    """
    from clipvid.models.checkpoint import CONFIG
    from clipvid.models.factory import create_model, load

    chosen = chosen or {}
    if name is None:
        name = _default_model(pretrained)
    if (Path(name) / CONFIG).is_file():
        what = f"{name} is a saved model and brings its own branch and weights"
        refuse(what, pretrained=pretrained, **chosen)
        return load(name, device=named_device(device))
    if (Path(name) / "best" / CONFIG).is_file():
        raise ValueError(f"{name} is the folder of a training run; its model is {Path(name) / 'best'}")
    place = "meta" if shapes_only else named_device(device)
    given: dict[str, Any] = {key: value for key, value in chosen.items() if value is not None}
    return create_model(name, pretrained, device=place, **{"branch": plain, **given})


def check_names(model: str | None, branch: str | None = None, *, data: str | None = None) -> None:
    """ValueError for data, a model or a branch that there is not, before anything that they need is loaded."""
    if data is not None and not Path(data).exists():
        raise ValueError(f"{data} does not exist; give a folder of videos, or a csv file")
    if data is not None and Path(data).is_file():
        from clipvid.data.files import is_video

        if is_video(Path(data)):
            raise ValueError(f"{data} is a video; give a folder of videos, or a csv file")
    if model is not None and not Path(model).is_dir() and (known := builtin_names()):
        check_name(model, known)
    if branch is not None:
        check_branch(branch)


def _default_model(pretrained: str | None) -> str:
    """Return the default model, with a note of it; ValueError for weights without the model whose they are."""
    if pretrained is not None:
        raise ValueError(f"pretrained {pretrained} names weights of a base model; give that too, as --model ViT-B-32")
    print(
        f"note: no --model given: taking {DEFAULT_MODEL}, a small demonstration model that knows drawn shapes alone; "
        "for videos of your own give a model of open_clip, such as --model ViT-B-32 --pretrained openai",
        file=sys.stderr,
    )
    return DEFAULT_MODEL


def refuse(reason: str, **options: object) -> None:
    """ValueError for options that were given where nothing would listen to them."""
    given = [f"--{name} {value}" for name, value in options.items() if value is not None]
    if given:
        raise ValueError(f"{reason}; leave out {', '.join(given)}")


def named_device(name: str) -> str:
    """Return the device of that name; auto is a GPU where there is one."""
    import torch

    gpus = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if name == "auto":
        return next((gpu for gpu, there in gpus.items() if there), "cpu")
    if name != "cpu" and name not in gpus:
        raise ValueError(f"unknown device {name!r}; choose one of auto, cpu, cuda, mps")
    if not gpus.get(name, True):
        raise ValueError(f"this machine has no {name} device that torch can use; choose --device cpu, or leave it out")
    return name


def named_prompts(name: str) -> tuple[str, ...]:
    """Return a set of prompts by name, or those of a text file, one a line, each with {} for the class name."""
    from clipvid.config.settings import PROMPT_SETS

    if name in PROMPT_SETS:
        return PROMPT_SETS[name]
    if not Path(name).is_file():
        raise ValueError(f"unknown prompts {name!r}; choose one of {', '.join(PROMPT_SETS)}, or a text file of them")
    found = tuple(line.strip() for line in Path(name).read_text(encoding="utf-8").splitlines() if line.strip())
    if not found:
        raise ValueError(f"{name} holds no prompt; write one a line, with {{}} for the class name")
    return found


def require_new(*paths: str | Path | None, overwrite: bool) -> None:
    """Refuse a file that cannot be written, one that is to hold two things, and one that would be replaced unasked.

    A path may be None.
    """
    given = [Path(path) for path in paths if path is not None]
    for i, path in enumerate(given):
        require_writable(path)
        if path.absolute() in [other.absolute() for other in given[:i]]:
            raise ValueError(f"{path} would be written twice; give each file a name of its own")
        if not overwrite and os.path.lexists(path):
            raise FileExistsError(f"{path} is there already; give --overwrite true to replace it, or another name")


def profile_of(path: str | Path | None, *, asked: bool) -> Path | None:
    """Return the path of the profile beside the file that a command writes; None without a file or if not `asked`."""
    return Path(path).with_suffix(".profile.json") if path is not None and asked else None


def named_reading(model: Any, asked: Mapping[str, Any] | None, protocol_spec: Any = None) -> Any:
    """Return the data config: settings asked by name, the others as in the model's training or the protocol."""
    from clipvid.config.data_config import DataConfig
    from clipvid.data.records import NO_PROTOCOL
    from clipvid.features.encode import trained_data_config

    known = [field.name for field in fields(DataConfig)]
    if unknown := [name for name in asked or {} if name not in known]:
        raise ValueError(f"data_config has no option {unknown[0]!r}; it has {', '.join(known)}")
    told, kinds = trained_data_config(model, protocol_spec or NO_PROTOCOL), DataConfig()
    for name, value in (asked or {}).items():
        kind = int if name == "tokens" else type(getattr(kinds, name))
        if not isinstance(value, (int, float) if kind is float else kind) or isinstance(value, bool):
            raise ValueError(f"--data_config.{name} takes {kind.__name__}, got {value!r}")
    return replace(told, **(asked or {}))


def named_cache(folder: str | None, *, kind: str | None, mode: str | None, option: str = "cache") -> Any:
    """Return the tap cache in a folder, which is given as `option`; None without, and ValueError for its kind or mode
    then."""
    from clipvid.features.tap_cache import TapCache

    if folder is None:
        refuse(f"nothing is kept without --{option}", cache_kind=kind, cache_mode=mode)
        return None
    return TapCache(folder, kind=kind or "auto", mode=mode or "taps")


def kept_clips(model: Any, clips: Any, data_config: Any, cache: Any) -> Any:
    """Return the clips unchanged without a cache, else their taps from it, encoding what is missing."""
    if cache is None:
        return clips
    with notes_shown():
        return cache.store(model, clips, data_config, progress=True)


@contextmanager
def notes_shown() -> Iterator[None]:
    """clipvid's own warnings in the block on standard error, each as one line of its own words."""
    from clipvid.errors import ClipvidWarning

    with warnings.catch_warnings():
        before = warnings.showwarning

        def show(message: Any, category: type[Warning], *where: Any) -> None:
            if issubclass(category, ClipvidWarning):
                print(f"note: {message}", file=sys.stderr)
            else:
                before(message, category, *where)

        warnings.showwarning = show
        yield


def lasting(model: str | None, pretrained: str | None) -> dict[str, str | None]:
    """Return the note of a model and its weights for an index: paths whole, so that they hold from anywhere."""
    from clipvid.models.checkpoint import CONFIG

    model = model or DEFAULT_MODEL
    saved, file = (Path(model) / CONFIG).is_file(), pretrained is not None and os.path.isfile(pretrained)
    return {
        "model": os.path.abspath(model) if saved else model,
        "pretrained": os.path.abspath(str(pretrained)) if file else pretrained,
    }


def index_model(index: str, device: str) -> Any:
    """Return the model that an index was built with, by the name in its note."""
    from clipvid.search.index import VideoIndex

    note = VideoIndex.read_note(index)
    made_with = note.get("model")
    if not made_with:
        raise ValueError(
            f"{index} does not say which model made it; build it with `clipvid index`, or search it in Python"
        )
    if os.path.isabs(made_with) and not os.path.isdir(made_with):
        raise ValueError(
            f"{index} was made with the model {made_with}, which is not there any more; put it back, or build the "
            "index anew"
        )
    if made_with == DEFAULT_MODEL:
        print(
            f"note: {index} was made with {DEFAULT_MODEL}, which knows drawn shapes alone; for videos of your own "
            "build it with --model ViT-B-32 --pretrained openai",
            file=sys.stderr,
        )
    return named_model(made_with, note["pretrained"], device=device, plain="mean")


def named_data(data: str, format: str | None = None, *, plain: str = "folder", **options: Any) -> Any:
    """Return the data set; where no format is given, a table's, or `plain` for a folder without one.

    `options` are those of `open_dataset`: split, annotations, classes, allow_missing, check_files.
    """
    from clipvid.data.open import open_dataset

    root = Path(data)
    guessed = "csv" if root.is_file() or any(root.glob("*.csv")) else plain
    return open_dataset(format or guessed, root, **options)


def note_format(data: str, format: str | None, *, plain: str = "folder") -> None:
    """Say what a folder is read as where it may be either: it has a table, and sub-folders that may be classes."""
    from clipvid.data.files import is_video, subfolders

    root = Path(data)
    tables = sorted(root.glob("*.csv")) if format is None and root.is_dir() else []
    if not tables:
        return
    folders = [folder for folder in subfolders(root) if any(map(is_video, folder.iterdir()))]
    if len(folders) > 1:
        print(
            f"note: {data} is read as csv, for {tables[0].name} in it; give --format {plain} to read its "
            f"{len(folders)} sub-folders{' as classes' if plain == 'folder' else ''}",
            file=sys.stderr,
        )


def splits_of(data: str, format: str | None) -> list[str]:
    """Names of the splits that a protocol, or a table with a column for them, has."""
    from clipvid.data.formats.csv import splits_in
    from clipvid.data.formats.protocols import PROTOCOLS

    if format in PROTOCOLS:
        return list(PROTOCOLS[format].splits)
    root = Path(data)
    return splits_in(root) if format in (None, "csv") and (root.is_file() or any(root.glob("*.csv"))) else []


def show_unreadable(unreadable: Sequence[Any]) -> None:
    """Print the files that were left out, and why, on standard error."""
    if unreadable:
        from clipvid.data.batch import describe_unreadable

        print(describe_unreadable(unreadable), file=sys.stderr)


@contextmanager
def profiled_to(path: str | Path | None, *, asked: bool) -> Iterator[None]:
    """Profile the block if `asked`: print its stages, and write them as JSON to `path` if there is one."""
    if not asked:
        yield
        return
    from clipvid.runtime.files import atomic_file
    from clipvid.runtime.profiling import profiled

    with profiled() as found:
        yield
    print(found)
    if path is not None:
        with atomic_file(path) as beside:
            beside.write_text(json.dumps(found.plain(), indent=2) + "\n", encoding="utf-8")
        print(f"profile: {path}")
