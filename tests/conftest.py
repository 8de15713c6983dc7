"""Shared fixtures: a tiny real CLIP, a writer of small videos, the shared real data, and a restored RNG."""

from __future__ import annotations

import atexit
import copy
import functools
import gc
import importlib.metadata
import os
import random
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import typed

if TYPE_CHECKING:  # pytest-xdist's controller imports this file before any worker starts, and needs neither
    import numpy as np
    import torch

typed.install()  # must run before the first import of clipvid
SHARED_DATA = Path(__file__).parents[2] / "shared" / "data"
REQUIRE_DATA = "CLIPVID_REQUIRE_DATA"
"""Environment variable; 1 makes a missing part of the shared data a failure, so that no test is skipped unnoticed."""


def pytest_configure(config: pytest.Config) -> None:
    """Register the marker of tests that need a part of the shared data."""
    config.addinivalue_line("markers", "shared_data(*parts): needs this file or folder of ../shared/data")


@functools.cache
def _load_profile() -> None:
    from hypothesis import settings

    settings.register_profile("clipvid", derandomize=True, database=None, deadline=None, max_examples=60)
    settings.load_profile("clipvid")


def pytest_collectstart() -> None:
    """Give property tests the same examples in every run; `test_properties.py` has a slow test with random ones.

    Tests take their settings when their module is imported. The controller of pytest-xdist imports none.
    """
    _load_profile()


def require_shared(*parts: str) -> Path:
    """Return the path of a part of the shared data; where it is absent, skip the test, or fail it (REQUIRE_DATA)."""
    path = SHARED_DATA.joinpath(*parts)
    if not path.exists():
        missing = Path("..", "shared", "data", *parts)
        reason = f"needs the shared real data ({missing} beside the checkout), which is absent here"
        if os.environ.get(REQUIRE_DATA) == "1":
            pytest.fail(f"{reason}; {REQUIRE_DATA}=1 forbids to skip the test", pytrace=False)
        pytest.skip(reason)
    return path


def pytest_collection_finish() -> None:
    """Leave the 600 000 objects of the imports out of every later garbage collection: walking them takes 0.15 s.

    Later collections are made rarer: with the default threshold they take a thirtieth of the suite's time.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(10_000, *gc.get_threshold()[1:])
    atexit.register(gc.unfreeze)  # extensions count what is left of them at the end


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip a test that needs shared data that is absent, or native bf16 where the CPU or its switch has none."""
    for marker in item.iter_markers("shared_data"):
        require_shared(*marker.args)
    import torch

    from clipvid.runtime.precision import native_bf16

    if item.get_closest_marker("native_bf16") and not native_bf16(torch.device("cpu")):
        pytest.skip("multiplies large matrices in bf16, which torch emulates here at a hundredth of float32's speed")


@pytest.fixture(scope="session", autouse=True)
def _entry_points_read_once() -> Iterator[None]:
    """Scan the installed distributions for plugins of Fabric once, not for each of the two Fabrics of a training."""
    from lightning_fabric.utilities import registry

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(registry, "entry_points", functools.cache(importlib.metadata.entry_points), raising=False)
        yield


@pytest.fixture(scope="session", autouse=True)
def _unsynced_files() -> Iterator[None]:
    """Leave it to the system when files reach the disk: no test cuts the power, and each wait takes milliseconds."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda file: None)
        yield


@pytest.fixture
def default_signals() -> Iterator[None]:
    """Handle signals as Python does, also in tests that run in the background or under nohup, which ignore some."""
    defaults = {"SIGINT": signal.default_int_handler, "SIGTERM": signal.SIG_DFL, "SIGHUP": signal.SIG_DFL}
    numbers = {getattr(signal, name): handler for name, handler in defaults.items() if hasattr(signal, name)}
    before = {number: signal.signal(number, handler) for number, handler in numbers.items()}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.fixture(autouse=True)
def _restored_rng() -> Iterator[None]:
    """Restore the random generators after a test, so that any order and any selection gives the same result."""
    import numpy as np
    import torch

    states = random.getstate(), np.random.get_state(), torch.get_rng_state()
    yield
    random.setstate(states[0])
    np.random.set_state(states[1])
    torch.set_rng_state(states[2])


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Return the folder of real videos and annotations that is not part of the repository."""
    return require_shared()


@pytest.fixture(scope="session")
def _one_tiny_clip() -> torch.nn.Module:
    import torch
    from open_clip.model import CLIP, CLIPTextCfg, CLIPVisionCfg

    state = torch.get_rng_state()
    torch.manual_seed(0)
    vision = CLIPVisionCfg(layers=4, width=32, head_width=8, patch_size=8, image_size=32)
    text = CLIPTextCfg(context_length=12, vocab_size=99, width=32, heads=4, layers=2)
    model = CLIP(embed_dim=16, vision_cfg=vision, text_cfg=text).eval()
    torch.set_rng_state(state)
    return model


@pytest.fixture
def tiny_clip(_one_tiny_clip: torch.nn.Module) -> torch.nn.Module:
    """Return a real open_clip CLIP, seeded: 4 blocks of width 32, 4x4 patches of 8, embedding 16, 12 tokens."""
    return copy.deepcopy(_one_tiny_clip)


def _write_video(path: Path, frames: np.ndarray, fps: int = 25, *, codec: str = "libx264") -> Path:
    import av
    import numpy as np

    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=fps)
        stream.height, stream.width, stream.pix_fmt = frames.shape[1], frames.shape[2], "yuv420p"
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), format="rgb24")))
        container.mux(stream.encode())
    return path


@pytest.fixture(scope="session")
def write_video() -> Callable[..., Path]:
    """A function of path, frames and fps (25): it writes uint8 RGB (T, H, W, 3) with even sides as H.264."""
    return _write_video


@pytest.fixture
def restored_registries() -> Iterator[None]:
    """Forget what a test registers."""
    from clipvid.registry import registries

    with pytest.MonkeyPatch.context() as patch:
        for members in registries():
            len(members)  # imports the package's own members first
            for name in ("_members", "_summaries", "_modules"):
                patch.setattr(members, name, dict(getattr(members, name)))
        yield
