"""Registries: names, lazy members, refusals, and plugins of other packages."""

from __future__ import annotations

import dataclasses
import importlib
import sys
from dataclasses import dataclass

import pytest

from clipvid import registry
from clipvid.registry import MIXERS, Registry

HOME = "json"  # any module that registers nothing


class Thing:
    """A thing of the tests.

    More of it.
    """


def registry_with(**members):
    things = Registry("thing", home=HOME)
    for name, member in members.items():
        things.register(name, member)
    return things


def test_members_are_registered_by_call_and_by_decorator():
    things = registry_with(first=Thing)

    @things.register("second", summary="the other one")
    class Other:
        pass

    assert list(things) == ["first", "second"]
    assert things["second"] is Other
    assert [things.summary(name) for name in things] == ["A thing of the tests.", "the other one"]
    assert things.names("*e*D") == ["second"]  # case is ignored
    assert repr(things) == "<registry of thing: first, second>"


def test_a_member_given_by_name_is_imported_at_the_first_lookup(monkeypatch):
    monkeypatch.delitem(sys.modules, "this", raising=False)
    things = registry_with(zen="this:d", zen_module="this")
    assert list(things) == ["zen", "zen_module"]
    assert "zen" in things
    assert "this" not in sys.modules
    assert things["zen"]["a"] == "n"
    assert things.lookup("zen_module") is sys.modules["this"]


def test_a_list_is_sorted_and_becomes_a_table_of_summaries_and_options():
    @dataclass(frozen=True)
    class Options:
        """Options of a thing."""

        depth: int = 4

    def make(width, *, drop, fill, size=(3, 1), mode="fast"): ...

    things = Registry("thing", home=HOME, supplied=("drop", "mode"))
    things.register("function", make, summary="made by a call")
    things.register("class", Thing)
    things.register("data", Options(depth=2))
    names = things.names()
    assert names == ["class", "data", "function"]
    assert names.to_frame().to_dict("list") == {
        "name": ["class", "data", "function"],
        "summary": ["A thing of the tests.", "Options of a thing.", "made by a call"],
        "options": [{}, {"depth": 2}, {"size": (3, 1)}],
    }
    assert list(things.names("x*").to_frame()) == ["name", "summary", "options"]
    with pytest.raises(ValueError, match="unknown thing 'datum'"):
        things.options("datum")


def test_options_of_members_are_those_that_users_set():
    assert registry.BRANCHES.options("stan")["depth"] == 4
    assert registry.MIXERS.options("rsa")["bottleneck"] == 1
    assert registry.MIXERS.options("conv") == {}
    assert registry.STORES.options("faiss") == {"kind": "flat"}
    assert registry.READERS.options("csv") == {"columns": None}
    assert list(registry.PROTOCOLS.options("msvd")["splits"]) == ["test", "val", "train"]


def test_an_unknown_name_is_refused_with_the_nearest():
    things = registry_with(stan=Thing, mean=Thing)
    with pytest.raises(ValueError, match=r"unknown thing 'stann' \(did you mean stan\?\); choose one of stan, mean"):
        things.lookup("stann")
    with pytest.raises(ValueError, match="unknown thing 'zz'; choose one of stan, mean"):
        things.lookup("zz")
    with pytest.raises(KeyError):
        things["zz"]


@pytest.mark.parametrize("name", ["", "two words", "a,b", "tab\t"])
def test_a_name_that_no_command_line_could_spell_is_refused(name):
    with pytest.raises(ValueError, match="must be a text without spaces and commas"):
        registry_with().register(name, Thing)


def run_in(module, source, **names):
    """Run lines as a module of this name does."""
    exec(source, {"__name__": module, **names})


def test_a_name_is_replaced_by_its_own_module_alone():
    class Thing2:
        pass

    things = registry_with(first=Thing)
    things.register("first", Thing2)  # as a notebook's cell that runs again
    assert things["first"] is Thing2
    message = r"thing 'first' is registered by .*test_registry already, and now by another\.module; choose another name"
    for source in ("things.register('first', Thing)", "@things.register('first')\ndef make(): ..."):
        with pytest.raises(ValueError, match=message):
            run_in("another.module", source, things=things, Thing=Thing)
    assert things["first"] is Thing2


