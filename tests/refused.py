"""What the command line says when it refuses something."""

from clipvid.cli import main


def refusal(capsys, *words: str) -> str:
    """The one line that a refused command prints."""
    assert main(list(words)) == 1
    error = capsys.readouterr().err
    assert error.count("\n") == 1, error
    return error
