"""Types and shapes of the package are checked while tests run."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest
import torch
from beartype import beartype
from beartype.roar import BeartypeCallHintViolation
from jaxtyping import Float
from torch import Tensor
from typed import checked

from clipvid.data.files import is_video
from clipvid.data.records import Record


def test_a_function_of_the_package_refuses_a_value_of_another_type():
    with pytest.raises(BeartypeCallHintViolation):
        is_video("a.mp4")


def test_a_dataclass_of_the_package_refuses_a_field_of_another_type():
    with pytest.raises(BeartypeCallHintViolation):
        Record(path="a.mp4")


def with_nested_axes(
    frames: Sequence[Float[Tensor, "t d"]], act: Callable[[Float[Tensor, "t d"]], None] = print
) -> int:
    return len(frames)


def test_axes_are_checked_inside_nested_annotations():
    function = checked(with_nested_axes, typechecker=beartype)
    assert function([torch.zeros(2, 3)]) == 1
    with pytest.raises(BeartypeCallHintViolation):
        function([torch.zeros(2)])


def joined(a: Float[Tensor, "n d"], b: Float[Tensor, "m d"], *, cut: int = 0) -> Float[Tensor, "d"]:
    return (a.sum(0) + b.sum(0))[cut:]


def test_an_axis_has_one_length_within_a_call_and_another_in_the_next():
    function = checked(joined, typechecker=beartype)
    for width in (3, 4):
        assert function(torch.zeros(2, width), torch.zeros(5, width)).shape == (width,)
    with pytest.raises(BeartypeCallHintViolation, match="parameter b"):
        function(torch.zeros(2, 3), torch.zeros(5, 4))
    with pytest.raises(BeartypeCallHintViolation, match="return"):
        function(torch.zeros(2, 3), torch.zeros(5, 3), cut=1)
