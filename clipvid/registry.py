"""Registries: members by name, of every kind that other packages can extend.

Contract: a name in, the member out; ValueError with the nearest names for an unknown one. Each kind has one Registry.
It imports its `home`, the module that registers the package's own members, when it is first read. Packages that declare
a module in the entry-point group `clipvid.plugins` have it imported at the first unknown name. Knows nothing of what
members do.
"""

from __future__ import annotations

import dataclasses
import inspect
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from difflib import get_close_matches
from fnmatch import fnmatchcase
from importlib import import_module
from importlib.metadata import entry_points
from typing import TYPE_CHECKING, Any, Protocol, TypeVar, overload

if TYPE_CHECKING:
    import pandas as pd

__all__ = [  # noqa: RUF022  # tables, then how each is extended and listed, in one order
    "BRANCHES", "MIXERS", "DECODERS", "READERS", "PROTOCOLS", "OBJECTIVES", "STORES",
    "register_branch", "register_mixer", "register_decoder", "register_reader", "register_protocol",
    "register_objective", "register_store",
    "list_branches", "list_mixers", "list_decoders", "list_readers", "list_protocols", "list_objectives", "list_stores",
    "Registry", "Names", "registries", "load_plugins",
]  # fmt: skip

GROUP = "clipvid.plugins"
"""Entry-point group of packages that add members."""
T = TypeVar("T")


class Names(list[str]):
    """Sorted names of members, which `to_frame` turns into a table."""

    def __init__(self, names: Iterable[str], registry: Registry) -> None:
        super().__init__(sorted(names))
        self.registry = registry

    def to_frame(self) -> pd.DataFrame:
        """Return a row per name, with the member's summary and its options as a dictionary."""
        import pandas as pd

        rows = [(name, self.registry.summary(name), self.registry.options(name)) for name in self]
        return pd.DataFrame(rows, columns=["name", "summary", "options"])


class Register(Protocol):
    """Type of the functions `register_*`: decorators by name, or calls with a name and a member."""

    @overload
    def __call__(self, name: str, *, summary: str = "") -> Callable[[T], T]: ...
    @overload
    def __call__(self, name: str, member: T, *, summary: str = "") -> T: ...


class Registry(Mapping[str, Any]):
    """Members of one kind by name, in the order in which they were registered.

    Reading it (`[]`, `in`, iteration) covers what is imported; `lookup` also asks the plugins.

    Args:
        kind: noun for a member in messages, such as "branch".
        home: module that registers the package's own members as it is imported.
        instances: True if members are objects, so that a class is called, without arguments, to make one.
        supplied: keyword arguments of members that clipvid supplies, so that they are no options.
    """

    def __init__(self, kind: str, *, home: str, instances: bool = False, supplied: tuple[str, ...] = ()) -> None:
        self.kind = kind
        self._home = home
        self._instances = instances
        self._supplied = supplied
        self._complete = False
        self._members: dict[str, Any] = {}
        self._summaries: dict[str, str] = {}
        self._modules: dict[str, str] = {}  # the module that registered each member

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
        module = _calling_module()  # a member that is an instance, or imported, does not say where it is registered
        if member is not None:
            return self._add(name, member, summary=summary, module=module)

        def decorate(decorated: T) -> T:
            return self._add(name, decorated, summary=summary, module=module)

        return decorate

    def _add(self, name: str, member: Any, *, summary: str, module: str) -> Any:
        self._import_home()
        if (earlier := self._modules.get(name, module)) != module:
            raise ValueError(
                f"{self.kind} {name!r} is registered by {earlier} already, and now by {module}; choose another name"
            )
        is_made = self._instances and isinstance(member, type)
        self._members[name], self._summaries[name] = member() if is_made else member, summary
        self._modules[name] = module
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

    def names(self, pattern: str = "*") -> Names:
        """Return the names that match a shell pattern, sorted, those of plugins included. Case is ignored."""
        if not isinstance(pattern, str):
            raise ValueError(f"pattern must be a text, got {pattern!r}; * stands for any text")
        load_plugins()
        return Names((name for name in self if fnmatchcase(name.lower(), pattern.lower())), self)

    def summary(self, name: str) -> str:
        """Return one line that describes a member."""
        if text := self._summaries[name] if name in self else "":
            return text
        doc = self.lookup(name).__doc__ or ""
        return doc.strip().partition("\n")[0]

    def options(self, name: str) -> dict[str, Any]:
        """Return the options of a member with their defaults.

        These are the fields of a dataclass (a branch's options, a protocol), and otherwise the keyword-only parameters
        that have a default. Raises ValueError for an unknown name.
        """
        member = self.lookup(name)
        if dataclasses.is_dataclass(member) and not isinstance(member, type):
            return {field.name: getattr(member, field.name) for field in dataclasses.fields(member)}
        parameters = inspect.signature(member).parameters.values() if callable(member) else ()
        defaults = {p.name: p.default for p in parameters if p.kind is p.KEYWORD_ONLY and p.default is not p.empty}
        return {option: value for option, value in defaults.items() if option not in self._supplied}

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
        """Import the package's own members; do nothing in the thread that is importing them at this moment."""
        if not self._complete:
            home = import_module(self._home)
            # A home that registers its members is a module in the middle of its import, so others may still follow.
            self._complete = not getattr(home.__spec__, "_initializing", False)


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


