"""``shmstore report``: one page, whole in itself, looked at in a real browser."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

import shmstore
from shmstore.inspection import layers, treemap
from shmstore.inspection.graph import Node
from tests.cli import sample
from tests.cli.sample import call

_CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
_DEADLINE_S = 100.0


def _report(root: str, path: Path, *options: str) -> str:
    done = call("report", "-o", str(path), "--root", root, *options)
    assert done.returncode == 0, done.stderr
    return path.read_text()


def test_the_page_is_whole_in_itself(root: str, tmp_path: Path) -> None:
    """It refers to nothing outside, and tells DAGs, values and what check finds."""
    sample.make(root)
    page = _report(root, tmp_path / "r.html")
    assert not re.search(r"(src|href)\s*=\s*[\"'](?!#)|@import|url\(|https?://", page)
    for word in ("etl", "flights", "mean/carrier", "orphan: seg-", "pyarrow.lib.Table"):
        assert word in page
    assert "it was not wanted" in _report(root, tmp_path / "r.html", "--no-check")


def test_names_are_text_on_the_page(root: str, tmp_path: Path) -> None:
    """An id that is HTML, or that ends a script, is shown as it is."""
    store = shmstore.Store(root)
    evil = "</script><script>document.title='ran'</script><img src=x onerror=alert(1)>"
    store.put(evil, evil, 1, deps=[evil + "2"])
    page = _report(root, tmp_path / "r.html")
    assert page.count("<script>") == 1
    assert "<img" not in page
    assert "&lt;/script&gt;" in page


def test_the_page_of_many_values_stays_small(root: str, tmp_path: Path) -> None:
    """100,000 values and 300 DAGs make less than 2 MB."""
    store = shmstore.Store(root)
    for start in range(0, 100_000, 20_000):
        store.put_many(
            "many", {f"value-{number}": number for number in range(start, start + 20_000)}
        )
    for number in range(300):
        store.put(f"dag-{number}", "a", 1, deps=["b"])
    page = _report(root, tmp_path / "r.html", "--no-check")
    assert len(page) < 2_000_000
    assert "261 smaller DAGs are left out" in page


def test_damage_is_told_on_the_page(root: str, tmp_path: Path) -> None:
    """Exit code 5, and the others are shown."""
    store = shmstore.Store(root)
    store.put("bad", "a", 1)
    store.put("good", "a", 1)
    Path(root, "default", "dags", "bad", "manifest").write_bytes(b"rubbish")
    path = tmp_path / "r.html"
    done = call("report", "-o", str(path), "--root", root)
    assert done.returncode == 5
    assert "is damaged" in path.read_text()
    assert "good" in path.read_text()


@pytest.fixture
def seen_in_a_browser(root: str, tmp_path: Path) -> str:
    """A report, with a script at its end that clicks through it and writes down what it sees."""
    if _CHROMIUM is None:
        pytest.skip("there is no chromium to look at the page with")
    sample.make(root)
    page = _report(root, tmp_path / "r.html")
    clicks = """<script>
    const told = [];
    const ids = () => [...document.querySelectorAll("section:last-of-type tbody tr")]
      .map((row) => row.cells[1].textContent);
    const heads = document.querySelectorAll("section:last-of-type th");
    told.push("width " + document.documentElement.scrollWidth);
    told.push("before " + ids().join());
    heads[2].click(); told.push("by size " + ids().join());
    heads[2].click(); told.push("turned " + ids().join());
    heads[1].click(); told.push("by id " + ids().join());
    const click = new MouseEvent("click", {bubbles: true});
    document.querySelector("svg.treemap a").dispatchEvent(click);
    setTimeout(() => {
      const open = [...document.querySelectorAll("details[open] b")];
      told.push("open " + open.map((b) => b.textContent));
      const list = document.createElement("pre");
      list.id = "told"; list.textContent = told.join("\\n"); document.body.append(list);
    }, 300);
    </script>"""
    looked = tmp_path / "looked.html"
    looked.write_text(page.replace("</body>", clicks + "</body>"))
    done = subprocess.run(
        [
            _CHROMIUM,
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            "--window-size=375,812",
            f"--user-data-dir={tmp_path / 'profile'}",
            "--virtual-time-budget=5000",
            "--dump-dom",
            looked.as_uri(),
        ],
        capture_output=True,
        text=True,
        timeout=_DEADLINE_S,
        check=True,
    )
    (told,) = re.findall(r'<pre id="told">(.*?)</pre>', done.stdout, flags=re.DOTALL)
    return str(told)


def test_the_page_works_in_a_browser(seen_in_a_browser: str) -> None:
    """A click sorts, the treemap leads to its DAG, a phone needs no sideways scroll."""
    told = dict(line.split(" ", 1) if line[:2] != "by" else line.rsplit(" ", 1)
                for line in seen_in_a_browser.splitlines())  # fmt: skip
    assert int(told["width"]) <= 500  # the narrowest window that a headless browser makes
    by_size = ["delays", "flights", "a/b\\u202ec", "fitted", "summary", "mean/carrier"]
    assert told["before"].split(",") == by_size
    assert told["by size"].split(",") == by_size
    assert told["turned"].split(",") == by_size[::-1]
    assert told["by id"].split(",") == sorted(by_size)
    assert told["open"] == "etl"


def test_a_treemap_fills_its_place_in_proportion() -> None:
    """Areas are as the sizes, nothing lies over anything else or outside."""
    sizes = [50.0, 30.0, 12.0, 5.0, 2.0, 1.0]
    placed = treemap.squarified(sizes, 400, 300)
    for size, one in zip(sizes, placed, strict=True):
        assert one.width * one.height == pytest.approx(size / 100 * 400 * 300)
        assert -1e-6 <= one.x <= one.x + one.width <= 400 + 1e-6
        assert -1e-6 <= one.y <= one.y + one.height <= 300 + 1e-6
    for a in placed:
        for b in placed:
            if a is not b:
                across = min(a.x + a.width, b.x + b.width) - max(a.x, b.x)
                down = min(a.y + a.height, b.y + b.height) - max(a.y, b.y)
                assert across <= 1e-6 or down <= 1e-6
    assert treemap.squarified([], 10, 10) == []


def test_layers_lie_below_what_they_were_computed_from() -> None:
    """Each value is in a layer below its deps; a circle is cut somewhere; all are drawn once."""
    graph = {
        "a": Node("a", 1, ()),
        "b": Node("b", 1, ("a",)),
        "c": Node("c", 1, ("a", "b")),
        "x": Node("x", 1, ("y",)),
        "y": Node("y", 1, ("x",)),
    }
    found = layers.layered(graph)
    depth = {id: number for number, layer in enumerate(found) for id in layer}
    assert sorted(depth) == sorted(graph)
    assert depth["a"] < depth["b"] < depth["c"]
    assert depth["x"] != depth["y"]
    deep = {str(n): Node(str(n), 1, (str(n - 1),) if n else ()) for n in range(5000)}
    assert len(layers.layered(deep)) == 5000
