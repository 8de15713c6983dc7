"""Checks of settings: the values that they accept, and the errors for all others.

The type checks of the tests stop wrong types before the dataclasses see them, so plain objects try wrong types here.
"""

from pathlib import Path
from types import SimpleNamespace

import pytest

from clipvid.config import checks


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