def test_another_module_does_not_replace_a_protocol_of_the_package(restored_registries):
    official = registry.PROTOCOLS["msrvtt-1ka"]
    mine = dataclasses.replace(official, default="train")
    with pytest.raises(ValueError, match=r"'msrvtt-1ka' is registered by clipvid\.data\.formats\.protocols already"):
        registry.register_protocol("msrvtt-1ka", mine)
    assert registry.PROTOCOLS["msrvtt-1ka"] is official


def test_a_name_of_the_package_is_refused_before_anything_is_read(tmp_path, monkeypatch):
    (tmp_path / "things_home.py").write_text(
        "things.register('rsa', 1)\nassert 'rsa' in things\nthings.register('b', 2)"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    things = Registry("thing", home="things_home")
    monkeypatch.setattr("builtins.things", things, raising=False)
    with pytest.raises(ValueError, match="thing 'rsa' is registered by things_home already"):
        things.register("rsa", Thing)
    assert things.register("mine", Thing) is Thing
    assert sys.modules.pop("things_home")
    assert dict(things) == {"rsa": 1, "b": 2, "mine": Thing}


def test_a_home_that_fails_is_imported_again(tmp_path, monkeypatch):
    (tmp_path / "broken_home.py").write_text("things.register('rsa', 1)\nimport no_such_module_of_home")
    monkeypatch.syspath_prepend(str(tmp_path))
    things = Registry("thing", home="broken_home")
    monkeypatch.setattr("builtins.things", things, raising=False)
    for _ in range(2):
        with pytest.raises(ModuleNotFoundError, match="no_such_module_of_home"):
            things.lookup("rsa")


def test_every_member_of_the_package_can_be_imported_and_describes_itself():
    for members in registry.registries():
        assert len(members) > 0
        for name in members:
            assert members[name] is members.lookup(name)
            assert len(members.summary(name)) > 10, (members.kind, name)


@pytest.fixture
def plugin(tmp_path, monkeypatch, restored_registries):
    """Function that installs a package with one plugin module of the given source on the path of this process."""

    def install(source: str, name: str = "clipvid-test-plugin") -> None:
        module = name.replace("-", "_")
        (tmp_path / f"{module}.py").write_text(source)
        info = tmp_path / f"{module}-1.0.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
        (info / "entry_points.txt").write_text(f"[clipvid.plugins]\nmine = {module}\n")
        importlib.invalidate_caches()

    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(registry, "_loaded", set())
    return install


def test_a_plugin_is_imported_at_the_first_unknown_name_alone(plugin):
    plugin("from clipvid.registry import register_mixer\nregister_mixer('swap', print)\n")
    assert MIXERS.lookup("conv")
    assert "clipvid_test_plugin" not in sys.modules
    assert MIXERS.lookup("swap") is print
    assert sys.modules.pop("clipvid_test_plugin")
    assert MIXERS.lookup("swap") is print
    with pytest.raises(ValueError, match=r"unknown mixer 'swop' .*swap"):
        MIXERS.lookup("swop")
    assert "clipvid_test_plugin" not in sys.modules  # it is not imported a second time


def test_a_list_has_the_members_of_plugins(plugin):
    plugin("from clipvid.registry import register_mixer\nregister_mixer('swap', print)\n")
    assert registry.list_mixers("s*") == ["swap"]
    sys.modules.pop("clipvid_test_plugin")


def test_a_broken_plugin_is_named(plugin):
    plugin("raise RuntimeError('no licence')\n")
    message = r"plugin 'mine' of clipvid-test-plugin cannot be imported \(RuntimeError: no licence\); mend or uninstall"
    for _ in range(2):  # it is not remembered as loaded
        with pytest.raises(ImportError, match=message):
            MIXERS.lookup("swap")
