"""Whether a NATS server can be reached, has JetStream, and how large its messages may be."""

from __future__ import annotations

import asyncio
from typing import NamedTuple
from urllib.parse import urlsplit

from nats.errors import Error
from nats.js.errors import APIError, NotFoundError, ServiceUnavailableError

from shmstore.node.nats_client import Failed, NatsClient, Refused
from shmstore.node.settings import Settings
from shmstore.node.subjects import bucket, inbox_prefix, stream

_TIMEOUT_S = 5.0


class Answer(NamedTuple):
    """What was found.

    Attributes:
        unreachable: Why no server can be reached, or None.
        max_payload: The largest message, bytes.
        no_jetstream: Why JetStream does not answer, or None.
    """

    unreachable: str | None
    max_payload: int = 0
    no_jetstream: str | None = None


def probe(settings: Settings, namespace: str, node: str) -> Answer:
    """Connects as a node of that name would, asks, and goes."""
    return asyncio.run(_probe(settings, namespace, inbox_prefix(namespace, node)))


async def _probe(settings: Settings, namespace: str, inbox: str) -> Answer:
    why = "no server was given"
    for server in settings.servers:
        client = NatsClient(settings.wants_tls)
        try:
            async with asyncio.timeout(_TIMEOUT_S):
                host = urlsplit(server).hostname
                await client.begin(server, settings, tls_hostname=host, inbox_prefix=inbox.encode())
        except (TimeoutError, Failed, Refused) as error:
            client.abandon()
            why = str(error) or "it does not answer"
            continue
        try:
            return Answer(None, client.max_payload, await _jetstream(client, namespace))
        finally:
            await client.close()
    return Answer(why)


async def _jetstream(client: NatsClient, namespace: str) -> str | None:
    """Asks about the registry's stream: who may be a node, may ask that."""
    try:
        await client.jetstream(timeout=_TIMEOUT_S).stream_info(stream(bucket(namespace)))
    except NotFoundError:
        return None  # no node has been here yet
    except ServiceUnavailableError:
        return "it is not enabled"
    except APIError as error:
        return error.description or "it refuses"
    except (Error, TimeoutError) as error:
        return str(error) or "it does not answer"
    return None
