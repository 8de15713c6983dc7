"""clipvid turns any open_clip checkpoint into a video model: a trainable side branch on a frozen CLIP.

Contract: the names of `__all__` are the public face and load on first use, so `import clipvid` alone costs nothing
(no torch); so do the public modules `errors`, `plots` and `registry`. Everything else may move. No module is called
like a public name, so that none can hide one.

Shape letters, everywhere in the package:
    B  videos              T  frames             S  image side           N  patches per frame (h*w)
    D  branch width        E  joint embedding    K  tapped levels        M  captions
    C  classes             V  views per video
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

from clipvid.runtime.version import __version__ as __version__

if TYPE_CHECKING:
    from clipvid import errors as errors
    from clipvid import plots as plots
    from clipvid import registry as registry
    from clipvid.config.data_config import DataConfig as DataConfig
    from clipvid.config.settings import TrainConfig as TrainConfig
    from clipvid.data.open import open_dataset as open_dataset
    from clipvid.data.records import VideoDataset as VideoDataset
    from clipvid.evaluation.recognition import evaluate_recognition as evaluate_recognition
    from clipvid.evaluation.recognition import evaluate_zero_shot as evaluate_zero_shot
    from clipvid.evaluation.retrieval import evaluate_retrieval as evaluate_retrieval
    from clipvid.models.backbone.open_clip import list_models as list_models
    from clipvid.models.backbone.taps import Taps as Taps
    from clipvid.models.convert_stan import load_stan_checkpoint as load_stan_checkpoint
    from clipvid.models.factory import attach as attach
    from clipvid.models.factory import create_model as create_model
    from clipvid.models.factory import load as load
    from clipvid.models.video_clip import VideoCLIP as VideoCLIP
    from clipvid.registry import list_branches as list_branches
    from clipvid.registry import list_protocols as list_protocols
    from clipvid.search.index import VideoIndex as VideoIndex
    from clipvid.training.loop import train as train
    from clipvid.video.decode import read_video as read_video

_MODULES = {
    "create_model": "clipvid.models.factory",
    "attach": "clipvid.models.factory",
    "load": "clipvid.models.factory",
    "list_models": "clipvid.models.backbone.open_clip",
    "list_branches": "clipvid.registry",
    "list_protocols": "clipvid.registry",
    "VideoCLIP": "clipvid.models.video_clip",
    "load_stan_checkpoint": "clipvid.models.convert_stan",
    "Taps": "clipvid.models.backbone.taps",
    "read_video": "clipvid.video.decode",
    "open_dataset": "clipvid.data.open",
    "VideoDataset": "clipvid.data.records",
    "train": "clipvid.training.loop",
    "TrainConfig": "clipvid.config.settings",
    "DataConfig": "clipvid.config.data_config",
    "evaluate_retrieval": "clipvid.evaluation.retrieval",
    "evaluate_recognition": "clipvid.evaluation.recognition",
    "evaluate_zero_shot": "clipvid.evaluation.recognition",
    "VideoIndex": "clipvid.search.index",
}

_SUBMODULES = ("errors", "plots", "registry")
"""Public modules, which `import clipvid` alone makes available."""

__all__ = [  # noqa: RUF022  # in the order in which a user meets them
    "create_model",
    "attach",
    "load",
    "list_models",
    "list_branches",
    "list_protocols",
    "VideoCLIP",
    "load_stan_checkpoint",
    "Taps",
    "read_video",
    "open_dataset",
    "VideoDataset",
    "train",
    "TrainConfig",
    "DataConfig",
    "evaluate_retrieval",
    "evaluate_recognition",
    "evaluate_zero_shot",
    "VideoIndex",
]


if not TYPE_CHECKING:  # a type checker that sees __getattr__ no longer reports names that do not exist

    def __getattr__(name: str) -> object:
        """Load a public name from the module that defines it, or a public module, once (PEP 562)."""
        if name in _SUBMODULES:
            return importlib.import_module(f"clipvid.{name}")
        if name not in _MODULES:
            raise AttributeError(f"module 'clipvid' has no attribute {name!r}; public names: {', '.join(__all__)}")
        value = getattr(importlib.import_module(_MODULES[name]), name)
        globals()[name] = value
        return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
