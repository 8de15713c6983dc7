"""Errors of the command line before any work: unwritable outputs, options without effect, wrong files."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest
from refused import refusal

from clipvid.cli.arguments import model_note
from clipvid.cli.main import main
from clipvid.data.motion_shapes import write_dataset
from clipvid.runtime.files import atomic_file, describe_os_error, require_writable


@pytest.fixture(scope="module")
def work(tmp_path_factory) -> Path:
    """A folder with videos, another folder and a file; no test changes it."""
    folder = tmp_path_factory.mktemp("work")
    write_dataset(folder / "videos", "test", 4)
    (folder / "folder.safetensors").mkdir()
    (folder / "file").write_text("text")
    (folder / "tables").mkdir()
    (folder / "tables" / "t.csv").write_text("path,caption\n")
    return folder


@pytest.fixture
def no_models(work, monkeypatch) -> Path:
    """The same folder, with models that can be neither created nor loaded."""
    monkeypatch.chdir(work)
    monkeypatch.setattr("clipvid.models.factory.create_model", None)
    monkeypatch.setattr("clipvid.models.factory.load", None)
    return work


OUTPUTS = (
    "eval --out",
    "eval --report",
    "index build --out",
    "embed --out",
    "train --out",
    "train --cache",
    "data check --out",
)


def writing_command(command: str, path: str) -> list[str]:
    """Return the command line that writes to this path."""
    words, option = command.rsplit(" ", 1)
    suffix = ".safetensors" if command == "embed --out" else ""
    return [*words.split(), *(["csv"] if "check" in words else []), "videos/test", option, f"{path}{suffix}"]


@pytest.mark.parametrize("command", OUTPUTS)
def test_an_output_below_a_file_is_refused_before_a_model_is_loaded(no_models, capsys, command):
    error = refusal(capsys, *writing_command(command, "file/out"))
    assert "cannot be written: " in error
    assert f"{no_models / 'file'} is not a folder; choose another place" in error


@pytest.mark.parametrize("command", OUTPUTS)
def test_an_unwritable_output_is_refused_before_a_model_is_loaded(no_models, capsys, monkeypatch, command):
    monkeypatch.setattr(os, "access", lambda path, mode: False)  # root may write anywhere
    assert f"cannot be written: {no_models} is not writable" in refusal(capsys, *writing_command(command, "new/out"))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("eval videos/test --out videos", "videos is a folder, a file should go there; name a file in it"),
        ("eval videos/test --report videos", "videos is a folder, a file should go there; name a file in it"),
        ("embed videos/test --out folder.safetensors", "folder.safetensors is a folder, a file should go there"),
        ("index build videos/test --out file", "file is a file, a folder should go there; choose another name"),
        ("train videos/test --out file", "/file is not a folder; choose another place"),
        ("train videos/test --cache file", "file is a file, a folder should go there; choose another name"),
        ("eval videos/test --cache file", "file is a file, a folder should go there; choose another name"),
        ("embed videos/test --cache file", "file is a file, a folder should go there; choose another name"),
        ("data check csv videos/test --out file", "/file is not a folder; choose another place"),
        ("demo --out file", "/file is not a folder; choose another place"),
        ("cache ls file", "file is a file, a tap cache is a folder"),
        ("cache verify file", "file is a file, a tap cache is a folder"),
        ("cache prune file", "file is a file, a tap cache is a folder"),
    ],
)
def test_a_file_for_a_folder_or_the_reverse_is_refused_before_a_model_is_loaded(no_models, capsys, words, message):
    assert message in refusal(capsys, *words.split())


@pytest.mark.parametrize(
    ("words", "name"),
    [
        ("eval videos/test --out file", "file"),
        ("eval videos/test --report file", "file"),
        ("embed videos/test --out existing.safetensors", "existing.safetensors"),
        ("embed videos/test --out other.safetensors", "other.json"),
        ("embed videos/test --out new.safetensors --profile", "new.profile.json"),
        ("eval videos/test --out new.json --profile", "new.profile.json"),
    ],
)
def test_an_existing_file_is_refused_without_overwrite(no_models, tmp_path, monkeypatch, capsys, words, name):
    for file in ("file", "existing.safetensors", "other.json", "new.profile.json"):
        (tmp_path / file).write_text("old content")
    (tmp_path / "videos").symlink_to(no_models / "videos")
    monkeypatch.chdir(tmp_path)
    error = refusal(capsys, *words.split())
    assert f"{name} already exists; give --overwrite to replace it, or another name" in error
    assert "unexpected TypeError: 'NoneType' object" in refusal(capsys, *words.split(), "--overwrite")  # no models
    assert Path(name).read_text() == "old content"


def test_two_outputs_in_one_file_are_refused(no_models, tmp_path, capsys):
    path = str(tmp_path / "x.html")
    error = refusal(capsys, "eval", "videos/test", "--out", path, "--report", path)
    assert "x.html would be written twice; give each file a different name" in error


def test_a_run_is_resumed_only_when_asked(no_models, tmp_path, capsys):
    (tmp_path / "checkpoint.pt").touch()
    error = refusal(capsys, "train", "videos/test", "--out", str(tmp_path))
    assert f"{tmp_path} holds a training run; give --resume to continue it, or another --out" in error


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--test-clips 8", "--test-clips must be an even integer >= 10, got 8"),
        ("--test-clips 11", "--test-clips must be an even integer >= 10, got 11"),
        ("--train-clips 0", "--train-clips must be an even integer >= 2, got 0"),
        ("--test-clips 5122", "captions are unique, so indices end at 5119"),
        ("--epochs 0", "--epochs must be an integer >= 1, got 0"),
    ],
)
def test_invalid_demo_options_are_refused_before_rendering(tmp_path, monkeypatch, capsys, words, message):
    monkeypatch.chdir(tmp_path)
    assert message in refusal(capsys, "demo", *words.split())
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("query", "message"),
    [
        ("file", "file is a file; add --video to look for videos like it, or write a sentence"),
        ("missing.MP4", "missing.MP4 looks like a video file, but does not exist; correct the path, or write a"),
    ],
)
def test_a_video_as_a_text_query_is_refused_before_the_index_is_read(no_models, capsys, query, message):
    assert message in refusal(capsys, "search", "nowhere", query)


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="the system has no /proc")
@pytest.mark.parametrize("command", OUTPUTS)
def test_an_output_in_proc_is_refused_before_a_model_is_loaded(no_models, capsys, command):
    error = refusal(capsys, *writing_command(command, "/proc/new"))
    assert "cannot be written: /proc takes no new files" in error


def test_writable_outputs_pass(tmp_path):
    (tmp_path / "existing").mkdir()
    (tmp_path / "existing.json").write_text("")
    for name in ("new.json", "existing.json", "deep/er/new.json"):
        require_writable(tmp_path / name)
    for name in ("new", "existing", "deep/er/new", "/"):
        require_writable(tmp_path / name, folder=True)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["existing", "existing.json"]


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (PermissionError(errno.EACCES, "Permission denied", "a/b"), "a/b cannot be read or changed: permission denied"),
        (OSError(errno.ENOSPC, "No space left on device"), "the disk is full; make room, or choose another place"),
        (
            OSError(errno.EIO, "Input/output error", "a/.b.pt.x1y2z3w4.part/new/b.pt"),
            "a/b.pt cannot be read or changed: input",
        ),
        (FileNotFoundError("x is not there; give y"), "x is not there; give y"),
    ],
)
def test_operating_system_errors_become_plain_messages(monkeypatch, capsys, tmp_path, error, message):
    monkeypatch.chdir(tmp_path)
    Path("taps").mkdir()

    def failing_prune(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr("clipvid.features.maintenance.prune", failing_prune)
    line = refusal(capsys, "cache", "prune", "taps")
    assert line.startswith(f"clipvid cache prune: {message}")
    assert "Errno" not in line


def test_a_full_disk_is_reported_with_the_file_that_did_not_fit(tmp_path):
    with pytest.raises(OSError, match="No space left") as caught, atomic_file(tmp_path / "a.json"):
        raise OSError(errno.ENOSPC, "No space left on device")
    message = "a.json cannot be read or changed: the disk is full; make room, or choose another place"
    assert describe_os_error(caught.value) == f"{tmp_path}/{message}"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("train --cache-kind int8", "nothing is cached without --cache; leave out --cache-kind int8"),
        ("train --cache-mode taps", "nothing is cached without --cache; leave out --cache-mode taps"),
        ("eval --cache-kind bf16", "nothing is cached without --cache; leave out --cache-kind bf16"),
        ("eval --cache-mode first_layer", "nothing is cached without --cache; leave out --cache-mode first_layer"),
        ("embed --cache-kind fp32", "nothing is cached without --cache; leave out --cache-kind fp32"),
        ("train --shots 1 --val-fraction 0.1", "--shots selects the validation data; leave out --val-fraction 0.1"),
        ("train --val x --val-fraction 0.5", "--val selects the validation data; leave out --val-fraction 0.5"),
        ("train --val-split x --val-fraction 0.5", "--val-split selects the validation data; leave out --val-fraction"),
    ],
)
def test_an_option_without_effect_is_refused(no_models, capsys, words, message):
    command, *options = words.split()
    assert message in refusal(capsys, command, "videos/test", *options)


def test_caches_on_disk_and_in_memory_exclude_each_other(work, capsys, monkeypatch):
    monkeypatch.chdir(work)
    error = refusal(capsys, "train", "videos/test", "--val", "videos/test", "--cache", "taps", "--cache-taps")
    assert "cache stores taps on disk, and --cache-taps in memory; leave out one of them" in error
    assert not Path("taps").exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            "search nowhere red",
            "nowhere holds no index (no index.json); clipvid index build VIDEOS --out nowhere makes one",
        ),
        ("embed tables", "tables holds no video; give --format csv to read t.csv"),
        ("embed tables/t.csv", "tables/t.csv: no row below the header"),
        ("embed tables --format csv", "tables/t.csv: no row below the header"),
        ("embed folder.safetensors", "folder.safetensors holds no video; expected files such as .mp4"),
        ("embed nowhere", "nowhere does not exist; give videos, folders of videos, or a csv file"),
        ("eval videos/test/00001.mp4", "00001.mp4 is a video; give a folder of videos, or a csv file"),
        ("train videos/test/00001.mp4", "00001.mp4 is a video; give a folder of videos, or a csv file"),
        (
            "index build videos --out tables",
            "tables holds other files, and an index needs a separate folder; give another",
        ),
        (
            "index add videos --out tables",
            "tables holds no index (no index.json); clipvid index build SOURCE --out tables",
        ),
        ("train videos/test --lr -1", "--lr must be above 0 and finite, got -1.0"),
    ],
)
def test_the_wrong_kind_of_input_is_named(no_models, capsys, words, message):
    assert message in refusal(capsys, *words.split())


@pytest.mark.parametrize(
    ("name", "message"),
    [("activitynet", "give the file or its folder as --annotations=PATH"), ("k400", "as --annotations=PATH")],
)
def test_a_protocol_without_its_annotations_says_how_to_name_them(work, capsys, monkeypatch, name, message):
    monkeypatch.chdir(work)
    assert message in refusal(capsys, "eval", "videos/test", "--format", name)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--rerank 3", "--rerank must be an integer >= 1 and needs a token-wise similarity, got 3 for a model whose"),
        ("--task recognition", "this model has no classifier; train one (task recognition), or use evaluate_zero_shot"),
        ("--format videos", "4 of 4 videos of test have no caption, first "),
        ("--format folder", "test has classes and no captions, which retrieval compares; give --zero-shot"),
        ("--format folder --task recognition", "this model has no classifier; train one (task recognition), or use"),
        ("--format videos --zero-shot", "test has no class names; zero-shot recognition needs two or more"),
    ],
)
def test_unscorable_data_is_refused_before_the_cache_is_filled(work, tmp_path, capsys, words, message):
    cache, data = tmp_path / "taps", work / "videos" / "test"
    if "folder" in words:
        for number, clip in enumerate(sorted(data.glob("*.mp4"))):
            copy = tmp_path / "test" / f"class {number % 2}" / clip.name
            copy.parent.mkdir(parents=True, exist_ok=True)
            copy.symlink_to(clip)
        data = tmp_path / "test"
    assert message in refusal(
        capsys, "eval", str(data), "--model", "clipvid-mini", "--cache", str(cache), *words.split()
    )
    assert not cache.exists()


def test_an_index_is_searched_from_any_folder_and_names_a_missing_model(work, tmp_path, monkeypatch, capsys):
    from clipvid.models.factory import create_model

    monkeypatch.chdir(tmp_path)
    create_model("clipvid-mini", branch="mean").save("model")
    assert main(["index", "build", str(work / "videos"), "--model", "model", "--frames", "2", "--out", "index"]) == 0
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert main(["search", "../index", "red", "--k", "1"]) == 0
    (tmp_path / "model").rename(tmp_path / "moved")
    capsys.readouterr()
    message = f"../index was made with the model {tmp_path / 'model'}, which no longer exists; restore it"
    assert message in refusal(capsys, "search", "../index", "red")


def test_model_paths_stored_in_an_index_are_absolute(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("RN50").mkdir()  # an unrelated folder, not a saved model
    Path("weights.pt").touch()
    assert model_note("RN50", "openai") == {"model": "RN50", "pretrained": "openai"}
    assert model_note("ViT-B-32", "weights.pt") == {"model": "ViT-B-32", "pretrained": str(tmp_path / "weights.pt")}
    assert model_note(None, None) == {"model": "clipvid-mini", "pretrained": None}
