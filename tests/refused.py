"""Error messages of refused commands."""

import re

from clipvid.cli.main import main

NOTES = r"note: (no --model given|\d+ validation videos? will choose the best epoch|.*: left out: )"
"""Notes that small runs may print before the error."""


def refusal(capsys, *words: str, codes: tuple[int, ...] = (1, 2)) -> str:
    """Run a command that must fail and return the one line that it prints, without `NOTES`."""
    code = main(list(words))
    assert code in codes, code
    lines = capsys.readouterr().err.splitlines(keepends=True)
    error = "".join(line for line in lines if not re.match(NOTES, line))
    assert error.count("\n") == 1, error
    return error


def usage_error(capsys, *words: str) -> str:
    """Run a wrong command line and return the one line that it prints before it exits with 2."""
    return refusal(capsys, *words, codes=(2,))
