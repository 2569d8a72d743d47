"""The same requests by a generated client, curl and httpx, over loopback and over the unix socket."""

import importlib
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol

import httpx
import pytest

from app.bpf.memory.kernel import MemoryKernel
from app.service.registry.registry import Registry
from tests.conftest import application, tool
from tests.running import Service, demo, serve, write_config


class Client(Protocol):
    """A client under test. Each method returns the status and the name of the program or the code of the problem."""

    def put(self, index: int, program: str) -> tuple[int, str]: ...

    def get(self, index: int) -> tuple[int, str]: ...

    def delete(self, index: int) -> tuple[int, str]: ...


def _told(body: dict[str, Any]) -> str:
    return str(body["code"] if "code" in body else body["program"]["name"])


class Httpx:
    def __init__(self, service: Service, folder: Path) -> None:
        self.client = service.client()

    def _ask(self, method: str, index: int, **more: Any) -> tuple[int, str]:
        response = self.client.request(method, f"/maps/jump_table/entries/{index}", **more)
        return response.status_code, _told(response.json()) if response.content else ""

    def put(self, index: int, program: str) -> tuple[int, str]:
        return self._ask("PUT", index, json={"program": program})

    def get(self, index: int) -> tuple[int, str]:
        return self._ask("GET", index)

    def delete(self, index: int) -> tuple[int, str]:
        return self._ask("DELETE", index)

    def close(self) -> None:
        self.client.close()


class Curl:
    def __init__(self, service: Service, folder: Path) -> None:
        self.service = service

    def _ask(self, method: str, index: int, *more: str) -> tuple[int, str]:
        url = f"{self.service.url}/maps/jump_table/entries/{index}"
        command = [*self.service.curl(), "-w", "%{http_code}", "-X", method, *more, url]
        output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
        body, status = output[:-3], int(output[-3:])
        assert not body or body.endswith("\n")
        return status, _told(json.loads(body)) if body else ""

    def put(self, index: int, program: str) -> tuple[int, str]:
        return self._ask("PUT", index, "-H", "Content-Type: application/json", "-d", json.dumps({"program": program}))

    def get(self, index: int) -> tuple[int, str]:
        return self._ask("GET", index)

    def delete(self, index: int) -> tuple[int, str]:
        return self._ask("DELETE", index)

    def close(self) -> None:
        pass


class Generated:
    def __init__(self, service: Service, folder: Path) -> None:
        self.package = importlib.import_module("jumptable_client")
        self.models = importlib.import_module("jumptable_client.models")
        transport = None if service.socket is None else httpx.HTTPTransport(uds=str(service.socket))
        self.client = self.package.Client(base_url=service.url, httpx_args={"transport": transport})

    def _ask(self, operation: str, index: int, **more: Any) -> tuple[int, str]:
        module = importlib.import_module(f"jumptable_client.api.entries.{operation}")
        response = module.sync_detailed("jump_table", index, client=self.client, **more)
        parsed = response.parsed
        if parsed is None:
            return int(response.status_code), ""
        is_problem = isinstance(parsed, self.models.Problem)
        return int(response.status_code), parsed.code if is_problem else parsed.program.name

    def put(self, index: int, program: str) -> tuple[int, str]:
        return self._ask("set_entry", index, body=self.models.SetEntry(program=program))

    def get(self, index: int) -> tuple[int, str]:
        return self._ask("get_entry", index)

    def delete(self, index: int) -> tuple[int, str]:
        return self._ask("clear_entry", index)

    def close(self) -> None:
        self.client.get_httpx_client().close()


