"""The memory cgroups' check, over a tree of files that says what a kernel would."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import shmstore
from shmstore import cgroup, compaction, files, mounts
from shmstore.descriptor import Descriptor

_MIB = 1 << 20
_NONE = 9223372036854771712


class Tree:
    """A stubbed /proc/self and stubbed hierarchies below it."""

    def __init__(self, place: Path) -> None:
        self.place = place
        self.proc = place / "proc"
        self.proc.mkdir()
        self.cgroups: list[str] = []
        self.mountinfo: list[str] = []
        self.tell()

    def tell(self) -> None:
        (self.proc / "cgroup").write_text("\n".join(self.cgroups) + "\n")
        (self.proc / "mountinfo").write_text("\n".join(self.mountinfo) + "\n")
        cgroup._look_at = 0.0

    def mount(self, first: bool, at: str = "mnt", root: str = "/") -> None:
        """Mounts a hierarchy of version 1 or 2."""
        (self.place / at).mkdir(exist_ok=True)
        kind, options = ("cgroup", "rw,memory") if first else ("cgroup2", "rw")
        number = len(self.mountinfo) + 30
        point = str(self.place / at).replace(" ", "\\040")
        self.mountinfo.append(
            f"{number} 1 0:{number} {root} {point} rw,nosuid shared:9 - {kind} cgroup {options}"
        )
        self.tell()

    def belong(self, line: str) -> None:
        """A line of /proc/self/cgroup."""
        self.cgroups.append(line)
        self.tell()

    def second(
        self, path: str, most: int | None, current: int, file: int = 0, shmem: int = 0
    ) -> None:
        """A cgroup of version 2."""
        self._write(
            path,
            {
                "memory.max": "max" if most is None else most,
                "memory.current": current,
                "memory.stat": f"anon 5\nfile {file}\nkernel 7\nshmem {shmem}\nfile_mapped 3",
            },
        )

    def first(self, path: str, most: int, current: int, **more: Any) -> None:
        """A cgroup of version 1."""
        stat = {
            "cache": 1,
            "shmem": 1,
            "total_cache": more.get("cache", 0),
            "total_shmem": more.get("shmem", 0),
        }
        if "above" in more:
            stat["hierarchical_memory_limit"] = more["above"]
        self._write(
            path,
            {
                "memory.limit_in_bytes": most,
                "memory.usage_in_bytes": current,
                "memory.use_hierarchy": more.get("use_hierarchy", 1),
                "memory.stat": "\n".join(f"{name} {value}" for name, value in stat.items()),
            },
        )

    def _write(self, path: str, texts: dict[str, Any]) -> None:
        directory = self.place / path
        directory.mkdir(parents=True, exist_ok=True)
        for name, text in texts.items():
            (directory / name).write_text(f"{text}\n")


@pytest.fixture
def tree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Tree:
    """A tree that is looked at instead of the machine's."""
    monkeypatch.setattr(cgroup, "_look_at", 0.0)
    monkeypatch.setattr(cgroup, "_limited", ())
    monkeypatch.setattr(cgroup, "_unchecked", 0)
    place = tmp_path / "a place with blanks"
    place.mkdir()
    made = Tree(place)
    monkeypatch.setattr(cgroup, "_PROC", str(made.proc))
    return made


def _refused(asked: int, headroom: int = 0) -> shmstore.StoreFull:
    with pytest.raises(shmstore.StoreFull) as refused:
        cgroup.check(asked, headroom)
    return refused.value


def _simple(tree: Tree, current: int, file: int = 0, shmem: int = 0) -> None:
    tree.mount(first=False)
    tree.belong("0::/job")
    tree.second("mnt/job", 100 * _MIB, current, file, shmem)


def test_version_2(tree: Tree) -> None:
    """What is above limit - current is refused, with all figures; the margin stays free."""
    _simple(tree, 60 * _MIB, file=50 * _MIB, shmem=50 * _MIB)
    assert cgroup.check(36 * _MIB) >= 36 * _MIB
    full = _refused(37 * _MIB)
    assert full.what == "memory of this process's cgroup"
    assert (full.asked, full.free, full.limit) == (37 * _MIB, 40 * _MIB, 100 * _MIB)
    assert full.kept == 4 * _MIB
    assert "Out of memory of this process's cgroup (asked 38,797,312 bytes" in str(full)


