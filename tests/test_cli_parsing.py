"""The command line's parser: wrong words, option files, help pages and their cost."""

from __future__ import annotations

import inspect
import os
import shlex
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from cyclopts.argument import ArgumentCollection
from refused import refusal, usage_error
from test_import_is_light import HEAVY, loaded_by

from clipvid.cli import commands
from clipvid.cli.main import main
from clipvid.cli.parsing import messages, names
from clipvid.cli.parsing.command import Command

PAGES = [*map(str.split, commands.COMMANDS), *([group] for group in commands.GROUPS), []]


@pytest.fixture
def in_videos(tmp_path, monkeypatch):
    """Change to a folder with a folder `my`, which is enough for errors that precede reading."""
    monkeypatch.chdir(tmp_path)
    Path("my").mkdir()


def test_the_help_of_every_command_loads_neither_torch_nor_numpy_nor_rich():
    script = f"""
import contextlib, io
from clipvid.cli.main import main
for words in {PAGES!r}:
    with contextlib.redirect_stdout(io.StringIO()) as page:
        assert main([*words, "--help"]) == 0, words
    assert page.getvalue().startswith("usage: clipvid"), words
"""
    assert not loaded_by(script) & {*HEAVY, "torch", "numpy", "rich"}


def test_the_list_of_commands_needs_no_parser():
    script = "import sys; sys.argv[1:] = ['--help']; from clipvid.cli.main import main; main()"
    assert not loaded_by(script) & {"cyclopts", "yaml", "dataclasses"}


@pytest.mark.parametrize("words", PAGES, ids=" ".join)
def test_help_fits_the_terminal_without_colours(words, monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "60")
    monkeypatch.setenv("FORCE_COLOR", "1")
    assert main([*words, "--help"]) == 0
    page = capsys.readouterr().out
    assert "\x1b" not in page
    long = [line for line in page.partition("Examples:")[0].splitlines() if len(line) > 60]
    assert not [line for line in long if len(line.split()) > 3], long


def test_help_explains_every_option_with_choices_and_default(capsys):
    for name in commands.COMMANDS:
        arguments = commands.load(name).documented_options()
        bare = [argument.name for argument in messages.leaves(arguments) if not argument.parameter.help]
        assert not bare, (name, bare)
    assert main(["train", "--help"]) == 0
    page = " ".join(capsys.readouterr().out.split())
    assert "--resume / --no-resume Continue from the last checkpoint in out" in page
    assert "[one of uniform, linspace, dense; default: uniform]" in page
    assert "--epochs N Passes over the training data." in page
    assert "the memory that of one --micro-batch-size" in page
    assert "Examples: clipvid train my-videos --task recognition" in page


def test_the_list_of_commands_shows_the_first_line_of_each(capsys):
    assert main(["--help"]) == 0
    page = " ".join(capsys.readouterr().out.split())
    for name in commands.COMMANDS:
        summary = (inspect.getdoc(commands.load(name).function) or "").partition("\n")[0]
        assert f"{name} {' '.join(summary.split())}" in page


def test_examples_in_help_parse(in_videos):
    for name in commands.COMMANDS:
        lines = [line.strip() for line in (commands.load(name).function.__doc__ or "").splitlines()]
        for line in (line for line in lines if line.startswith("clipvid ")):
            words = shlex.split(line, comments=True)[1:]
            words = [word for word in words if word not in ("--config", "options.yaml")]
            assert commands.load(commands.command_name(words)).parse(words[len(name.split()) :])


def test_no_command_shows_the_list_and_fails(capsys):
    assert main([]) == 2
    assert capsys.readouterr().out.startswith("usage: clipvid COMMAND")
    assert main(["--version"]) == 0
    assert capsys.readouterr().out.startswith("clipvid 0.")


