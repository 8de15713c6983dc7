"""The history of a training run as a table, a figure and a few lines.

Contract: one entry per epoch in (epoch, loss, lr and, where validated, score), pictures and text out. Knows nothing of
models.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from clipvid.errors import VideoError
from clipvid.runtime.display.tables import html_table
from clipvid.runtime.text import pluralize

if TYPE_CHECKING:
    import pandas as pd

    from clipvid.plots import Figure


class HistoryTables:
    """Base of a result of training: the methods that show its history."""

    history: Sequence[Mapping[str, float]]
    best_epoch: int
    best_score: float | None
    score_name: str
    seconds: float

    def to_frame(self) -> pd.DataFrame:
        """Return one row per epoch: epoch, loss, lr and score, which is not a number where nothing was validated."""
        import pandas as pd

        frame = pd.DataFrame(list(self.history), columns=list(self._columns()))
        return frame.astype({"epoch": int})

    def plot(self) -> Figure:
        """Return a matplotlib figure of the loss and of the validation score against epochs."""
        from clipvid import plots

        history = [{**entry, "epoch": int(entry["epoch"])} for entry in self.history]
        return plots.training_curve(history, score_name=f"validation {self.score_name}")

    def _columns(self) -> dict[str, None]:
        """Return the names of the entries, epoch, loss, lr and score first."""
        names = [name for entry in self.history for name in entry]
        return dict.fromkeys(["epoch", "loss", "lr", "score", *names])

    def __repr__(self) -> str:
        score = "" if self.best_score is None else f", {self.score_name} {self.best_score:.4g}"
        epochs = pluralize(len(self.history), "epoch")
        return f"{type(self).__name__}({epochs}, best epoch {self.best_epoch}{score}, {self.seconds:.0f} s)"

    def _repr_html_(self) -> str:
        rows = [[f"{entry[n]:.4g}" if n in entry else "" for n in self._columns()] for entry in self.history]
        return html_table(repr(self), list(self._columns()), rows, limit=50)


@dataclass(frozen=True, repr=False)
class TrainResult(HistoryTables):
    """The outcome of training. `history` has one entry per epoch: epoch, loss, lr and, where validated, score.

    `unreadable` lists the clips that were left out: of the training data, and of cached validation data too.
    """

    history: tuple[dict[str, float], ...]
    best_epoch: int
    best_score: float | None
    score_name: str
    seconds: float
    unreadable: tuple[VideoError, ...] = ()
    already_finished: bool = False
    """True if the resumed run was already finished, so that nothing was trained."""
    rescheduled: tuple[int, ...] = ()
    """Epochs finished at each resumption with another number of epochs, when the learning rates were rescheduled."""
    ended_by_callback: bool = False
    """True if a callback ended the run before its last epoch."""
