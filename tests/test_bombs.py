"""Small files that declare, or unfold to, far more than memory: refused soon, in little memory, by a named limit.

Each is read in a process of its own, which reports its time and its peak of memory above the start.
"""

from __future__ import annotations

import json
import os
import random
import struct
import subprocess
import sys
import zlib
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
import torch

from clipvid.cli.parsing.option_file import DEPTH_LIMIT, read_options
from clipvid.data.formats.annotations import read_annotation
from clipvid.data.formats.csv import COLUMN_LIMIT, read_table
from clipvid.errors import ClipvidError, DataError, UsageError, VideoError
from clipvid.evaluation.saved import read_result
from clipvid.runtime.files import read_file
from clipvid.video.backends.limits import CLIP_BYTES, PIXELS
from clipvid.video.decode import probe, read

resource = pytest.importorskip("resource")
CHILD = """
import json, resource, sys, time
import av, PIL.Image, clipvid.cli.parsing.option_file, clipvid.data.formats.annotations, clipvid.video.decode
module, name, path = sys.argv[1:]
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
before, start, error = peak(), time.monotonic(), ""
try:
    getattr(sys.modules[module], name)(__import__("pathlib").Path(path))
except clipvid.errors.ClipvidError as caught:
    error = str(caught)
print(json.dumps([error, time.monotonic() - start, peak() - before]))
"""


def outcome(function, path: Path) -> tuple[str, float, int]:
    """Return the error of a function on a file, its seconds, and its mebibytes above the start."""
    command = [sys.executable, "-c", CHILD, function.__module__, function.__name__, str(path)]
    child = subprocess.run(command, capture_output=True, text=True, timeout=60, env=dict(os.environ))
    assert child.returncode == 0, child.stderr
    return tuple(json.loads(child.stdout.splitlines()[-1]))


def assert_refused(function, path: Path) -> None:
    """Assert that a file is refused by a limit within 10 s and 500 MiB."""
    error, seconds, mebibytes = outcome(function, path)
    assert "limit" in error
    assert str(path) in error
    assert "\n" not in error
    assert seconds < 10
    assert mebibytes < 500


def write_png(path: Path, width: int, height: int, *, bits: int = 8, rows: int | None = None) -> Path:
    """Write a black grey picture; with `rows`, only so many of its rows are in the file."""
    row, squeeze = bytes(1 + width * bits // 8), zlib.compressobj()
    data = b"".join(squeeze.compress(row) for _ in range(height if rows is None else rows)) + squeeze.flush()
    header = struct.pack(">IIBBBBB", width, height, bits, 0, 0, 0, 0)
    chunks = ((b"IHDR", header), (b"IDAT", data), (b"IEND", b""))
    parts = [struct.pack(">I", len(b)) + k + b + struct.pack(">I", zlib.crc32(k + b)) for k, b in chunks]
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(parts))
    return path


def write_gif(path: Path, width: int, height: int, *, frames: int = 1) -> Path:
    """Write a GIF whose frames are one pixel each."""
    frame = b"\x21\xf9\x04\0\x0a\0\0\0\x2c" + struct.pack("<HHHH", 0, 0, 1, 1) + b"\0\x02\x02\x44\x01\0"
    path.write_bytes(
        b"GIF89a" + struct.pack("<HH", width, height) + b"\x80\0\0\0\0\0\xff\xff\xff" + frame * frames + b";"
    )
    return path


def bombs(folder: Path) -> list[tuple[object, Path]]:
    """Return functions and files that each must refuse, of random sizes."""
    side = random.randint(7000, 60000)
    (folder / "wide.csv").write_text(",".join(f"c{i}" for i in range(20000)) + "\n" + "," * 19999 + "\n")
    (folder / "deep.json").write_text("[" * 100_000 + "]" * 100_000)
    (folder / "deep.yaml").write_text("a: " + "[" * 20_000)
    (folder / "long.yaml").write_text("".join(f"a{i}: 1\n" for i in range(100_000)))
    return [
        (read, write_gif(folder / "large.gif", side, side)),
        (probe, write_gif(folder / "largest.gif", 60000, 60000)),
        (read, write_gif(folder / "many.gif", 1000, 1000, frames=2000)),
        (read, write_png(folder / "large.png", 30000, 30000, rows=10)),
        (read, write_png(folder / "deep.png", side, 7000, bits=16, rows=10)),
        (read_table, folder / "wide.csv"),
        (read_annotation, folder / "deep.json"),
        (read_options, folder / "deep.yaml"),
        (read_options, folder / "long.yaml"),
    ]


