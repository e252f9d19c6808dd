"""What docs/hosts.md shows, held to the code: options, variables, unit, manifests, server."""

from __future__ import annotations

import configparser
import re
import shlex
import subprocess
from pathlib import Path
from typing import Any

import click
import pytest

import shmstore
from shmstore.cli.demo import demo
from shmstore.cli.node import node
from shmstore.demo.server import binary

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "hosts.md").read_text()
MANIFESTS = ("compose", "daemonset", "sidecar")


def block(name: str) -> str:
    """The example that follows a mark."""
    (found,) = re.findall(rf"<!-- {name} -->\n```\w*\n(.*?)\n```", PAGE, re.DOTALL)
    return found


def parsed(lines: list[str], indent: int = 0) -> Any:
    """What a piece of YAML says, in the part of the language that the page uses; consumes it.

    Mappings and lists by indentation, lists in brackets, scalars as strings.
    """
    made: Any = None
    while lines:
        line = lines[0]
        depth = len(line) - len(line.lstrip(" "))
        if depth < indent:
            break
        assert depth == indent, f"indented by {depth} instead of {indent}: {line!r}"
        text = line.strip()
        if text.startswith("- "):
            made = [] if made is None else made
            item = text[2:]
            if re.match(r"[\w.-]+:( |$)", item):
                lines[0] = " " * (indent + 2) + item
                made.append(parsed(lines, indent + 2))
            else:
                lines.pop(0)
                made.append(item)
            continue
        made = {} if made is None else made
        found = re.fullmatch(r"([\w.-]+):(?: (.+))?", text)
        assert found, line
        key, value = found.groups()
        assert key not in made, f"{key} comes twice"
        lines.pop(0)
        if value is not None:
            inline = re.fullmatch(r"\[(.*)\]", value)
            made[key] = shlex.split(inline[1].replace(",", " ")) if inline else value.strip('"')
        elif lines and len(lines[0]) - len(lines[0].lstrip(" ")) > indent:
            made[key] = parsed(lines, len(lines[0]) - len(lines[0].lstrip(" ")))
        else:
            made[key] = None
    return made


def manifest(name: str) -> Any:
    text = block(name)
    assert "\t" not in text
    return parsed([line for line in text.splitlines() if line.strip()])


def options(command: click.Command) -> set[str]:
    return {name for one in command.params for name in one.opts} | {"--help"}


def check_call(words: list[str]) -> None:
    """Fails unless a call of shmstore is one that there is."""
    assert words[0].rpartition("/")[2] == "shmstore"
    command: click.Command = {"node": node, "demo": demo}[words[1]]
    for word in words[2:]:
        if word.startswith("--"):
            assert word.partition("=")[0] in options(command), word
        elif isinstance(command, click.Group) and word in command.commands:
            command = command.commands[word]


def test_every_call_that_is_shown_exists() -> None:
    """Commands and options of shmstore in code blocks and in the text are there."""
    shown = re.findall(r"^(shmstore .+)$", PAGE, re.MULTILINE)
    shown += re.findall(r"`(shmstore (?:node|demo)[^`]*)`", PAGE)
    assert len(shown) > 3
    for call in shown:
        check_call(shlex.split(call))


def test_every_variable_that_is_named_exists() -> None:
    """Every environment variable of shmstore that the page names is read by the code."""
    named = set(re.findall(r"SHMSTORE_[A-Z_]*[A-Z]", PAGE))
    sources = "\n".join(path.read_text() for path in (ROOT / "shmstore").rglob("*.py"))
    given = {f"SHMSTORE_NATS_{name}" for name in ("USER", "PASSWORD", "TOKEN", "CREDS", "NKEY")}
    given |= {f"SHMSTORE_NATS_{name}" for name in ("CA", "CERT", "KEY")}
    assert given < named
    for name in named - given:
        assert f'"{name}"' in sources, name
    settings = (ROOT / "shmstore" / "node" / "settings.py").read_text()
    for name in given:
        assert f'"{name.removeprefix("SHMSTORE_NATS_").lower()}"' in settings, name


