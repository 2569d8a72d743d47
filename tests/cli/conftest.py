"""A running demo, and the client's commands on it, in this process."""

import gc
import io
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import pytest

from app.cli.main import run
from app.client import Client
from tests.running import demo


@dataclass(frozen=True)
class Done:
    """How a command ended."""

    status: int
    out: str
    err: str


Command = Callable[..., Done]


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    """A demo in memory, for all tests of a file."""
    with demo("--kernel", "memory") as service:
        yield service.url


@pytest.fixture
def client(url: str) -> Iterator[Client]:
    """A client on the demo, whose table is empty."""
    with Client(url) as client:
        for change in client.list_changes(state="unconfirmed")["changes"]:
            client.confirm_change(change["id"])
        client.replace_entries("jump_table", {})
        yield client


@pytest.fixture
def refused_sockets() -> Iterator[None]:
    """Closes sockets whose connect was refused: httpcore leaves that to the garbage collector."""
    yield
    gc.collect()


@pytest.fixture
def command(url: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Command:
    """Runs `jumptable ARGUMENTS` against the demo."""

    def jumptable(*arguments: str, stdin: str = "", url: str = url) -> Done:
        monkeypatch.setattr(sys, "argv", ["jumptable", *arguments])
        monkeypatch.setattr(sys, "stdin", io.StringIO(stdin))
        monkeypatch.setenv("JUMPTABLE_URL", url)
        with pytest.raises(SystemExit) as ended:
            run()
        shown = capsys.readouterr()
        return Done(int(ended.value.code or 0), shown.out, shown.err)

    return jumptable