def _calling_module() -> str:
    """Return the name of the module whose code called this one."""
    frame = inspect.currentframe()
    while frame is not None and frame.f_globals.get("__name__") in (__name__, None):  # None: a type checker's wrapper
        frame = frame.f_back
    return "__main__" if frame is None else str(frame.f_globals.get("__name__"))


BRANCHES = Registry("branch", home="clipvid.models.branches.presets", instances=True)
"""Options of branches; see `BranchOptions`."""
MIXERS = Registry("mixer", home="clipvid.models.branches.mixers", supplied=("drop_path",))
"""Makers of cross-frame modules: `(width, heads, *, drop_path, options...) -> nn.Module`."""
DECODERS = Registry("backend", home="clipvid.video.backends")
"""Decoders: modules or objects with `read`, `probe` and perhaps `stream`, as clipvid/video/backends/pyav.py."""
READERS = Registry("data set format", home="clipvid.data.formats")
"""Readers of annotations: `(root, *, split, annotations, classes, allow_missing, check_files) -> VideoDataset`."""
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


def list_branches(pattern: str = "*") -> Names:
    """Return the names of branches that match a shell pattern, such as "vivit*", sorted.

    `to_frame()` of this list and of the others below has a row per name, with summary and options.
    """
    return BRANCHES.names(pattern)


def list_mixers(pattern: str = "*") -> Names:
    """Return the names of cross-frame mixers that match a shell pattern, sorted."""
    return MIXERS.names(pattern)


def list_decoders(pattern: str = "*") -> Names:
    """Return the names of decoders that match a shell pattern, sorted; those of missing extras included."""
    return DECODERS.names(pattern)


def list_readers(pattern: str = "*") -> Names:
    """Return the names of data set formats that match a shell pattern, sorted; protocols have a list of their own."""
    return READERS.names(pattern)


def list_protocols(pattern: str = "*") -> Names:
    """Return the names of evaluation protocols that match a shell pattern, such as "msrvtt*", sorted."""
    return PROTOCOLS.names(pattern)


def list_objectives(pattern: str = "*") -> Names:
    """Return the names of training objectives (the tasks of `TrainConfig`) that match a shell pattern, sorted."""
    return OBJECTIVES.names(pattern)


def list_stores(pattern: str = "*") -> Names:
    """Return the names of stores of vectors that match a shell pattern, sorted."""
    return STORES.names(pattern)
