"""Wrong arguments of public functions: the error names the argument, what it takes, and what to do next.

The type checks of the tests stop wrong types before a function sees them, so its unchecked original is called here.
"""

from __future__ import annotations

import inspect
import re
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch

import clipvid
from clipvid import registry
from clipvid.config import checks
from clipvid.config.data_config import checked_data_config
from clipvid.config.settings import check_train_clip
from clipvid.data import paths
from clipvid.data.clips import arrays, record
from clipvid.data.formats import frame
from clipvid.evaluation import compare, results, retrieval
from clipvid.features import embed, encode
from clipvid.features.taps import tap_store
from clipvid.models import checkpoint, convert_stan, factory, heads, saving, video_clip
from clipvid.models.backbone import open_clip, taps, trainable
from clipvid.models.branches import options
from clipvid.models.encoder import Encoder
from clipvid.search.queries import filters
from clipvid.training import loop
from clipvid.video import decode, sampling

MODEL = SimpleNamespace(backbone=None, branch=None, encode_video=print, encode_text=print)
"""Object that passes for a model until something is computed with it."""
DATA = clipvid.VideoDataset(())
FRAMES = torch.zeros(1, 2, 3, 4, 4)
CLIP = np.zeros((1, 2, 2, 3), np.uint8)
EMBEDDINGS = torch.zeros(2, 4)


def original(function):
    """Return a function, or that of a class method, without the type checks of the tests."""
    return inspect.unwrap(getattr(function, "__func__", function))


def call(function, *arguments, **options):
    return original(function)(*arguments, **options)


def unchecked(cls, **changes):
    """Return an options object of a dataclass, with its own checks but without the type checks of the tests."""
    config = object.__new__(cls)
    for name, value in (vars(cls()) | changes).items():
        object.__setattr__(config, name, value)
    call(cls.__post_init__, config)
    return config


VideoCLIP, VideoDataset, VideoIndex = clipvid.VideoCLIP, clipvid.VideoDataset, clipvid.VideoIndex


def with_branch_kwargs(branch_kwargs):
    return original(factory.attach)(None, branch_kwargs=branch_kwargs)


