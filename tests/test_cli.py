"""The command line: errors in one line, and the state that an interruption leaves behind."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import fields
from pathlib import Path

import pytest
import torch
from numbered import write
from refused import refusal
from safetensors import safe_open
from safetensors.torch import load_file

from clipvid.cli.main import main
from clipvid.config.data_config import DataConfig
from clipvid.config.selfsup import SelfSupervision
from clipvid.config.settings import TrainConfig
from clipvid.data.motion_shapes import write_dataset
from clipvid.models.factory import create_model
from clipvid.registry import BRANCHES
from clipvid.runtime import files
from clipvid.runtime.storage.manifest import hash_bytes


@pytest.fixture(scope="module")
def rendered(tmp_path_factory):
    folder = tmp_path_factory.mktemp("rendered") / "videos"
    write_dataset(folder, "test", 12)
    return folder


@pytest.fixture
def videos(rendered, tmp_path, monkeypatch):
    """Copy twelve clips to videos/test in the current folder, where a test may change them."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(rendered, "videos")


def test_a_saved_model_refuses_options_that_it_would_ignore(videos, capsys):
    create_model("clipvid-mini", branch_kwargs={"depth": 1}).save("saved")
    for option in (("--branch", "stan-paper"), ("--depth", "2"), ("--mixer", "conv"), ("--pretrained", "openai")):
        error = refusal(capsys, "train", "videos/test", "--val-fraction", "0.5", "--model", "saved", *option)
        assert f"saved is a saved model and brings its own branch and weights; leave out {' '.join(option)}" in error
    assert "leave out --mixer conv" in refusal(capsys, "info", "saved", "--mixer", "conv")
    assert main(["info", "saved"]) == 0
    assert "depth 1" in capsys.readouterr().out


def test_devices_are_chosen_by_name(videos, capsys):
    assert "--device must be one of auto, cpu, cuda, mps, got 'gpu'" in refusal(
        capsys, "embed", "videos/test", "--device", "gpu"
    )
    if not torch.cuda.is_available():
        for command in ("embed", "eval", "index build", "train --val-fraction 0.5"):
            error = refusal(capsys, *command.split(), "videos/test", "--device", "cuda")
            assert "this machine has no cuda device that torch can use" in error
    assert main(["embed", "videos/test", "--data-config.frames", "1", "--device", "cpu", "--out", "e.safetensors"]) == 0


def test_a_failed_download_of_weights_is_a_one_line_error(videos, capsys, monkeypatch):
    import open_clip

    def offline(*_: object, **__: object) -> None:
        raise RuntimeError("Failed to download weights for tag 'openai': no route to host")

    monkeypatch.setattr(open_clip, "create_model", offline)
    error = refusal(capsys, "index", "build", "videos/test", "--model", "ViT-B-32", "--pretrained", "openai")
    assert "the weights openai of ViT-B-32 could not be downloaded" in error
    assert "clipvid-mini needs no download" in error


def test_val_fraction_holds_out_a_part_of_the_training_videos(videos, capsys):
    options = [
        "--epochs",
        "1",
        "--batch-size",
        "2",
        "--data-config.frames",
        "2",
        "--depth",
        "1",
        "--val-fraction",
        "0.5",
    ]
    assert main(["train", "videos/test", *options, "--out", "run"]) == 0
    assert "on 2 validation videos" in capsys.readouterr().out
    error = refusal(capsys, "eval", "videos/test", "--model", "run")
    assert "run is the folder of a training run; its model is run/best" in error
    assert "--frames must be an integer >= 1, got 0" in refusal(capsys, "info", "ViT-B-16", "--frames", "0")


@pytest.mark.usefixtures("default_signals")
def test_an_interrupted_index_keeps_its_embeddings_and_can_be_continued(videos, monkeypatch, capsys):
    from clipvid.search.index import VideoIndex

    put = VideoIndex._put

    def interrupted(self, paths, embeddings, **entries):
        put(self, paths[:4], embeddings[:4], **entries)
        raise KeyboardInterrupt

    monkeypatch.setattr(VideoIndex, "_put", interrupted)
    assert main(["index", "build", "videos/test", "--frames", "2", "--out", "found"]) == 130
    assert "interrupted" in capsys.readouterr().err
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler, "a caller in Python keeps its handlers"
    assert len(json.loads(Path("found/index.json").read_text())["videos"]) == 4
    monkeypatch.setattr(VideoIndex, "_put", put)
    stored = Path("found/index.json").read_bytes()
    assert "found holds an index; extend it with clipvid index add" in refusal(
        capsys, "index", "build", "videos/test", "--out", "found"
    )
    assert Path("found/index.json").read_bytes() == stored
    assert main(["index", "add", "videos/test", "--out", "found"]) == 0
    assert "12 videos in found (8 added)" in capsys.readouterr().out
    assert main(["index", "add", "videos/test", "--out", "found"]) == 0
    assert "12 videos in found (0 added)" in capsys.readouterr().out