def test_page_cache_is_free_and_shared_memory_is_not(tree: Tree) -> None:
    """Page cache counts as free, as the kernel takes it back; what lies in tmpfs does not."""
    _simple(tree, 98 * _MIB, file=70 * _MIB, shmem=20 * _MIB)
    assert cgroup.check(48 * _MIB) == 52 * _MIB
    assert _refused(49 * _MIB).free == 52 * _MIB


def test_a_full_cgroup_is_not_less_than_empty(tree: Tree) -> None:
    """Use above the limit (it was lowered) is told as nothing free."""
    _simple(tree, 120 * _MIB)
    assert _refused(1).free == 0


@pytest.mark.parametrize("asked", [4096, _MIB, 8 * _MIB])
def test_as_much_again_stays_free_up_to_4_mib(tree: Tree, asked: int) -> None:
    """The margin follows what is asked for, so that a small delete still fits."""
    margin = min(asked, 4 * _MIB)
    _simple(tree, 100 * _MIB - asked - margin)
    assert cgroup.check(asked) == asked + margin
    assert _refused(asked + 4096).free == asked + margin
    assert _refused(asked, headroom=1).kept == margin + 1


def test_the_page_cache_is_only_looked_at_when_it_matters(tree: Tree) -> None:
    """With plenty free, memory.stat, which is slow, is not read."""
    _simple(tree, 10 * _MIB)
    (tree.place / "mnt/job/memory.stat").unlink()
    (tree.place / "mnt/job/memory.stat").mkdir()  # reading it would be an error that is swallowed
    seen: list[str] = []
    real = cgroup._stat

    def stat(path: str) -> dict[str, int]:
        seen.append(path)
        return real(path)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cgroup, "_stat", stat)
        cgroup.check(20 * _MIB)
        assert not seen
        with pytest.raises(shmstore.StoreFull):
            cgroup.check(90 * _MIB)
    assert seen


@pytest.mark.parametrize("which", ["mnt", "mnt/outer", "mnt/outer/inner"])
def test_every_ancestor_counts(tree: Tree, which: str) -> None:
    """A limit at any height is kept; those without one say nothing."""
    tree.mount(first=False)
    tree.belong("0::/outer/inner")
    for path in ("mnt", "mnt/outer", "mnt/outer/inner"):
        tree.second(path, 30 * _MIB if path == which else None, 20 * _MIB)
    assert cgroup.check(5 * _MIB) == 10 * _MIB
    assert _refused(8 * _MIB).limit == 30 * _MIB


def test_the_tightest_ancestor_decides(tree: Tree) -> None:
    """Of several limits, the one that leaves least is the one that counts."""
    tree.mount(first=False)
    tree.belong("0::/outer/inner")
    tree.second("mnt/outer", 40 * _MIB, 38 * _MIB)
    tree.second("mnt/outer/inner", 30 * _MIB, 3 * _MIB)
    assert cgroup.check(_MIB) == 2 * _MIB
    assert _refused(2 * _MIB).limit == 40 * _MIB


def test_version_1(tree: Tree) -> None:
    """The files of version 1, with the sums over the hierarchy, and ancestors."""
    tree.mount(first=True)
    tree.belong("5:cpu,cpuacct:/elsewhere")
    tree.belong("4:memory,hugetlb:/outer/inner")
    tree.first("mnt", _NONE, 900 * _MIB)
    tree.first("mnt/outer", 50 * _MIB, 45 * _MIB, cache=20 * _MIB, shmem=5 * _MIB)
    tree.first("mnt/outer/inner", _NONE, 45 * _MIB)
    assert [group.path for group in cgroup.limited()] == [f"{tree.place}/mnt/outer"]
    assert cgroup.check(10 * _MIB) == 20 * _MIB
    assert _refused(17 * _MIB).limit == 50 * _MIB