CASES = {
    "create_model, name": (open_clip.load_clip, (3,), "name must be a text, got 3; give a name of"),
    "create_model, pretrained": (open_clip.load_clip, ("ViT-B-32", 3), "pretrained must be a tag of the model or"),
    "create_model, device": (open_clip._device, ("gpu",), "device must be a torch device, got 'gpu'; give cpu, cuda"),
    "create_model, no device": (open_clip._device, (None,), "device must be a torch device, got None"),
    "list_models, pattern": (open_clip.list_models, (3,), "pattern must be a text, got 3; * stands for any text"),
    "branch": (options.choose, (None,), "branch must be a name or an options object, got None; clipvid.registry"),
    "tokenizer": (factory.attach, (None, "stan", "x"), "tokenizer must be a function, got 'x'; pass open_clip.get_tok"),
    "branch_kwargs, a list": (with_branch_kwargs, (["depth"],), "branch_kwargs must be a mapping of options, got"),
    "branch_kwargs, names": (with_branch_kwargs, ({3: 4},), "the names in branch_kwargs must be a list of texts"),
    "similarity": (heads.similarity_head, ([], 4), "unknown similarity []; choose one of mean, wti, mug, mug_simple"),
    "templates": (heads.prompts, (["a", "b"], "a {}"), "templates must be a list of texts, got 'a {}'; give prompts"),
    "classes, one text": (
        heads.class_names,
        ("ab",),
        "classes must be a list of class names, got 'ab'; give two or more",
    ),
    "load": (checkpoint.local_folder, (3,), "folder must be the folder of a saved model, or a hub repository, got 3"),
    "save": (saving.save, (MODEL, 3), "folder must be a path, got 3; give a text or a pathlib.Path"),
    "load_stan_checkpoint": (convert_stan.load_stan_checkpoint, (None, 3), "path must be a path, got 3; give a text"),
    "mask": (taps.check_clips, (FRAMES, "x"), "mask must be a tensor of truth values (B, T), got 'x'; convert it"),
    "encode_text": (Encoder._tokens, (MODEL, ["a", 3]), "texts must be a list of texts, got 3; give one string"),
    "encode_text, none": (Encoder._tokens, (MODEL, []), "texts must hold at least one text, got []; give one string"),
    "encode_text, floats": (
        Encoder._tokens,
        (MODEL, EMBEDDINGS),
        "token ids must be integers (M, ctx), got torch.float",
    ),
    "similarity of texts": (VideoCLIP.similarity, (MODEL, "a", "b"), "video must be embeddings (N, E) in a tensor"),
    "similarity, numpy": (VideoCLIP.similarity, (MODEL, EMBEDDINGS, np.ones(4)), "text must be embeddings (N, E) in a"),
    "similarity, one": (VideoCLIP.similarity, (MODEL, EMBEDDINGS[0], EMBEDDINGS), "video and text must be embeddings"),
    "set_trainable": (check_train_clip, ("mode", 3), "mode must be none, text, all, or last:N with N >= 1, got 3"),
    "text_lora": (VideoCLIP.set_trainable, (MODEL, "none", "x"), "text_lora must be an integer >= 0, got 'x'; it is"),
    "text_lora, rank": (trainable.add_text_lora, (MODEL, 0), "rank must be an integer >= 1, got 0; 8 is a common"),
    "trainable_summary": (VideoCLIP.trainable_summary, (MODEL, "x"), "frames must be an integer >= 1, got 'x'; it is"),
    "model": (
        video_clip.require_video_clip,
        ("m",),
        "model must be a VideoCLIP, got 'm'; create one by clipvid.create",
    ),
    "encoder": (
        encode.checked_encoder,
        ("m",),
        "model must be a VideoCLIP or have the methods of VideoEncoder, got 'm'",
    ),
    "read_video, path": (decode.read_video, (3, 4), "path must be a path, the bytes of a file or a binary file object"),
    "time_limit": (decode._checked_time_limit, ("x",), "time_limit must be a number of seconds > 0, or None, got 'x'"),
    "frames": (sampling._check, (1, "4"), "frames must be an integer >= 1, got '4'; it is the number of frames"),
    "sampler": (sampling.sample, ([], 1, 1), "unknown sampler []; choose one of uniform, linspace, dense"),
    "paths": (paths.expand_paths, (3,), "paths must be a path or several paths, got 3; give a text or a pathlib"),
    "a path": (paths.local_path, (3,), "a path must be a path, a file URL or a pattern, got 3; give a text or a"),
    "records": (record.checked_records, (["a.mp4"],), "records must be Record objects, got 'a.mp4'; open files by"),
    "from_frame": (frame.frame_table, ([1],), "df must be a pandas DataFrame, got [1]; build one by pandas.DataFrame"),
    "from_arrays": (arrays.array_clips, (3,), "clips must be a sequence of arrays, got 3; put a single clip into"),
    "captions": (VideoDataset.from_arrays, (VideoDataset, [], 3), "captions must have one entry per clip, 0 in total"),
    "captions, none": (arrays.captions_of, (None, "clip 1"), "clip 1: captions must be a text or a list of texts, got"),
    "captions, a number": (arrays.captions_of, (["a", 3], "clip 0"), "clip 0: captions must be a text or a list of"),
    "names": (VideoDataset.from_arrays, (VideoDataset, [CLIP] * 2), "names must be a list of texts, got 1; give one"),
    "data": (
        tap_store.dataset_of,
        ("dir",),
        "data must be a VideoDataset, got 'dir'; open one by clipvid.open_dataset",
    ),
    "data_config": (
        checked_data_config,
        ({"frames": 4},),
        "data_config must be a DataConfig, got {'frames': 4}; build",
    ),
    "evaluate_retrieval": (retrieval.check_retrieval, ("m", DATA), "model must be a VideoCLIP, got 'm'; create one by"),
    "evaluate_recognition": (clipvid.evaluate_recognition, ("m", DATA), "model must be a VideoCLIP, got 'm'; create"),
    "embed_videos": (embed.resolve_data_config, ("m", DATA, None), "model must be a VideoCLIP, got 'm'; create one"),
    "embed_texts": (embed.embed_texts, (MODEL, "a"), "texts must be a list of texts, got 'a'; give a list of captions"),
    "train, model": (loop.train, ("m", DATA), "model must be a VideoCLIP, got 'm'; create one by clipvid.create_model"),
    "train, config as val_data": (loop.train, (MODEL, DATA, 3), "val_data must be a VideoDataset or None, got 3; pass"),
    "train, config": (loop.train, (MODEL, DATA, None, {}), "config must be a TrainConfig, got {}; build it by clipvid"),
    "VideoIndex": (VideoIndex.load, (VideoIndex, MODEL, "dir"), "folder must be the folder of a saved index, got an"),
    "VideoIndex.save": (VideoIndex.save, (MODEL, 3), "folder must be a path, got 3; give a text or a pathlib.Path"),
    "search": (VideoIndex.search, (MODEL, 3), "text must be a list of texts, got 3; give one sentence or a list"),
    "search, k": (
        VideoIndex.search_embedding,
        (MODEL, None, "3"),
        "k must be an integer >= 1, got '3'; k is the number",
    ),
    "search_video, k": (VideoIndex.search_video, (MODEL, "x", 0), "k must be an integer >= 1, got 0; k is the number"),
    "search, where": (filters.parse, (3,), "where must be a text, got 3; write a filter such as 'label = \"dog\"'"),
    "compare": (compare.compare, ("x", "y"), "results must be results of evaluations, got 'x'; give results of"),
    "result.save": (results.EvaluationResult.save, (MODEL, 3), "path must be a path, got 3; give a text or a pathlib"),
    "register_branch": (registry.Registry.register, (registry.BRANCHES, 3), "name of a branch must be a text without"),
    "list_branches": (
        registry.Registry.names,
        (registry.BRANCHES, 3),
        "pattern must be a text, got 3; * stands for any text",
    ),
}
KEYWORDS = {
    "names": {"names": [1, 2]},
    "similarity": {"branch": "stan", "one_token": False},
}


