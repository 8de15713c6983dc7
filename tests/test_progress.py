"""Progress bars: text in a terminal, a widget in a notebook, no warning in either, and no cost when hidden."""

from __future__ import annotations

import subprocess
import sys
from types import SimpleNamespace

import pytest

from clipvid.runtime.display.progress import HiddenBar, progress_bar


@pytest.fixture
def fresh_tqdm(monkeypatch):
    """Make tqdm choose its kind of bar again: it does so once, when its module is imported."""
    for name in [name for name in sys.modules if name == "tqdm" or name.startswith("tqdm.")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "IPython", None)


def test_a_terminal_gets_a_line_of_text(fresh_tqdm, capsys):
    with progress_bar(4, "embed", unit="clip", initial=1) as bar:
        bar.update(3)
        bar.set_postfix_str("loss=0.5", refresh=False)
        assert bar.n == 4
    assert "embed: 100%" in capsys.readouterr().err


def test_a_notebook_without_ipywidgets_gets_the_line_and_no_warning(fresh_tqdm, monkeypatch, capsys):
    kernel = SimpleNamespace(config={"IPKernelApp": {}})
    monkeypatch.setitem(sys.modules, "IPython", SimpleNamespace(get_ipython=lambda: kernel))
    monkeypatch.setitem(sys.modules, "ipywidgets", None)
    with progress_bar(2, "embed") as bar:  # tests turn warnings into errors
        bar.update(2)
    assert "embed: 100%" in capsys.readouterr().err


def test_a_hidden_bar_counts_and_does_not_import_tqdm(capsys):
    with progress_bar(4, "embed", shown=False, initial=1) as bar:
        bar.update(2)
        bar.set_postfix_str("done", refresh=False)
        assert isinstance(bar, HiddenBar)
        assert bar.n == 3
    assert not capsys.readouterr().err
    script = (
        "import sys; from clipvid.runtime.display.progress import progress_bar\n"
        "with progress_bar(1, 'x', shown=False) as bar: bar.update()\n"
        "assert not [name for name in sys.modules if name.startswith('tqdm')]"
    )
    subprocess.run([sys.executable, "-c", script], check=True)
