"""Resolution of command-line arguments to devices, models, prompts and caches.

Contract: argument values in, objects out, or a ValueError that says which option to change. Heavy modules are imported
when they are needed. Knows nothing of the commands.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from clipvid.cli import outputs
from clipvid.cli.parsing.options import BranchOptions, CacheOptions, changed
from clipvid.config.data_config import DataConfig
from clipvid.config.settings import INDEX
from clipvid.errors import UsageError
from clipvid.models.backbone.names import MINI, builtin_names, check_name
from clipvid.runtime.files import is_being_replaced, read_file, recover

DEFAULT_MODEL = MINI
"""Model of a command without --model; a note on standard error names it."""


def named_model(
    name: str | None,
    pretrained: str | None = None,
    options: Mapping[str, Any] | None = None,
    *,
    device: str = "cpu",
    default_branch: str = "stan",
    shapes_only: bool = False,
) -> Any:
    """Return the saved model in the folder `name`, else the base model of that name with a branch.

    Args:
        name: folder of a saved model or name of a base model; None for DEFAULT_MODEL, after printing a note that
            this is a demonstration model.
        options: options of `create_model`; None for those that were not given.
        default_branch: name of the branch if `options` has none.
        shapes_only: build a base model without weights, on the meta device.
    """
    from clipvid.models.checkpoint import CONFIG
    from clipvid.models.factory import create_model, load

    options = options or {}
    if name is None:
        name = _default_model()
    if (Path(name) / CONFIG).is_file():
        reason = f"{name} is a saved model and brings its own branch and weights"
        refuse(reason, pretrained=pretrained, **options)
        return load(name, device=named_device(device))
    if (Path(name) / "best" / CONFIG).is_file():
        raise ValueError(f"{name} is the folder of a training run; its model is {Path(name) / 'best'}")
    torch_device = "meta" if shapes_only else named_device(device)
    given: dict[str, Any] = {key: value for key, value in options.items() if value is not None}
    settings = {"branch": default_branch, **given, "branch_kwargs": branch_kwargs(given)}
    for part in ("depth", "mixer", "options"):
        settings.pop(part, None)
    return create_model(name, pretrained, device=torch_device, **settings)


def branch_kwargs(given: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options of a branch from those of the command line; raise UsageError for one that is given twice."""
    named = {name: given[name] for name in ("depth", "mixer") if given.get(name) is not None}
    others = dict(given.get("options") or {})
    if twice := sorted(named.keys() & others.keys()):
        raise UsageError(f"--options must not repeat --{twice[0]}, got both; leave one out")
    return named | others


def check_model(model: str | None, pretrained: str | None = None) -> None:
    """Raise UsageError for an unknown model, and for weights without a model; loads nothing."""
    if model is not None and not Path(model).is_dir() and (base_names := builtin_names()):
        try:
            check_name(model, base_names)
        except ValueError as error:
            raise UsageError(str(error)) from error
    if model is None and pretrained is not None:
        raise UsageError(
            f"--pretrained {pretrained} names weights of a base model; give the model too, such as --model ViT-B-32"
        )


def check_branch(model: str | None, branch: BranchOptions) -> None:
    """Raise UsageError for options that the branch of a new model does not have or refuses; loads nothing."""
    from clipvid.models.branches.options import choose

    if model is not None and Path(model).is_dir():  # a saved model brings its branch
        return
    given = branch.given()
    outputs.at_least("--depth", given.get("depth"), 1, "it is a number of levels")
    changes = branch_kwargs(given)
    try:
        choose(given.get("branch", "stan"), changes)
    except ValueError as error:
        raise UsageError(str(error)) from error


def check_data_config(given: Mapping[str, Any]) -> None:
    """Raise UsageError for a value of the data config that no model accepts; loads nothing."""
    changed(DataConfig(), given, "data_config.")


def _default_model() -> str:
    """Return DEFAULT_MODEL and print a note about it."""
    outputs.say(
        f"note: no --model given: using {DEFAULT_MODEL}, a small demonstration model that only knows drawn shapes; "
        "for your own videos give an open_clip model, such as --model ViT-B-32 --pretrained openai",
        error=True,
    )
    return DEFAULT_MODEL


def refuse(reason: str, **options: object) -> None:
    """Raise UsageError for options that were given and would have no effect; None stands for an option not given."""
    given = [f"--{name.replace('_', '-')} {value}" for name, value in options.items() if value is not None]
    if given:
        raise UsageError(f"{reason}; leave out {', '.join(given)}")


def named_device(name: str) -> str:
    """Return the name of the device for torch; auto is a GPU if there is one, else the CPU."""
    import torch

    gpus = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if name == "auto":
        return next((gpu for gpu, available in gpus.items() if available), "cpu")
    if not gpus.get(name, True):
        raise ValueError(f"this machine has no {name} device that torch can use; choose --device cpu, or leave it out")
    return name


def named_prompts(name: str) -> tuple[str, ...]:
    """Return a set of prompts by name, or read a text file with one prompt per line; {} stands for the class name."""
    from clipvid.config.settings import PROMPT_SETS

    if name in PROMPT_SETS:
        return PROMPT_SETS[name]
    if not Path(name).is_file():
        raise UsageError(
            f"--prompts must be one of {', '.join(PROMPT_SETS)}, or a text file of prompts, got {name!r}; correct it"
        )
    return read_lines("--prompts", name, "prompt, with {} for the class name")