def test_version_1_without_a_hierarchy(tree: Tree) -> None:
    """An ancestor that does not count what is below it, as old kernels allowed, is left out."""
    tree.mount(first=True)
    tree.belong("4:memory:/outer/inner")
    tree.first("mnt", 10 * _MIB, 10 * _MIB)
    tree.first("mnt/outer", 10 * _MIB, 10 * _MIB, use_hierarchy=0)
    tree.first("mnt/outer/inner", 90 * _MIB, 45 * _MIB, use_hierarchy=0)
    assert [group.limit for group in cgroup.limited()] == [90 * _MIB]


def test_version_1_tells_of_limits_above_what_is_seen(tree: Tree) -> None:
    """In a container that sees its own cgroup only, a limit above it is known by memory.stat."""
    tree.mount(first=True, root="/pod/box")
    tree.belong("4:memory:/pod/box")
    tree.first("mnt", _NONE, 45 * _MIB, above=50 * _MIB)
    assert _refused(5 * _MIB).limit == 50 * _MIB


def test_both_versions_at_once(tree: Tree) -> None:
    """In a hybrid both trees are looked at; one without the memory controller has no say."""
    tree.mount(first=True, at="one")
    tree.mount(first=False, at="two")
    for line in ("4:memory:/job", "1:name=systemd:/job", "0::/other"):
        tree.belong(line)
    tree.first("one/job", 50 * _MIB, 45 * _MIB)
    (tree.place / "two/other").mkdir()
    assert [group.first for group in cgroup.limited()] == [True]
    tree.second("two/other", 20 * _MIB, 19 * _MIB)
    tree.tell()
    assert [group.first for group in cgroup.limited()] == [True, False]
    assert _refused(_MIB).limit == 20 * _MIB


@pytest.mark.parametrize(
    ("own", "root", "expected"),
    [
        # No cgroup namespace: the path is the host's, the mount shows the container's part.
        ("/docker/box", "/docker/box", ["mnt"]),
        ("/docker/box/job", "/docker/box", ["mnt/job", "mnt"]),
        # A cgroup namespace of its own.
        ("/", "/", ["mnt"]),
        ("/job", "/", ["mnt/job", "mnt"]),
        # The mount was made outside of the namespace and shows what is above it.
        ("/", "/../..", ["mnt"]),
        ("/job", "/..", ["mnt"]),
        # Moved out of the namespace: of what is mounted, nothing is above the process.
        ("/../other", "/", None),
        ("/docker/other", "/docker/box", None),
        ("/docker/boxes", "/docker/box", None),
        ("/../../x", "/..", None),
    ],
)
def test_where_a_cgroup_is_found(
    tree: Tree, own: str, root: str, expected: list[str] | None
) -> None:
    """Paths are read as seen from the cgroup namespace and from what is mounted."""
    tree.mount(first=False, root=root)
    found = cgroup.directories(f"0::{own}\n", mounts.read(f"{tree.proc}/mountinfo"), False)
    if expected is None:
        assert found == []
    else:
        assert found == [[f"{tree.place}/{path}" for path in expected]]


def test_the_mount_with_the_wider_view_is_used(tree: Tree) -> None:
    """Of two mounts of one hierarchy, the one that shows more ancestors counts."""
    tree.mount(first=False, at="narrow", root="/outer/inner")
    tree.mount(first=False, at="wide")
    tree.belong("0::/outer/inner")
    tree.second("narrow", None, 0)
    tree.second("wide/outer/inner", None, 0)
    tree.second("wide/outer", 10 * _MIB, 9 * _MIB)
    assert _refused(_MIB).limit == 10 * _MIB


@pytest.mark.parametrize("lost", ["cgroup", "mountinfo", "all"])
def test_without_anything_to_read_nothing_is_refused(tree: Tree, lost: str) -> None:
    """A machine without cgroups, or that hides them, has no limit."""
    _simple(tree, 100 * _MIB)
    for name in ("cgroup", "mountinfo"):
        if lost in (name, "all"):
            (tree.proc / name).unlink()
    assert cgroup.check(1 << 50) == cgroup.UNBOUNDED


