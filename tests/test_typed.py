"""Types and shapes of the package are checked while tests run."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest
import torch
from beartype import beartype
from beartype.roar import BeartypeCallHintViolation
from jaxtyping import Float, TypeCheckError
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
    with pytest.raises(TypeCheckError):
        function([torch.zeros(2)])
