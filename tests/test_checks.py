"""Checks of settings: the values that they accept, and the errors for all others.

The type checks of the tests stop wrong types before the dataclasses see them, so plain objects try wrong types here.
"""

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest

from clipvid.config import checks
from clipvid.config.data_config import DataConfig
from clipvid.config.settings import TrainConfig


def test_fields_within_their_bounds_pass():
    settings = SimpleNamespace(depth=1, workers=0, flip=1.0, drop=0, mode="a")
    checks.least(settings, depth=1, workers=0)
    checks.probability(settings, "flip", "drop")
    checks.choices(settings, {"mode": ("a", "b")})


@pytest.mark.parametrize("value", [0, -1, 1.0, "two", None, True])
def test_a_value_below_its_bound_or_no_integer_is_refused_with_its_name(value):
    with pytest.raises(ValueError, match=f"depth must be an integer >= 1, got {value!r}; "):
        checks.least(SimpleNamespace(depth=value), depth=1)


@pytest.mark.parametrize("value", [-0.1, 1.1, float("nan"), "half", None, True, False])
def test_a_value_that_is_no_probability_is_refused(value):
    with pytest.raises(ValueError, match=r"drop must be a probability in \[0, 1\], got "):
        checks.probability(SimpleNamespace(drop=value), "drop")


def test_a_probability_of_one_is_refused_on_request():
    with pytest.raises(ValueError, match=r"drop must be a probability in \[0, 1\), got 1"):
        checks.probability(SimpleNamespace(drop=1), "drop", certain=False)


def test_an_unknown_choice_is_refused_with_the_valid_ones():
    with pytest.raises(ValueError, match="unknown mode 'c'; choose one of a, b"):
        checks.choices(SimpleNamespace(mode="c"), {"mode": ("a", "b")})


@pytest.mark.parametrize("value", [0.5, (0.5,), (0, 1), (1, 0.5), (0.5, 2), "ab", (0.5, float("nan"))])
def test_a_value_that_is_no_pair_of_fractions_is_refused_with_an_example(value):
    checks.shares(SimpleNamespace(crop=(0.5, 1)), "crop")
    with pytest.raises(
        ValueError, match=r"crop must be a pair of fractions \(smallest, largest\) in \(0, 1\], such as"
    ):
        checks.shares(SimpleNamespace(crop=value), "crop")


def test_an_empty_text_is_no_path():
    with pytest.raises(ValueError, match=r"folder must be a path, got ''; write '\.' for the working directory"):
        checks.path("folder", "")
    assert checks.path("folder", ".") == Path()


@pytest.mark.parametrize("precision", ["fp16", "half", "x", ""])
def test_an_unknown_precision_is_refused_as_the_config_is_made(precision):
    with pytest.raises(ValueError, match=f"unknown precision {precision!r}; choose one of auto"):
        DataConfig(precision=precision)


@pytest.mark.parametrize(
    ("config", "field"), [(TrainConfig, "epochs"), (TrainConfig, "batch_size"), (DataConfig, "frames")]
)
def test_a_count_that_no_machine_could_hold_is_refused(config, field):
    with pytest.raises(ValueError, match=f"{field} must be an integer <= 10+, got 10+; lower it"):
        config(**{field: 10**30})


@pytest.mark.parametrize(
    ("config", "field", "near"),
    [
        (TrainConfig, "learning_rate", "lr"),
        (TrainConfig, "num_epochs", "epochs"),
        (TrainConfig, "batchsize", "batch_size"),
        (DataConfig, "num_frames", "frames"),
    ],
)
def test_an_unknown_field_is_refused_with_the_nearest_one(config, field, near):
    with pytest.raises(TypeError, match=rf"{config.__name__} has no field '{field}'; did you mean {near}\?"):
        config(**{field: 1})
    with pytest.raises(TypeError, match="has no field 'zzz'; its fields are "):
        config(zzz=1)


def test_counts_of_numpy_are_stored_as_plain_integers():
    assert type(DataConfig(frames=np.int64(4)).frames) is int
    assert type(TrainConfig(epochs=np.int64(2)).epochs) is int


@pytest.mark.parametrize("templates", [(), ("{} {x}",), ("a video",)])
def test_templates_without_a_plain_place_for_the_class_name_are_refused(templates):
    with pytest.raises(ValueError, match="template"):
        TrainConfig(task="recognition", classifier="text", templates=templates)


def test_a_table_is_refused_where_texts_belong_and_its_column_is_taken():
    table = pd.DataFrame({"caption": ["a dog", "a cat"]})
    with pytest.raises(ValueError, match=r'got a DataFrame; give one column as a list, such as df\["caption"\]'):
        checks.texts("texts", table, advice="give a list")
    assert checks.texts("texts", table["caption"], advice="give a list") == ["a dog", "a cat"]
