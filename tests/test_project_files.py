"""Citation, changelog, hooks and workflow are valid, and agree with pyproject.toml and the scripts."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).parents[1]
PROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def read_yaml(name: str) -> Any:
    return yaml.safe_load((ROOT / name).read_text(encoding="utf-8"))


def minor_versions(classifiers: list[str]) -> list[str]:
    """Return the Python versions, such as "3.11", that the classifiers name."""
    return [match[1] for entry in classifiers if (match := re.search(r":: (3\.\d+)$", entry))]


def test_the_citation_has_the_required_fields_and_the_version_of_the_package():
    citation = read_yaml("CITATION.cff")
    assert {"cff-version", "message", "title", "authors"} <= set(citation)
    assert (citation["version"], citation["license"]) == (PROJECT["version"], PROJECT["license"])
    (paper,) = citation["references"]
    assert {"type", "title", "authors", "year", "doi"} <= set(paper)
    assert [author["family-names"] for author in paper["authors"]] == ["Liu", "Huang", "Li", "Feng", "Wu", "Li"]


def test_the_page_of_stan_names_the_authors_of_the_citation():
    *first, last = (author["family-names"] for author in read_yaml("CITATION.cff")["references"][0]["authors"])
    assert f"{', '.join(first)} and {last}, " in (ROOT / "docs" / "stan.md").read_text(encoding="utf-8")


def test_the_changelog_begins_with_what_is_not_released():
    headings = re.findall(r"^## \[(.+?)\]", (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert headings[0] == "Unreleased"
    assert all(re.fullmatch(r"\d+\.\d+\.\d+", version) for version in headings[1:])


def test_hooks_run_installed_tools_and_fetch_nothing():
    repositories = read_yaml(".pre-commit-config.yaml")["repos"]
    assert {entry["repo"] for entry in repositories} == {"local"}
    tools = {hook["entry"].split()[0] for entry in repositories for hook in entry["hooks"]}
    installed = {re.match(r"[\w-]+", entry)[0] for entry in PROJECT["optional-dependencies"]["dev"]}
    assert tools == {"ruff", "pyright"} <= installed


def test_the_workflow_runs_scripts_that_exist_on_the_python_versions_of_the_classifiers():
    jobs = read_yaml(".github/workflows/test.yml")["jobs"]
    commands = [step["run"] for job in jobs.values() for step in job["steps"] if "run" in step]
    scripts = {command.split()[1] for command in commands if command.startswith("bash ")}
    assert scripts == {"scripts/test.sh", "scripts/test_lowest.sh", "scripts/docs.sh"}
    assert all((ROOT / script).is_file() for script in scripts)
    tested = jobs["newest"]["strategy"]["matrix"]["python"]
    assert tested == minor_versions(PROJECT["classifiers"])
    assert PROJECT["requires-python"] == f">={tested[0]}"
