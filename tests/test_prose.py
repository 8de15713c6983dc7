"""The project's words: no retired identifier or phrase, and docstrings and comments of a plain form.

`docs/glossary.md` has the words that replaced them. Ruff's pydocstyle rules (pyproject.toml) hold the form of
docstrings; this file holds what a linter cannot know.
"""

from __future__ import annotations

import ast
import io
import re
import tokenize
from collections.abc import Iterable, Iterator
from itertools import pairwise
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FOLDERS = ("clipvid", "tests", "benchmarks", "scripts")
CODE = sorted(path for folder in FOLDERS for path in (ROOT / folder).rglob("*.py") if path != Path(__file__))
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")), ROOT / "assets" / "clipvid-mini" / "README.md"]


def words_of(text: str) -> frozenset[str]:
    return frozenset(text.split())


RETIRED_NAMES = words_of(
    """
    Reading named_reading VideoData owner owners NO_TERMS Recipe TextRecipe recipe_of trunk_of KeptTaps KeptTrunk
    kept keeping Facts FACTS facts Found found told own some here there whole known place Card ResultCard doctor
    twins Quick QuickAttention quick_copy rerun check_rerunnable open_feed feed LiveFeed StoredFeed PairFeed
    StoredClips Work copied_lr recompute accumulate
    """
)
"""Identifiers that must not come back, as variables, parameters, attributes, functions or classes."""

RETIRED_PHRASES = (
    r"\bzero_shot\(",
    r"TapStore\.tower\b",
    r"weights' move|weights move",
    r"quick cop(y|ies)",
    r"(?<!gc\.)\bunfreeze\b",
    r"\brecompute (runs|is|must)\b",
    r"\banew\b",
    r"of one's own",
    r"is a whole number from",
    r"stands? there twice",
    r"(evaluation|result)s? cards?\b",
    r"\btold by\b",
    r"starts at \d, got",
    r"(milliseconds|ms|seconds|MACs|images|frames) a (clip|step|frame)\b",
    r"recipe\.json|mode trunk|cached trunk",
    r"\bclipvid[./](quick|rerun|bases|cards|feed|doctor|keeping)\b",
)
"""Phrases that must not come back, in code, messages and pages."""

RELATIVE = re.compile(r"#\s*(which|that|who|whose|whom|where|so that|but for|as before)\b", re.IGNORECASE)
WEAK_OPENINGS = words_of(
    """
    of what which who whose where whether how why when in from for to at by on with without as under behind before
    after beside between among into over through below above until
    """
)
MAX_WEAK_SHARE = 0.02


NAME_FIELDS = {
    ast.Name: ("id",),
    ast.Attribute: ("attr",),
    ast.arg: ("arg",),
    ast.keyword: ("arg",),
    ast.FunctionDef: ("name",),
    ast.AsyncFunctionDef: ("name",),
    ast.ClassDef: ("name",),
    ast.ImportFrom: ("module",),
    ast.alias: ("name", "asname"),
    ast.ExceptHandler: ("name",),
    ast.MatchAs: ("name",),
    ast.MatchStar: ("name",),
    ast.MatchMapping: ("rest",),
}
"""Fields of syntax nodes that hold a name, perhaps a dotted one."""


def identifiers(nodes: Iterable[ast.AST]) -> Iterator[tuple[str, int]]:
    """Yield every name that code defines or uses, with its line; strings and comments are left out."""
    for node in nodes:
        for field in NAME_FIELDS.get(type(node), ()):
            if name := getattr(node, field):
                yield from ((part, node.lineno) for part in name.split("."))
        if isinstance(node, ast.Global | ast.Nonlocal):
            yield from ((name, node.lineno) for name in node.names)


def comments(text: str) -> Iterator[tuple[str, int]]:
    """Yield every comment with its line."""
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type == tokenize.COMMENT:
            yield token.string, token.start[0]


def docstrings(nodes: Iterable[ast.AST]) -> Iterator[str]:
    """Yield the docstrings of modules, classes, functions, fields and constants."""
    for node in nodes:
        documented = isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef)
        if documented and (docstring := ast.get_docstring(node)):
            yield docstring
        body = getattr(node, "body", None)
        for before, statement in pairwise(body) if isinstance(body, list) else ():
            is_text = isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant)
            if is_text and isinstance(before, ast.Assign | ast.AnnAssign) and isinstance(statement.value.value, str):
                yield statement.value.value


def opens_weakly(documented: str) -> bool:
    """Return True for a docstring whose first word is a preposition or a question word."""
    words = documented.split()
    return bool(words) and words[0].strip("`'\"(,:;.").lower() in WEAK_OPENINGS


def named(path: Path) -> str:
    return str(path.relative_to(ROOT))


@pytest.fixture(scope="module")
def texts() -> dict[Path, str]:
    """Text of every file of code and every page."""
    return {path: path.read_text(encoding="utf-8") for path in (*CODE, *PAGES)}


@pytest.fixture(scope="module")
def scanned(texts) -> dict[Path, tuple[list[tuple[str, int]], list[str]]]:
    """Retired identifiers with their lines, and docstrings, of every file of code: each is parsed once."""
    content = {}
    for path in CODE:
        nodes = [*ast.walk(ast.parse(texts[path]))]
        content[path] = [use for use in identifiers(nodes) if use[0] in RETIRED_NAMES], [*docstrings(nodes)]
    return content


def test_no_retired_identifier(scanned):
    uses = [f"{named(path)}:{line}: {name}" for path, (names, _) in scanned.items() for name, line in names]
    assert not uses, "docs/glossary.md has the words that replaced these"


def test_no_retired_phrase(texts):
    uses = [
        f"{named(path)}: {match[0]}"
        for path, text in texts.items()
        for phrase in RETIRED_PHRASES
        for match in re.finditer(phrase, text)
    ]
    assert not uses, "docs/glossary.md has the words that replaced these"


def test_no_comment_begins_with_a_relative_pronoun(texts):
    hanging = [
        f"{named(path)}:{line}: {comment}"
        for path in CODE
        if RELATIVE.search(texts[path])  # most files need no tokens
        for comment, line in comments(texts[path])
        if RELATIVE.match(comment)
    ]
    assert not hanging, "a comment is a sentence of its own"


@pytest.mark.parametrize("folder", FOLDERS)
def test_few_docstrings_open_with_a_preposition_or_a_question_word(scanned, folder):
    in_folder = (documented for path, (_, documented) in scanned.items() if path.is_relative_to(ROOT / folder))
    docstrings_of_folder = [text for documented in in_folder for text in documented]
    weak = [text.splitlines()[0] for text in docstrings_of_folder if opens_weakly(text)]
    assert len(weak) <= MAX_WEAK_SHARE * len(docstrings_of_folder), weak[:20]


def test_the_rules_see_what_they_forbid():
    uses = "found = 1", "def f(found): ...", "x.found", "f(found=1)", "import found.x", "from found import x"
    for code in (*uses, "global found", "import x as found", "class found: ..."):
        assert ("found", 1) in identifiers(ast.walk(ast.parse(code))), code
    assert not [name for name, _ in identifiers(ast.walk(ast.parse("x = 'found'  # found"))) if name == "found"]
    assert list(comments("x = '# that'  # which")) == [("# which", 1)]
    assert RELATIVE.match("# which would keep weights where they were")
    assert not RELATIVE.match("# weights stay where they are")
    documented = docstrings(ast.walk(ast.parse('"""Of files."""\nx = 1\n"""Seconds."""')))
    assert [opens_weakly(text) for text in documented] == [True, False]
