"""Loading of base models: any open_clip model, by name, tag, folder or checkpoint, or clipvid-mini.

Contract: a name in; the model, its tokenizer and the data to load it again out. Also open_clip's preprocessing config.
The only file that imports open_clip. Knows nothing about taps, branches or videos.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn

from clipvid.config import checks
from clipvid.errors import BackboneError, CheckpointError
from clipvid.models.backbone.names import MINI, SCHEMES, check_name
from clipvid.runtime.text import first_line

if TYPE_CHECKING:
    import pandas as pd

Tokenizer = Callable[[list[str]], Tensor]
MINI_SUMMARY = "comes with clipvid, weights included"


@dataclass(frozen=True)
class Base:
    """Name and weights of a base model, enough to load it again; `name` is None for a model built by the caller."""

    name: str | None = None
    pretrained: str | None = None


@contextmanager
def _root_logger_unchanged() -> Iterator[None]:
    """Keep open_clip's calls of `logging.info` from adding a permanent handler to the root logger."""
    root, spare = logging.getLogger(), logging.lastResort
    if root.handlers or spare is None:
        yield
        return
    root.addHandler(spare)
    try:
        yield
    finally:
        root.removeHandler(spare)


@contextmanager
def _without_warnings() -> Iterator[None]:
    """Keep this thread's warnings out of the root log in the block; open_clip warns about weights not loaded."""
    thread, root = threading.get_ident(), logging.getLogger()

    def passes(record: logging.LogRecord) -> bool:
        return record.thread != thread or record.levelno > logging.WARNING

    root.addFilter(passes)
    try:
        yield
    finally:
        root.removeFilter(passes)


@_root_logger_unchanged()
def load_clip(
    name: str, pretrained: str | None = None, *, device: torch.device | str = "cpu"
) -> tuple[nn.Module, Tokenizer, Base]:
    """Load an open_clip model with its tokenizer.

    `name` is one of `open_clip.list_models()`, an `hf-hub:` tag, a `local-dir:` folder or "clipvid-mini"; `pretrained`
    a tag of that model, the path of a checkpoint, or "random" for untrained weights. On device "meta" the model
    has shapes but no weights, and its tokenizer raises ValueError. Raises ValueError for names and tags that do
    not exist, and if weights would silently be random; BackboneError if weights or tokenizer cannot be fetched.
    """
    import open_clip

    checks.text("name", name, advice=f"give a name of clipvid.list_models(), such as {MINI}")
    if pretrained is not None:
        checks.path("pretrained", pretrained, must="a tag of the model or the path of a checkpoint")
    shapes_only = _device(device).type == "meta"
    base = Base(name, pretrained)
    if name == MINI:
        name = f"local-dir:{mini_folder()}"
    if not name.startswith(SCHEMES):
        _check_builtin(name, "random" if shapes_only and pretrained is None else pretrained)
    elif pretrained is not None:
        model = f"{MINI} brings its" if base.name == MINI else f"{name.split(':')[0]}: names bring their"
        raise ValueError(f"{model} own weights; leave pretrained out")
    tag = None if pretrained == "random" else pretrained
    # OpenAI's and some other weights were trained with QuickGELU and score points lower without it
    quick = bool(tag) and bool((open_clip.get_pretrained_cfg(name, tag) or {}).get("quick_gelu", False))
    options: dict[str, Any] = {"force_quick_gelu": True} if quick else {}
    if shapes_only:
        try:
            with _without_warnings(), torch.device("meta"):
                clip = open_clip.create_model(name, load_weights=False, device="meta")
        except Exception as error:
            raise _not_loaded(error, base, is_file=False) from error
        return clip, _no_tokenizer, base
    try:
        clip = open_clip.create_model(
            name, pretrained=tag, device=device, require_pretrained=pretrained != "random", **options
        )
    except Exception as error:  # torch, safetensors and the hub's client raise many types, none of them for users
        raise _not_loaded(error, base, is_file=tag is not None and Path(tag).is_file()) from error
    return clip, _tokenizer(name), base


class ModelNames(list[str]):
    """Sorted names of base models, which `to_frame` turns into a table."""

    def __init__(self, pretrained: Mapping[str, tuple[str, ...]]) -> None:
        super().__init__(sorted(pretrained))
        self.pretrained: dict[str, tuple[str, ...]] = dict(pretrained)
        """Pretrained tags of each model, by its name."""

    def to_frame(self) -> pd.DataFrame:
        """Return a row per name, with the model's pretrained tags and a summary, which is empty for open_clip's."""
        import pandas as pd

        rows = [(name, self.pretrained[name], MINI_SUMMARY if name == MINI else "") for name in self]
        return pd.DataFrame(rows, columns=["name", "pretrained", "summary"])


