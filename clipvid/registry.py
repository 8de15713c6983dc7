"""Registries: the members of every open seam by name, the package's own and those of other packages alike.

Contract: a name in, the member out; ValueError with the nearest names for an unknown one. Each seam has one Registry.
It imports its `home`, the module that registers the package's own members, when it is first read. Packages that declare
a module in the entry-point group `clipvid.plugins` have it imported at the first unknown name. Knows nothing of what
members do.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from difflib import get_close_matches
from fnmatch import fnmatchcase
from importlib import import_module
from importlib.metadata import entry_points
from typing import Any, Protocol, TypeVar, overload

GROUP = "clipvid.plugins"
"""Entry-point group of packages that add members."""
T = TypeVar("T")


class Register(Protocol):
    """Type of the functions `register_*`: decorators by name, or calls with a name and a member."""

    @overload
    def __call__(self, name: str, *, summary: str = "") -> Callable[[T], T]: ...
    @overload
    def __call__(self, name: str, member: T, *, summary: str = "") -> T: ...


class Registry(Mapping[str, Any]):
    """Members of one seam by name, in the order in which they were registered.

    Reading it (`[]`, `in`, iteration) covers what is imported; `lookup` also asks the plugins.

    Args:
        kind: noun for a member in messages, such as "branch".
        home: module that registers the package's own members as it is imported.
        instances: True if members are objects, so that a class is called, without arguments, to make one.
    """

    def __init__(self, kind: str, *, home: str, instances: bool = False) -> None:
        self.kind = kind
        self._home = home
        self._instances = instances
        self._complete = False
        self._members: dict[str, Any] = {}
        self._summaries: dict[str, str] = {}

    @overload
    def register(self, name: str, *, summary: str = "") -> Callable[[T], T]: ...
    @overload
    def register(self, name: str, member: T, *, summary: str = "") -> T: ...
    def register(self, name: str, member: Any = None, *, summary: str = "") -> Any:
        """Add a member, as a decorator or by a call, and return what was given.

        Args:
            member: the object, or "module:attribute" to import it when it is first looked up.
            summary: one line for lists and help; by default the first line of the member's docstring.

        Raises ValueError for a name that another module has registered, or that has spaces or commas. Registering a
        name again from the same module replaces the member, as re-running a notebook's cell does.
        """
        if not isinstance(name, str) or not name or "," in name or any(map(str.isspace, name)):
            raise ValueError(
                f"name of a {self.kind} must be a text without spaces and commas, got {name!r}; a decorator "
                'takes it in parentheses: @register_...("name")'
            )
        if member is None:

            def decorate(decorated: T) -> T:
                return self.register(name, decorated, summary=summary)

            return decorate
        if name in self._members and _module_of(self._members[name]) != _module_of(member):
            raise ValueError(
                f"{self.kind} {name!r} is registered by {_module_of(self._members[name])} already, and now by "
                f"{_module_of(member)}; choose another name"
            )
        is_made = self._instances and isinstance(member, type)
        self._members[name], self._summaries[name] = member() if is_made else member, summary
        return member

    def lookup(self, name: str) -> Any:
        """Return the member of this name, after asking the plugins if it is unknown.

        Raises ValueError for a name that stays unknown, and ImportError for a plugin that cannot be imported.
        """
        if name not in self:
            load_plugins()
        if name not in self:
            raise ValueError(self.unknown(name))
        return self[name]

    def names(self, pattern: str = "*") -> list[str]:
        """Return the names that match a shell pattern, those of plugins included."""
        if not isinstance(pattern, str):
            raise ValueError(f"pattern must be a text, got {pattern!r}; * stands for any text")
        load_plugins()
        return [name for name in self if fnmatchcase(name, pattern)]

    def summary(self, name: str) -> str:
        """Return one line that describes a member."""
        if text := self._summaries[name] if name in self else "":
            return text
        doc = self.lookup(name).__doc__ or ""
        return doc.strip().partition("\n")[0]

    def unknown(self, name: object, names: Iterable[str] | None = None) -> str:
        """Return the error message for an unknown name; `names` are all that may be chosen, by default the members'."""
        names = list(self if names is None else names)
        near = get_close_matches(str(name), names, n=2)
        hint = f" (did you mean {' or '.join(near)}?)" if near else ""
        return f"unknown {self.kind} {name!r}{hint}; choose one of {', '.join(names)}"

    def __getitem__(self, name: str) -> Any:
        self._import_home()
        member = self._members[name]
        if isinstance(member, str):
            member = self._members[name] = resolved(member)
        return member

    def __contains__(self, name: object) -> bool:
        self._import_home()
        return isinstance(name, str) and name in self._members

    def __iter__(self) -> Iterator[str]:
        self._import_home()
        return iter(tuple(self._members))

    def __len__(self) -> int:
        self._import_home()
        return len(self._members)

    def __repr__(self) -> str:
        return f"<registry of {self.kind}: {', '.join(self)}>"

    def _import_home(self) -> None:
        if not self._complete:
            import_module(self._home)
            self._complete = True


