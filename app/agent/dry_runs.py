"""What a desired table would change on this node: the fleet asks, before it says so."""

import time
from typing import Final

import structlog

from app.agent import desired as desired_tables
from app.agent.desired import Desired, No
from app.agent.local import LocalService, differing
from app.client import JumptableError, Refused
from app.fleet_store import keys
from app.fleet_store.documents import MAX_DETAIL_CHARACTERS, BadDocument, DryRunAnswer
from app.fleet_store.errors import EtcdError
from app.fleet_store.etcd import Etcd
from app.fleet_store.items import Item
from app.fleet_store.signatures import DRY_RUN, Verifier

_KEPT_SECONDS: Final = 120  # for the fleet to read an answer
_MAX_DIFF: Final = 100

log = structlog.get_logger()


async def answer(item: Item, node: str, etcd: Etcd, service: LocalService, verifier: Verifier) -> None:
    """Answer a dry run. Where nobody can be told, nobody is: whoever asks waits for a time only."""
    found = await _try(item, node, service, verifier)
    try:
        lease = await etcd.grant(_KEPT_SECONDS)
        key = keys.dry_run_answer(node, keys.last_part(item.key))
        await etcd.put(key, found.to_bytes(), lease=lease.id)
    except (EtcdError, BadDocument, ValueError) as error:
        log.warning("a dry run cannot be answered", key=item.key, reason=str(error))


async def _try(item: Item, node: str, service: LocalService, verifier: Verifier) -> DryRunAnswer:
    try:
        wanted = desired_tables.read(item, DRY_RUN, verifier, node)
        closed = (await service.opened()).closed(wanted)
        if closed is not None:
            raise No("not-open", closed)
        return await _difference(item, wanted, service)
    except No as no:
        code, detail = no.code, str(no)
    except Refused as error:
        code, detail = error.code, error.detail
    except JumptableError as error:
        code, detail = "service-unreachable", str(error)
    return _answer(item, accepted=False, code=code, detail=detail[:MAX_DETAIL_CHARACTERS])


async def _difference(item: Item, wanted: Desired, service: LocalService) -> DryRunAnswer:
    if wanted.specification is None:
        return _answer(item, accepted=True)
    programs, table = await service.programs(), await service.table(wanted.table)
    wrong = differing(table, wanted, programs)
    names = {index: None if program is None else program.name for index, program in wrong.items()}
    await service.try_update(wanted, names, table.etag)
    diff = []
    for index, name in list(names.items())[:_MAX_DIFF]:
        id_ = table.programs.get(index)
        diff.append((index, None if id_ is None else table.names[id_] or f"id:{id_}", name))
    return _answer(item, accepted=True, changed=len(names), diff=tuple(diff))


def _answer(
    item: Item,
    *,
    accepted: bool,
    changed: int | None = None,
    code: str | None = None,
    detail: str = "",
    diff: tuple[tuple[int, str | None, str | None], ...] = (),
) -> DryRunAnswer:
    at = max(time.time(), 0.0)
    return DryRunAnswer(
        seen=item.mod_revision, accepted=accepted, at=at, changed=changed, code=code, detail=detail, diff=diff
    )
