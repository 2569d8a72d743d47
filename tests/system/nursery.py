"""Services that start within tens of milliseconds, and kill themselves at a chosen point.

The nursery is a process that has imported the service and forks it. In each service a fuse counts points: one before
and one after each write to the kernel, of a pin, or to the journal. At the N-th point the process kills itself. The
count starts with the process (`kill_at`), or when a change with the note `VERB N` begins that verb, which is the kind
of the change or `confirm`.
"""

import json
import os
import select
import signal
import subprocess
import sys
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Any

from app.bpf.linux import LinuxKernel
from app.cli import serve as serve_module
from app.cli.main import cli
from app.server.systemd import Notifier
from app.service.changes.changes import Changes
from app.service.changes.confirmations import Confirmations
from app.store.database import Database

_SECONDS = 60.0


class Nursery:
    """A process that forks services, one at a time. It sees only what was mounted before it started."""

    def __init__(self) -> None:
        command = [sys.executable, "-c", "from tests.system.nursery import main; main()"]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def start(self, config: Path, log: Path, *, kill_at: int = 0, later: float = 0.0) -> tuple[int, int | None]:
        """Start `serve`, and wait until it answers or ends.

        Args:
            config: Its configuration file.
            log: The file for its output.
            kill_at: The point at which it kills itself, counted from the start; 0 for none.
            later: By how many seconds its time since boot is ahead.

        Returns:
            Its process id, and its wait status if it has ended or None if it answers.
        """
        pid, status = self._ask({"config": str(config), "log": str(log), "kill_at": kill_at, "later": later})
        return pid, status

    def wait(self) -> int:
        """Wait for the end of the service, and return its wait status."""
        status: int = self._ask(None)
        return status

    def _ask(self, request: object) -> Any:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(f"{json.dumps(request)}\n")
        self._process.stdin.flush()
        assert select.select([self._process.stdout], [], [], _SECONDS)[0], "the service neither answers nor ends"
        return json.loads(self._process.stdout.readline())

    def close(self) -> None:
        """End the process, and a service that still runs."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        try:
            assert self._process.wait(_SECONDS) == 0
        finally:
            self._process.kill()
            self._process.stdout.close()


def main() -> None:
    """Run the nursery. It answers each line of JSON on stdin by one on stdout."""
    child = 0
    for line in sys.stdin:
        request = json.loads(line)
        if request is None:
            answer: object = os.waitpid(child, 0)[1]
            child = 0
        else:
            child, is_ready = _fork(request)
            answer = child, None
            if not is_ready:
                answer = os.waitpid(child, 0)
                child = 0
        sys.stdout.write(f"{json.dumps(answer)}\n")
        sys.stdout.flush()
    if child:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)


def _fork(request: dict[str, Any]) -> tuple[int, bool]:
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            os.close(read)
            _serve(write, **request)
        finally:
            os._exit(1)
    os.close(write)
    with open(read, "rb") as ready:  # noqa: PTH123 - an fd
        return pid, ready.read(1) == b"R"


def _serve(ready: int, config: str, log: str, kill_at: int, later: float) -> None:
    for fd, (path, flags) in enumerate(
        [(os.devnull, os.O_RDONLY), *[(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)] * 2]
    ):
        opened = os.open(path, flags, 0o600)
        os.dup2(opened, fd)
        os.close(opened)
    _lay(Fuse(kill_at), later)
    told = Ready()
    told.fd = ready
    vars(serve_module)["Notifier"] = lambda: told
    cli(["serve", "--config", config], prog_name="jumptable")


class Ready(Notifier):
    """A notifier in place of systemd's. It writes one byte to `fd` when the service is ready."""

    fd = -1

    def notify(self, state: str) -> None:
        if state == "READY=1":
            os.write(self.fd, b"R")
            os.close(self.fd)


class Fuse:
    """Counts the points that are left until the process kills itself. With 0 it does not count."""

    def __init__(self, left: int) -> None:
        self._left = left

    def light(self, note: str | None, verb: str) -> None:
        """Start to count if the note is `VERB N` with this verb."""
        words = (note or "").split()
        if len(words) == 2 and words[0] == verb:
            self._left = int(words[1])

    def burn(self) -> None:
        """Count one point, and kill the process if it was the last."""
        if self._left:
            self._left -= 1
            if not self._left:
                os.kill(os.getpid(), signal.SIGKILL)


def _lay(fuse: Fuse, later: float) -> None:
    LinuxKernel.use_bulk_programs = False  # so that there is a point before and after each entry
    for owner, name in (
        (LinuxKernel, "map_update"),
        (LinuxKernel, "map_delete"),
        (LinuxKernel, "obj_pin"),
        (LinuxKernel, "unpin"),
        (Database, "_commit"),
    ):
        setattr(owner, name, _burning(getattr(owner, name), fuse))
    prepare, confirm, init = Changes.prepare, Confirmations.confirm, Confirmations.__init__

    def lit_prepare(changes: Changes, held: Any, kind: Any, steps: Any, origin: Any, *more: Any) -> Any:
        fuse.light(origin.note, kind)
        return prepare(changes, held, kind, steps, origin, *more)

    def lit_confirm(confirmations: Confirmations, change: Any, actor: str) -> Any:
        fuse.light(change.note, "confirm")
        return confirm(confirmations, change, actor)

    def later_init(confirmations: Confirmations, *args: Any) -> None:
        init(confirmations, *args)
        uptime = confirmations.uptime
        confirmations.uptime = lambda: uptime() + later

    laid: list[tuple[type, str, Callable[..., Any]]] = [
        (Changes, "prepare", lit_prepare),
        (Confirmations, "confirm", lit_confirm),
        (Confirmations, "__init__", later_init),
    ]
    for changed, name, new in laid:
        setattr(changed, name, new)


def _burning(do: Callable[..., Any], fuse: Fuse) -> Callable[..., Any]:
    @wraps(do)
    def burning(*args: Any, **kwargs: Any) -> Any:
        fuse.burn()
        result = do(*args, **kwargs)
        fuse.burn()
        return result

    return burning
