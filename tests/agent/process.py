"""`jumptable fleet agent` as a process."""

import contextlib
import json
import signal
from collections.abc import Iterator
from contextlib import contextmanager

from tests import running
from tests.agent.conftest import Node


@contextmanager
def agent_process(
    node: Node, first: str = "", *, more: str = "", env: dict[str, str] | None = None
) -> Iterator[running.Service]:
    """`jumptable fleet agent` as a process. It believes that it is no root, and is thawed at the end."""
    settings = node.settings
    config = node.folder / "agent.toml"
    config.write_text(
        f"""
        node = "{settings.node}"
        public_keys = {json.dumps([str(each) for each in settings.public_keys])}
        service = "{settings.service}"
        state_dir = "{settings.state_dir}"
        status_file = "{settings.status_file}"
        {more}
        [etcd]
        endpoints = {json.dumps(settings.etcd.endpoints)}
        ca = "{settings.etcd.ca}"
        certificate = "{settings.etcd.certificate}"
        key = "{settings.etcd.key}"
        """
    )
    first = f"import os; os.geteuid = lambda: 23456\n{first}"
    with running.running("fleet", "agent", "--config", str(config), first=first, env=env) as process:
        try:
            yield process
        finally:
            with contextlib.suppress(ProcessLookupError):
                process.process.send_signal(signal.SIGCONT)