def test_embeddings_and_their_paths_are_never_of_two_runs(videos, monkeypatch):
    words = ["embed", "videos/test", "--data-config.frames", "1", "--out", "e.safetensors"]
    assert main(words) == 0

    def listing() -> str:
        with safe_open("e.safetensors", "pt") as file:
            return file.metadata()["listing"]

    before = Path("e.json").read_bytes()
    assert listing() == hash_bytes(before)
    Path(json.loads(before)["paths"][0]).unlink()
    write_tensors = files.write_tensors

    def full_disk(path, *_, **__):
        raise OSError(28, "No space left on device", str(path))

    monkeypatch.setattr(files, "write_tensors", full_disk)
    assert main([*words, "--overwrite"]) == 1
    assert Path("e.json").read_bytes() == before
    assert listing() == hash_bytes(before)
    monkeypatch.setattr(files, "write_tensors", write_tensors)
    replace = os.replace

    def interrupted(source, target):
        if str(target).endswith("e.json"):
            raise KeyboardInterrupt
        replace(source, target)

    monkeypatch.setattr(os, "replace", interrupted)
    assert main([*words, "--overwrite"]) == 130
    assert not Path("e.json").exists()
    assert listing() != hash_bytes(before)


def test_embeddings_that_are_not_finite_are_refused(videos, monkeypatch, capsys):
    model = create_model("clipvid-mini", branch="mean")
    monkeypatch.setattr(model, "encode_video", lambda video, **_: torch.full((12, 128), torch.nan))
    monkeypatch.setattr("clipvid.models.factory.create_model", lambda *_, **__: model)
    assert main(["embed", "videos/test", "--data-config.frames", "1"]) == 1
    assert "the model's embedding is not finite" in capsys.readouterr().err
    assert not Path("embeddings.safetensors").exists()


def test_the_kind_of_an_index_is_stored_and_a_wrong_one_is_refused_by_name(videos, capsys):
    assert "--kind must be one of flat, ivf, hnsw, got 'lsh'" in refusal(
        capsys, "index", "build", "videos/test", "--out", "found", "--kind", "lsh"
    )
    assert "an ivf index needs at least 312 videos" in refusal(
        capsys, "index", "build", "videos/test", "--out", "found", "--kind", "ivf"
    )
    assert not Path("found").exists()
    assert main(["index", "build", "videos/test", "--frames", "2", "--out", "found", "--kind", "hnsw"]) == 0
    assert json.loads(Path("found/index.json").read_text())["kind"] == "hnsw"
    assert main(["search", "found", "a red circle", "--k", "2"]) == 0
    assert len([line for line in capsys.readouterr().out.splitlines() if line.endswith(".mp4")]) == 2


ONE_OF_EACH = ("mean", "posterior", "seqtransf", "stan", "stan-release", "divided", "vivit2", "timesformer", "vivit-b1")


def test_info_describes_every_kind_of_branch_even_one_that_computes_nothing(capsys):
    assert {type(BRANCHES[name]) for name in ONE_OF_EACH} == {type(options) for options in BRANCHES.values()}
    for name in ONE_OF_EACH:
        alone = name.startswith(("timesformer", "vivit-"))
        depth = () if alone or name == "mean" else ("--depth", "2")
        assert main(["info", "clipvid-mini", "--branch", name, *depth]) == 0, name
        output = capsys.readouterr().out
        assert "MACs per clip, 12 frames:" in output
        assert ("keys per patch" in output) is (alone or BRANCHES[name].__class__.__name__ == "IntermediateOptions")


