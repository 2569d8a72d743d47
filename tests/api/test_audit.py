"""The audit log has one line for each attempt to change something and for each denied request."""

import json
import os
import resource
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi import FastAPI
from structlog.testing import capture_logs

from app.access.tokens import TokenFile, Tokens
from app.api.audit import Audit
from app.api.authorization import Authentication
from app.service.registry.registry import Registry
from tests.api.conftest import ENTRY, client_of, started
from tests.api.test_access import new

pytestmark = [pytest.mark.anyio, pytest.mark.usefixtures("both_ways")]

TABLE = "/maps/jump_table/entries"


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "audit.jsonl"


@pytest.fixture
def tokens(tmp_path: Path) -> TokenFile:
    return TokenFile(tmp_path / "tokens.json")


@pytest.fixture
async def audited(registry: Registry, file: Path, tokens: TokenFile, anyio_backend: str) -> AsyncIterator[FastAPI]:
    audit = Audit(file, fsync=True)
    authentication = Authentication(tokens=Tokens(tokens))
    async with started(registry, audit=audit, authentication=authentication) as app:
        yield app
    audit.close()


@pytest.fixture
async def asker(audited: FastAPI) -> AsyncIterator[httpx.AsyncClient]:
    async with client_of(audited) as client:
        yield client


def lines(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text().splitlines()]


async def test_every_attempt_gets_a_line_also_refused_denied_and_dry_runs(
    asker: httpx.AsyncClient, file: Path, tokens: TokenFile
) -> None:
    writer, reader = new(tokens, "w", "writer"), new(tokens, "r", "reader")
    await asker.get("/maps", headers=reader)  # no attempt to change anything
    await asker.put(ENTRY, json={"program": "drop"}, headers=writer | {"X-Request-ID": "one"})
    await asker.put(ENTRY, json={"program": "pass"}, headers=writer)
    await asker.put(f"{ENTRY}?dry_run=true", json={"program": "tx"}, headers=writer)
    await asker.put(ENTRY, json={"program": "nope"}, headers=writer)
    await asker.put(ENTRY, json={"program": "drop"}, headers=reader)
    await asker.put(ENTRY, json={"program": "drop"})
    await asker.get("/maps", headers={"Authorization": "Bearer jt_guessed"})
    await asker.delete(ENTRY, headers=writer)
    await asker.put(TABLE, json={"programs": ["drop"]}, headers=writer)
    told = [(each["what"], each["actor"], each["outcome"], each["status"], each.get("code")) for each in lines(file)]
    assert told == [
        ("set_entry", "token:w", "done", 201, None),
        ("set_entry", "token:w", "done", 200, None),
        ("set_entry", "token:w", "done", 200, None),
        ("set_entry", "token:w", "refused", 422, "program-not-found"),
        ("set_entry", "token:r", "denied", 403, "forbidden"),
        ("set_entry", None, "denied", 401, "unauthenticated"),
        ("list_maps", None, "denied", 401, "unauthenticated"),
        ("clear_entry", "token:w", "done", 204, None),
        ("replace_entries", "token:w", "done", 200, None),
    ]
    first, second, dry = lines(file)[:3]
    assert (first["request_id"], first["change"], first["index"], first["before"]) == ("one", 1, 3, None)
    assert second["before"] == first["after"]
    assert dry["dry_run"] is True
    assert "change" not in dry


async def test_audit_contains_no_secret_and_no_request_body(
    asker: httpx.AsyncClient, file: Path, tokens: TokenFile
) -> None:
    header = new(tokens, "w", "writer")
    await asker.put(ENTRY, json={"program": "drop", "map": "s3cr3t"}, headers=header)
    await asker.put(f"{ENTRY}?note=s3cr3t&s3cr3t=1", json={"program": "s3cr3t"}, headers=header)
    await asker.put(ENTRY, json={"program": "drop"}, headers={"Authorization": "Bearer s3cr3t"})
    assert len(lines(file)) == 3
    assert "s3cr3t" not in file.read_text()
    assert header["Authorization"].removeprefix("Bearer ") not in file.read_text()


async def test_reopen_continues_in_a_new_file_after_a_rotation(
    audited: FastAPI, asker: httpx.AsyncClient, file: Path, tokens: TokenFile
) -> None:
    header = new(tokens, "w", "writer")
    await asker.put(ENTRY, json={"program": "drop"}, headers=header)
    old = file.rename(file.with_suffix(".old"))
    await asker.put(ENTRY, json={"program": "pass"}, headers=header)
    audited.state.audit.reopen()
    await asker.put(ENTRY, json={"program": "tx"}, headers=header)
    assert (len(lines(old)), len(lines(file))) == (2, 1)


async def test_line_that_cannot_be_written_goes_to_the_log(
    asker: httpx.AsyncClient, file: Path, tokens: TokenFile
) -> None:
    header = new(tokens, "w", "writer")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10, hard))  # the kernel then writes a part of the line
    try:
        with capture_logs() as told:
            assert (await asker.put(ENTRY, json={"program": "drop"}, headers=header)).status_code == 201
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    lost = [each for each in told if each.get("event_lost") == "set_entry"]
    assert [(each["actor"], each["status"]) for each in lost] == [("token:w", 201)]


@pytest.mark.field
@pytest.mark.parametrize("has_reader", [False, True])
def test_a_fifo_is_refused_and_does_not_block(tmp_path: Path, has_reader: bool) -> None:
    """Field 35: opening a FIFO without a reader blocked the start for ever."""
    os.mkfifo(tmp_path / "audit")
    reader = os.open(tmp_path / "audit", os.O_RDONLY | os.O_NONBLOCK) if has_reader else None
    with pytest.raises(OSError, match="it is no regular file"):
        Audit(tmp_path / "audit")
    if reader is not None:
        os.close(reader)
