"""The audit log has one line for each attempt to change something and for each denied request."""

import json
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
    secret = header["Authorization"].removeprefix("Bearer ")
    await asker.put(ENTRY, json={"program": "drop", "map": "s3cr3t"}, headers=header)
    await asker.put(f"{ENTRY}?note=s3cr3t", json={"program": "drop", "etag": "s3cr3t"}, headers=header)
    await asker.put(f"{ENTRY}?{secret}=1", json={"program": secret}, headers=header)
    await asker.put(ENTRY, json={"program": {"pinned": f"/sys/fs/bpf/{secret}"}}, headers=header)
    await asker.put(ENTRY, json={"program": "drop"}, headers={"Authorization": "Bearer s3cr3t"})
    assert len(lines(file)) == 5
    assert "s3cr3t" not in file.read_text()
    assert secret not in file.read_text()


@pytest.mark.field
async def test_lines_tell_programs_by_name_and_id(
    registry: Registry, asker: httpx.AsyncClient, file: Path, tokens: TokenFile
) -> None:
    """Field 11: a log that tells little: ids mean nothing after a reboot, so names stand beside them."""
    header = new(tokens, "a", "admin")
    drop, pass_ = (registry.programs.get(name).opened().id for name in ("drop", "pass"))
    named = {"drop": {"name": "drop", "id": drop}, "pass": {"name": "pass", "id": pass_}}
    await asker.put(ENTRY, json={"program": "drop"}, headers=header)
    await asker.put(ENTRY, json={"program": "pass"}, headers=header)
    await asker.delete(ENTRY, headers=header)
    told = [(each["before"], each["after"]) for each in lines(file)]
    assert told == [(None, named["drop"]), (named["drop"], named["pass"]), (named["pass"], None)]
    await asker.patch(TABLE, json={"entries": [{"index": 7, "program": "drop"}]}, headers=header)
    await asker.post("/changes/4/revert", headers=header)
    registry.maps.get("jump_table").opened().set(5, registry.programs.get("pass").opened())
    await asker.post("/maps/jump_table/reconcile", json={"to": "journal"}, headers=header)
    assert [each["entries"] for each in lines(file)[3:]] == [
        [{"index": 7, "before": None, "after": named["drop"]}],
        [{"index": 7, "before": named["drop"], "after": None}],
        [{"index": 5, "before": named["pass"], "after": None}],
    ]
    await asker.put(TABLE, json={"programs": ["drop"] * 16}, headers=header)
    assert lines(file)[-1]["count"] == len(lines(file)[-1]["entries"]) == 16


@pytest.mark.field
async def test_refusals_tell_their_reason(asker: httpx.AsyncClient, file: Path, tokens: TokenFile) -> None:
    """Field 11: a log that tells little: why something was refused is in its line."""
    refused = await asker.put(ENTRY, json={"program": "nope"}, headers=new(tokens, "w", "admin"))
    await asker.put(f"{ENTRY}?{'x' * 64}=1", json={"program": "drop"}, headers=new(tokens, "r", "admin"))
    first, second = lines(file)
    assert first["reason"] == refused.json()["detail"]
    assert len(second["reason"]) <= 300


@pytest.mark.field
async def test_undo_that_is_due_has_a_line(
    audited: FastAPI, asker: httpx.AsyncClient, file: Path, tokens: TokenFile
) -> None:
    """Field 11: a log that tells little: what the service does by itself is in the audit."""
    await asker.put(f"{ENTRY}?confirm_within=60", json={"program": "drop"}, headers=new(tokens, "w", "admin"))
    confirmations = audited.state.service.changes.confirmations
    assert await confirmations.undo(confirmations._pending[1])
    line = lines(file)[-1]
    assert (line["what"], line["actor"], line["outcome"], line["reverts"]) == ("expire", "jumptable", "done", 1)
    assert [(each["index"], each["before"]["name"], each["after"]) for each in line["entries"]] == [(3, "drop", None)]


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
    with capture_logs() as told_later:
        for program in ("pass", "tx"):
            assert (await asker.put(ENTRY, json={"program": program}, headers=header)).status_code == 200
    again = [each for each in told_later if each["event"] == "the audit file can be written again"]
    assert [each["lines_in_the_log"] for each in again] == [1]
    lost = [each for each in told if each.get("event_lost") == "set_entry"]
    assert [(each["actor"], each["status"]) for each in lost] == [("token:w", 201)]