def list_models(pattern: str = "*") -> ModelNames:
    """Return the names of base models that match a shell pattern, sorted: open_clip's, and "clipvid-mini".

    `pretrained` of the list has the pretrained tags of each, and `to_frame()` a row per name. Case is ignored.

    >>> models = clipvid.list_models("vit-b-32-quick*")                                           # doctest: +SKIP
    >>> models, models.pretrained["ViT-B-32-quickgelu"]                                           # doctest: +SKIP
    (['ViT-B-32-quickgelu'], ('openai', 'laion400m_e31', ...))
    """
    import open_clip

    checks.text("pattern", pattern, advice="* stands for any text")
    tags = {name: tuple(open_clip.list_pretrained_tags_by_model(name)) for name in open_clip.list_models()}
    names = [name for name in (MINI, *tags) if fnmatchcase(name.lower(), pattern.lower())]
    return ModelNames({name: tags.get(name, ()) for name in names})


def _device(device: object) -> torch.device:
    try:
        return torch.device(cast(str, device))
    except (RuntimeError, TypeError) as error:
        raise ValueError(f"device must be a torch device, got {device!r}; give cpu, cuda or cuda:0") from error


def _not_loaded(error: Exception, base: Base, *, is_file: bool) -> Exception:
    """Return the error for a model that could not be created, in one line that names the checkpoint or the model."""
    if isinstance(error, BackboneError | MemoryError | torch.OutOfMemoryError):
        return error
    cause = first_line(error)
    if is_file:
        return CheckpointError(
            f"{base.pretrained} cannot be loaded as a checkpoint of {base.name} ({cause}); give a complete file of "
            "weights for this architecture, as torch.save or safetensors write it"
        )
    if "download" in str(error).lower():
        return BackboneError(
            f"the weights {base.pretrained or base.name} of {base.name} could not be downloaded ({cause}); check the "
            f"network, or give the path of a checkpoint as pretrained; {MINI} needs no download"
        )
    if isinstance(error, OSError) or type(error).__module__.startswith("huggingface_hub"):
        return _unreachable(f"a part of {base.name}", error)
    scheme, _, folder = str(base.name).partition(":")
    source = f"the files in {folder}" if scheme == "local-dir" else f"{base.name}"
    return BackboneError(f"{source} cannot be loaded as a base model ({cause}); give a complete model of open_clip")


def _tokenizer(name: str) -> Any:
    import open_clip

    try:
        return open_clip.get_tokenizer(name)
    except Exception as error:  # the hub's client and the tokenizers raise many types
        raise _unreachable(f"the tokenizer of {name}", error) from error


def _unreachable(part: str, error: Exception) -> BackboneError:
    """Return the error for a part that comes from a hub, such as a tokenizer or a text tower's config."""
    cause = first_line(error)
    return BackboneError(
        f"{part} could not be loaded ({cause}); it comes from a hub: check the network, or attach a custom model "
        "and tokenizer in Python"
    )


def _no_tokenizer(_: list[str]) -> Tensor:
    raise ValueError("a model on device meta has no tokenizer; load it on a device with memory, such as cpu")


def mini_folder() -> Path:
    """Return the folder of the built-in default model: inside the wheel, or in `assets/` of a checkout."""
    package = Path(__file__).parents[2]
    for folder in (package / "_assets" / MINI, package.parent / "assets" / MINI):
        if (folder / "open_clip_config.json").is_file():
            return folder
    raise BackboneError(f"{MINI} is not installed beside {package}; reinstall clipvid, or run scripts/train_mini.py")


def _check_builtin(name: str, pretrained: str | None) -> None:
    import open_clip

    check_name(name, open_clip.list_models())
    tags = open_clip.list_pretrained_tags_by_model(name)
    if pretrained is None:
        raise ValueError(
            f"{name} needs weights: pretrained= one of {', '.join(tags) or '(no tags)'}, the path of a checkpoint, "
            'or "random" to do without'
        )
    if pretrained not in (*tags, "random") and not Path(pretrained).is_file():
        raise ValueError(f"{pretrained!r} is neither a file nor weights of {name}; its tags are {', '.join(tags)}")


def preprocess_config(clip: nn.Module) -> dict[str, Any]:
    """Return open_clip's preprocessing config: how this model's images are resized and normalised."""
    from open_clip.model import get_model_preprocess_cfg
    from open_clip.transform import PreprocessCfg

    fields = {k: v for k, v in get_model_preprocess_cfg(clip).items() if k in PreprocessCfg.__dataclass_fields__}
    return asdict(PreprocessCfg(**fields))


def image_transform(config: Mapping[str, Any]) -> Any:
    """Return the transform of a preprocessing config, from one PIL image to a float tensor (3, S, S)."""
    from open_clip.transform import PreprocessCfg, image_transform_v2

    return image_transform_v2(PreprocessCfg(**config), is_train=False)


def preprocess_fields(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields of a preprocessing config that affect pixels; equal fields give equal inputs."""
    return {k: config[k] for k in ("size", "mode", "mean", "std", "interpolation", "resize_mode", "fill_color")}
