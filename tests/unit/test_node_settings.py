from __future__ import annotations

from pathlib import Path

import pytest

from shmstore.node.settings import Settings


@pytest.mark.parametrize(
    ("url", "servers"),
    [
        ("nats://h:1", ("nats://h:1",)),
        ("h", ("nats://h:4222",)),
        ("h:7", ("nats://h:7",)),
        ("tls://h", ("tls://h:4222",)),
        ("nats://[::1]:5", ("nats://[::1]:5",)),
        ("nats://10.0.0.1, nats://b:1 ,c", ("nats://10.0.0.1:4222", "nats://b:1", "nats://c:4222")),
    ],
)
def test_addresses(url: str, servers: tuple[str, ...]) -> None:
    """One address or several, with or without scheme and port."""
    settings = Settings.parse(url, {})
    assert settings.servers == servers
    assert settings.shown == ", ".join(servers)
    assert settings.wants_tls == (url == "tls://h")


@pytest.mark.parametrize(
    ("url", "env", "expected"),
    [
        ("nats://u:PSW@h", {}, ("u", "PSW", None)),
        ("nats://u:PSW%40%2F%3A@h", {}, ("u", "PSW@/:", None)),
        ("nats://TKN%2FT@h", {}, (None, None, "TKN/T")),
        ("nats://u:PSW@a,nats://b", {}, ("u", "PSW", None)),
        ("nats://h", {"SHMSTORE_NATS_TOKEN": "TKN"}, (None, None, "TKN")),
        ("h", {"SHMSTORE_NATS_USER": "u", "SHMSTORE_NATS_PASSWORD": "PSW"}, ("u", "PSW", None)),
        (
            "nats://a:b@h",
            {"SHMSTORE_NATS_USER": "u", "SHMSTORE_NATS_PASSWORD": "PSW"},
            ("u", "PSW", None),
        ),
        ("h", {"SHMSTORE_NATS_TOKEN": ""}, (None, None, None)),
    ],
)
def test_secrets(
    url: str, env: dict[str, str], expected: tuple[str | None, str | None, str | None]
) -> None:
    """User and password or a token, of the URL or the environment, and never shown."""
    settings = Settings.parse(url, env)
    assert (settings.user, settings.password, settings.token) == expected
    for secret in expected[1:]:
        assert secret is None or secret not in settings.shown + repr(settings)


@pytest.mark.parametrize(
    ("url", "env", "said"),
    [
        ("", {}, "no address"),
        ("http://h", {}, "no address"),
        ("ws://h", {}, "no address"),
        ("nats://", {}, "no address"),
        ("nats://me:secret@h:port", {}, "no address"),
        ("nats://me:secret@h:99999", {}, "no address"),
        ("nats://me:secret@", {}, "no address"),
        ("nats://h,,nats://i", {}, "no address"),
        ("nats://u:secret@h", {"SHMSTORE_NATS_TOKEN": "secret"}, "one kind"),
        ("h", {"SHMSTORE_NATS_USER": "u"}, "needs a password"),
        ("h", {"SHMSTORE_NATS_CREDS": "/nowhere/creds"}, "SHMSTORE_NATS_CREDS cannot be read"),
        ("h", {"SHMSTORE_NATS_NKEY": "/nowhere/seed"}, "SHMSTORE_NATS_NKEY cannot be read"),
        ("h", {"SHMSTORE_NATS_KEY": "/dev/null"}, "needs SHMSTORE_NATS_CERT"),
        ("h", {"SHMSTORE_NATS_REPLICAS": "0"}, "from 1 to 5"),
        ("h", {"SHMSTORE_NATS_REPLICAS": "three"}, "from 1 to 5"),
    ],
)
def test_mistakes_are_one_sentence_without_secrets(
    url: str, env: dict[str, str], said: str
) -> None:
    """What is wrong is said at once, and no secret with it."""
    with pytest.raises(ValueError, match=said) as caught:
        Settings.parse(url, env)
    assert "secret" not in str(caught.value)
    assert str(caught.value).endswith(".")


def test_files_and_replicas_come_from_the_environment(tmp_path: Path) -> None:
    """Each variable of the environment sets what its name says."""
    path = str(tmp_path / "file")
    (tmp_path / "file").touch()
    env = {f"SHMSTORE_NATS_{name}": path for name in ("CA", "CERT", "KEY", "CREDS")}
    settings = Settings.parse("h", env | {"SHMSTORE_NATS_REPLICAS": "3"})
    assert settings.ca == settings.cert == settings.key == settings.creds == path
    assert settings.wants_tls
    assert settings.replicas == 3
    assert Settings.parse("h", {"SHMSTORE_NATS_NKEY": path}).nkey == path
