"""The network endpoint of a host: what its processes reach other hosts through.

Importing this imports neither nats nor asyncio; ``service`` does.
"""
