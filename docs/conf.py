"""Settings of the documentation site, built by `bash scripts/docs.sh`.

Contract: the pages of docs/ are read on the code host too, so they are plain Markdown with relative links. README,
CONTRIBUTING and CHANGELOG stay at the root of the repository; the stubs of docs/project/ receive their text during the
build, which needs no network.
"""

from __future__ import annotations

import importlib.util
import os
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sphinx.application import Sphinx

DOCS = Path(__file__).parent
ROOT = DOCS.parent
sys.path.insert(0, str(ROOT))  # the checkout is documented, not an installed copy

from clipvid.runtime.version import __version__  # noqa: E402

project = "clipvid"
author = "The clipvid developers"
release = version = __version__

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx.ext.viewcode"]
root_doc = "index"
nitpicky = True
nitpick_ignore_regex = [
    ("py:.*", r"(?!clipvid\.).*"),  # types of other projects, whose inventories would have to be downloaded
    ("py:.*", r"clipvid\.([a-z_]+\.)+\w+"),  # types of signatures that are not public and have no entry
]

html_theme = "furo"
html_title = f"clipvid {release}"
html_copy_source = False
html_show_copyright = False

myst_heading_anchors = 3
default_role = "code"  # docstrings put names between single backticks

autodoc_member_order = "bysource"
autodoc_default_options = {"members": True, "undoc-members": True}
autodoc_typehints_format = "short"
autodoc_preserve_defaults = True
python_maximum_signature_line_length = 88
napoleon_numpy_docstring = False

if importlib.util.find_spec("clipvid.registry") is None:
    exclude_patterns = ["reference/registry.rst"]

ROOT_PAGES = {
    "project/overview": ROOT / "README.md",
    "project/contributing": ROOT / "CONTRIBUTING.md",
    "project/security": ROOT / "SECURITY.md",
    "project/changelog": ROOT / "CHANGELOG.md",
    "project/clipvid-mini": ROOT / "assets" / "clipvid-mini" / "README.md",
}
"""Pages of the site whose text is a file outside docs/."""
LINK = re.compile(r"(?<=\]\()(?!\w+:|#)([^)#\s]+)")


def relinked(text: str, *, docname: str, folder: Path) -> str:
    """Return a page whose relative links, written for `folder`, lead to the same files from the site's page."""
    pages = {path: f"{name}.md" for name, path in ROOT_PAGES.items()}

    def target(link: re.Match[str]) -> str:
        path = Path(os.path.normpath(folder / link[1]))
        page = DOCS / pages[path] if path in pages else path
        return os.path.relpath(page, (DOCS / docname).parent)

    return LINK.sub(target, text)


def read_page(app: Sphinx, docname: str, source: list[str]) -> None:
    """Replace the stub of a root page by its text, and adapt the links of Markdown pages (event `source-read`)."""
    path = ROOT_PAGES.get(docname, DOCS / f"{docname}.md")
    if path.is_file():
        source[0] = relinked(path.read_text(encoding="utf-8"), docname=docname, folder=path.parent)
        app.env.note_dependency(str(path))


_texts: dict[str, list[str]] = {}
"""Docstrings of attributes by name, as they were before napoleon."""


def store_text(app: Sphinx, what: str, name: str, obj: object, options: object, lines: list[str]) -> None:
    """Store the docstring of an attribute before napoleon sees it (event `autodoc-process-docstring`)."""
    if what in ("attribute", "data", "property"):
        _texts[name] = [*lines]


def restore_text(app: Sphinx, what: str, name: str, obj: object, options: object, lines: list[str]) -> None:
    """Undo napoleon's change of an attribute's docstring: it takes the text before a colon for a type."""
    if name in _texts:
        lines[:] = _texts.pop(name)


def setup(app: Sphinx) -> dict[str, bool]:
    """Register the handlers of pages and docstrings; called by Sphinx."""
    app.connect("source-read", read_page)
    app.connect("autodoc-process-docstring", store_text, priority=400)  # napoleon has 500
    app.connect("autodoc-process-docstring", restore_text, priority=600)
    return {"parallel_read_safe": True}
