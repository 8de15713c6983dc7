"""What the command line refuses before it works: places that cannot be written, options without effect, wrong files."""

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
    """A folder with videos, another folder and a file; nothing in it changes."""
    folder = tmp_path_factory.mktemp("work")
    write_dataset(folder / "videos", "test", 4)
    (folder / "folder.safetensors").mkdir()
    (folder / "file").write_text("text")
    (folder / "tables").mkdir()
    (folder / "tables" / "t.csv").write_text("path,caption\n")
    return folder


@pytest.fixture
def idle(work, monkeypatch) -> Path:
    """The same, where no model can be made and none loaded."""
    monkeypatch.chdir(work)
    monkeypatch.setattr("clipvid.models.factory.create_model", None)
    monkeypatch.setattr("clipvid.models.factory.load", None)
    return work


OUTS = ("eval --out", "eval --report", "index --out", "embed --out", "train --out", "train --cache", "data check --out")


def placed(command: str, place: str) -> list[str]:
    """The command line that writes to this place."""
    words, option = command.rsplit(" ", 1)
    suffix = ".safetensors" if command == "embed --out" else ""
    return [*words.split(), *(["csv"] if "check" in words else []), "videos/test", option, f"{place}{suffix}"]


@pytest.mark.parametrize("command", OUTS)
def test_a_place_below_a_file_is_refused_before_a_model_is_loaded(idle, capsys, command):
    error = refusal(capsys, *placed(command, "file/out"))
    assert "cannot be written: " in error
    assert f"{idle / 'file'} is not a folder; choose another place" in error


@pytest.mark.parametrize("command", OUTS)
def test_a_place_without_rights_is_refused_before_a_model_is_loaded(idle, capsys, monkeypatch, command):
    monkeypatch.setattr(os, "access", lambda place, mode: False)  # root may write anywhere
    assert f"cannot be written: {idle} is not writable" in refusal(capsys, *placed(command, "new/out"))


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("eval videos/test --out videos", "videos is a folder, a file should go there; name a file in it"),
        ("eval videos/test --report videos", "videos is a folder, a file should go there; name a file in it"),
        ("embed videos/test --out folder.safetensors", "folder.safetensors is a folder, a file should go there"),
        ("index videos/test --out file", "file is a file, a folder should go there; choose another name"),
        ("train videos/test --out file", "/file is not a folder; choose another place"),
        ("train videos/test --cache file", "file is a file, a folder should go there; choose another name"),
        ("eval videos/test --cache file", "file is a file, a folder should go there; choose another name"),
        ("embed videos/test --taps file", "file is a file, a folder should go there; choose another name"),
        ("data check csv videos/test --out file", "/file is not a folder; choose another place"),
        ("demo --out file", "/file is not a folder; choose another place"),
        ("cache ls file", "file is a file, a tap cache is a folder"),
        ("cache verify file", "file is a file, a tap cache is a folder"),
        ("cache prune file", "file is a file, a tap cache is a folder"),
    ],
)
def test_a_file_for_a_folder_or_a_folder_for_a_file_is_refused_before_a_model_is_loaded(idle, capsys, words, said):
    assert said in refusal(capsys, *words.split())


@pytest.mark.parametrize(
    ("words", "name"),
    [
        ("eval videos/test --out file", "file"),
        ("eval videos/test --report file", "file"),
        ("embed videos/test --out there.safetensors", "there.safetensors"),
        ("embed videos/test --out other.safetensors", "other.json"),
        ("embed videos/test --out new.safetensors --profile true", "new.profile.json"),
        ("eval videos/test --out new.json --profile true", "new.profile.json"),
    ],
)
def test_a_file_that_is_there_is_refused_unless_it_may_be_replaced(idle, tmp_path, monkeypatch, capsys, words, name):
    for file in ("file", "there.safetensors", "other.json", "new.profile.json"):
        (tmp_path / file).write_text("somebody's")
    (tmp_path / "videos").symlink_to(idle / "videos")
    monkeypatch.chdir(tmp_path)
    error = refusal(capsys, *words.split())
    assert f"{name} already exists; give --overwrite true to replace it, or another name" in error
    with pytest.raises(TypeError):  # a model would be made now
        main([*words.split(), "--overwrite", "true"])
    assert Path(name).read_text() == "somebody's"