@pytest.mark.slow
@pytest.mark.parametrize("number", range(9))
def test_a_bomb_is_refused_soon_and_in_little_memory(tmp_path, number):
    assert_refused(*bombs(tmp_path)[number])


def test_a_sample_of_bombs_is_refused_soon_and_in_little_memory(tmp_path):
    assert_refused(*random.choice(bombs(tmp_path)))


@pytest.mark.slow
def test_pictures_below_the_limit_are_read_in_bounded_memory(tmp_path):
    for bits in (8, 16):
        error, _, mebibytes = outcome(read, write_png(tmp_path / f"{bits}.png", 5792, 5793, bits=bits))
        assert error == ""
        assert mebibytes < 500


def test_limits_are_raised_and_lowered_by_the_environment(tmp_path, monkeypatch):
    path = write_gif(tmp_path / "a.gif", 64, 48, frames=10)
    monkeypatch.setenv(CLIP_BYTES, str(64 * 48 * 3 * 9))
    with pytest.raises(VideoError, match=f"10 frames of 64x48 take .*{CLIP_BYTES}"):
        read(path)
    assert len(read(path, range(9))) == 9
    assert len(read(path, fit=lambda picture: picture[:, :8, :8])) == 10
    monkeypatch.setenv(PIXELS, "100")
    with pytest.raises(VideoError, match=f"64x48 exceed the limit of 100 pixels.*{PIXELS}"):
        read(path, [0])
    monkeypatch.setenv(PIXELS, "many")
    with pytest.raises(ValueError, match=f"{PIXELS} must be an integer"):
        read(path, [0])


def test_16_bit_values_are_scaled_to_8(tmp_path):
    values = np.random.default_rng().integers(0, 1 << 16, (300, 7), dtype=np.uint16)
    PIL.Image.fromarray(values).save(tmp_path / "a.png")
    assert torch.equal(read(tmp_path / "a.png")[0, 1], torch.from_numpy((values >> 8).astype(np.uint8)))


def test_postscript_under_the_name_of_a_picture_is_not_run(tmp_path, monkeypatch):
    (tmp_path / "a.png").write_text("%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\nshowpage\n")
    monkeypatch.setattr("subprocess.Popen", None)
    with pytest.raises(VideoError):
        read(tmp_path / "a.png")


@pytest.mark.parametrize("kind", ["png", "webp", "tiff"])
def test_several_pictures_in_one_file_are_refused(tmp_path, kind):
    pictures = [PIL.Image.new("RGB", (8, 8), (level, 0, 0)) for level in (0, 90, 180)]
    pictures[0].save(tmp_path / f"a.{kind}", save_all=True, append_images=pictures[1:])
    with pytest.raises(VideoError, match="3 pictures in one file"):
        read(tmp_path / f"a.{kind}")


def test_limits_of_tables_and_option_files_are_exact(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text(",".join(f"c{i}" for i in range(COLUMN_LIMIT)) + "\n" + "," * (COLUMN_LIMIT - 2) + "1,2\n")
    assert len(read_table(path)[0]) == COLUMN_LIMIT
    path.write_text(",".join(f"c{i}" for i in range(COLUMN_LIMIT + 1)))
    with pytest.raises(DataError, match=f"exceed the limit of {COLUMN_LIMIT}"):
        read_table(path)
    options = tmp_path / "a.yaml"
    options.write_text("{a: " * DEPTH_LIMIT + "1" + "}" * DEPTH_LIMIT)
    assert read_options(options)[0].values == ("1",)
    options.write_text("{a: " * (DEPTH_LIMIT + 1) + "1" + "}" * (DEPTH_LIMIT + 1))
    with pytest.raises(UsageError, match=f"limit of {DEPTH_LIMIT} levels"):
        read_options(options)
    options.write_text("data_config: {when: 2020-01-01}")
    with pytest.raises(UsageError, match="write it in quotes to give a text"):
        read_options(options, ["data-config"])


@pytest.mark.parametrize("function", [read, probe, read_annotation, read_options, read_table, read_result])
def test_pipes_and_devices_are_refused_before_they_are_opened(tmp_path, function):
    os.mkfifo(tmp_path / "pipe.gif")
    for path in (tmp_path / "pipe.gif", Path("/dev/zero")):
        with pytest.raises(ClipvidError):
            function(path)
        with pytest.raises(OSError, match="not a regular file"):
            read_file(path)
