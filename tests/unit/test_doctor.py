"""What ``doctor`` thinks of machines, made up and real."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path
from typing import Any

import pytest

import shmstore
from shmstore.inspection import doctor, machine
from shmstore.inspection.doctor import BAD, OK, WARNING

_SOUND = machine.Facts(
    root="/dev/shm/shmstore-1000",
    file_system="tmpfs",
    size=8 << 30,
    free=7 << 30,
    writable=True,
    owner=1000,
    uid=1000,
    mode=0o700,
    in_container=False,
    remove_ipc=False,
    system_user=False,
    descriptors=1 << 20,
    max_map_count=1 << 20,
    inotify_instances=1024,
    cgroup_limit=None,
    leftover=0,
    stale=False,
    unreadable=(),
    versions={"shmstore": "1"},
)


def test_a_sound_machine_has_nothing_to_mend() -> None:
    """Every verdict is ok, and none tells to do anything."""
    found = doctor.verdicts(_SOUND)
    assert {one.level for one in found} == {OK}
    assert not any(one.mend for one in found)
    assert len({one.what for one in found}) == len(found) == 11


@pytest.mark.parametrize(
    ("facts", "what", "level", "words"),
    [
        ({"file_system": "ext4"}, "place", WARNING, "SHMSTORE_ROOT"),
        ({"owner": 0}, "permissions", BAD, "SHMSTORE_ROOT"),
        ({"writable": False}, "permissions", BAD, "SHMSTORE_ROOT"),
        ({"mode": 0o777}, "permissions", BAD, "chmod go-w"),
        ({"size": 64 << 20, "free": 64 << 20, "in_container": True}, "room", WARNING, "--shm-size"),
        ({"free": 1 << 20}, "room", WARNING, "shmstore gc"),
        ({"remove_ipc": True}, "RemoveIPC", BAD, "enable-linger"),
        ({"cgroup_limit": 1 << 30}, "memory cgroup", WARNING, "capacity"),
        ({"descriptors": 1024}, "open files", WARNING, "ulimit"),
        ({"max_map_count": 1000}, "mappings", WARNING, "vm.max_map_count"),
        ({"inotify_instances": 10}, "inotify instances", WARNING, "max_user_instances"),
        ({"leftover": 1}, "leftovers", WARNING, "shmstore gc"),
        ({"stale": True}, "leftovers", WARNING, "clears it"),
        ({"unreadable": ("d",)}, "damage", BAD, "shmstore check"),
    ],
)
def test_each_ill_is_told_with_its_remedy(
    facts: dict[str, Any], what: str, level: str, words: str
) -> None:
    """One verdict is no longer ok, the others stay so."""
    found = doctor.verdicts(dataclasses.replace(_SOUND, **facts))
    (ill,) = [one for one in found if one.level != OK]
    assert (ill.what, ill.level) == (what, level)
    assert words in ill.mend


@pytest.mark.parametrize(
    "facts",
    [
        {"remove_ipc": True, "system_user": True},
        {"remove_ipc": None},
        {"size": 0, "free": 0},
        {"owner": None, "mode": None},
        {"mode": 0o1777},
        {"descriptors": None, "max_map_count": None, "inotify_instances": None},
    ],
)
def test_what_does_no_harm_is_no_ill(facts: dict[str, Any]) -> None:
    """System users are spared by logind, a tmpfs may have no limit, a root need not be there."""
    found = doctor.verdicts(dataclasses.replace(_SOUND, **facts))
    assert {one.level for one in found} == {OK}


def test_nats_is_judged() -> None:
    """Out of reach and without JetStream is bad, small messages are a warning."""
    assert doctor.nats("refused", 0, None).level == BAD
    assert doctor.nats(None, 1 << 20, "it is not enabled").level == BAD
    assert doctor.nats(None, 1 << 16, None).level == WARNING
    assert doctor.nats(None, 1 << 20, None).level == OK


def test_the_facts_of_this_machine_are_read(root: str) -> None:
    """What is read agrees with what the system says; nothing is made."""
    own = f"{root}/own"
    facts = machine.facts(own, "default")
    assert not os.path.exists(own)
    assert facts.owner is None
    status = os.statvfs("/dev/shm")
    assert facts.size == status.f_blocks * status.f_frsize
    assert facts.file_system == "tmpfs"
    assert facts.max_map_count == int(Path("/proc/sys/vm/max_map_count").read_text())
    assert facts.versions["shmstore"] == shmstore.__version__
    shmstore.Store(own).put("d", "a", 1)
    Path(own, "default", "dags", "d", "manifest").write_bytes(b"")
    facts = machine.facts(own, "default")
    assert facts.owner == os.geteuid()
    assert facts.unreadable == ("d",)
