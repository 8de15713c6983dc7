"""File names of any bytes: every command reads them, and prints each on one line without control characters."""

from __future__ import annotations

import json
import os
import re
import shutil
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from clipvid.cli.main import main
from clipvid.errors import CheckpointError
from clipvid.runtime.display.names import as_utf8, printable, show
from clipvid.runtime.storage.schema import decode
from clipvid.search.index import VideoIndex

NAMES = (
    b"\xff\xfe.mp4",
    b"new\nline.mp4",
    b"\x1b[31mred.mp4",
    "rtl\u202egpj.mp4".encode(),
    b"a\tb.mp4",
    "ü.mp4".encode(),
    b"plain.mp4",
    "c\x07\u2028d.mp4".encode(),
)
"""Bytes that are no UTF-8, line breaks, terminal controls, letters that turn the direction, and ordinary names."""
CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\ud800-\udfff]")


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        (b"plain a.mp4", "plain a.mp4"),
        ("ü.mp4".encode(), "ü.mp4"),
        (b"\xff.mp4", r"\xff.mp4"),
        (b"a\nb", r"a\x0ab"),
        ("\u202e".encode(), r"\u202e"),
        ("\U000e0001".encode(), r"\U000e0001"),
        ("می\u200cخواهم 👨\u200d👩".encode(), "می\u200cخواهم 👨\u200d👩"),
        (b"\x85", r"\x85"),
        ("\x85".encode(), r"\u0085"),  # a character, where the one above is a byte that is no UTF-8
    ],
)
def test_a_name_is_one_line_that_a_terminal_shows_as_it_is(name, shown):
    assert show(os.fsdecode(name)) == shown
    assert show(Path(os.fsdecode(name))) == shown
    assert printable(f"a\n{os.fsdecode(name)}").count("\n") == 1 + name.count(b"\n")
    as_utf8(os.fsdecode(name)).encode()


def test_half_a_character_and_tabs_in_text():
    assert as_utf8("ü \ud800\udcff") == show("ü \ud800\udcff") == r"ü \ud800\xff"
    assert printable("a\tb\n\x1b[0m") == "a\tb\n\\x1b[0m"


def test_halves_of_surrogate_pairs_are_shown_and_refused_in_stored_files():
    """No file name has them, but JSON may."""
    assert as_utf8("a\ud800b\udcff\udfff") == r"a\ud800b\xff\udfff"
    refusal = {"source": "a.json", "error": CheckpointError, "advice": "write it again"}
    assert decode(rb'["\udcff", "\ud83d\ude00"]', list[str], **refusal) == ["\udcff", "\U0001f600"]
    with pytest.raises(CheckpointError, match=r"a\.json is damaged \(.*surrogates not allowed\); write it again"):
        decode(rb'["\udcff", "\ud800"]', list[str], **refusal)


@pytest.fixture(scope="module")
def clips(tmp_path_factory, write_video) -> Path:
    """Two classes of videos with hostile names, and a file that is no video."""
    root = tmp_path_factory.mktemp("names") / "v"
    for folder in ("run", "walk"):
        (root / folder).mkdir(parents=True)
    for i, name in enumerate(NAMES):
        frames = np.full((2, 32, 32, 3), 20 * i, dtype=np.uint8)
        frames[:, 4 * (i % 8)] = 255
        write_video(root / "a.mp4", frames)
        os.rename(root / "a.mp4", os.path.join(os.fsencode(root / ("run", "walk")[i % 2]), name))
    return root


def printed(capsys, *words: str, code: int = 0) -> str:
    """Run a command, and return its lines; none has a character that controls a terminal."""
    assert main(list(words)) == code
    out, err = capsys.readouterr()
    assert not CONTROL.search(out), ascii(out)
    lines = [line for line in re.split(r"[\r\n]", err) if "clip/s" not in line and "file/s" not in line]
    assert not CONTROL.search("\n".join(lines).replace("\x1b[A", "")), ascii(err)
    return out


@pytest.mark.skipif(sys.platform != "linux", reason="other file systems refuse such names")
def test_every_command_reads_and_prints_such_names(clips, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(clips, "v")
    expected = {as_utf8(str(path)) for path in Path("v").rglob("*.mp4")}
    assert len(expected) == len(NAMES)
    broken = Path("v", "walk", os.fsdecode(b"\xfd\n.mp4"))
    broken.write_text("no video")
    Path("v", "run", os.fsdecode(b"\xfe\x1b.txt")).touch()
    frames = ("--data-config.frames", "1")

    assert main(["index", "build", "v", "--frames", "1", "--out", "idx"]) == 0
    assert r"\xfd\x0a.mp4: plain text" in capsys.readouterr().err
    printed(capsys, "index", "verify", "idx")
    assert len(printed(capsys, "search", "idx", "a red circle", "-k", "9").splitlines()) == 8
    hits = json.loads(printed(capsys, "search", "idx", "a red circle", "-k", "9", "--json"))["hits"]
    assert all(Path(hit["path"]).is_file() for hit in hits)
    printed(capsys, "embed", "v", *frames)
    assert all(Path(path).is_file() for path in json.loads(Path("embeddings.json").read_text())["paths"])
    for table in ("p.csv", "p.parquet", "p.json"):
        printed(capsys, "predict", "v", "--classes", "red", "blue", *frames, "--top", "1", "--out", table)
    assert set(pd.read_csv("p.csv")["video"]) == set(pd.read_parquet("p.parquet")["video"]) == expected
    assert r"\xfd\x0a.mp4: plain text" in printed(capsys, "data", "check", "v", "--workers", "1", code=1)
    broken.unlink()
    words = ("--report", "r.html", "--per-query", "q.parquet", "--out", "r.json", "--cache", "taps")
    printed(capsys, "eval", "v", "--zero-shot", *frames, *words)
    assert set(pd.read_parquet("q.parquet")["path"]) == expected
    assert "removed" in printed(capsys, "index", "refresh", "idx")
    assert printed(capsys, "index", "remove", "idx", str(Path(os.fsdecode(b"v/run/\xff\xfe.mp4")))).startswith(
        "1 video"
    )
    assert len(VideoIndex.read_note("idx")) == 2
