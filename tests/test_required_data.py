"""Tests that need the shared data are skipped where it is absent, unless the environment forbids that."""

from __future__ import annotations

import conftest
import pytest


@pytest.fixture
def absent(tmp_path, monkeypatch):
    monkeypatch.setattr(conftest, "SHARED_DATA", tmp_path)
    return monkeypatch


def test_absent_data_skips_a_test_unless_it_is_required(absent):
    absent.delenv(conftest.REQUIRE_DATA, raising=False)
    with pytest.raises(pytest.skip.Exception, match=r"needs the shared real data \(../shared/data/videos beside"):
        conftest.require_shared("videos")
    absent.setenv(conftest.REQUIRE_DATA, "1")
    with pytest.raises(pytest.fail.Exception, match=f"absent here; {conftest.REQUIRE_DATA}=1 forbids to skip"):
        conftest.require_shared("videos")


def test_present_data_is_returned(absent, tmp_path):
    absent.setenv(conftest.REQUIRE_DATA, "1")
    (tmp_path / "videos").mkdir()
    assert conftest.require_shared("videos") == tmp_path / "videos"


def test_the_marker_requires_its_part(absent, request):
    absent.setenv(conftest.REQUIRE_DATA, "1")
    request.node.add_marker(pytest.mark.shared_data("videos"))
    with pytest.raises(pytest.fail.Exception, match="shared/data/videos"):
        conftest.pytest_runtest_setup(request.node)