def test_two_results_for_one_file_are_refused(idle, tmp_path, capsys):
    place = str(tmp_path / "x.html")
    error = refusal(capsys, "eval", "videos/test", "--out", place, "--report", place)
    assert "x.html would be written twice; give each file a different name" in error


def test_a_run_is_gone_on_with_only_when_asked(idle, tmp_path, capsys):
    (tmp_path / "checkpoint.pt").touch()
    error = refusal(capsys, "train", "videos/test", "--out", str(tmp_path))
    assert f"{tmp_path} holds a training run; give --resume true to continue it, or another --out" in error


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("--test_clips 8", "test_clips must be an even integer >= 10, got 8"),
        ("--test_clips 11", "test_clips must be an even integer >= 10, got 11"),
        ("--train_clips 0", "train_clips must be an even integer >= 2, got 0"),
        ("--test_clips 5122", "captions are unique, so indices end at 5119"),
        ("--epochs 0", "epochs must be an integer >= 1, got 0"),
    ],
)
def test_a_demo_that_could_not_end_is_refused_before_it_renders(tmp_path, monkeypatch, capsys, words, said):
    monkeypatch.chdir(tmp_path)
    assert said in refusal(capsys, "demo", *words.split())
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("query", "said"),
    [
        ("file", "file is a file; add --video true to look for videos like it, or write a sentence"),
        ("missing.MP4", "missing.MP4 looks like a video file, but does not exist; correct the path, or write a"),
    ],
)
def test_a_video_in_the_place_of_a_sentence_is_refused_before_the_index_is_read(idle, capsys, query, said):
    assert said in refusal(capsys, "search", "nowhere", query)


def test_what_can_be_written_passes(tmp_path):
    (tmp_path / "there").mkdir()
    (tmp_path / "there.json").write_text("")
    for name in ("new.json", "there.json", "deep/er/new.json"):
        require_writable(tmp_path / name)
    for name in ("new", "there", "deep/er/new", "/"):
        require_writable(tmp_path / name, folder=True)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["there", "there.json"]


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (PermissionError(errno.EACCES, "Permission denied", "a/b"), "a/b cannot be read or changed: permission denied"),
        (OSError(errno.ENOSPC, "No space left on device"), "the disk is full; make room, or choose another place"),
        (OSError(errno.EIO, "Input/output error", "a/.b.pt.12.part"), "a/b.pt cannot be read or changed: input"),
        (FileNotFoundError("x is not there; give y"), "x is not there; give y"),
    ],
)
def test_an_error_of_the_operating_system_is_a_sentence(monkeypatch, capsys, error, said):
    def refused(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr("clipvid.features.maintenance.prune", refused)
    line = refusal(capsys, "cache", "prune", "taps")
    assert line.startswith(f"clipvid cache prune: {said}")
    assert "Errno" not in line


def test_a_full_disk_is_told_with_the_file_that_did_not_fit(tmp_path):
    with pytest.raises(OSError, match="No space left") as caught, atomic_file(tmp_path / "a.json"):
        raise OSError(errno.ENOSPC, "No space left on device")
    said = "a.json cannot be read or changed: the disk is full; make room, or choose another place"
    assert describe_os_error(caught.value) == f"{tmp_path}/{said}"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("train --cache_kind int8", "nothing is cached without --cache; leave out --cache_kind int8"),
        ("train --cache_mode taps", "nothing is cached without --cache; leave out --cache_mode taps"),
        ("eval --cache_kind bf16", "nothing is cached without --cache; leave out --cache_kind bf16"),
        ("eval --cache_mode first_layer", "nothing is cached without --cache; leave out --cache_mode first_layer"),
        ("embed --cache_kind fp32", "nothing is cached without --taps; leave out --cache_kind fp32"),
        ("train --shots 1 --val_fraction 0.1", "--shots says what to validate on; leave out --val_fraction 0.1"),
        ("train --val x --val_fraction 0.5", "--val says what to validate on; leave out --val_fraction 0.5"),
        ("train --val_split x --val_fraction 0.5", "--val_split says what to validate on; leave out --val_fraction"),
    ],
)
def test_an_option_without_effect_is_refused(idle, capsys, words, said):
    command, *options = words.split()
    assert said in refusal(capsys, command, "videos/test", *options)