def resolved(target: str) -> Any:
    """Return the object that "module:attribute" names, or the module that "module" names."""
    module, _, attribute = target.partition(":")
    imported = import_module(module)
    return getattr(imported, attribute) if attribute else imported


_loaded: set[str] = set()
_loading = threading.RLock()


def load_plugins() -> None:
    """Import the modules that installed packages declare in the entry-point group `clipvid.plugins`, once each.

    Raises ImportError, with the plugin and its package, for a module that cannot be imported.
    """
    with _loading:
        for entry in entry_points(group=GROUP):
            if entry.value in _loaded:
                continue
            package = entry.dist.name if entry.dist else "an unnamed package"
            try:
                entry.load()
            except Exception as error:
                raise ImportError(
                    f"plugin {entry.name!r} of {package} cannot be imported ({type(error).__name__}: {error}); mend or "
                    f"uninstall {package}"
                ) from error
            _loaded.add(entry.value)


def _module_of(member: Any) -> str:
    if isinstance(member, str):
        return member.partition(":")[0]
    return getattr(member, "__module__", None) or getattr(member, "__name__", type(member).__module__)


BRANCHES = Registry("branch", home="clipvid.models.branches.presets", instances=True)
"""Options of branches; see `BranchOptions`."""
MIXERS = Registry("mixer", home="clipvid.models.branches.mixers")
"""Makers of cross-frame modules: (width, heads, *, drop_path, options...) -> nn.Module."""
DECODERS = Registry("backend", home="clipvid.video.backends")
"""Decoders: modules or objects with `read`, `probe` and perhaps `stream`, as clipvid/video/backends/pyav.py."""
READERS = Registry("data set format", home="clipvid.data.formats")
"""Readers of annotations: (root, *, split, annotations, classes, allow_missing, check_files) -> VideoDataset."""
PROTOCOLS = Registry("protocol", home="clipvid.data.formats.protocols")
"""Evaluation protocols: `Protocol` objects, which are plain data."""
OBJECTIVES = Registry("task", home="clipvid.training.tasks")
"""Training objectives: (model, config) -> nn.Module from a TrainBatch to the loss."""
STORES = Registry("store", home="clipvid.search.stores")
"""Stores of vectors: classes with the methods of `Store`."""

register_branch: Register = BRANCHES.register
register_mixer: Register = MIXERS.register
register_decoder: Register = DECODERS.register
register_reader: Register = READERS.register
register_protocol: Register = PROTOCOLS.register
register_objective: Register = OBJECTIVES.register
register_store: Register = STORES.register


def registries() -> list[Registry]:
    """Return every registry."""
    return [BRANCHES, MIXERS, DECODERS, READERS, PROTOCOLS, OBJECTIVES, STORES]


def list_branches(pattern: str = "*") -> list[str]:
    """Return the names of branches that match a shell pattern, such as "vivit*"."""
    return BRANCHES.names(pattern)


def list_mixers(pattern: str = "*") -> list[str]:
    """Return the names of cross-frame mixers that match a shell pattern."""
    return MIXERS.names(pattern)