def test_names_listed_without_imports_equal_those_of_the_libraries():
    from clipvid.data.formats.rows import COLUMNS
    from clipvid.features.cache_key import MODES
    from clipvid.nn.similarity import SIMILARITIES

    assert set(names.SIMILARITIES) == {"mean", *SIMILARITIES}
    assert set(names.CACHE_MODES) == set(MODES)
    assert names.COLUMNS == COLUMNS


def settings_of(*words: str) -> dict:
    """Return the settings of training that a command line gives."""
    return commands.load("train").parse(words).bound.kwargs.get("settings", {})


def test_options_are_typed_and_only_given_ones_are_passed():
    given = settings_of("x", "--lr", "1e-4", "--crop-scale", "0.5", "1", "--data-config.frames", "8", "--no-compile")
    assert given == {"lr": 1e-4, "crop_scale": (0.5, 1.0), "data_config": {"frames": 8}, "compile": False}
    assert settings_of("x") == {}
    for words in (["--templates", "a {}", "b {}"], ["--templates", "a {}", "--templates", "b {}"]):
        assert settings_of("x", *words) == {"templates": ("a {}", "b {}")}
    assert settings_of("--batch_size", "8", "x") == {"batch_size": 8}  # spelled as in Python


def test_options_are_derived_once_and_values_of_one_line_do_not_reach_the_next(monkeypatch):
    derived = []
    assemble = ArgumentCollection._from_callable

    def counted(*args: object, **kwargs: object) -> ArgumentCollection:
        derived.append(args)
        return assemble(*args, **kwargs)

    monkeypatch.setattr(ArgumentCollection, "_from_callable", counted)
    command = Command("train", commands.load("train").function)
    first = command.parse(["x", "--lr", "3", "--data-config.frames", "8"])
    again = command.parse(["y"])
    assert len(derived) == 2  # of the command, and of the dataclass of the options of every command
    assert [argument.name for argument in messages.leaves(again.arguments) if argument.tokens] == ["SOURCE"]
    assert first.bound.kwargs["settings"] == {"lr": 3.0, "data_config": {"frames": 8}}
    assert "settings" not in again.bound.kwargs


def test_a_file_of_options_equals_the_same_command_line(tmp_path):
    path = tmp_path / "options.yaml"
    path.write_text(
        "lr: 1e-4\nbatch-size: 8\nflip: .5\ncompile: false\ncrop_scale: [0.5, 1]\ntemplates: ['{}']\n"
        "data_config:\n  frames: 4\nselfsup.flip: 0\ntrain_clip: last:2\noptions: {drop_path: 0.2, fusion: gated}\n"
    )
    words = "x --lr 1e-4 --batch-size 8 --flip .5 --no-compile --crop-scale 0.5 1 --templates {} --selfsup.flip 0"
    words += " --data-config.frames 4 --train-clip last:2"
    from_file = commands.load("train").parse(["x", "--config", str(path)]).bound.kwargs
    assert from_file["settings"] == settings_of(*words.split())
    assert from_file["branch"].options == {"drop_path": 0.2, "fusion": "gated"}


def test_later_files_and_the_command_line_win(tmp_path):
    for name, text in {"a": "lr: 1\nepochs: 3\nflip: 0.1\n", "b": "epochs: 4\nflip: 0.2\n"}.items():
        (tmp_path / name).write_text(text)
    words = ["x", "--config", str(tmp_path / "a"), "--config", str(tmp_path / "b"), "--flip", "0.3"]
    assert settings_of(*words) == {"lr": 1.0, "epochs": 4, "flip": 0.3}


