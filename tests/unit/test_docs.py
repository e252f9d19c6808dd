"""What README and docs claim, held to the code."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
from pathlib import Path

from shmstore import crashpoints

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text()


def test_the_readme_example_runs_as_it_stands(tmp_path: Path, root: str) -> None:
    """The example of the README, saved to a file and run, prints the two sums."""
    (example,) = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)
    script = tmp_path / "example.py"
    script.write_text(example)
    ran = subprocess.run(
        [sys.executable, script],
        env=os.environ | {"SHMSTORE_ROOT": root, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert ran.stderr == ""
    assert ran.stdout == "[np.float64(49999995000000.0), np.float64(49999995000000.0)]\n"


def test_the_readme_example_is_short() -> None:
    """The README shows the store in about a dozen lines."""
    (example,) = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)
    assert len([line for line in example.splitlines() if line.strip()]) <= 12


def test_ci_finds_both_commands_in_the_readme() -> None:
    """The commands that CI runs are the README's, found by their markers."""
    for name in ("demo", "tests"):
        found = re.findall(rf"<!-- command: {name} -->\n```sh\n(.+)\n```", README)
        assert len(found) == 1, name
        assert found[0].startswith("python3 -m venv .venv && .venv/bin/pip install")


def test_links_of_the_docs_lead_somewhere() -> None:
    """Every relative link in README and docs names a file of the project."""
    pages = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
    assert len(pages) > 3
    for page in pages:
        for target in re.findall(r"\]\(([^)#:]+)\)", page.read_text()):
            assert (page.parent / target).exists(), f"{page.name}: {target}"


def test_the_table_of_deaths_names_every_crash_point() -> None:
    """docs/design.md says for each crash point what a death there means."""
    text = (ROOT / "docs" / "design.md").read_text()
    table = "\n".join(line for line in text.splitlines() if line.startswith("| `"))
    named = set(re.findall(r"`([a-z]+:[a-z-]+)`", table))
    for first, last in re.findall(r"`([a-z]+:[a-z-]+)` … `([a-z]+:[a-z-]+)`", table):
        points = list(crashpoints.POINTS)
        named.update(points[points.index(first) : points.index(last) + 1])
    assert named == set(crashpoints.POINTS)


def _shape(heading: str) -> dict[str, int]:
    """The rank of each module in a list of docs/design.md."""
    text = (ROOT / "docs" / "design.md").read_text()
    shape = text.split(f"{heading}\n")[1].split("```")[1]
    ranks: dict[str, int] = {}
    rank = 0
    for line in shape.strip().splitlines():
        modules = re.findall(r"(\w+)\.py", line)
        ranks |= dict.fromkeys(modules, rank)
        if re.sub(r"\w+\.py|codecs/", "", line).strip():  # what the group is about ends it
            rank += 1
    return ranks


def _imported(path: Path, package: str) -> set[str]:
    """The modules of a package that a module imports as it is loaded."""
    tree = ast.parse(path.read_text())
    found: set[str] = set()
    for node in tree.body:
        if isinstance(node, ast.ImportFrom) and node.module == package:
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith(f"{package}."):
            found.add(str(node.module).removeprefix(f"{package}.").split(".")[0])
    return found


def _hold_to_the_list(heading: str, folder: Path, package: str, groups: int) -> None:
    ranks = _shape(heading)
    modules = {path.stem: path for path in folder.glob("*.py")}
    assert set(ranks) == set(modules) - {"__init__", "__main__"}
    assert len(set(ranks.values())) > groups
    for name, rank in ranks.items():
        imported = _imported(modules[name], package)
        above = {one for one in imported if ranks.get(one, rank) < rank}
        assert not above, f"{name} imports {above}"


def test_imports_point_down_the_list_of_modules() -> None:
    """docs/design.md lists every module, and none imports one that stands above it."""
    _hold_to_the_list("## The shape", ROOT / "shmstore", "shmstore", 8)


def test_imports_of_the_node_point_down_their_list() -> None:
    """docs/design.md lists the node's modules, and none imports one that stands above it."""
    _hold_to_the_list("### The node", ROOT / "shmstore" / "node", "shmstore.node", 4)


def test_imports_of_the_inspection_point_down_their_list() -> None:
    """docs/design.md lists the inspection's modules, and none imports one above it."""
    folder = ROOT / "shmstore" / "inspection"
    _hold_to_the_list("### The inspection", folder, "shmstore.inspection", 1)


def test_the_tests_that_stand_for_the_guarantees_exist() -> None:
    """docs/guarantees.md names files and tests that there are."""
    text = (ROOT / "docs" / "guarantees.md").read_text()
    named = re.findall(r"`(?:[\w/{},]*/)?(test_\w+\.py)(?:::(\w+))?`", text)
    assert len(named) > 20
    files = {path.name: path for path in (ROOT / "tests").rglob("test_*.py")}
    for name, test in named:
        assert name in files, name
        assert not test or f"def {test}(" in files[name].read_text(), f"{name}::{test}"
    for path in re.findall(r"`((?:tools|tests)/[\w/]+(?:\.py)?)`", text):
        assert (ROOT / path).exists(), path


def test_the_format_page_states_the_version_and_the_magics() -> None:
    """docs/format.md is of the version that the code writes."""
    from shmstore import namespace, record

    text = (ROOT / "docs" / "format.md").read_text()
    assert f"format version {record.FORMAT_VERSION}." in text
    for magic in (
        namespace.MAGIC,
        record.MANIFEST_MAGIC,
        record.LOG_MAGIC,
        record.INDEX_MAGIC,
    ):
        shown = magic.to_bytes(8, "little").decode().replace("\r", "\\r").replace("\n", "\\n")
        assert f"`{shown}`" in text