def test_errors_explain_arguments_that_were_mistaken_for_something_else(videos, capsys):
    error = refusal(capsys, "info", "my-rnu/best")
    assert "unknown model 'my-rnu/best': no existing folder and no model of open_clip" in error
    assert "its tags are openai, " in refusal(capsys, "info", "ViT-B-16", "--pretrained", "nix")
    assert "a folder that clipvid did not save" in refusal(capsys, "info", "videos")
    assert "there is no result a.json" in refusal(capsys, "compare", "a.json", "b.json")
    error = refusal(capsys, "eval", "videos/test", "--task", "retrieval", "--zero-shot")
    assert "--zero-shot: only recognition has classes, the task is retrieval" in error
    table = "videos/test/captions.csv"
    error = refusal(capsys, "eval", "videos/test", "--annotations", table, "--bank", "train")
    assert f"{table} is a single file, and --bank train needs the folder of the files; give that" in error
    clip = next(Path("videos/test").glob("*.mp4"))
    assert "add --video to look for videos like it" in refusal(capsys, "search", "found", str(clip))
    assert "found" in refusal(capsys, "search", "found", "a dog that runs " * 30)  # longer than a file name may be
    assert "did you mean ViT-B-32" in refusal(capsys, "info", "ViT-B/32")
    assert "clipvid-mini brings its own weights" in refusal(capsys, "info", "clipvid-mini", "--pretrained", "openai")


def test_videos_that_were_trained_on_are_counted_beside_the_score(videos, capsys):
    options = ["--epochs", "1", "--batch-size", "8", "--data-config.frames", "2", "--depth", "1"]
    assert main(["train", "videos/test", "--val", str(Path("videos/test").resolve()), *options, "--resume"]) == 0
    printed = capsys.readouterr()
    assert "on 12 validation videos, all of them trained on;" in printed.out
    assert "clipvid-run holds no run to resume; starting one" in printed.err


def test_info_names_the_blocks_that_train(capsys):
    assert main(["info", "ViT-B-32", "--pretrained", "openai", "--train-clip", "last:6"]) == 0
    output = capsys.readouterr().out
    assert "base model:                ViT-B-32 (openai)" in output
    assert "visual tower (blocks 7 to 12 of 12), text tower (blocks 7 to 12 of 12)" in output
    assert main(["info", "ViT-B-16-SigLIP", "--branch", "vivit3"]) == 0  # its tokenizer is on a hub
    output = capsys.readouterr().out
    assert "branch:                    vivit3, scheme factorised" in output
    assert main(["info", "RN50"]) == 0  # 2048 channels, and no blocks to copy
    assert int(capsys.readouterr().out.split("trains:")[1].split()[0].replace(",", "")) < 100e6


def test_training_asks_for_a_split_when_the_data_has_several(videos, capsys):
    table = Path("split.csv")
    paths = sorted(Path("videos/test").glob("*.mp4"))
    rows = [f"{p.resolve()},x {i},{'train' if i % 2 else 'test'}" for i, p in enumerate(paths)]
    table.write_text("\n".join(["path,caption,split", *rows]) + "\n")
    error = refusal(capsys, "train", "split.csv")
    assert "split.csv has splits test, train; give --split, the one to train on, and --val-split" in error
    assert "split.csv has splits test, train; give --split, the one to score on" in refusal(capsys, "eval", "split.csv")
    error = refusal(capsys, "train", "videos/test", "--format", "msrvtt-1ka")
    assert "has splits" in error
    assert "test" in error


def test_the_seed_also_decides_the_initial_weights_of_the_branch(videos, tmp_path):
    options = ["--epochs", "1", "--batch-size", "4", "--data-config.frames", "2", "--depth", "1", "--seed", "3"]
    for out in ("a", "b"):
        assert main(["train", "videos/test", *options, "--out", out]) == 0
    a, b = (load_file(f"{out}/best/branch.safetensors") for out in ("a", "b"))
    assert all(torch.equal(a[name], b[name]) for name in a)


@pytest.mark.filterwarnings("default::clipvid.errors.ClipvidWarning")
def test_a_finished_run_says_that_nothing_was_left_and_continues_with_more_epochs(videos, capsys):
    options = [
        "train",
        "videos/test",
        "--batch-size",
        "8",
        "--data-config.frames",
        "2",
        "--depth",
        "1",
        "--out",
        "run",
    ]
    assert main([*options, "--epochs", "1"]) == 0
    assert "nothing was left" not in capsys.readouterr().out
    assert main([*options, "--epochs", "1", "--resume", "--data-config.workers", "1"]) == 0
    printed = capsys.readouterr().out
    assert "nothing was left to train: 1 epoch of 1 done; give more with --epochs\n" in printed
    assert "model saved to run/best" in printed
    assert main([*options, "--epochs", "2", "--resume"]) == 0
    printed = capsys.readouterr()
    assert "note: the run was planned for 1 epoch and now has 2: its learning rates are rescheduled" in printed.err
    assert "nothing was left" not in printed.out
    assert len(json.loads(Path("run/history.json").read_text())) == 2


