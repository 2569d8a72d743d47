"""What a start imports, and when the rest is: FastAPI and the routes come with the first request that needs them."""

import os
import shutil
import socket
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

import app
from app.sandbox.subtree import open_subtree
from tests.running import Service, running
from tests.system.test_serve import other, prepared

__all__ = ["other", "prepared"]

pytestmark = pytest.mark.kernel

# Tells what is imported of FastAPI, and when the application was made.
TELL = """
import sys
class Tell:
    def find_spec(self, name, *_):
        if name == "fastapi.applications":
            print("imports fastapi", flush=True)
sys.meta_path.insert(0, Tell())
from app.api.deferred import Application
make = Application._make
def making(application):
    print("makes the application", flush=True)
    return make(application)
Application._make = making
"""
ENTRY = "/maps/jump_table/entries/3"


@contextmanager
def started(config: Path, folder: Path, first: str) -> Iterator[tuple[Service, httpx.Client]]:
    """The service when it listens; no request has come yet."""
    with running("serve", "--config", str(config), first=first) as service:
        service.socket = folder / "run/api.sock"
        service.wait_for("serving")
        with service.client() as client:
            yield service, client


def set_entry(service: Service) -> None:
    """Set an entry with a request that arrives as a whole, as the fast path wants it."""
    body = b'{"program":"drop"}'
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(20)
        connection.connect(str(service.socket))
        connection.sendall(
            b"PUT %b HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%b"
            % (ENTRY.encode(), len(body), body)
        )
        assert connection.recv(12) == b"HTTP/1.1 201"


def test_fast_path_needs_neither_fastapi_nor_routes(prepared: tuple[Path, Path], tmp_path: Path) -> None:
    with started(prepared[1], tmp_path, TELL) as (service, client):
        set_entry(service)
        assert client.get(ENTRY).json()["program"]["name"] == "drop"
        assert not [line for line in service.lines if "fastapi" in line or "application" in line]
        assert client.get("/maps").status_code == 200
        service.wait_for("imports fastapi")


def test_requests_that_come_while_it_is_loaded_wait_and_are_answered(
    prepared: tuple[Path, Path], tmp_path: Path
) -> None:
    paths = ["/maps", "/programs", "/healthz", "/readyz", "/openapi.json", "/changes", "/metrics", "/maps/jump_table"]
    with started(prepared[1], tmp_path, TELL) as (service, client), ThreadPoolExecutor(len(paths)) as pool:
        answers = list(pool.map(client.get, paths))
        assert [answer.status_code for answer in answers] == [200] * len(paths)
        service.stop()
        assert service.output().count("makes the application") == 1


def test_application_that_cannot_be_loaded_is_tried_again_with_the_next_request(
    prepared: tuple[Path, Path], tmp_path: Path
) -> None:
    first = f"""{TELL}
def failing(application):
    Application._make = making
    raise OSError("the disk does not answer")
Application._make = failing
"""
    with started(prepared[1], tmp_path, first) as (service, client):
        assert client.get("/maps").json()["code"] == "internal"
        service.wait_for("the disk does not answer")
        set_entry(service)
        assert client.get("/maps").status_code == 200


class TestPrivateFolder:
    """The code is where only root may enter, and the service becomes another user before it needs it."""

    @staticmethod
    def copied(tmp_path: Path, mode: int = 0o755) -> str:
        folder = tmp_path / "private"
        folder.mkdir(mode=0o700)
        shutil.copytree(Path(app.__file__).parent, folder / "app")
        (folder / "app/api").chmod(mode)
        return f"import sys\nsys.path.insert(0, {str(folder)!r})\n{TELL}"

    def test_it_is_loaded_later_all_the_same(self, prepared: tuple[Path, Path], tmp_path: Path) -> None:
        with started(prepared[1], tmp_path, self.copied(tmp_path)) as (service, client):
            set_entry(service)
            assert not [line for line in service.lines if "fastapi" in line]
            assert client.get("/maps").status_code == 200

    @pytest.mark.parametrize(("mode", "more"), [(0o700, ""), (0o755, "late_imports.open_subtree = refused")])
    def test_it_is_imported_at_the_start_where_it_could_not_be_later(
        self, prepared: tuple[Path, Path], tmp_path: Path, mode: int, more: str
    ) -> None:
        first = f"""{self.copied(tmp_path, mode)}
from app.server import late_imports
def refused(folder):
    raise PermissionError(1, "Operation not permitted")
{more}
"""
        with started(prepared[1], tmp_path, first) as (service, client):
            service.wait_for("imports fastapi")
            assert client.get("/maps").status_code == 200


def test_no_path_leads_out_of_a_subtree(tmp_path: Path) -> None:
    (tmp_path / "inside/below").mkdir(parents=True)
    (tmp_path / "secret").touch()
    fd = open_subtree(tmp_path / "inside")
    try:
        for path in ("", "..", "below/../..", "below/../../.."):
            assert [each.name for each in Path(f"/proc/self/fd/{fd}/{path}").iterdir()] == ["below"]
        assert os.stat("..", dir_fd=fd).st_ino == (tmp_path / "inside").stat().st_ino
    finally:
        os.close(fd)