def test_taps_are_kept_on_the_disk_or_in_memory(work, capsys, monkeypatch):
    monkeypatch.chdir(work)
    error = refusal(capsys, "train", "videos/test", "--val", "videos/test", "--cache", "taps", "--cache_taps", "true")
    assert "cache keeps taps on the disk, cache_taps true in memory; leave out one of them" in error
    assert not Path("taps").exists()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("search nowhere red", "nowhere holds no index (no index.json); clipvid index VIDEOS --out nowhere makes one"),
        ("embed tables", "tables/t.csv is a table, and embed takes videos; give a video or a folder"),
        ("embed tables/t.csv", "tables/t.csv is a table, and embed takes videos; give a video or a folder"),
        ("embed folder.safetensors", "folder.safetensors holds no video; give a video or a folder of videos"),
        ("embed nowhere", "nowhere does not exist; give a video or a folder of videos"),
        ("eval videos/test/00001.mp4", "00001.mp4 is a video; give a folder of videos, or a csv file"),
        ("train videos/test/00001.mp4", "00001.mp4 is a video; give a folder of videos, or a csv file"),
        ("index videos --out tables", "tables holds other files, and an index needs a separate folder; give another"),
        (
            "index videos --out tables --add true --model clipvid-mini",
            "tables holds other files, and an index needs a separate folder",
        ),
        ("train videos/test --lr -1", "lr must be above 0 and finite, got -1.0"),
    ],
)
def test_what_is_given_in_place_of_something_else_is_said(idle, capsys, words, said):
    assert said in refusal(capsys, *words.split())


@pytest.mark.parametrize(
    ("name", "said"),
    [("activitynet", "name the file or its folder with --annotations"), ("k400", "with --annotations")],
)
def test_a_protocol_without_its_annotations_says_how_to_name_them(work, capsys, monkeypatch, name, said):
    monkeypatch.chdir(work)
    assert said in refusal(capsys, "eval", "videos/test", "--format", name)


@pytest.mark.parametrize("command", ["train x", "eval x", "data check csv x"])
@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"a: [1, 2\nb: }\n", "options.yaml is not valid YAML (line 2)"),
        (b"\xf4\xff\x00", "options.yaml is not valid YAML"),
        (b"only words", "options.yaml holds no options; write one per line, such as device: cpu"),
        (b"", "options.yaml holds no options; write one per line, such as device: cpu"),
        (b"nosuch: 3\n", "options.yaml has 'nosuch', which is no option of this command"),
        (None, "File does not exist: "),
    ],
)
def test_a_file_of_options_that_is_none_is_named(tmp_path, capsys, monkeypatch, command, content, said):
    monkeypatch.chdir(tmp_path)
    if content is not None:
        Path("options.yaml").write_bytes(content)
    with pytest.raises(SystemExit) as ended:
        main([*command.split(), "--config", "options.yaml"])
    error = capsys.readouterr().err
    assert ended.value.code == 2
    assert said in error
    assert "options.yaml" in error
    assert error.count("\n") == 2, error


def test_an_unknown_option_of_a_group_is_named_with_the_file(tmp_path, capsys):
    (tmp_path / "options.yaml").write_text("data_config:\n  frmaes: 3\n  workers: 1\n")
    with pytest.raises(SystemExit):
        main(["train", "x", "--config", str(tmp_path / "options.yaml")])
    assert "options.yaml has 'data_config.frmaes', which is no option of this command" in capsys.readouterr().err


