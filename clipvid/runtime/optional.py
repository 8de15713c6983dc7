"""Imports of optional dependencies, with one message if they are missing. Imports nothing of clipvid but errors."""

from __future__ import annotations

import importlib
from types import ModuleType

from clipvid.errors import MissingExtraError


def require(module: str, *, extra: str | None = None, why: str) -> ModuleType:
    """Import `module`. Raise MissingExtraError, with its user and how to install it, if it is missing."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        install = f"pip install 'clipvid[{extra}]' ('.[{extra}]' in a checkout)" if extra else f"pip install {module}"
        raise MissingExtraError(f"{why} needs {module}, which cannot be imported ({error}); {install}") from error