def test_a_cgroup_that_goes_is_no_error(tree: Tree) -> None:
    """Between two looks the process may be moved and its cgroup removed."""
    _simple(tree, 90 * _MIB)
    _refused(50 * _MIB)
    for name in ("memory.current", "memory.stat", "memory.max"):
        (tree.place / "mnt/job" / name).unlink()
    assert cgroup.check(50 * _MIB) == cgroup.UNBOUNDED


def test_limits_are_looked_up_seldom(tree: Tree, monkeypatch: pytest.MonkeyPatch) -> None:
    """Which cgroups have limits is asked once a second, and anew in a forked child."""
    now = 100.0
    monkeypatch.setattr(cgroup, "monotonic", lambda: now)
    tree.mount(first=False)
    tree.belong("0::/job")
    tree.second("mnt/job", None, 99 * _MIB)
    cgroup.check(_MIB)
    tree.second("mnt/job", 100 * _MIB, 99 * _MIB)
    now += 0.9
    cgroup.check(_MIB)
    now += 0.2
    _refused(_MIB)
    tree.second("mnt/job", None, 99 * _MIB)
    _refused(_MIB)
    cgroup._after_fork_in_child()
    cgroup.check(_MIB)


def test_small_writes_are_checked_together(tree: Tree) -> None:
    """Many small writes are refused in time, each from then on, until there is room again."""
    _simple(tree, 99 * _MIB)
    for _ in range(10):
        cgroup.check_together(100_000)
    for _ in range(3):
        with pytest.raises(shmstore.StoreFull):
            cgroup.check_together(100_000)
    tree.second("mnt/job", 100 * _MIB, 9 * _MIB)
    for _ in range(30):
        cgroup.check_together(100_000)


@pytest.fixture
def limit(tree: Tree) -> Any:
    """Sets what is left below the limit of the process's cgroup."""
    tree.mount(first=False)
    tree.belong("0::/job")

    def set_left(left: int) -> None:
        tree.second("mnt/job", 1000 * _MIB, 1000 * _MIB - left)
        tree.tell()

    set_left(500 * _MIB)
    return set_left


def _is_refused(call: Any, *args: Any) -> None:
    with pytest.raises(shmstore.StoreFull) as refused:
        call(*args)
    assert refused.value.what == cgroup.WHAT


def test_a_put_past_the_limit_changes_nothing(root: str, limit: Any) -> None:
    """Large and many small values past the limit are StoreFull; all else goes on."""
    store = shmstore.Store(root)
    store.put("dag", "large", np.arange(1 << 18))
    store.put("dag", "small", 1)
    limit(_MIB)
    _is_refused(store.put, "dag", "larger", np.arange(1 << 18))
    _is_refused(store.put_many, "dag", {f"middle-{n}": np.arange(9000 + n) for n in range(20)})
    assert sorted(store.ids("dag")) == ["large", "small"]
    assert np.array_equal(store.get("dag", "large"), np.arange(1 << 18))
    store.put("dag", "small", 2)
    store.delete("dag", "large")
    limit(500 * _MIB)
    store.put("dag", "larger", np.arange(1 << 18))


def test_a_copy_past_the_limit_is_refused(root: str, limit: Any) -> None:
    """A get that copies would be killed, too; a view takes no memory."""
    store = shmstore.Store(root)
    store.put("dag", "large", np.arange(1 << 18))
    limit(2 * _MIB)
    with pytest.raises(shmstore.StoreFull, match="cgroup"):
        store.get("dag", "large", mode="copy")
    assert store.get("dag", "large").sum() == np.arange(1 << 18).sum()


def test_a_log_grows_by_as_much_as_there_is(root: str, limit: Any) -> None:
    """Near the limit the log is extended by little, and past it not at all."""
    store = shmstore.Store(root)
    kept = {f"id-{n}": "x" * 4000 for n in range(200)}
    store.put_many("dag", kept)
    limit(0)

    def fill() -> None:
        for n in range(1000):
            store.put("dag", f"more-{n}", "y" * 4000)
            kept[f"more-{n}"] = "y" * 4000

    _is_refused(fill)
    assert dict(store.dag("dag")) == kept
    limit(500 * _MIB)
    store.put("dag", "again", "z" * 4000)


