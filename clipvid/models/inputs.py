"""Inputs of a video model: files and arrays of any kind as the features that its branch reads.

Contract: a model and whatever its user has in; `Taps` or `Pixels` out, batch by batch for many files. Files are sampled
as a DataConfig says and fitted as for training. Knows nothing of branches, heads or losses.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, UInt8
from torch import Tensor

from clipvid.config.data_config import DataConfig, checked_data_config
from clipvid.models.backbone.taps import Pixels, Taps
from clipvid.video.decode import PICTURE_SUFFIXES, read, read_video
from clipvid.video.inputs import VideoSource, as_clips, check_preprocessed, split_sources
from clipvid.video.transforms import VideoTransform

VideoInput = Tensor | Taps | Pixels | np.ndarray | VideoSource | Sequence[Any]
"""Input of `encode_video`: files, arrays, or a branch's input."""


def trained_data_config(record: Mapping[str, Any] | None) -> DataConfig:
    """Return the data config of a training record: its frames, sampler and caption length, else the defaults."""
    trained = (record or {}).get("data_config", {})
    return DataConfig(**{name: trained[name] for name in ("frames", "sampler", "tokens") if trained.get(name)})


def clips_from_files(
    sources: Sequence[VideoSource], data_config: DataConfig, transform: VideoTransform
) -> tuple[UInt8[Tensor, "b t 3 h w"], Bool[Tensor, "b t"] | None]:
    """Return one clip of each file, fitted, and the mask of their frames; None if no clip is padded.

    Raises VideoError for a file that cannot be read.
    """
    clips = []
    for source in sources:
        clip = read_video(
            source,
            data_config.frames,
            sampler=data_config.sampler,
            backend=data_config.backend,
            fit=transform.fit,
            time_limit=data_config.time_limit or None,
        )
        clips.append(clip)
    lengths = torch.tensor([len(clip) for clip in clips])
    longest = int(lengths.max())
    padded = [torch.cat([clip, clip[-1:].expand(longest - len(clip), -1, -1, -1)]) for clip in clips]
    mask = torch.arange(longest) < lengths[:, None]
    return torch.stack(padded), None if bool(mask.all()) else mask


def features(
    model: Any, video: object, *, mask: Tensor | None = None, data_config: DataConfig | None = None
) -> Iterator[Taps | Pixels]:
    """Yield the branch's input for `video`: one batch for arrays, `data_config.batch_size` clips at a time for files.

    Raises ValueError for an input that `video.inputs` refuses, and for a mask or a data config where none applies.
    """
    sources = split_sources(video)
    if not sources:
        if data_config is not None:
            raise ValueError("data_config must be None for arrays and taps, it says how files are read; leave it out")
        clips = as_clips(video)
        if not model.training and not _is_traced():  # in a training step the check would wait for the GPU
            check_preprocessed(clips)
        yield model.reads(clips, mask=mask)
        return
    if mask is not None:
        raise ValueError("mask must be None for files, whose padding is known; leave it out")
    data_config = checked_data_config(data_config) or trained_data_config(model.training_record)
    if data_config.views > 1:
        raise ValueError(
            f"data_config must have one view per video, got {data_config.views}; evaluate_recognition and "
            "evaluate_retrieval average over views"
        )
    for start in range(0, len(sources), data_config.batch_size):
        batch = sources[start : start + data_config.batch_size]
        clips, padding = clips_from_files(batch, data_config, model.transform)
        yield model.reads(clips, mask=padding)


def require_finite(embedding: Tensor) -> None:
    """Raise ValueError for embeddings, or what is computed from them, that are not finite, as after divergence."""
    if embedding.device.type == "meta" or torch.compiler.is_compiling() or _is_traced():
        return
    if not bool(embedding.isfinite().all()):
        raise ValueError(
            "the model's embedding is not finite; if its training diverged, load the model again, and otherwise check "
            "the input, or use precision 32-true"
        )


def _is_traced() -> bool:
    return torch._C._get_tracing_state() is not None  # pyright: ignore[reportPrivateUsage]


def images_as_clips(
    images: object, transform: VideoTransform, preprocess: Callable[[Any], Tensor]
) -> Float[Tensor, "b 1 3 h w"]:
    """Return images as preprocessed clips of one frame each, by `preprocess` for Pillow images, else by `transform`.

    Takes a Pillow image, the path of a picture, an array (H, W, 3) or (3, H, W), an array of several with B in front,
    or a list of these. Raises ValueError for other inputs, and VideoError for a picture that cannot be read.
    """
    items = list(images) if isinstance(images, list | tuple) else [images]
    if not items:
        raise ValueError("images must hold at least one image, got an empty list; give one image or more")
    clips = []
    for item in items:
        if hasattr(item, "convert"):  # a Pillow image
            clips.append(preprocess(item)[None, None])
            continue
        clip = as_clips(_image_array(item))[0][:, None]  # (B, 1, 3, H, W)
        check_preprocessed(clip)
        clips.append(clip if clip.is_floating_point() else transform(clip))
    sizes = sorted({tuple(clip.shape[-2:]) for clip in clips})
    if len(sizes) > 1:
        raise ValueError(
            f"images must have one size if they are preprocessed floats, got {', '.join(map(str, sizes))}; give uint8 "
            "for any size"
        )
    return torch.cat(clips)


def _image_array(image: Any) -> Any:
    """Return an image, or an array of several, as an array of four axes."""
    if isinstance(image, str | os.PathLike):
        if os.path.splitext(image)[1].lower() not in PICTURE_SUFFIXES:
            raise ValueError(
                f"image must be the path of a picture ({', '.join(sorted(PICTURE_SUFFIXES))}), got "
                f"{os.fspath(image)!r}; embed videos with encode_video"
            )
        return read(os.fspath(image))
    ndim = getattr(image, "ndim", 0)
    if ndim not in (3, 4):
        kind = f"shape {tuple(image.shape)}" if hasattr(image, "shape") else type(image).__name__
        raise ValueError(
            "image must be a Pillow image, the path of a picture, or an array (H, W, 3), (3, H, W) or several of them "
            f"with B in front, got {kind}; convert it with numpy.asarray, or give several in a list"
        )
    return image[None] if ndim == 3 else image
