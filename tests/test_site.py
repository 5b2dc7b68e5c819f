"""The site, and the files by which others build and publish it."""

import ast
import re
import tomllib
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml

from alignctl import __version__, errors
from alignctl.reporting import glossary

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
SITE = yaml.safe_load((ROOT / "mkdocs.yml").read_text("utf-8"))
URLS = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]["urls"]
TUTORIALS = ("pretrain", "sft", "reward", "dpo", "rlhf", "online-dpo", "grpo")
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))


def listed(nav: Any) -> list[str]:
    """Pages of a navigation, whatever their sections."""
    if isinstance(nav, str):
        return [nav]
    parts = nav if isinstance(nav, list) else nav.values()
    return [page for part in parts for page in listed(part)]


def test_every_page_is_in_the_navigation() -> None:
    """A new page of docs/ also goes below nav in mkdocs.yml; decisions are listed by theirs."""
    pages = {str(path.relative_to(DOCS)) for path in DOCS.rglob("*.md")}
    decisions = {page for page in pages if re.match(r"adr/\d", page)}
    assert sorted(listed(SITE["nav"])) == sorted(pages - decisions)


def test_every_link_leads_to_a_file_of_the_site() -> None:
    for path in DOCS.rglob("*.md"):
        for link in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", path.read_text("utf-8")):
            assert (path.parent / link).is_file(), f"{path}: {link}"
            assert DOCS in (path.parent / link).resolve().parents, f"{path}: {link}"


def test_readers_browsers_ask_nobody_else() -> None:
    assert SITE["theme"]["font"] is False
    assert SITE["plugins"] == ["search"]
    assert not SITE.get("extra_javascript")
    assert not SITE.get("repo_url")


def test_the_project_has_one_address() -> None:
    assert SITE["edit_uri"] == f"{URLS['Source']}/edit/main/docs/"
    assert SITE["extra"]["social"][0]["link"] == URLS["Source"]
    assert SITE["site_url"] == URLS["Documentation"]
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text("utf-8"))
    assert citation["repository-code"] == URLS["Source"]
    assert citation["version"] == __version__


def test_the_lock_of_the_site_has_what_the_extra_names() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    lines = (ROOT / "requirements/docs.lock").read_text("utf-8").splitlines()
    pins = [line for line in lines if not line.startswith("#")]
    assert all(re.fullmatch(r"[\w.-]+==[\w.]+", pin) for pin in pins)
    names = {re.split("[>=<]", wanted)[0] for wanted in project["optional-dependencies"]["docs"]}
    assert names <= {pin.partition("==")[0] for pin in pins}


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.name)
def test_a_workflow_runs_our_commands_with_little_power(path: Path) -> None:
    workflow = yaml.safe_load(path.read_text("utf-8"))
    assert workflow["permissions"] == {"contents": "read"}
    assert "secrets." not in path.read_text("utf-8")
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text("utf-8"), re.MULTILINE))
    for job in workflow["jobs"].values():
        assert job["timeout-minutes"]
        assert set(job.get("strategy", {}).get("matrix", {}).get("target", [])) <= targets
        for step in job["steps"]:
            assert ("uses" in step) != ("run" in step)
            assert re.search(r"@v\d+\.\d+\.\d+$", step["uses"]) if "uses" in step else True
            made = re.match(r"make ([a-z-]+)", step.get("run", ""))
            assert made is None or made[1] in targets


def test_the_workflows_run_what_our_own_ci_runs() -> None:
    own = set(re.findall(r"^make ([a-z-]+)", (ROOT / ".ci/run").read_text("utf-8"), re.MULTILINE))
    text = "".join(path.read_text("utf-8") for path in WORKFLOWS)
    matrix = yaml.safe_load(WORKFLOWS[0].read_text("utf-8"))["jobs"]["make"]["strategy"]["matrix"]
    assert own == {*matrix["target"], *re.findall(r"run: make ([a-z-]+)", text)}


@cache
def texts() -> tuple[str, ...]:
    """Pieces of text in the sources, each as long as no value stands in it."""
    found: set[str] = set()
    for folder in ("src/alignctl", "stages"):
        for path in (ROOT / folder).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text("utf-8"))):
                if isinstance(node, ast.Constant) and isinstance(node.value, str):
                    found.add(node.value)
    return tuple(found)


def quoted() -> list[str]:
    """Messages in the page about failures."""
    page = (DOCS / "troubleshooting.md").read_text("utf-8")
    blocks = re.findall(r"^```text\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)
    return [line for block in blocks for line in block.splitlines()]


@pytest.mark.parametrize("message", quoted())
def test_a_message_that_is_quoted_is_one_of_ours(message: str) -> None:
    pieces = [piece.strip() for piece in message.split("...") if len(piece.strip()) > 1]
    assert pieces
    for piece in pieces:
        assert any(piece in text for text in texts()), piece


def test_each_class_of_errors_is_explained() -> None:
    page = (DOCS / "troubleshooting.md").read_text("utf-8")
    classes = [
        name
        for name, kind in vars(errors).items()
        if isinstance(kind, type) and issubclass(kind, errors.AlignctlError)
    ]
    assert len(classes) == 5
    assert not [name for name in classes if f"`{name}`" not in page]


def test_each_tutorial_is_of_a_stage_and_names_metrics_that_exist() -> None:
    pages = {path.stem for path in (DOCS / "tutorials").glob("*.md")} - {"index"}
    assert pages == set(TUTORIALS)
    for page in TUTORIALS:
        text = (DOCS / "tutorials" / f"{page}.md").read_text("utf-8")
        watch = text.partition("## Watch\n")[2].partition("\n## ")[0]
        names = set(re.findall(r"`([a-z_0-9.*]+)`", watch)) - {"sft", "dpo", "rlhf", "validation"}
        names = {name for name in names if not name.startswith(("_", "samples", "train."))}
        assert names, page
        assert not [name for name in names if not glossary.is_known(name)], page


def knobs(stage: str) -> set[str]:
    """Every knob of a stage, as the page of knobs lists them; `any` of all stages."""
    found = set()
    for part in (DOCS / "knobs.md").read_text("utf-8").split("\n## ")[1:]:
        heading = re.match(r"(?:`([\w.]+)` of )?(.+)", part)
        assert heading is not None
        is_everyones = "very stage that trains" in heading[2]
        if is_everyones or stage in ("any", *re.findall(r"`([^`]+)`", heading[2])):
            section = f"{heading[1]}." if heading[1] else ""
            found |= {f"{section}{key}" for key in re.findall(r"^\| `(\w+)` ", part, re.MULTILINE)}
    return found


@pytest.mark.parametrize("page", [*TUTORIALS, "troubleshooting"])
def test_each_knob_that_is_named_is_one_of_the_stage(page: str) -> None:
    """Others than those in commands, which `tests/test_readme.py` tries."""
    is_tutorial = page in TUTORIALS
    text = (DOCS / ("tutorials" if is_tutorial else "") / f"{page}.md").read_text("utf-8")
    tables = re.findall(r"^\| (`.+`) \| ", text, re.MULTILINE) if is_tutorial else []
    named = {name for cell in tables for name in re.findall(r"`([\w.]+)", cell)}
    named |= set(re.findall(r"`([a-z_]+\.[a-z_.]+)(?:=[^`]+)?`", text))
    named = {name for name in named if not name.endswith((".txt", ".json", ".jinja", ".jsonl"))}
    assert named
    assert not named - knobs(page if is_tutorial else "any")