def test_a_file_of_options_is_read(idle, capsys, tmp_path):
    path = tmp_path / "options.yaml"
    words = 'lr: -2\ndata_config:\n  frames: 4\nselfsup.flip: 0.5\noptions:\n  hidden: 8\nmixup: 0\ntemplates: ["{}"]\n'
    path.write_text(words)
    error = refusal(capsys, "train", "videos/test", "--config", str(path))
    assert f"lr must be above 0 and finite, got -2.0 (lr is set in {path})" in error
    error = refusal(capsys, "train", "videos/test", "--config", str(path), "--lr", "-3")
    assert error == "clipvid train: lr must be above 0 and finite, got -3.0\n"


@pytest.mark.parametrize(
    ("option", "said"),
    [
        ("lr: abc", "--lr takes float, got abc"),
        ("task: nix", "--task takes one of 'retrieval', 'recognition', 'selfsup', got nix"),
        ("data_config:\n  frames: x", "--data_config.frames takes int, got x"),
    ],
)
def test_a_wrong_value_in_a_file_of_options_is_told_with_the_file(tmp_path, monkeypatch, capsys, option, said):
    monkeypatch.chdir(tmp_path)
    Path("options.yaml").write_text(option)
    with pytest.raises(SystemExit):
        main(["train", "x", "--config", "options.yaml"])
    assert f"clipvid train: --config options.yaml: {said}\n" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("--rerank 3", "rerank must be an integer >= 1 and needs a token-wise similarity, got 3 for a model whose"),
        ("--task recognition", "this model has no classifier; train one (task recognition), or use evaluate_zero_shot"),
        ("--format videos", "4 of 4 videos of test have no caption, first "),
        ("--format folder", "test has classes and no captions, which retrieval compares; give --zero_shot true"),
        ("--format folder --task recognition", "this model has no classifier; train one (task recognition), or use"),
        ("--format videos --zero_shot true", "test has no class names; zero-shot recognition needs two or more"),
    ],
)
def test_what_cannot_be_scored_is_refused_before_the_cache_is_filled(work, tmp_path, capsys, words, said):
    cache, data = tmp_path / "taps", work / "videos" / "test"
    if "folder" in words:
        for number, clip in enumerate(sorted(data.glob("*.mp4"))):
            copy = tmp_path / "test" / f"class {number % 2}" / clip.name
            copy.parent.mkdir(parents=True, exist_ok=True)
            copy.symlink_to(clip)
        data = tmp_path / "test"
    assert said in refusal(capsys, "eval", str(data), "--model", "clipvid-mini", "--cache", str(cache), *words.split())
    assert not cache.exists()


@pytest.mark.parametrize("option", ["--resume", "--data_config.frames"])
def test_an_option_without_its_value_is_told_what_it_needs(capsys, option):
    with pytest.raises(SystemExit):
        main(["train", "x", option])
    assert f"{option} needs a value; a switch takes true" in capsys.readouterr().err


def test_an_index_is_searched_from_anywhere_and_says_that_its_model_is_gone(work, tmp_path, monkeypatch, capsys):
    from clipvid.models.factory import create_model

    monkeypatch.chdir(tmp_path)
    create_model("clipvid-mini", branch="mean").save("model")
    assert main(["index", str(work / "videos"), "--model", "model", "--frames", "2", "--out", "index"]) == 0
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert main(["search", "../index", "red", "--k", "1"]) == 0
    (tmp_path / "model").rename(tmp_path / "moved")
    capsys.readouterr()
    said = f"../index was made with the model {tmp_path / 'model'}, which no longer exists; restore it"
    assert said in refusal(capsys, "search", "../index", "red")


def test_what_an_index_notes_of_its_model_holds_from_anywhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("RN50").mkdir()  # somebody's folder, and no saved model
    Path("weights.pt").touch()
    assert model_note("RN50", "openai") == {"model": "RN50", "pretrained": "openai"}
    assert model_note("ViT-B-32", "weights.pt") == {"model": "ViT-B-32", "pretrained": str(tmp_path / "weights.pt")}
    assert model_note(None, None) == {"model": "clipvid-mini", "pretrained": None}
