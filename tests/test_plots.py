"""Plots show their data at a size that fits it, and are written completely or not at all."""

from __future__ import annotations

import gc
import sys
import weakref

import numpy as np
import pytest
import torch
from matplotlib.font_manager import FontProperties
from PIL import Image

from clipvid.plots import (
    RetrievalRow,
    RetrievedClip,
    TradeOffPoint,
    charts,
    confusion_matrix,
    film_strip,
    film_strips,
    recall_curve,
    retrieval_grid,
    save,
    style,
    trade_off,
    training_curve,
)

MAGENTA, CYAN = (250, 10, 240), (10, 240, 250)  # colours that the style itself never uses
HISTORY = [{"run": run, "epoch": e, "loss": 1 / (e + 1), "score": e} for run in ("a", "b") for e in range(3)]


@pytest.fixture
def coarse(monkeypatch) -> None:
    """A third of the resolution, for claims that do not count pixels."""
    coarser = style.DPI // 3
    for module in (style, charts, film_strips):
        monkeypatch.setattr(module, "DPI", coarser)


def clip(colour, *, n_frames=3, height=24, width=24):
    return torch.tensor(colour, dtype=torch.uint8).view(1, 3, 1, 1).expand(n_frames, 3, height, width).contiguous()


def pixels(path):
    return np.asarray(Image.open(path).convert("RGB")).astype(int)


def area(path, colour):
    """Return the number of pixels of nearly this colour."""
    if isinstance(colour, str):
        colour = tuple(int(colour[i : i + 2], 16) for i in (1, 3, 5))
    return int((np.abs(pixels(path) - np.array(colour)).max(axis=2) < 12).sum())


def test_grid_shows_every_frame_of_every_hit(tmp_path):
    hits = (RetrievedClip(clip(MAGENTA), 0.9, True), RetrievedClip(clip(CYAN), 0.1, False))
    path = save(retrieval_grid([RetrievalRow("two colours", hits)]), tmp_path / "grid.png")
    assert area(path, MAGENTA) == pytest.approx(area(path, CYAN), rel=0.05)
    assert area(path, MAGENTA) > 0.1 * pixels(path)[..., 0].size


def test_right_and_wrong_differ_in_colour_and_in_shape(tmp_path):
    def grid(right, name):
        return save(retrieval_grid([RetrievalRow("q", (RetrievedClip(clip(CYAN), 0.5, right),))]), tmp_path / name)

    right, wrong = grid(True, "right.png"), grid(False, "wrong.png")
    assert area(right, style.RIGHT) > 500
    assert area(right, style.WRONG) == 0
    assert area(wrong, style.RIGHT) == 0
    grey_right, grey_wrong = (np.asarray(Image.open(path).convert("L")) > 200 for path in (right, wrong))
    assert (grey_right != grey_wrong).sum() > 200  # dashes, and cross instead of tick, differ in grey too


def test_long_sentences_make_the_page_taller_and_are_not_clipped(tmp_path):
    def grid(query, caption):
        hit = RetrievedClip(clip(CYAN), 0.5, True, caption)
        return pixels(save(retrieval_grid([RetrievalRow(query, (hit,))]), tmp_path / "grid.png"))

    short, long = grid("a dog", "a dog"), grid("a dog runs " * 30, "unbreakable" * 30)
    assert long.shape[1] == short.shape[1]
    assert long.shape[0] > short.shape[0] + 100
    for border in (long[:4], long[-4:], long[:, :4], long[:, -4:]):
        assert (border == 255).all()


def test_wrapping_loses_no_letter_and_keeps_the_width():
    page, font = film_strips._Page(width=5.0, side=0.2), FontProperties(size=10)
    text = "the $quick$ brown fox " + "x" * 300
    lines = page.wrap(text, width=2.0, font=font)
    assert "".join(lines).replace(" ", "") == text.replace(" ", "")
    assert max(page.measure(line, font) for line in lines) <= 2


def test_clips_of_different_sizes_keep_their_aspect_ratio(tmp_path):
    hits = (RetrievedClip(clip(MAGENTA, width=72), 0.9, True), RetrievedClip(clip(CYAN, n_frames=1), 0.1, False))
    shot = pixels(save(retrieval_grid([RetrievalRow("q", hits)]), tmp_path / "grid.png"))
    rows, columns = np.nonzero(np.abs(shot - MAGENTA).max(axis=2) < 12)
    height, width = np.ptp(rows) + 1, np.ptp(columns) + 1
    assert width / height == pytest.approx(3 * 3, rel=0.15)  # three frames of 3:1 side by side