@pytest.mark.parametrize("case", CASES)
def test_a_wrong_argument_is_named_with_what_it_takes(case):
    function, arguments, message = CASES[case]
    keywords = dict(KEYWORDS.get(case, {}))
    if case == "tokenizer":
        arguments, keywords = arguments[:2], {"tokenizer": arguments[2]}
    if case == "text_lora":
        arguments, keywords = arguments[:2], {"text_lora": arguments[2]}
    with pytest.raises(ValueError, match=f"^{re.escape(message)}"):
        call(function, *arguments, **keywords)


@pytest.mark.parametrize("field", ["sampler", "backend", "precision", "time_limit", "frames"])
def test_a_data_config_refuses_a_field_of_another_type(field):
    fields = SimpleNamespace(**vars(clipvid.DataConfig()) | {field: [3]})
    with pytest.raises(ValueError, match=rf"^{field} must be .*, got \[3\]"):
        call(clipvid.DataConfig.__post_init__, fields)


@pytest.mark.parametrize("field", ["task", "data_config", "seed", "warmup", "mixup", "selfsup"])
def test_a_train_config_refuses_a_field_of_another_type(field):
    fields = SimpleNamespace(**vars(clipvid.TrainConfig()) | {field: [3]})
    with pytest.raises(ValueError, match=rf"^{field} must be .*, got \[3\]; "):
        call(clipvid.TrainConfig._check_types, fields)


@pytest.mark.parametrize("field", ["lr", "temperature", "weight_decay"])
def test_rates_must_be_numbers(field):
    with pytest.raises(ValueError, match=rf"^{field} must be a number, got '1e-4'; leave out quotation marks"):
        unchecked(clipvid.TrainConfig, **{field: "1e-4"})


@pytest.mark.parametrize("field", ["text_lora", "rand_augment", "captions_per_video", "micro_batch_size", "patience"])
@pytest.mark.parametrize("value", ["8", 1.5, True])
def test_counts_must_be_integers(field, value):
    with pytest.raises(ValueError, match=rf"^{field} must be an integer >= [01], got {value!r}; "):
        unchecked(clipvid.TrainConfig, **{field: value})


def test_numbers_of_numpy_are_settings_that_are_saved_as_json():
    data_config = unchecked(clipvid.DataConfig, frames=np.int64(8))
    assert type(data_config.frames) is int
    config = unchecked(
        clipvid.TrainConfig, epochs=np.int32(3), seed=np.int64(5), lr=np.float32(0.5), flip=np.float32(0.5)
    )
    assert (type(config.epochs), type(config.seed)) == (int, int)
    assert config.plain() == clipvid.TrainConfig(epochs=3, seed=5, lr=0.5, flip=0.5).plain()


def test_arguments_of_the_right_type_pass_whatever_holds_them():
    advice = "n/a"
    assert checks.texts("x", (text for text in "ab"), advice=advice) == ["a", "b"]
    assert checks.texts("x", pd.Series(["a"]), advice=advice) == ["a"]
    assert checks.integer("x", np.int64(3), 1, advice=advice) == 3
    assert checks.path("x", "a/b").parts == ("a", "b")
    checks.number("x", np.float32(0.5))


@pytest.mark.parametrize("value", [True, 0, 1.0, "1", None])
def test_truth_values_and_floats_are_no_integers(value):
    with pytest.raises(ValueError, match=rf"^k must be an integer >= 1, got {value!r}; raise it"):
        checks.integer("k", value, 1, advice="raise it")


def test_a_long_value_is_shown_by_its_type():
    with pytest.raises(ValueError, match="got an object of type ndarray; convert it"):
        checks.of_type("x", np.zeros((100, 100)), str, must="a text", advice="convert it")


def test_a_model_that_another_object_wraps_is_a_model():
    video_clip.require_video_clip(MODEL)
    assert encode.checked_encoder(MODEL) is MODEL
