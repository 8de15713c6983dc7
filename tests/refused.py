"""What the command line says when it refuses something."""

from clipvid.cli import main


def refusal(capsys, *words: str) -> str:
    """The one line that a refused command prints, but for the note that no model was named."""
    assert main(list(words)) == 1
    said = capsys.readouterr().err.splitlines(keepends=True)
    error = "".join(line for line in said if not line.startswith("note: no --model given"))
    assert error.count("\n") == 1, error
    return error