def test_film_strip_breaks_into_lines_and_keeps_every_frame(tmp_path):
    one_row = pixels(save(film_strip(clip(CYAN, n_frames=4), per_row=4), tmp_path / "one.png"))
    two_rows = pixels(save(film_strip(clip(CYAN, n_frames=8), per_row=4), tmp_path / "two.png"))
    assert two_rows.shape[1] == one_row.shape[1]
    assert two_rows.shape[0] > 1.7 * one_row.shape[0]
    assert area(tmp_path / "two.png", CYAN) == pytest.approx(2 * area(tmp_path / "one.png", CYAN), rel=0.02)


def test_training_curve_draws_each_run_in_a_colour_of_its_own(tmp_path):
    both = save(training_curve(HISTORY, title="a title that is rather long " * 5), tmp_path / "both.png")
    alone = save(training_curve(HISTORY[:3]), tmp_path / "alone.png")
    assert area(both, style.RUN_COLOURS[1]) > 100
    assert area(alone, style.RUN_COLOURS[1]) == 0


@pytest.mark.usefixtures("coarse")
def test_training_curve_without_scores_has_one_panel(tmp_path):
    with_scores = save(training_curve(HISTORY), tmp_path / "with.png")
    without = save(training_curve([{"epoch": 0, "loss": 2.0}, {"epoch": 1, "loss": 1.0}]), tmp_path / "without.png")
    assert pixels(without).shape[1] < 0.7 * pixels(with_scores).shape[1]


def test_legend_names_the_best_epoch_of_a_run():
    run = {"epoch": [0, 1, 2], "loss": [3, 2, 1], "score": [None, 61.24, 40.0]}
    assert charts._run_label("stan", run, score_name="R@1") == "stan   best 61.2 at epoch 1"
    assert charts._run_label("stan", {**run, "score": [None] * 3}, score_name="R@1") == "stan"


def test_confusion_matrix_is_dark_where_the_share_is_high(tmp_path):
    path = save(confusion_matrix(torch.tensor([[9, 0], [0, 1]]), ["left", "right"]), tmp_path / "matrix.png")
    dark = area(path, "#0a2f55")
    assert dark > 0.1 * pixels(path)[..., 0].size  # both diagonal cells: shares of the row, not counts


@pytest.mark.usefixtures("coarse")
@pytest.mark.parametrize("n_classes", [1, 24, 61])
def test_confusion_matrix_of_any_number_of_classes_keeps_its_margins(tmp_path, n_classes):
    names = [f"a class with a long name, number {i}" for i in range(n_classes)]
    shot = pixels(save(confusion_matrix(np.eye(n_classes), names, title="long title " * 20), tmp_path / "matrix.png"))
    for border in (shot[:3], shot[-3:], shot[:, :3], shot[:, -3:]):
        assert (border == 255).all()


@pytest.mark.parametrize(
    ("draw", "message"),
    [
        (lambda path: save(training_curve([]), path), "history is empty"),
        (lambda path: save(training_curve([{"epoch": 1}]), path), r"\{'epoch': 1\} lacks loss"),
        (
            lambda path: save(retrieval_grid([RetrievalRow("q", ())]), path),
            "must have hits, got 1 rows without any; give",
        ),
        (lambda path: save(confusion_matrix(np.eye(3), ["a", "b"]), path), r"\(C, C\) for 2 classes, got \(3, 3\)"),
        (lambda path: save(film_strip(clip(CYAN)[:0]), path), r"at least one frame, got shape \(0, 3, 24, 24\); give"),
        (lambda path: save(film_strip(clip(CYAN), per_row=0), path), "per_row must be an integer >= 1, got 0; give"),
        (lambda path: save(film_strip(clip(CYAN)), path.with_suffix(".mp4")), r"cannot draw 'x.mp4'; .* png"),
    ],
)
def test_wrong_input_is_named_and_leaves_no_file(tmp_path, draw, message):
    with pytest.raises(ValueError, match=message):
        draw(tmp_path / "x.png")
    assert not list(tmp_path.iterdir())