def test_one_data_config_option_leaves_the_others_as_the_model_was_trained(videos, capsys):
    options = ["--epochs", "1", "--batch-size", "8", "--data-config.frames", "3", "--depth", "1"]
    assert main(["train", "videos/test", *options, "--out", "run"]) == 0
    capsys.readouterr()
    outputs = []
    for more in ([], ["--data-config.workers", "1"], ["--data-config.batch-size", "3"]):
        assert main(["eval", "videos/test", "--model", "run/best", *more]) == 0
        outputs.append(capsys.readouterr().out)
    assert "3 frames" in outputs[0]
    assert outputs[0] == outputs[1] == outputs[2]
    assert main(["eval", "videos/test", "--model", "run/best", "--data-config.frames", "2"]) == 0
    assert "2 frames" in capsys.readouterr().out
    error = refusal(capsys, "eval", "videos/test", "--model", "run/best", "--data-config.frmaes", "2")
    assert error == "clipvid eval: unknown option --data-config.frmaes; did you mean --data-config.frames\n"
    error = refusal(capsys, "eval", "videos/test", "--model", "run/best", "--data-config.frames", "two")
    assert "--data-config.frames must be an integer, got 'two'" in error
    assert "videos is a folder, a file should go there" in refusal(capsys, "eval", "videos/test", "--out", "videos")
    error = refusal(capsys, "train", "videos/test", *options, "--out", "run", "--resume", "--val-fraction", "0.5")
    assert "was trained on other clips; give the clips that it started with" in error
    Path("run/checkpoint.pt").write_bytes(Path("run/checkpoint.pt").read_bytes()[:1000])
    assert "is damaged or cut off" in refusal(capsys, "train", "videos/test", *options, "--out", "run", "--resume")


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("--clip-norm -1", "--clip-norm must be >= 0 and finite, got -1.0"),
        ("--lr 0", "--lr must be above 0 and finite, got 0.0"),
        ("--lr inf", "--lr must be above 0 and finite, got inf"),
        ("--head-lr -1", "--head-lr must be >= 0 and finite, got -1.0"),
        ("--label-smoothing 2", "--label-smoothing must be a probability in [0, 1), got 2"),
        ("--temperature inf", "--temperature must be above 0 and finite"),
        ("--crop-scale 1 0.5", "--crop-scale must be a pair of fractions (smallest, largest) in (0, 1], such as"),
        ("--flip 2", "--flip must be a probability in [0, 1], got 2.0"),
        (
            "--clip-lr 1e-5",
            "--clip-lr is the learning rate of CLIP, but --train-clip 'none' trains no part of it; drop it",
        ),
        ("--selfsup.flip 0", "selfsup's settings are for task 'selfsup', this one is 'retrieval'; leave them out"),
        ("--templates see_{}", "--templates are for classifier 'text', this one is 'linear'; leave them out"),
        ("--task recognition --similarity wti", "--task recognition compares no texts; leave out --similarity wti"),
        ("--batch-size 1", "retrieval takes its negatives from the batch, got --batch-size=1; take 2 or more"),
    ],
)
def test_settings_that_would_train_backwards_or_nothing_are_refused(videos, capsys, option, message):
    task = ["--task", "recognition"] if "smoothing" in option else []
    assert message in refusal(capsys, "train", "videos/test", *task, *option.split())


@pytest.mark.parametrize("value", ["-1", "nan", "inf"])
def test_a_temperature_that_would_reverse_the_scores_is_refused_before_reading(videos, capsys, monkeypatch, value):
    monkeypatch.setattr("clipvid.models.factory.create_model", None)
    error = refusal(capsys, "eval", "videos/test", "--cache", "taps", f"--dual-softmax={value}")
    assert f"--dual-softmax must be a finite number > 0, got {float(value)}; 100 is usual" in error