@pytest.mark.parametrize("command", ["train my", "eval my", "data check csv my"])
@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"a: [1, 2\nb: }\n", "options.yaml, line 2, is not valid YAML"),
        (b"\xf4\xff\x00", "options.yaml is not valid YAML"),
        (b"only words", "options.yaml holds no options; write one per line, such as device: cpu"),
        (b"", "options.yaml holds no options; write one per line, such as device: cpu"),
        (b"\nnosuch: 3\n", "options.yaml, line 2: unknown option nosuch; --help lists the options"),
        (b"split: a\nsplit: b\n", "options.yaml sets split twice (lines 1 and 2); remove one"),
        (b"split: &name a\n", "options.yaml, line 1, has an anchor or alias (& or *); write the value out"),
        (b"split: *name\n", "options.yaml, line 1, "),
        (b"split: !!str a\n", "options.yaml, line 1, has a tag"),
        (b"split: [[a]]\n", "options.yaml, line 1: split must be a value or a list of values"),
        (b"split: [a, b]\n", "--split must be a text, got a list (set in options.yaml, line 1)"),
        (b"split: null\n", "--split must have a value, got null; leave it out for its default (set in options.yaml"),
        (b"columns: {path: a,\n path: b}\n", "sets columns.path twice (lines 1 and 2); remove one"),
        (
            b"columns:\n  path: 2024-01-01\n",
            "line 2: columns.path must be a text, a number, true, false or null, got 20",
        ),
        (b"columns: {path: =}\n", "line 1: columns.path must be a text, a number, true, false or null, got ="),
        (b"columns: {[a]: b}\n", "line 1: a name in columns must be a text"),
        (b"split: a\n---\nsplit: b\n", "options.yaml, line 2, is not valid YAML"),
        (b"config: other.yaml\n", "unknown option config"),
        (None, "options.yaml does not exist; correct the path"),
    ],
)
def test_an_invalid_options_file_is_named_with_the_line(in_videos, capsys, command, content, message):
    if content is not None:
        Path("options.yaml").write_bytes(content)
    assert message in usage_error(capsys, *command.split(), "--config", "options.yaml")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("lr: abc", "--lr must be a number, got 'abc' (set in options.yaml, line 1)"),
        (
            "flip: 0\ntask: nix",
            "--task must be one of retrieval, recognition, selfsup, got 'nix' (set in options.yaml, ",
        ),
        ("data_config:\n  frames: x", "--data-config.frames must be an integer, got 'x' (set in options.yaml, line 2)"),
        ("data_config:\n  frmaes: 3", "line 2: unknown option data-config.frmaes; did you mean --data-config.frames"),
        ("batch_size: 2\nbatch-size: 3", "sets batch-size twice (lines 1 and 2)"),
        ("resume: 3", "--resume must be true or false in an option file (set in options.yaml, line 1)"),
        (
            "mixup: 0\nlr: -2",
            "--lr must be above 0 and finite, got -2.0; the default is 0.0003 (set in options.yaml, line 2)",
        ),
        (
            "data_config: {frames: 0}",
            "--data-config.frames must be an integer >= 1, got 0; give 1 or more (set in options.yaml, line",
        ),
        ("branch: stann", "got 'stann'; did you mean stan (set in options.yaml, line 1)"),
    ],
)
def test_a_wrong_value_in_an_options_file_is_reported_with_the_line(in_videos, capsys, content, message):
    Path("options.yaml").write_text(content)
    assert message in usage_error(capsys, "train", "my", "--config", "options.yaml")


def test_a_wrong_value_on_the_command_line_does_not_name_a_file(in_videos, capsys):
    Path("options.yaml").write_text("lr: 1\n")
    error = usage_error(capsys, "train", "my", "--config", "options.yaml", "--lr", "-3")
    assert error.startswith("clipvid train: --lr must be above 0 and finite, got -3.0; ")


def test_several_sources_and_patterns_are_expanded_in_order(tmp_path, monkeypatch, capsys):
    from clipvid.cli.datasets import sources_of

    monkeypatch.chdir(tmp_path)
    for name in ("b.csv", "a.csv", "c[1].csv"):
        Path(name).touch()
    assert sources_of(["[ab].csv"]) == ["a.csv", "b.csv"]
    assert sources_of(["b.csv", "a*"]) == ["b.csv", "a.csv"]
    assert sources_of(["a.csv"]) == sources_of(["a.csv", "./a.csv"]) == "a.csv"
    assert sources_of(["c[1].csv"]) == "c[1].csv"  # an existing file is no pattern
    error = refusal(capsys, "index", "build", "x*.mp4", codes=(2,))
    assert "no file to read matches the pattern 'x*.mp4'; correct it" in error
    assert sources_of([Path("a.csv").resolve().as_uri()]) == str(tmp_path / "a.csv")
    Path("notes.txt").touch()
    assert sources_of(["*"]) == ["a.csv", "b.csv", "c[1].csv"]  # as the library reads a pattern


