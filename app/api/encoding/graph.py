"""The graph as JSON, in parts: it may have thousands of programs."""

import json
from collections.abc import Iterable, Iterator
from itertools import islice
from typing import Any, Final

from app.bpf.inventory import ArrayOwner, Attachment
from app.bpf.uapi import MAX_TAIL_CALL_CNT, attach_type_name, prog_type_name
from app.service.graph.findings import Findings
from app.service.graph.graph import ArrayNode, Graph, ProgramNode

_PER_CHUNK: Final = 200  # about 1 ms to encode
MAX_LISTED_ENTRIES: Final = 1024  # of one array


def graph_chunks(graph: Graph, findings: Findings) -> Iterator[bytes]:
    """Encode a graph as the JSON of `responses.Graph`.

    Args:
        graph: The graph, or a part of it.
        findings: What follows from it.

    Returns:
        Chunks of one JSON object. Each is encoded when it is asked for, which takes about 1 ms.
    """
    yield b'{"programs":['
    yield from _listed(_program(node, findings) for node in graph.programs.values())
    yield b'],"arrays":['
    yield from _listed(map(_array, graph.arrays.values()), 1)
    yield b'],"edges":['
    yield from _listed(
        {"program": each.program, "array": each.array, "indexes": each.indexes, "certain": each.certain}
        for each in graph.edges
    )
    yield b'],"attachments":['
    yield from _listed(map(_attachment, graph.attachments))
    yield b'],"unreached":{"programs":['
    yield from _listed({"program": id_, "reason": reason} for id_, reason in findings.unreached_programs.items())
    yield b'],"entries":['
    yield from _listed(
        {"array": id_, "count": len(indexes), "indexes": indexes[:MAX_LISTED_ENTRIES], "reason": reason}
        for id_, reasons in findings.unreached_entries.items()
        for reason, indexes in reasons.items()
    )
    yield b']},"empty_jumps":['
    yield from _listed(
        {
            "program": each.edge.program,
            "array": each.edge.array,
            "index": each.index,
            "reason": "out-of-range" if each.is_beyond_end else "empty",
            "certain": each.edge.certain,
        }
        for each in findings.empty_jumps
    )
    yield b'],"cycles":['
    yield from _listed({"programs": each.programs, "certain": each.certain} for each in findings.cycles)
    yield b'],"longest_chain":'
    yield _text(_chain(findings))
    yield b',"unseen":'
    yield _text(graph.unseen)
    yield b"}"


def _listed(values: Iterable[Any], per_chunk: int = _PER_CHUNK) -> Iterator[bytes]:
    """Encode the elements of an array, without its brackets."""
    left, separator = iter(values), ""
    while chunk := list(islice(left, per_chunk)):
        yield f"{separator}{json.dumps(chunk, separators=(',', ':'))[1:-1]}".encode()
        separator = ","


def _text(value: Any) -> bytes:
    return json.dumps(value, separators=(",", ":")).encode()


def _program(node: ProgramNode, findings: Findings) -> dict[str, Any]:
    loaded = node.loaded
    return {
        "id": loaded.id,
        "name": node.name,
        "kernel_name": loaded.name,
        "type": prog_type_name(loaded.type),
        "attach_type": None if loaded.attach_type is None else attach_type_name(loaded.attach_type, loaded.type),
        "code": "read" if node.is_read else "hidden",
        "reached": findings.reached[loaded.id],
    }


def _array(node: ArrayNode) -> dict[str, Any]:
    filled = None if node.table is None else node.filled(MAX_LISTED_ENTRIES)
    return {
        "id": node.loaded.id,
        "name": node.name,
        "kernel_name": node.loaded.name,
        "max_entries": node.loaded.max_entries,
        "owner": _owner(node.loaded.owner),
        "used": None if node.table is None else node.used,
        "entries": None if filled is None else [{"index": index, "program": id_} for index, id_ in filled],
    }


def _owner(owner: ArrayOwner | None) -> dict[str, Any] | None:
    if owner is None:
        return None
    attach_type = None if owner.attach_type is None else attach_type_name(owner.attach_type, owner.prog_type)
    return {"program_type": prog_type_name(owner.prog_type), "attach_type": attach_type, "jited": owner.jited}


def _attachment(each: Attachment) -> dict[str, Any]:
    return {
        "program": each.program,
        "kind": each.kind,
        "where": each.where or None,
        "attach_type": each.attach_type or None,
        "namespace": each.namespace or None,
        "link": each.link,
    }


def _chain(findings: Findings) -> dict[str, Any] | None:
    chain = findings.longest_chain
    if chain is None:
        return None
    return {
        "programs": chain.programs,
        "jumps": chain.jumps,
        "limit": MAX_TAIL_CALL_CNT,
        "exceeds_limit": chain.exceeds_limit,
    }