@pytest.mark.parametrize(
    ("words", "usage"),
    [
        ("train", "usage: clipvid train SOURCE... [options]"),
        ("data check", "usage: clipvid data check NAME ROOT... [options]"),
        ("summarize", "usage: clipvid summarize RESULT... [options]"),
    ],
)
def test_help_begins_with_a_usage_line_of_the_required_arguments(capsys, words, usage):
    assert main([*words.split(), "--help"]) == 0
    assert capsys.readouterr().out.splitlines()[0] == usage


def test_help_explains_every_setting(capsys):
    assert main(["train", "--help"]) == 0
    output = " ".join(capsys.readouterr().out.split())
    for settings in (TrainConfig, DataConfig, SelfSupervision):
        prefix = {DataConfig: "data-config.", SelfSupervision: "selfsup."}.get(settings, "")
        for field in fields(settings):
            assert f"--{prefix}{field.name}".replace("_", "-") in output
    assert "Peak learning rate of the branch" in output
    assert "Maximum caption length in tokens; a longer one is cut but keeps its end token." in output
    assert "Boxes in the middle frame of each clip" in output


@pytest.mark.skipif(not hasattr(os, "killpg"), reason="needs process groups")
@pytest.mark.slow
def test_ctrl_c_ends_data_check_in_one_line(tmp_path):
    """The terminal sends the signal to the workers too, and they must not print tracebacks."""
    (tmp_path / "videos").mkdir()
    clip = write(tmp_path / "clip.mp4", stamps=range(75))
    for i in range(3000):  # more files than can be checked before the signal
        os.link(clip, tmp_path / "videos" / f"{i}.mp4")
    command = [sys.executable, "-m", "clipvid", "data", "check", "videos", "videos", "--workers", "2"]
    running = subprocess.Popen(
        command,
        cwd=tmp_path,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a job in the background ignores it
    )
    log = tmp_path / "clipvid-check" / "videos" / "probes.jsonl"
    deadline = time.monotonic() + 60
    while not (log.exists() and log.read_text().count("\n") >= 2) and time.monotonic() < deadline:
        time.sleep(0.02)
    os.killpg(running.pid, signal.SIGINT)
    _, error = running.communicate(timeout=60)
    assert running.returncode == 130
    assert "Traceback" not in error
    assert "interrupted; run it again to continue, checked files are not decoded again" in error


@pytest.mark.parametrize("cache", [True, False], ids=["cached", "live"])
@pytest.mark.parametrize(
    "option", ["--branch posterior --activation-checkpointing", "--branch mean", "--format videos"]
)
def test_options_that_cannot_train_are_refused_before_a_clip_is_read(videos, capsys, monkeypatch, option, cache):
    monkeypatch.setattr("clipvid.training.batches.LiveSource", None)
    refusal(capsys, "train", "videos/test", *(["--cache", "taps"] if cache else []), *option.split())
    assert not Path("taps").exists()


@pytest.mark.parametrize("option", ["--train-clip all", "--flip 0.5", "--task selfsup"])
def test_options_that_cached_taps_cannot_serve_are_refused_before_encoding(videos, capsys, option):
    refusal(capsys, "train", "videos/test", "--cache", "taps", "--depth", "1", *option.split())
    assert not Path("taps").exists()


@pytest.mark.parametrize("option", ["--limit 0", "--limit -1", "--longest -1", "--workers -1"])
def test_data_check_refuses_numbers_that_would_let_everything_pass(videos, capsys, option):
    error = refusal(capsys, "data", "check", "csv", "videos/test", *option.split())
    assert f"{option.split()[0]} must be " in error


def test_an_annotation_file_that_is_no_list_of_the_protocol_is_named(videos, capsys):
    Path("bad.txt").write_text("garbage\n")
    error = refusal(capsys, "eval", "videos/test", "--format", "msrvtt-1ka", "--annotations", "bad.txt")
    assert "bad.txt lists 1 name, such as 'garbage', without captions; if they are videos of msrvtt-1ka" in error


def test_prune_needs_exactly_one_tower(videos, capsys):
    options = ["--depth", "1", "--epochs", "1", "--batch-size", "8", "--data-config.frames", "2"]
    assert main(["train", "videos/test", *options, "--cache", "taps", "--out", "run"]) == 0
    capsys.readouterr()
    for wrong in ("zzzz", ""):
        assert f"{wrong!r} must match exactly one tower" in refusal(capsys, "cache", "prune", "taps", "--tower", wrong)
    assert list(Path("taps").glob("*/*.safetensors"))
