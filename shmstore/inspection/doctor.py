"""Verdicts over a machine's facts: what is in a store's way, and what mends it. Pure."""

from __future__ import annotations

from typing import NamedTuple

from shmstore.inspection.machine import Facts

OK, WARNING, BAD = "ok", "warning", "bad"

_SMALL_SHM = 64 << 20
_MIB = 1 << 20
_FEW_DESCRIPTORS = 4096
_FEW_MAPS = 65530
_FEW_INSTANCES = 128
_USUAL_PAYLOAD = 1 << 20
_IN_MEMORY = ("tmpfs", "ramfs")


class Verdict(NamedTuple):
    """What is thought of one thing.

    Attributes:
        what: The thing.
        level: "ok", "warning" (it may bite) or "bad" (a store does not work, or loses data).
        found: What was found, a clause.
        mend: The command or step that mends it; "" where nothing is to be mended.
    """

    what: str
    level: str
    found: str
    mend: str = ""


def verdicts(facts: Facts) -> list[Verdict]:
    """All of them, in the order in which they matter."""
    return [
        _place(facts),
        _permissions(facts),
        _room(facts),
        _remove_ipc(facts),
        _memory(facts),
        _least("open files", facts.descriptors, _FEW_DESCRIPTORS, "ulimit -Hn 65536 (or nofile "
               "in /etc/security/limits.conf; LimitNOFILE= of a unit): before Python 3.13 a view "
               "keeps one descriptor"),
        _least("mappings", facts.max_map_count, _FEW_MAPS, "sysctl -w vm.max_map_count=1048576"),
        _least("inotify instances", facts.inotify_instances, _FEW_INSTANCES,
               "sysctl -w fs.inotify.max_user_instances=1024 (the store itself needs none)"),
        _leftovers(facts),
        _damage(facts),
        Verdict("versions", OK, ", ".join(
            [f"Linux {facts.kernel}", f"Python {facts.python}"]
            + [f"{name} {version}" for name, version in facts.versions.items()]
        )),
    ]  # fmt: skip


def _place(facts: Facts) -> Verdict:
    found = f"{facts.root} is on {facts.file_system}"
    if facts.file_system in _IN_MEMORY:
        return Verdict("place", OK, found)
    mend = "give a root in shared memory: export SHMSTORE_ROOT=/dev/shm/shmstore-$(id -u)"
    return Verdict("place", WARNING, f"{found}, not in memory", mend)


def _permissions(facts: Facts) -> Verdict:
    if facts.owner is not None and facts.owner != facts.uid:
        found = f"{facts.root} belongs to user {facts.owner} and you are {facts.uid}"
        return Verdict("permissions", BAD, found, "export SHMSTORE_ROOT=/dev/shm/shmstore-$(id -u)")
    if not facts.writable:
        return Verdict("permissions", BAD, f"you may not write to {facts.root}",
                       "export SHMSTORE_ROOT=/dev/shm/shmstore-$(id -u)")  # fmt: skip
    if facts.mode is not None and facts.mode & 0o022 and not facts.mode & 0o1000:
        found = f"others may write to {facts.root}"
        return Verdict("permissions", BAD, found, f"chmod go-w {facts.root}")
    return Verdict("permissions", OK, "yours alone to write")


def _room(facts: Facts) -> Verdict:
    if not facts.size:
        return Verdict("room", OK, "its size has no limit")
    found = f"{facts.size // _MIB:,} MiB, {facts.free // _MIB:,} MiB free"
    if facts.size <= _SMALL_SHM:
        mend = "docker run --shm-size=8g, shm_size: in Compose, an emptyDir of medium Memory at "
        mend += "/dev/shm in Kubernetes, else mount -o remount,size=8G /dev/shm"
        why = "what Docker gives if it is not told" if facts.in_container else "very little"
        return Verdict("room", WARNING, f"{found}: {why}", mend)
    if facts.free < facts.size // 20:
        return Verdict("room", WARNING, f"{found}: nearly full", "shmstore du; shmstore gc")
    return Verdict("room", OK, found)


def _remove_ipc(facts: Facts) -> Verdict:
    what = "RemoveIPC"
    if facts.remove_ipc is None:
        return Verdict(what, OK, "no systemd-logind is at work here")
    if not facts.remove_ipc:
        return Verdict(what, OK, "systemd-logind leaves shared memory alone")
    if facts.system_user:
        return Verdict(what, OK, "systemd-logind spares system users like this one")
    found = "systemd-logind removes this user's files in /dev/shm when the last session ends"
    return Verdict(what, BAD, found, "loginctl enable-linger, or RemoveIPC=no in "
                   "/etc/systemd/logind.conf")  # fmt: skip


def _memory(facts: Facts) -> Verdict:
    if facts.cgroup_limit is None:
        return Verdict("memory cgroup", OK, "no limit")
    found = f"{facts.cgroup_limit // _MIB:,} MiB"
    if facts.size > facts.cgroup_limit:
        why = (
            f"{found}, less than the file system's {facts.size // _MIB:,} MiB; shared memory counts"
        )
        return Verdict("memory cgroup", WARNING, why, "raise the container's memory, or give "
                       "Store(capacity=...) less than that")  # fmt: skip
    return Verdict("memory cgroup", OK, found)


def _least(what: str, found: int | None, least: int, mend: str) -> Verdict:
    if found is None:
        return Verdict(what, OK, "no limit that can be read")
    if found < least:
        return Verdict(what, WARNING, f"at most {found:,}", mend)
    return Verdict(what, OK, f"at most {found:,}")


def _leftovers(facts: Facts) -> Verdict:
    if facts.stale:
        found = "the namespace is from before the machine's last start"
        return Verdict("leftovers", WARNING, found, "the next Store that opens it clears it")
    if facts.leftover:
        found = f"{facts.leftover:,} bytes of what killed processes left"
        return Verdict("leftovers", WARNING, found, "shmstore gc")
    return Verdict("leftovers", OK, "none")


def _damage(facts: Facts) -> Verdict:
    if not facts.unreadable:
        return Verdict("damage", OK, "every DAG can be read")
    some = ", ".join(map(repr, facts.unreadable[:5]))
    return Verdict("damage", BAD, f"cannot be read: {some}", "shmstore check; shmstore clear DAG")


def nats(unreachable: str | None, max_payload: int, no_jetstream: str | None) -> Verdict:
    """What is thought of a NATS server; see ``node.probe.Answer``."""
    if unreachable is not None:
        mend = "start one: nats-server -js; docs/hosts.md tells about credentials"
        return Verdict("NATS", BAD, f"cannot be reached: {unreachable}", mend)
    found = f"reached, messages up to {max_payload:,} bytes"
    if no_jetstream is not None:
        mend = "nats-server -js, or jetstream {} in its configuration"
        return Verdict("NATS", BAD, f"{found}; no JetStream: {no_jetstream}", mend)
    if max_payload < _USUAL_PAYLOAD:
        mend = "max_payload: 8MB in its configuration makes large values quicker"
        return Verdict("NATS", WARNING, f"{found}, with JetStream", mend)
    return Verdict("NATS", OK, f"{found}, with JetStream")