@pytest.fixture(scope="session")
def generated(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The folder of the client that openapi-python-client generates from the document, without any warning."""
    folder = tmp_path_factory.mktemp("client")
    document = folder / "openapi.json"
    with application(Registry(MemoryKernel())) as app:
        document.write_text(json.dumps(app.openapi()))
    config = folder / "config.json"
    config.write_text('{"post_hooks": []}')  # no formatting: the formatter need not be on the PATH
    command = [sys.executable, "-m", "openapi_python_client", "generate", "--path", str(document),
               "--config", str(config), "--meta", "none", "--output-path", str(folder / "jumptable_client"),
               "--fail-on-warning"]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    sys.path.insert(0, str(folder))
    yield folder
    sys.path.remove(str(folder))


@pytest.fixture(scope="module")
def over_loopback() -> Iterator[Service]:
    with demo("--kernel", "memory") as service:
        yield service


@pytest.fixture(scope="module")
def over_unix(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    folder = tmp_path_factory.mktemp("serve")
    with serve(write_config(folder), folder / "run/api.sock") as service:
        yield service


@pytest.mark.parametrize("kind", [Httpx, *([Curl] if tool("curl") else []), Generated])
def test_put_get_and_delete_over_loopback(kind: Any, over_loopback: Service, generated: Path) -> None:
    client: Any = kind(over_loopback, generated)
    assert client.put(3, "drop") == (201, "drop")
    assert client.get(3) == (200, "drop")
    assert client.put(3, "pass") == (200, "pass")
    assert client.delete(3) == (204, "")
    assert client.delete(3) == (404, "entry-empty")
    assert client.put(3, "nope") == (422, "program-not-found")
    assert client.put(16, "drop") == (404, "index-out-of-range")
    client.close()


@pytest.mark.parametrize("kind", [Httpx, *([Curl] if tool("curl") else []), Generated])
def test_requests_over_the_unix_socket(kind: Any, over_unix: Service, generated: Path) -> None:
    client: Any = kind(over_unix, generated)
    assert client.get(3) == (404, "entry-empty")
    assert client.put(3, "nope") == (422, "program-not-found")
    client.close()


def test_generated_client_returns_typed_objects(over_loopback: Service, generated: Path) -> None:
    models = importlib.import_module("jumptable_client.models")
    client: Any = Generated(over_loopback, generated)
    client.put(5, "drop")
    got = importlib.import_module("jumptable_client.api.entries.get_entry").sync("jump_table", 5, client=client.client)
    assert isinstance(got, models.Entry)
    assert isinstance(got.program, models.EntryProgram)
    assert got.program.loaded_at.year >= 2026
    again = importlib.import_module("jumptable_client.api.entries.set_entry").sync(
        "jump_table", 6, client=client.client, body=models.SetEntry(program=got.program)
    )
    assert again.program == got.program, "what was answered can be sent back as it is"
    client.delete(6)
    page = importlib.import_module("jumptable_client.api.entries.list_entries").sync("jump_table", client=client.client)
    assert [entry.index for entry in page.entries] == [5]
    client.close()


@pytest.mark.field
def test_generated_client_goes_a_whole_round(over_loopback: Service, generated: Path) -> None:
    """Field 14: a generated client that compiles, and of which nobody has tried more than one entry."""
    models: Any = importlib.import_module("jumptable_client.models")
    generated_client: Any = Generated(over_loopback, generated)

    def ask(operation: str, *path: Any, **more: Any) -> Any:
        module = importlib.import_module(f"jumptable_client.api.{operation}")
        return module.sync(*path, client=generated_client.client, **more)

    ask("entries.replace_entries", "jump_table", body=models.ReplaceEntries(programs=[]))
    [held] = ask("maps.list_maps").maps
    assert isinstance(held, models.HeldMap)
    assert (held.name, held.max_entries) == ("jump_table", 16)
    body = models.SetEntry(program=models.ProgramObject(name="drop"))
    assert ask("entries.set_entry", held.name, 3, body=body).program.name == "drop"
    replaced = ask("entries.replace_entries", held.name, body=models.ReplaceEntries(programs=["pass", None, "drop"]))
    assert (replaced.set_, replaced.cleared) == (2, 1)
    table = ask("entries.list_entries", held.name)
    assert [(each.index, each.program.name) for each in table.entries] == [(0, "pass"), (2, "drop")]
    back = models.ReplaceEntries.from_dict(table.to_dict())
    assert ask("entries.replace_entries", held.name, body=back).unchanged == 2, "what GET answers can be PUT back"
    dry = ask("entries.set_entry", held.name, 5, body=models.SetEntry(program="tx"), dry_run=True)
    assert isinstance(dry, models.DryEntry), "the answer to a dry run has its own type"
    assert ask("changes.list_changes", map_=held.name).changes[-1].id == replaced.change.id
    problem = ask("entries.get_entry", held.name, 9)
    assert isinstance(problem, models.Problem)
    assert (problem.status, problem.code, problem["index"]) == (404, "entry-empty", 9)
    ask("entries.replace_entries", held.name, body=models.ReplaceEntries(programs=[]))
    generated_client.close()