def test_a_failed_drawing_leaves_the_old_file_and_no_partial_one(tmp_path, monkeypatch):
    path = save(film_strip(clip(CYAN)), tmp_path / "new" / "strip.png")
    before = path.read_bytes()

    def write_half_and_fail(self, draft, **_):
        draft.write_bytes(b"half a picture")
        raise OSError("disk full")

    monkeypatch.setattr(style.Figure, "savefig", write_half_and_fail)
    with pytest.raises(OSError, match="disk full"):
        save(film_strip(clip(MAGENTA)), path)
    assert path.read_bytes() == before
    assert list(path.parent.iterdir()) == [path]


def test_drawing_never_loads_pyplot(tmp_path, monkeypatch):
    monkeypatch.delattr("matplotlib.pyplot", raising=False)
    monkeypatch.setitem(sys.modules, "matplotlib.pyplot", None)  # an import of it now fails
    with pytest.raises(ImportError):
        import matplotlib.pyplot  # noqa: F401
    save(training_curve([{"epoch": 0, "loss": 1.0}]), tmp_path / "x.svg")
    assert (tmp_path / "x.svg").read_text().startswith("<?xml")


@pytest.mark.usefixtures("coarse")
def test_a_mark_is_a_labelled_line_across_the_chart(tmp_path):
    points = [TradeOffPoint("a", 2.0, 20.0, 1.0, "one"), TradeOffPoint("b", 200.0, 90.0, 2.0, "two")]
    words = {"title": "Cost", "cost": "ms", "quality": "%"}
    plain, marked = (
        pixels(save(trade_off(points, **words, mark=mark), tmp_path / "chart.png")) for mark in (None, (50.0, "chance"))
    )
    assert plain.shape == marked.shape
    changed = (plain != marked).any(axis=2)
    lines = changed.sum(axis=1)
    assert lines.max() > 0.5 * changed.shape[1] * 5 / 8  # dashes of 5 and gaps of 3 across the axes
    assert changed[: int(np.argmax(lines)) - 2].any(), "the label must be above the line"


@pytest.mark.usefixtures("coarse")
def test_figures_leave_no_trace_in_matplotlib_and_notebooks_show_them(tmp_path):
    figure = training_curve(HISTORY)
    shown = figure._repr_png_()
    assert shown == save(figure, tmp_path / "x.png").read_bytes()
    gone = weakref.ref(figure)
    del figure
    gc.collect()
    assert gone() is None
    pyplot = sys.modules.get("matplotlib.pyplot")
    assert pyplot is None or not pyplot.get_fignums()


def test_a_recall_curve_passes_through_the_shares_of_its_ranks():
    ranks = {"t2v": np.array([1, 1.5, 4, 10]), "v2t": np.array([2.0, 2.0])}
    axes = recall_curve(ranks, 10, title="Retrieval").axes[0]
    t2v, v2t, chance = (dict(zip(*map(np.ndarray.tolist, line.get_data()), strict=True)) for line in axes.lines)
    assert [t2v[k] for k in (1, 2, 4, 9, 10)] == [25, 50, 75, 75, 100]
    assert [v2t[k] for k in (1, 2)] == [0, 100]
    assert chance[5] == 50
    with pytest.raises(ValueError, match="ranks must not be empty"):
        recall_curve({}, 10)


def test_galleries_of_different_sizes_have_a_chance_line_each():
    ranks = {"t2v": np.array([1, 4]), "v2t": np.array([2.0, 50])}
    axes = recall_curve(ranks, {"t2v": 10, "v2t": 100}).axes[0]
    lines = {line.get_label(): line for line in axes.lines}
    assert list(lines) == ["t2v", "v2t", "chance, t2v", "chance, v2t"]
    for name, size in (("t2v", 10), ("v2t", 100)):
        k, chance = lines[f"chance, {name}"].get_data()
        assert (k[-1], chance[-1]) == (size, 100)
        assert chance[list(k).index(5)] == pytest.approx(500 / size)
        assert lines[name].get_xdata()[-1] == size, "no curve goes on beyond its gallery"
        assert lines[f"chance, {name}"].get_color() == lines[name].get_color()
    equal = recall_curve(ranks, {"t2v": 100, "v2t": 100}).axes[0]
    assert [line.get_label() for line in equal.lines] == ["t2v", "v2t", "chance"]
    with pytest.raises(ValueError, match="got none for v2t; add it"):
        recall_curve(ranks, {"t2v": 10})
    with pytest.raises(ValueError, match="n_gallery must be integers >= 1, got 0"):
        recall_curve(ranks, 0)