def test_a_traceback_is_shown_on_request_only(monkeypatch, capsys, tmp_path):
    monkeypatch.chdir(tmp_path)
    Path("taps").mkdir()

    def broken(*_: object) -> None:
        raise KeyError("a fault")

    monkeypatch.setattr("clipvid.features.maintenance.parts_of", broken)
    error = refusal(capsys, "cache", "ls", "taps", codes=(1,))
    assert error == (
        "clipvid cache ls: unexpected KeyError: 'a fault'; CLIPVID_DEBUG=1 shows where, please report it\n"
    )
    with pytest.raises(KeyError):
        main(["cache", "ls", "taps", "--debug"])
    monkeypatch.setenv("CLIPVID_DEBUG", "1")
    with pytest.raises(KeyError):
        main(["cache", "ls", "taps"])


def test_the_message_of_an_error_of_the_work_names_options_as_typed(monkeypatch, capsys, tmp_path):
    monkeypatch.chdir(tmp_path)
    Path("taps").mkdir()

    def refuse(*_: object, **__: object) -> None:
        raise ValueError("tower must match exactly one tower, train_clip is no option here")

    monkeypatch.setattr("clipvid.features.maintenance.prune", refuse)
    error = refusal(capsys, "cache", "prune", "taps", "--tower", "x", codes=(2,))
    assert "--tower must match exactly one tower, train_clip is no option here" in error


@pytest.mark.skipif(not hasattr(signal, "SIGPIPE"), reason="needs signals")
def test_a_closed_pipe_ends_quietly():
    program = [sys.executable, "-m", "clipvid"]
    piped = subprocess.Popen([*program, "train", "--help"], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert piped.stdout is not None
    piped.stdout.close()
    piped.stdout = None
    assert (piped.communicate(timeout=60)[1], piped.returncode) == (b"", 141)


@pytest.mark.skipif(not hasattr(signal, "SIGHUP"), reason="needs signals")
@pytest.mark.usefixtures("default_signals")
@pytest.mark.parametrize(("name", "code"), [("SIGTERM", 143), ("SIGHUP", 129)])
def test_a_terminating_signal_is_a_clean_stop(name, code):
    script = (
        "import os, signal, sys\nfrom types import SimpleNamespace\nfrom clipvid.cli import commands, main\n"
        f"call = SimpleNamespace(run=lambda: os.kill(os.getpid(), signal.{name}))\n"
        "commands.load = lambda _: SimpleNamespace(parse=lambda _: call)\n"
        "sys.argv[1:] = ['cache', 'ls', 'x']\nsys.exit(main.main())"
    )
    ended = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, env=dict(os.environ))
    assert (ended.returncode, ended.stderr) == (code, "\nclipvid cache ls: terminated\n")


@pytest.mark.skipif(not hasattr(signal, "SIGHUP"), reason="needs signals")
def test_an_ignored_hangup_stays_ignored():
    script = (
        "import signal\nfrom clipvid.cli import main\nsignal.signal(signal.SIGHUP, signal.SIG_IGN)\n"
        "main._stop_cleanly()\nassert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN"
    )
    subprocess.run([sys.executable, "-c", script], check=True, env=dict(os.environ))


def test_completion_is_generated_for_a_shell(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert main(["--install-completion", "--shell", "bash"]) == 0
    script = next(path for path in tmp_path.rglob("*clipvid*") if path.is_file())
    assert "--batch-size" in script.read_text()