def test_an_index_that_cannot_grow_is_refused(root: str, limit: Any) -> None:
    """Growing the index is held against the limit, too."""
    store = shmstore.Store(root)
    store.put("dag", "first", 1)
    limit(3 * 4096)
    _is_refused(store.put_many, "dag", {f"id-{n}": n for n in range(300)})
    assert list(store.ids("dag")) == ["first"]
    limit(500 * _MIB)
    store.put_many("dag", {f"id-{n}": n for n in range(300)})
    assert store.count("dag") == 301


def test_a_compaction_that_is_refused_is_put_off(
    root: str, limit: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Near the limit no new log is written; the put that would have done it stands."""
    store = shmstore.Store(root)
    refused: list[BaseException] = []
    real = compaction.compact

    def compact(*args: Any) -> Any:
        try:
            return real(*args)
        except BaseException as error:
            refused.append(error)
            raise

    monkeypatch.setattr(compaction, "compact", compact)
    store.put_many("dag", {f"id-{n}": "x" * 16_000 for n in range(60)})
    for n in range(60):
        store.put("dag", f"id-{n}", "y" * 15_000)
    limit(4096)
    for n in range(60):
        try:
            store.put("dag", f"id-{n}", "z" * 900)
        except shmstore.StoreFull:
            break
    assert refused
    assert all(isinstance(error, shmstore.StoreFull) for error in refused)
    assert store.count("dag") == 60


def test_many_dags_are_counted(root: str, limit: Any) -> None:
    """DAGs are small, but many of them are not."""
    store = shmstore.Store(root)
    store.put("dag", "small", 1)
    limit(0)

    def create() -> None:
        for n in range(100):
            store.put(f"dag-{n}", "small", n)

    _is_refused(create)
    assert store.get("dag", "small") == 1


def test_a_disk_is_not_held_against_the_limit(limit: Any) -> None:
    """Written to a disk, a value is page cache, which the kernel takes back."""
    limit(0)
    directory = Descriptor.open("/var/tmp", os.O_RDONLY | os.O_DIRECTORY)
    kinds = {mount.kind for mount in mounts.read() if mount.device == directory.device}
    assert kinds & {"tmpfs", "ramfs"} == set(), "this test needs a disk at /var/tmp"
    files.check_free(directory, _MIB)
    files.check_small(directory, 2 * _MIB)


@pytest.mark.parametrize("parts", [1, 3, 5000])
def test_a_large_write_is_checked_again_on_the_way(
    root: str, limit: Any, monkeypatch: pytest.MonkeyPatch, parts: int
) -> None:
    """Every stride of a large write the rest is held against what is left by then."""
    monkeypatch.setattr(files, "STRIDE", 1 << 16)
    written: list[int] = []
    real = os.pwritev

    def pwritev(fd: int, pieces: Any, at: int) -> int:
        if sum(map(len, pieces)) > 1 << 16:
            raise AssertionError("more than a stride in one write")
        if at >= 5 << 16:
            limit(0)  # somebody else takes it all
        written.append(at)
        return real(fd, pieces, at)

    monkeypatch.setattr(os, "pwritev", pwritev)
    value = memoryview(bytes(range(256)) * (10 << 8))
    size = -(-len(value) // parts)
    pieces = [value[start : start + size] for start in range(0, len(value), size)]
    file = Descriptor.open(root, os.O_TMPFILE | os.O_RDWR)
    try:
        _is_refused(files.write_all, file, pieces)
        assert 5 << 16 <= max(written) < 7 << 16
        # What has its memory already needs no more of it.
        os.posix_fallocate(file.fd, 0, len(value))
        assert files.write_all(file, pieces) == len(value)
        assert os.pread(file.fd, len(value), 0) == value
    finally:
        file.close()
