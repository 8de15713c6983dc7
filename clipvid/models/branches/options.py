"""Options of a branch: the base class of all of them, and the way from a name or a saved configuration to options.

Contract: a name or plain data in, options that check themselves out; ValueError for what is unknown. No torch: the
branch itself is imported when it is built (base.py). Knows nothing of any particular branch.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any, ClassVar, get_type_hints

from clipvid.config import checks
from clipvid.registry import BRANCHES, GROUP, load_plugins


@dataclass(frozen=True)
class BranchOptions:
    """Base of the options of a branch; every field of a subclass has a default."""

    kind: ClassVar[str]
    """Name of the kind of branch in config.json; by default the class's name in lower case, without "options"."""
    branch: ClassVar[Any] = None
    """Class of the branch, called with (backbone, options), or its "module:name", imported when it is built."""

    def __init_subclass__(cls) -> None:
        if "kind" not in cls.__dict__:
            cls.kind = cls.__name__.lower().removesuffix("options")

    @property
    def presets(self) -> dict[str, BranchOptions]:
        """Registered options of this kind by name; the command line and `create_model` accept the names."""
        members = ((name, BRANCHES[name]) for name in BRANCHES)
        return {name: options for name, options in members if type(options) is type(self)}

    def preset(self) -> str:
        """Return the name of the preset that differs from these options in the fewest fields, or else the kind."""
        values = asdict(self)
        presets = {name: asdict(options) for name, options in self.presets.items()}
        if not presets:
            return self.kind
        return min(presets, key=lambda name: sum(presets[name][field] != value for field, value in values.items()))

    def to_config(self) -> dict[str, Any]:
        """Return the options as plain data for config.json."""
        return {"kind": self.kind, **asdict(self)}


def choose(branch: str | BranchOptions, changes: Mapping[str, Any] | None = None) -> BranchOptions:
    """Return the options of a registered name with `changes` applied.

    Raises ValueError for an unknown name or option.
    """
    advice = "clipvid.registry.list_branches() has the names"
    checks.of_type("branch", branch, (str, BranchOptions), must="a name or an options object", advice=advice)
    options = BRANCHES.lookup(branch) if isinstance(branch, str) else branch
    name = branch if isinstance(branch, str) else branch.preset()
    fields = asdict(options)
    for option in changes or {}:
        if option not in fields:
            raise ValueError(f"branch {name} has no option {option!r}; it has {', '.join(fields)}{_elsewhere(option)}")
    return replace(options, **(changes or {}))


def from_config(config: Mapping[str, Any]) -> BranchOptions:
    """Invert `BranchOptions.to_config`; raise ValueError for a kind or an option of another version."""
    fields = dict(config)
    kind = fields.pop("kind", None)
    if not isinstance(kind, str):
        raise ValueError(f"the kind of a branch must be a name, got {kind!r}; save the model again")
    if kind not in _kinds():
        load_plugins()
    kinds = _kinds()
    if kind not in kinds:
        raise ValueError(
            f"unknown branch kind {kind!r}; this installation has {', '.join(kinds)}: import the module that registers "
            f"{kind!r} first, install the package that adds it (entry point {GROUP}), or update clipvid"
        )
    return choose(kinds[kind](), _typed(fields, kinds[kind]))


def _typed(fields: dict[str, Any], kind: type[BranchOptions]) -> dict[str, Any]:
    """Return the fields in the types of the options; raise ValueError for a value of another type."""
    import msgspec

    hints = get_type_hints(kind)
    for name, value in fields.items():
        try:
            fields[name] = msgspec.convert(value, hints.get(name, Any))
        except msgspec.ValidationError as error:
            raise ValueError(f"{name}: {str(error).replace('`', '')}, got {value!r}") from error
        except TypeError:  # a type of a plugin that msgspec does not know; the options check the value themselves
            continue
    return fields


def _kinds() -> dict[str, type[BranchOptions]]:
    return {type(BRANCHES[name]).kind: type(BRANCHES[name]) for name in BRANCHES}


def _elsewhere(option: str) -> str:
    """Return a note on the branches that do have an option: the main preset of each kind."""
    names = [kind().preset() for kind in _kinds().values() if hasattr(kind(), option)]
    return f"; {option} is an option of {' and '.join(names)}" if names else ""
