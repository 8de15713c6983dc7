"""Progress bars: a widget in a notebook, a line of text in a terminal. The only file that imports tqdm.

Contract: tqdm is imported when the first bar is shown, so a run without bars does not pay for it. Without ipywidgets a
notebook gets the line of text, and no warning.
"""

from __future__ import annotations

import warnings
from typing import Any, Protocol, runtime_checkable

from clipvid.runtime.display.names import show


@runtime_checkable
class ProgressBar(Protocol):
    """The part of a tqdm bar that clipvid uses."""

    n: Any
    """Position of the bar, from 0 to its total."""

    def update(self, n: int = 1, /) -> Any: ...

    def set_postfix_str(self, text: str, /, refresh: bool = True) -> Any: ...

    def close(self) -> Any: ...

    def __enter__(self) -> Any: ...

    def __exit__(self, kind: Any, error: Any, traceback: Any, /) -> Any: ...


class HiddenBar:
    """A bar that counts and shows nothing."""

    def __init__(self, initial: int = 0) -> None:
        self.n: Any = initial

    def update(self, n: int = 1, /) -> None:
        self.n += n

    def set_postfix_str(self, text: str, /, refresh: bool = True) -> None: ...

    def close(self) -> None: ...

    def __enter__(self) -> HiddenBar:
        return self

    def __exit__(self, kind: Any, error: Any, traceback: Any, /) -> None: ...


def progress_bar(
    total: int, title: str, *, unit: str = "it", shown: bool = True, initial: int = 0, postfix: str | None = None
) -> ProgressBar:
    """Return a bar that counts from `initial` to `total`, for a `with` block; hidden if not `shown` or empty."""
    if not shown or not total:
        return HiddenBar(initial)
    with warnings.catch_warnings():
        # tqdm.auto warns in a notebook that lacks ipywidgets, and then writes the line of text all the same.
        warnings.simplefilter("ignore")
        from tqdm.auto import tqdm
    return tqdm(total=total, initial=initial, desc=show(title), unit=unit, postfix=postfix)
