"""What the command line says when it refuses something."""

import re

from clipvid.cli.main import main

NOTES = r"note: (no --model given|\d+ validation videos? will choose the best epoch)"
"""Beginnings of what stands before a refusal of small runs."""


def refusal(capsys, *words: str) -> str:
    """The one line that a refused command prints, but for `NOTES`."""
    assert main(list(words)) == 1
    said = capsys.readouterr().err.splitlines(keepends=True)
    error = "".join(line for line in said if not re.match(NOTES, line))
    assert error.count("\n") == 1, error
    return error