def test_every_call_of_a_store_that_is_named_exists() -> None:
    """Methods and errors that the page names are public."""
    for name in set(re.findall(r"\bstore\.(\w+)\(", PAGE)):
        assert hasattr(shmstore.Store, name), name
    errors = set(re.findall(r"\b(?:Node|Registry|Fetch|Store|Corrupt|Unsafe)[A-Z]\w+", PAGE))
    assert len(errors) > 4
    for name in errors:
        assert issubclass(getattr(shmstore, name), shmstore.StoreError), name


def test_the_unit_parses_and_starts_a_node() -> None:
    """The systemd unit has its sections, says when it is ready, and starts what there is."""
    unit = configparser.ConfigParser(interpolation=None)
    unit.optionxform = str  # type: ignore[assignment, method-assign]
    unit.read_string(block("unit"))
    assert set(unit.sections()) == {"Unit", "Service", "Install"}
    # Five starts within ten seconds, as when credentials are refused, are systemd's limit.
    assert unit["Unit"]["StartLimitIntervalSec"] == "0"
    service = unit["Service"]
    assert service["Type"] == "notify"
    check_call(shlex.split(service["ExecStart"]))
    assert int(service["TimeoutStopSec"]) > 10
    for line in block("environment").splitlines():
        assert re.fullmatch(r"SHMSTORE_[A-Z_]+=\S+", line), line


@pytest.mark.parametrize("name", MANIFESTS)
def test_the_manifests_parse_and_hold_together(name: str) -> None:
    """Each volume that is mounted is there, and every container of a store has the same one."""
    found = manifest(name)
    if name == "compose":
        volumes = set(found["volumes"])
        parts = list(found["services"].values())
        mounts = [dict([reversed(one.split(":"))]) for part in parts for one in part["volumes"]]
        shared = [part for part in parts if "shm:/shm" in part["volumes"]]
        assert len(shared) == 2
        assert {part["user"] for part in shared} == {"1000"}
        assert {part["environment"]["SHMSTORE_ROOT"] for part in shared} == {"/shm/store"}
        assert found["volumes"]["shm"]["driver_opts"]["type"] == "tmpfs"
    else:
        spec = found["spec"]["template"]["spec"] if name == "daemonset" else found["spec"]
        volumes = {one["name"] for one in spec["volumes"]}
        parts = spec["containers"]
        mounts = [{one["mountPath"]: one["name"]} for part in parts for one in part["volumeMounts"]]
        assert spec["securityContext"]["runAsUser"] == "1000"
    for mount in mounts:
        assert set(mount.values()) <= volumes, mount
    calls = [part["command"] for part in parts if part["command"][0] == "shmstore"]
    assert calls
    for call in calls:
        check_call(call)


def test_the_daemonset_selects_its_own_pods() -> None:
    """The labels that the DaemonSet looks for are those that it gives."""
    spec = manifest("daemonset")["spec"]
    assert spec["selector"]["matchLabels"] == spec["template"]["metadata"]["labels"]
    assert spec["template"]["spec"]["hostNetwork"] == "true"


def test_the_servers_configuration_is_accepted(tmp_path: Path) -> None:
    """nats-server itself takes the configuration, without the certificates that we do not have."""
    text = re.sub(r"^tls \{.*?^\}\n", "", block("nats"), flags=re.DOTALL | re.MULTILINE)
    text = text.replace("/var/lib/nats", str(tmp_path / "kept"))
    path = tmp_path / "nats.conf"
    path.write_text(text)
    done = subprocess.run(
        [binary(), "-t", "-c", path], capture_output=True, text=True, check=False, timeout=60
    )
    assert done.returncode == 0, done.stderr
    assert "is valid" in done.stderr
