"""A controller as a process of its own, which a test kills or freezes. Its lines tell when it leads."""

import asyncio
import sys
from pathlib import Path

from app.fleet.controller import Controller
from app.fleet_store.etcd import Credentials, Etcd
from app.fleet_store.signatures import Signer


async def main(name: str, endpoints: str, ca: str, certificate: str, key: str, signing_key: str) -> None:
    """Take part in the election until it is ended."""
    credentials = Credentials.read(Path(ca), Path(certificate), Path(key))
    async with Etcd(endpoints.split(","), credentials, timeout=1.0, keepalive=5.0) as etcd:
        await Controller(etcd, Signer.read(Path(signing_key)), name).run()


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
