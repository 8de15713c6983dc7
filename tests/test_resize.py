"""Resizing compared with torchvision's, for every memory layout that frames come in."""

from __future__ import annotations

import pytest
import torch
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional as F
from torchvision.transforms.v2.functional._geometry import _do_native_uint8_resize_on_cpu

from clipvid.video.resize import resize

LAYOUTS = {
    "one frame by channels": lambda x: x[0],
    "one frame by pixels": lambda x: x[:1].contiguous(memory_format=torch.channels_last)[0],
    "a crop": lambda x: x[0, :, 3:-2, 5:-1],
    "a crop stored by pixels": lambda x: x[:1].contiguous(memory_format=torch.channels_last)[0, :, 3:-2, 5:-1],
    "a clip": lambda x: x,
    "a batch of one clip": lambda x: x[None],
    "every second frame": lambda x: x[::2],
}


@pytest.mark.parametrize("size", [(224, 300), (32, 32), (45, 20), (61, 83), (1, 5)], ids=str)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("method", ["bicubic", "bilinear"])
def test_resize_equals_torchvision(method, layout, size):
    frames = LAYOUTS[layout](torch.randint(256, (4, 3, 61, 83), dtype=torch.uint8))
    interpolation = InterpolationMode(method)
    expected = F.resize(frames, list(size), interpolation, antialias=True)
    actual = resize(frames, size, method)
    if not _do_native_uint8_resize_on_cpu(interpolation):  # torchvision then resizes in float32 and rounds elsewhere
        assert (actual.int() - expected.int()).abs().max() <= 1
    else:
        assert torch.equal(actual, expected)


def test_frames_of_the_right_size_are_returned_as_they_are():
    frames = torch.zeros(2, 3, 5, 7, dtype=torch.uint8)
    assert resize(frames, (5, 7)) is frames
