"""Interactive sessions show models and training runs in a line, and small tables with special characters escaped."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from clipvid.models.factory import attach, create_model
from clipvid.models.heads import LinearClassifier
from clipvid.runtime.display.tables import html_table, latex_table, latex_text, markdown_table
from clipvid.training.history import TrainResult

HISTORY = (
    {"epoch": 1.0, "loss": 2.5, "lr": 1e-4},
    {"epoch": 2.0, "loss": 1.25, "lr": 5e-5, "score": 61.5},
)


@pytest.fixture(scope="module")
def model():
    return create_model("clipvid-mini", branch_kwargs={"depth": 1})


def test_a_model_is_shown_by_its_base_branch_frames_and_parameters(model, tiny_clip):
    trainable = sum(p.numel() for _, p in model.trainable_parameters())
    total = sum(p.numel() for p in model.parameters())
    assert repr(model) == (
        f"VideoCLIP(base clipvid-mini, branch stan, frames any number, trainable parameters {trainable:,} of {total:,})"
    )
    assert "\n" in repr(model.branch)  # the tree of modules stays within reach
    other = attach(tiny_clip, branch_kwargs={"depth": 1})
    other.head = LinearClassifier(other.embed_dim, ("a", "b"))
    other.training_record = {"data_config": {"frames": 8}}
    assert "an object given by the caller, branch stan, classes 2, frames 8, " in repr(other)
    assert len(str(nn.ModuleList([other])).splitlines()) == 3
    page = other._repr_html_()
    assert page.count("<tr>") == 1 + 5
    assert len(page) < 1000


def test_a_model_with_a_fixed_number_of_frames_shows_it(model):
    vivit = attach(model.backbone, "vivit-b2", branch_kwargs={"depth": 1, "temporal_depth": 1, "width": 32, "heads": 2})
    assert f"frames {vivit.branch.options.frames}, " in repr(vivit)


def test_a_training_run_is_a_table_a_figure_and_a_line():
    result = TrainResult(HISTORY, 2, 61.5, "R@1", 12.3)
    frame = result.to_frame()
    assert frame.columns.tolist() == ["epoch", "loss", "lr", "score"]
    assert frame["epoch"].tolist() == [1, 2]
    assert frame["loss"].tolist() == [2.5, 1.25]
    assert math.isnan(frame["score"][0])
    assert frame["score"][1] == 61.5
    assert repr(result) == "TrainResult(2 epochs, best epoch 2, R@1 61.5, 12 s)"
    assert result._repr_html_().count("<tr>") == 3
    losses, scores = (axes.lines[0].get_ydata() for axes in result.plot().axes)
    assert list(losses) == [2.5, 1.25]
    assert scores[1] == 61.5
    never = TrainResult((), 0, None, "R@1", 0.0)
    assert never.to_frame().empty
    assert repr(never) == "TrainResult(0 epochs, best epoch 0, 0 s)"


def test_tables_escape_what_their_language_would_read():
    odd = "a|b \\ <i>_&%$#{}~^\nnext"
    markdown = markdown_table(["x", "y"], [[odd, "1"]]).splitlines()
    assert markdown[1] == "| --- | ---: |"
    assert markdown[2] == "| a\\|b \\\\ &lt;i&gt;_&amp;%$#{}~^ next | 1 |"
    latex = latex_table(["x", "y"], [[odd, "1"]])
    assert r"a|b \textbackslash{} <i>\_\&\%\$\#\{\}\textasciitilde{}\textasciicircum{} next & 1 \\" in latex
    assert latex.startswith("\\begin{tabular}{lr}\n\\toprule\n")
    assert latex_text("50 %") == r"50 \%"
    page = html_table(odd, ["x"], [["<script>alert(1)</script>"]] * 30, limit=3)
    assert "<script" not in page
    assert page.count("&lt;script&gt;") == 3
    assert "and 27 more" in page
    assert "more</p>" not in html_table("t", ["x"], [["1"]])
    assert html_table("t", ["x"], [["q" * 1000]]).count("q") == 199


def test_short_reprs_do_not_depend_on_values(model):
    before = repr(model)
    with torch.no_grad():
        model.branch.requires_grad_(False)
    assert "trainable parameters 0 of" in repr(model) != before
    model.branch.requires_grad_(True)
    assert repr(model) == before