def named_classes(names: Sequence[str]) -> tuple[str, ...] | None:
    """Return the class names, or those of a text file if its path is the only one; None for no name.

    Raises UsageError for fewer than two names, and for a name that is given twice.
    """
    if not names:
        return None
    if len(names) == 1:
        if not os.path.isfile(names[0]):
            raise UsageError(
                f"--classes must be two or more names, or a text file with one per line, got {names[0]!r}; correct it"
            )
        names = read_lines("--classes", names[0], "class name")
    if "" in names or len(names) < 2:
        raise UsageError(f"--classes must be two or more names, got {', '.join(map(repr, names))}; add a name")
    if repeated := [name for i, name in enumerate(names) if name in names[:i]]:
        raise UsageError(f"--classes must not repeat a name, got {repeated[0]!r} twice; leave one out")
    return tuple(names)


def read_lines(option: str, path: str, content: str) -> tuple[str, ...]:
    """Return the lines of a text file that are not blank; `content` says what a line is.

    Raises UsageError for a file that cannot be read, is not text, or has no such line.
    """
    if not os.path.exists(path):
        raise UsageError(f"{option} {path} does not exist; correct the path")
    try:
        lines = read_file(path).decode("utf-8-sig").splitlines()
    except OSError as error:
        raise UsageError(
            f"{option} {path} cannot be read: {(error.strerror or 'error').lower()}; give a text file"
        ) from error
    except UnicodeDecodeError as error:
        raise UsageError(f"{option} {path} is not UTF-8 text; write one {content} per line") from error
    if not (contents := tuple(line.strip() for line in lines if line.strip())):
        raise UsageError(f"{option} {path} is empty; write one {content} per line")
    return contents


def named_data_config(model: Any, given: Mapping[str, Any], protocol_spec: Any = None) -> Any:
    """Return the data config of the model's training or of the protocol, with the given fields replaced."""
    from clipvid.data.records import NO_PROTOCOL
    from clipvid.features.encode import trained_data_config

    return changed(trained_data_config(model, protocol_spec or NO_PROTOCOL), given, "data_config.")


def check_cache(options: CacheOptions) -> None:
    """Raise UsageError for settings of a cache without its folder."""
    if options.cache is None:
        refuse("nothing is cached without --cache", cache_kind=options.cache_kind, cache_mode=options.cache_mode)


def named_cache(options: CacheOptions) -> Any:
    """Return the tap cache of the options; None without a folder."""
    if options.cache is None:
        return None
    from clipvid.features.tap_cache import TapCache

    return TapCache(options.cache, kind=options.cache_kind or "auto", mode=options.cache_mode or "taps")


def cached_clips(model: Any, clips: Any, data_config: Any, cache: Any) -> Any:
    """Return the cached taps of the clips, encoding missing ones; without a cache, return the clips unchanged."""
    if cache is None:
        return clips
    with outputs.notes_shown():
        return cache.store(model, clips, data_config, progress=True)


def model_note(model: str | None, pretrained: str | None) -> dict[str, str | None]:
    """Return the model and weights for the metadata of an index; paths are absolute, so any working folder will do."""
    from clipvid.models.checkpoint import CONFIG

    model = model or DEFAULT_MODEL
    is_saved, is_file = (Path(model) / CONFIG).is_file(), pretrained is not None and os.path.isfile(pretrained)
    return {
        "model": os.path.abspath(model) if is_saved else model,
        "pretrained": os.path.abspath(str(pretrained)) if is_file else pretrained,
    }


def has_index(folder: str | Path) -> bool:
    """Return True for the folder of an index, which is brought back first if a killed process had moved it aside."""
    folder = Path(folder)
    recover(folder)
    return (folder / INDEX).is_file() or is_being_replaced(folder)


def require_index(folder: str | Path, *, source: str = "VIDEOS") -> None:
    """Raise UsageError for a folder without an index; `source` is the argument of the advice."""
    if not has_index(folder):
        raise UsageError(f"{folder} holds no index (no {INDEX}); clipvid index build {source} --out {folder} makes one")


def index_model(index: str, device: str) -> Any:
    """Load the model that an index was built with; raise ValueError if it is unknown or no longer exists."""
    from clipvid.search.index import VideoIndex

    note = VideoIndex.read_note(index)
    made_with = note.get("model")
    if not made_with:
        raise ValueError(
            f"{index} does not say which model made it; build it with `clipvid index build`, or search it in Python"
        )
    # Only the path of a saved model is absolute (`model_note`).
    if os.path.isabs(made_with) and not os.path.isdir(made_with):
        raise ValueError(
            f"{index} was made with the model {made_with}, which no longer exists; restore it, or build the index again"
        )
    if made_with == DEFAULT_MODEL:
        outputs.say(
            f"note: {index} was made with {DEFAULT_MODEL}, which only knows drawn shapes; for your own videos build it "
            "with --model ViT-B-32 --pretrained openai",
            error=True,
        )
    return named_model(made_with, note["pretrained"], device=device, default_branch="mean")
