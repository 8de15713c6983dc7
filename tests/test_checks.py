"""Checks of settings: what they let pass, and what they say of what they do not.

The dataclasses that use them are checked by type in these tests, so wrong types are tried here, on plain objects.
"""

from types import SimpleNamespace

import pytest

from clipvid.config import checks


def test_fields_within_their_bounds_pass():
    settings = SimpleNamespace(depth=1, workers=0, flip=1.0, drop=0, mode="a")
    checks.least(settings, depth=1, workers=0)
    checks.probability(settings, "flip", "drop")
    checks.choices(settings, {"mode": ("a", "b")})


@pytest.mark.parametrize("value", [0, -1, 1.0, "two", None, True])
def test_what_is_no_whole_number_from_its_bound_on_is_refused_with_its_name_and_value(value):
    with pytest.raises(ValueError, match=f"depth must be an integer >= 1, got {value!r}"):
        checks.least(SimpleNamespace(depth=value), depth=1)


@pytest.mark.parametrize("value", [-0.1, 1.1, float("nan"), "half", None])
def test_what_is_no_probability_is_refused(value):
    with pytest.raises(ValueError, match=r"drop must be a probability in \[0, 1\], got "):
        checks.probability(SimpleNamespace(drop=value), "drop")


def test_certainty_is_refused_where_asked():
    with pytest.raises(ValueError, match=r"drop must be a probability in \[0, 1\), got 1"):
        checks.probability(SimpleNamespace(drop=1), "drop", certain=False)


def test_another_name_is_refused_with_those_there_are():
    with pytest.raises(ValueError, match="unknown mode 'c'; choose one of a, b"):
        checks.choices(SimpleNamespace(mode="c"), {"mode": ("a", "b")})


@pytest.mark.parametrize("value", [0.5, (0.5,), (0, 1), (1, 0.5), (0.5, 2), "ab", (0.5, float("nan"))])
def test_what_is_no_pair_of_shares_is_refused_with_one_that_is(value):
    checks.shares(SimpleNamespace(crop=(0.5, 1)), "crop")
    with pytest.raises(
        ValueError, match=r"crop must be a pair of fractions \(smallest, largest\) in \(0, 1\], such as"
    ):
        checks.shares(SimpleNamespace(crop=value), "crop")
