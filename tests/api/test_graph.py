"""GET /graph, and the warnings of dry runs."""

import asyncio
import contextlib
import ctypes
import fcntl
import os
import platform
import shutil
import socket
import struct
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, ClassVar

import httpx
import pytest

from app.access.rights import Actor, Grant, Ranges
from app.api.authorization import Authentication
from app.api.schemas import responses
from app.bpf import asm, attr
from app.bpf.inventory import Attachment, Attachments, ProgramCode
from app.bpf.kernel import Kernel
from app.bpf.linux import LinuxKernel
from app.bpf.syscall import bpf
from app.bpf.uapi import ATTACH_TYPE_NAMES, AttachType, Cmd, MapType, ProgType
from app.service.errors import KernelError
from app.service.graph.reader import GraphReader
from app.service.objects.opening import make_array
from app.service.objects.program import Program
from app.service.registry.registry import Registry
from tests import probes
from tests.api.conftest import assert_problem, client_of, client_on_registry, started
from tests.compiled import load_object
from tests.networks import network

pytestmark = pytest.mark.anyio

TABLE = "/maps/jump_table/entries"


@pytest.fixture
def kept(kernel: Kernel) -> Iterator[ExitStack]:
    """What is closed after the test."""
    with ExitStack() as stack:
        yield stack


def jump(kernel: Kernel, kept: ExitStack, array: int, *indexes: int, name: str = "hop") -> Program:
    """An XDP program that jumps to these entries, one after another."""
    code = asm.mov_reg(6, 1)
    for index in indexes:
        code += asm.mov_reg(1, 6) + asm.map_fd(2, array) + asm.mov(3, index) + asm.tail_call()
    return kept.enter_context(Program(kernel, kernel.prog_load(ProgType.XDP, code + asm.returns(0), name)))


async def graph_of(client: httpx.AsyncClient, **query: str) -> dict[str, Any]:
    """The graph; it has the shape that the document promises."""
    response = await client.get("/graph", params=query)
    assert response.status_code == 200, response.text
    responses.Graph.model_validate_json(response.text, strict=False)
    found: dict[str, Any] = response.json()
    return found


def ids_of(registry: Registry) -> dict[str, int]:
    """The kernel's id of each held program, by its name."""
    return {held.name: held.opened().id for held in registry.programs}


class TestGraph:
    async def test_demo_is_told_with_its_jump_to_any_entry(self, registry: Registry, client: httpx.AsyncClient) -> None:
        await client.put(f"{TABLE}/3", json={"program": "drop"})
        ids, table = ids_of(registry), registry.maps.get("jump_table").opened().id
        is_compared = registry.kernel.name == "memory" or probes.compares_attach_types() is None
        found = await graph_of(client, map="jump_table")
        assert found["arrays"] == [
            {
                "id": table,
                "name": "jump_table",
                "kernel_name": "jump_table",
                "max_entries": 16,
                "owner": {"program_type": "xdp", "attach_type": "unset" if is_compared else None, "jited": True},
                "used": 1,
                "entries": [{"index": 3, "program": ids["drop"]}],
            }
        ]
        assert found["edges"] == [{"program": ids["entry"], "array": table, "indexes": None, "certain": False}]
        assert {each["name"]: (each["code"], each["reached"]) for each in found["programs"]} == {
            "entry": ("read", "unattached"),
            "drop": ("read", "unattached"),
        }
        assert found["unreached"] == {"programs": [], "entries": []}
        assert (found["empty_jumps"], found["cycles"]) == ([], [])
        assert found["longest_chain"]["programs"] == [ids["entry"], ids["drop"]]

    async def test_whole_graph_also_has_what_is_not_held(
        self, kernel: Kernel, client: httpx.AsyncClient, kept: ExitStack
    ) -> None:
        array = kernel.map_create(MapType.PROG_ARRAY, 4, 4, 4, "foreign")
        kept.callback(kernel.close, array)
        caller = jump(kernel, kept, array, 2, name="caller")
        kernel.map_update(array, 2, jump(kernel, kept, array, 1, name="callee").fd)
        found = await graph_of(client)
        [told] = [each for each in found["arrays"] if each["id"] == kernel.map_info(array).id]
        assert (told["name"], told["kernel_name"], len(told["entries"])) == (None, "foreign", 1)
        assert caller.id in {each["id"] for each in found["programs"]}
        held = await graph_of(client, map="jump_table")
        assert caller.id not in {each["id"] for each in held["programs"]}
        assert held["arrays"][0]["name"] == "jump_table"

    async def test_hole_cycle_and_unreached_entries_are_found(
        self, kernel: Kernel, registry: Registry, client: httpx.AsyncClient, kept: ExitStack
    ) -> None:
        array = registry.maps.adopt("ring", make_array(kernel, "ring", 8)).opened()
        start = jump(kernel, kept, array.fd, 0, 200, name="start")
        programs = [jump(kernel, kept, array.fd, *to) for to in ((1, 5), (0,), ())]
        for index, program in zip((0, 1, 4), programs, strict=True):
            array.set(index, program)
        found = await graph_of(client, map="ring")
        left, right, forgotten = (each.id for each in programs)
        assert found["cycles"] == [{"programs": sorted([left, right]), "certain": True}]
        assert [(each["program"], each["index"], each["reason"]) for each in found["empty_jumps"]] == [
            (start.id, 200, "out-of-range"),
            (left, 5, "empty"),
        ]
        assert found["unreached"] == {
            "programs": [{"program": forgotten, "reason": "no-jump"}],
            "entries": [{"array": array.id, "count": 1, "indexes": [4], "reason": "no-jump"}],
        }
        assert found["longest_chain"] is None

    @pytest.mark.parametrize(("length", "exceeds"), [(33, False), (34, True)])
    async def test_chain_is_compared_with_the_limit_of_the_kernel(
        self, kernel: Kernel, registry: Registry, client: httpx.AsyncClient, kept: ExitStack, length: int, exceeds: bool
    ) -> None:
        """The kernel itself lets the last jump of the longer chain fall through."""
        array = registry.maps.adopt("hops", make_array(kernel, "hops", length + 1)).opened()
        hops = [jump(kernel, kept, array.fd, index + 1) for index in range(length)]
        last = kept.enter_context(Program(kernel, kernel.prog_load(ProgType.XDP, asm.returns(3), "last")))
        for index, program in enumerate([*hops[1:], last], 1):
            array.set(index, program)
        chain = (await graph_of(client, map="hops"))["longest_chain"]
        assert (chain["jumps"], chain["limit"], chain["exceeds_limit"]) == (length, 33, exceeds)
        assert chain["programs"] == [*(each.id for each in hops), last.id]
        assert hops[0].run(bytes(64)).returned == (0 if exceeds else 3)

    async def test_entries_of_a_large_array_are_counted_and_the_first_are_listed(
        self, kernel: Kernel, registry: Registry, client: httpx.AsyncClient, kept: ExitStack
    ) -> None:
        array = kernel.map_create(MapType.PROG_ARRAY, 4, 4, 5000, "foreign")
        kept.callback(kernel.close, array)
        start = jump(kernel, kept, array, 4999, name="start")
        last = jump(kernel, kept, array, name="last")
        for index in range(2000, 5000):
            kernel.map_update(array, index, last.fd)
        found = await graph_of(client)
        [told] = [each for each in found["arrays"] if each["kernel_name"] == "foreign"]
        assert (told["used"], len(told["entries"])) == (3000, 1024)
        assert told["entries"][0] == {"index": 2000, "program": last.id}
        [unreached] = [each for each in found["unreached"]["entries"] if each["array"] == told["id"]]
        assert (unreached["count"], unreached["indexes"]) == (2999, list(range(2000, 3024)))
        assert {each["id"]: each["reached"] for each in found["programs"]}[last.id] == "unattached"
        assert start.id in {each["id"] for each in found["programs"]}

    async def test_filters_take_names_of_what_is_held(self, client: httpx.AsyncClient) -> None:
        assert_problem(await client.get("/graph?map=nope"), 404, "map-unknown")
        assert_problem(await client.get("/graph?program=nope"), 404, "program-unknown")
        assert_problem(await client.get("/graph?format=svg"), 422, "validation")
        found = await graph_of(client, program="count")
        assert [each["name"] for each in found["programs"]] == ["count"]
        assert found["arrays"] == []

    async def test_program_by_a_second_name_is_found(self, registry: Registry, client: httpx.AsyncClient) -> None:
        await client.put("/programs/again", json={"id": ids_of(registry)["entry"]})
        assert (await graph_of(client, program="again"))["arrays"][0]["name"] == "jump_table"

    async def test_without_iterators_what_is_held_is_told(
        self, kernel: Kernel, client: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def loaded(_: Kernel) -> None:
            raise OSError(95, "no iterators")

        monkeypatch.setattr(type(kernel), "loaded", loaded)
        await client.put(f"{TABLE}/3", json={"program": "drop"})
        found = await graph_of(client)
        assert [each["name"] for each in found["arrays"]] == ["jump_table"]
        assert {each["name"] for each in found["programs"]} == {"entry", "drop", "pass", "tx", "count"}
        assert [(each["indexes"], each["certain"]) for each in found["edges"]] == [(None, False)]
        assert any("BPF iterators cannot be had" in each for each in found["unseen"])
        told = (await client.get("/maps/jump_table")).json()
        assert (told["owner"]["attach_type"], told["callers"]) == (None, None)

    async def test_code_of_a_program_is_read_once(
        self,
        kernel: Kernel,
        registry: Registry,
        client: httpx.AsyncClient,
        kept: ExitStack,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        await graph_of(client)
        read, asked = type(kernel).codes, list[int]()

        def codes(kernel: Any, ids: Sequence[int]) -> dict[int, ProgramCode]:
            asked.extend(ids)
            return read(kernel, ids)

        monkeypatch.setattr(type(kernel), "codes", codes)
        new = jump(kernel, kept, registry.maps.get("jump_table").opened().fd, 1)
        await graph_of(client)
        assert new.id in asked
        assert not {*asked} & {*ids_of(registry).values()}


class TestMaps:
    async def test_callers_with_constant_indexes_are_told(
        self, kernel: Kernel, registry: Registry, client: httpx.AsyncClient, kept: ExitStack
    ) -> None:
        array = registry.maps.get("jump_table").opened()
        caller = jump(kernel, kept, array.fd, 7, 2, name="direct")
        told = (await client.get("/maps/jump_table")).json()["callers"]
        assert told == [{"name": None, "id": caller.id, "kernel_name": "direct", "indexes": [2, 7]}]
        await client.put("/programs/direct", json={"id": caller.id})
        assert (await client.get("/maps")).json()["maps"][0]["callers"][0]["name"] == "direct"


@pytest.mark.kernel
class TestRefusals:
    # By the number of the type: two expected attach types with which programs of it are loaded.
    TYPES: ClassVar = {
        "xdp": (6, "unset", "xdp_devmap"),
        "sched_cls": (3, "unset", "tcx_ingress"),
        "cgroup_skb": (8, "cgroup_inet_ingress", "cgroup_inet_egress"),
        "cgroup_sock": (9, "cgroup_inet_sock_create", "cgroup_inet4_post_bind"),
        "cgroup_sock_addr": (18, "cgroup_inet4_connect", "cgroup_inet6_connect"),
        "cgroup_sockopt": (25, "cgroup_getsockopt", "cgroup_setsockopt"),
        "sk_reuseport": (21, "sk_reuseport_select", "sk_reuseport_select_or_migrate"),
    }

    @pytest.fixture
    def kernel(self) -> Kernel:
        return LinuxKernel()

    @pytest.mark.parametrize("type_", TYPES)
    async def test_attach_types_of_array_and_program_are_told_for_every_type(
        self, kernel: Kernel, client: httpx.AsyncClient, kept: ExitStack, type_: str
    ) -> None:
        probes.needs(probes.iterators())
        probes.needs(probes.compares_attach_types())
        number, first, other = self.TYPES[type_]
        array = kernel.map_create(MapType.PROG_ARRAY, 4, 4, 4, type_)
        kept.callback(kernel.close, array)
        programs = {}
        for name in (first, other):
            attach_type = 0 if name == "unset" else ATTACH_TYPE_NAMES.index(name)
            try:
                program = kernel.prog_load(number, asm.returns(1), "p", expected_attach_type=attach_type)
            except OSError as error:
                probes.needs(f"this kernel loads no {type_} program for {name}: {error}")
                raise
            kept.callback(kernel.close, program)
            programs[name] = {"program": {"id": kernel.prog_info(program).id}}
        await client.put("/maps/typed", json={"id": kernel.map_info(array).id})
        assert (await client.put("/maps/typed/entries/0", json=programs[first])).status_code == 201
        assert (await client.get("/maps/typed")).json()["owner"]["attach_type"] == first
        for query in ({}, {"dry_run": "true"}):
            refused = await client.put("/maps/typed/entries/1", params=query, json=programs[other])
            assert_problem(refused, 422, "program-incompatible")
            told = refused.json()
            assert (told["owner_program_type"], told["program_type"]) == (type_, type_)
            assert (told["owner_attach_type"], told["attach_type"]) == (first, other)


class TestRights:
    async def test_caller_with_bounds_gets_what_is_within_them(
        self, kernel: Kernel, registry: Registry, kept: ExitStack
    ) -> None:
        other = registry.maps.adopt("other", make_array(kernel, "other", 8)).opened()
        table = registry.maps.get("jump_table").opened()
        hidden = jump(kernel, kept, other.fd, 3, name="hidden")
        other.set(3, hidden)
        caller = jump(kernel, kept, table.fd, 2, 9, name="caller")
        programs = registry.programs
        table.set(2, programs.get("drop").opened())
        table.set(9, programs.get("tx").opened())
        grant = Grant("reader", maps=frozenset({"jump_table"}), entries=Ranges(((0, 3),)))
        async with started(registry) as app:
            app.state.authentication = _Granting(grant)
            async with client_of(app) as client:
                found = await graph_of(client)
                assert [each["name"] for each in found["arrays"]] == ["jump_table"]
                assert [each["index"] for each in found["arrays"][0]["entries"]] == [2]
                assert {each["id"] for each in found["programs"]} == {
                    caller.id, programs.get("entry").opened().id, programs.get("drop").opened().id,
                }  # fmt: skip
                assert {each["program"]: each["indexes"] for each in found["edges"]}[caller.id] == [2]
                assert found["cycles"] == []
                assert (await graph_of(client, map="other"))["arrays"] == []
                told = (await client.get("/maps/jump_table")).json()["callers"]
                assert [each["indexes"] for each in told] == [[2]]

    async def test_program_beyond_the_bounds_is_told_only_in_an_entry_within_them(
        self, kernel: Kernel, registry: Registry, kept: ExitStack
    ) -> None:
        table = registry.maps.get("jump_table").opened()
        jump(kernel, kept, table.fd, 2, name="caller")
        table.set(2, registry.programs.get("drop").opened())
        async with started(registry) as app:
            app.state.authentication = _Granting(Grant("reader", programs=frozenset({"entry", "tx"})))
            async with client_of(app) as client:
                found = await graph_of(client)
                assert {each["name"] for each in found["programs"]} == {"entry", "drop"}
                assert (await client.get("/maps/jump_table")).json()["callers"] == []
                assert_problem(await client.get("/graph?program=count"), 404, "program-unknown")


class _Granting(Authentication):
    """Gives everybody the same rights."""

    def __init__(self, grant: Grant) -> None:
        super().__init__()
        object.__setattr__(self, "_grant", grant)

    def actor(self, scope: Any, authorization: bytes | None) -> Actor:
        return Actor("tcp:somebody", self._grant)  # type: ignore[attr-defined]


class TestWarnings:
    async def test_dry_run_warns_of_what_would_not_be_reached(
        self, kernel: Kernel, registry: Registry, client: httpx.AsyncClient, kept: ExitStack
    ) -> None:
        array = registry.maps.adopt("parser", make_array(kernel, "parser", 8)).opened()
        start = jump(kernel, kept, array.fd, 1, name="start")
        array.set(1, jump(kernel, kept, array.fd, 2, name="parse_ip"))
        array.set(2, jump(kernel, kept, array.fd, name="parse_tcp"))
        dry = await client.put("/maps/parser/entries/1?dry_run=true", json={"program": "drop"})
        why = "only programs jump there that are never reached themselves"
        assert dry.json()["warnings"] == [f"entry 2 of 'parser' would not be reached: {why}"]
        dry = await client.put("/maps/parser/entries/5?dry_run=true", json={"program": "drop"})
        assert dry.json()["warnings"] == [
            "entry 5 of 'parser' would not be reached: no loaded program jumps to this index"
        ]
        body = {"entries": [{"index": 2, "program": None}]}
        dry = await client.patch("/maps/parser/entries?dry_run=true", json=body)
        [warning] = dry.json()["warnings"]
        assert "jumps to entry 2 of 'parser', which would be empty" in warning
        assert start.id in {each["id"] for each in (await graph_of(client))["programs"]}

    async def test_dry_run_warns_of_a_cycle_and_of_a_chain_beyond_the_limit(
        self, kernel: Kernel, registry: Registry, client: httpx.AsyncClient, kept: ExitStack
    ) -> None:
        array = registry.maps.adopt("hops", make_array(kernel, "hops", 64)).opened()
        hops = [jump(kernel, kept, array.fd, index + 1, name=f"hop{index}") for index in range(40)]
        for index, program in enumerate(hops):
            if index not in {0, 10}:
                array.set(index, program)
        registry.programs.adopt("tenth", hops[10].copy())
        dry = await client.put("/maps/hops/entries/10?dry_run=true", json={"program": "tenth"})
        [warning] = dry.json()["warnings"]
        assert warning.startswith("a chain of 39 jumps from program 'hop0' (")
        assert (await client.put("/maps/hops/entries/10", json={"program": "tenth"})).status_code == 201
        dry = await client.put("/maps/hops/entries/20?dry_run=true", json={"program": "tenth"})
        assert any(each.startswith("a cycle: program ") for each in dry.json()["warnings"]), dry.text
        dry = await client.put("/maps/hops/entries?dry_run=true", json={"programs": [None] * 20 + ["tenth"]})
        assert dry.json()["warnings"]

    async def test_change_that_is_made_warns_if_asked_to(
        self, kernel: Kernel, registry: Registry, client: httpx.AsyncClient, kept: ExitStack
    ) -> None:
        array = registry.maps.adopt("parser", make_array(kernel, "parser", 8)).opened()
        jump(kernel, kept, array.fd, 1, name="start")
        array.set(1, jump(kernel, kept, array.fd, 2, name="parse_ip"))
        entry, unreached = "/maps/parser/entries/5", "entry 5 of 'parser' is not reached"
        made = await client.put(entry, params={"warnings": "true"}, json={"program": "drop"})
        assert (made.status_code, made.json()["map"]) == (201, "parser")
        [warning] = made.json()["warnings"]
        assert warning == f"{unreached}: no loaded program jumps to this index"
        told = await client.get(entry, params={"warnings": "true"}, headers={"If-None-Match": made.headers["etag"]})
        assert told.json() == made.json(), "an entry tells what it makes worse"
        again = await client.put(entry, params={"warnings": "true"}, json=told.json())
        assert (again.status_code, again.json()["warnings"]) == (200, []), "nothing was written"
        assert "warnings" not in (await client.get(entry)).json()
        body = {"entries": [{"index": 5, "program": None}, {"index": 6, "program": "drop"}]}
        headers = {"Prefer": "return=minimal"}
        made = await client.patch("/maps/parser/entries?warnings=true", json=body, headers=headers)
        assert (made.json()["set"], len(made.json()["change"]["entries"])) == (1, 2)
        assert made.json()["warnings"] == ["entry 6 of 'parser' is not reached: no loaded program jumps to this index"]

    async def test_warning_of_a_change_compares_with_what_was_before(
        self, kernel: Kernel, registry: Registry, client: httpx.AsyncClient, kept: ExitStack
    ) -> None:
        """A cycle that is closed is told by the change that closes it, and by each of its entries."""
        array = registry.maps.adopt("ring", make_array(kernel, "ring", 4)).opened()
        jump(kernel, kept, array.fd, 0, name="start")
        for index, name in enumerate(("left", "right")):
            registry.programs.adopt(name, jump(kernel, kept, array.fd, 1 - index, name=name).copy())
        made = await client.put("/maps/ring/entries/0?warnings=true", json={"program": "left"})
        assert made.json()["warnings"] == [], "its jump fell through before as well"
        made = await client.put("/maps/ring/entries/1?warnings=true", json={"program": "right"})
        [warning] = made.json()["warnings"]
        assert warning.startswith("a cycle: program 'left'")
        assert " lead to each other; " in warning
        for index in range(2):
            told = await client.get(f"/maps/ring/entries/{index}?warnings=true")
            assert warning in told.json()["warnings"]

    async def test_change_is_told_also_where_its_warnings_cannot_be(
        self, client: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        async def read(_: GraphReader) -> None:
            raise KernelError("MAP_LOOKUP_ELEM", "EIO")

        monkeypatch.setattr(GraphReader, "read", read)
        made = await client.put(f"{TABLE}/3?warnings=true", json={"program": "drop"})
        assert (made.status_code, made.headers["change-id"]) == (201, "1")
        assert made.json()["warnings"][0].startswith("what the change makes worse is not known: ")

    async def test_change_that_worsens_nothing_warns_of_nothing(self, client: httpx.AsyncClient) -> None:
        dry = await client.put(f"{TABLE}/3?dry_run=true", json={"program": "drop"})
        assert dry.json()["warnings"] == []
        dry = await client.put(f"{TABLE}?dry_run=true", json={"programs": ["drop", "pass", "tx"]})
        assert dry.json()["warnings"] == []


class TestPictures:
    async def test_pictures_show_programs_arrays_and_jumps(
        self, kernel: Kernel, registry: Registry, client: httpx.AsyncClient, kept: ExitStack
    ) -> None:
        array = registry.maps.get("jump_table").opened()
        jump(kernel, kept, array.fd, 3, 5, name="direct")
        await client.put(f"{TABLE}/3", json={"program": "drop"})
        drop = ids_of(registry)["drop"]
        response = await client.get("/graph?map=jump_table&format=dot")
        assert response.headers["content-type"].startswith("text/vnd.graphviz")
        assert f"m{array.id}:i3 -> p{drop};" in response.text
        assert f'p{ids_of(registry)["entry"]} -> m{array.id}:name [label="any" style=dashed];' in response.text
        assert 'label="5" color="#dc2626"' in response.text
        response = await client.get("/graph?map=jump_table&format=mermaid")
        assert response.headers["content-type"].startswith("text/vnd.mermaid")
        assert response.text.startswith("flowchart LR\n")
        assert f'  m{array.id} -->|"3"| p{drop}' in response.text

    async def test_graphviz_draws_the_picture(
        self,
        kernel: Kernel,
        registry: Registry,
        client: httpx.AsyncClient,
        kept: ExitStack,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        """Also of names that mean something in its language, and of a table that is too large to be drawn."""
        probes.needs(None if shutil.which("dot") else "Graphviz is not installed: apt-get install graphviz")
        odd = Attachment(ids_of(registry)["entry"], "cgroup", '/a"b\\<c>&d')
        monkeypatch.setattr(type(kernel), "attachments", lambda _: Attachments((odd,)))
        large = registry.maps.adopt("large", make_array(kernel, "large", 4096)).opened()
        jump(kernel, kept, large.fd, 3, name="direct")
        for index in range(150):
            other = kept.enter_context(Program(kernel, kernel.prog_load(ProgType.XDP, asm.returns(2), "leaf")))
            large.set(index, other)
        await client.put(f"{TABLE}/3", json={"program": "drop"})
        text = (await client.get("/graph?format=dot")).text
        svg = await asyncio.to_thread(
            subprocess.run, ["dot", "-Tsvg"], input=text, text=True, capture_output=True, check=True, timeout=60
        )
        assert not svg.stderr
        assert "and 86 more" in svg.stdout
        assert "/a&quot;b\\&lt;c&gt;&amp;d" in svg.stdout
        assert svg.stdout.count('class="node"') < 150


@pytest.mark.kernel
@pytest.mark.slow
class TestCompiled:
    """Programs that clang has compiled, as somebody else loads and attaches them in a network namespace."""

    @pytest.fixture
    async def client(self, bpffs: Path) -> AsyncIterator[httpx.AsyncClient]:
        """A client on a service that holds nothing."""
        registry = Registry(LinuxKernel(), [str(bpffs)])
        async with client_on_registry(registry) as client:
            yield client
        registry.close()

    async def test_chains_of_xdp_and_tc_are_told(self, client: httpx.AsyncClient, bpffs: Path, tmp_path: Path) -> None:
        xdp = load_object("xdp_chain", tmp_path, bpffs / "xdp")
        tc = load_object("tc_cycle", tmp_path, bpffs / "tc")
        with network() as net:
            net.run(f"ip link set dev one xdpgeneric pinned {bpffs}/xdp/programs/entry")
            net.run("tc qdisc add dev one clsact")
            net.run(f"tc filter add dev one ingress bpf da pinned {bpffs}/tc/programs/start")
            found = await graph_of(client)
            own = {*xdp.values(), *tc.values()}
            where = {each["program"]: each for each in found["attachments"] if each["program"] in own}
            assert {id_: (each["kind"], each["where"]) for id_, each in where.items()} == {
                xdp["entry"]: ("xdp", "one generic"),
                tc["start"]: ("tc", "one ingress"),
            }
            assert {each["namespace"] for each in where.values()} == {f"of process {net.pid}"}
            reached = {each["id"]: each["reached"] for each in found["programs"]}
            programs = {name: id_ for name, id_ in (xdp | tc).items() if name not in {"table", "ring"}}
            assert {name: reached[id_] for name, id_ in programs.items()} == {
                "entry": "attached", "parse_ip": "attached", "parse_tcp": "attached", "drop": "attached",
                "start": "attached", "left": "attached", "right": "attached", "forgotten": "never",
            }  # fmt: skip
            assert [
                (each["program"], each["index"], each["reason"], each["certain"])
                for each in found["empty_jumps"]
                if each["array"] == xdp["table"]
            ] == [(xdp["parse_ip"], 9, "empty", True)]
            assert {"programs": sorted([tc["left"], tc["right"]]), "certain": True} in found["cycles"]
            assert {"array": tc["ring"], "count": 1, "indexes": [3], "reason": "no-jump"} in found["unreached"][
                "entries"
            ]

    async def test_chain_of_tcx_beyond_the_limit_is_told(
        self, client: httpx.AsyncClient, bpffs: Path, tmp_path: Path
    ) -> None:
        probes.needs(probes.tcx())
        tcx, kernel = load_object("tcx_chain", tmp_path, bpffs / "tcx"), LinuxKernel()
        with network() as net, ExitStack() as kept:
            hop0 = kernel.obj_get(f"{bpffs}/tcx/programs/hop0")
            kept.callback(kernel.close, hop0)
            kept.callback(kernel.close, net.link(hop0, "two", AttachType.TCX_EGRESS))
            await client.put("/maps/hops", json={"pinned": f"{bpffs}/tcx/maps/hops"})
            found = await graph_of(client, map="hops")
            [attachment] = found["attachments"]
            assert (attachment["program"], attachment["kind"], attachment["where"]) == (
                tcx["hop0"],
                "tcx",
                "two egress",
            )
            assert attachment["link"]
            assert found["longest_chain"] == {
                "programs": [tcx[f"hop{number}"] for number in range(41)],
                "jumps": 40,
                "limit": 33,
                "exceeds_limit": True,
            }

    async def test_attach_types_of_owners_are_told(
        self, client: httpx.AsyncClient, bpffs: Path, tmp_path: Path
    ) -> None:
        probes.needs(probes.compares_attach_types())
        xdp = load_object("xdp_chain", tmp_path, bpffs / "xdp")
        tc = load_object("tc_cycle", tmp_path, bpffs / "tc")
        owners = {each["id"]: each["owner"] for each in (await graph_of(client))["arrays"]}
        assert [owners[id_]["attach_type"] for id_ in (xdp["table"], tc["ring"])] == ["xdp", "unset"]

    async def test_links_of_xdp_and_cgroups_are_told_once(self, client: httpx.AsyncClient, tmp_path: Path) -> None:
        kernel = LinuxKernel()
        with network() as net, ExitStack() as kept, cgroup(f"jumptable-{os.getpid()}") as folder:

            def load(type_: int, attach_type: int) -> tuple[int, int]:
                fd = kernel.prog_load(type_, asm.returns(1), "attached", expected_attach_type=attach_type)
                kept.callback(kernel.close, fd)
                return fd, kernel.prog_info(fd).id

            xdp, xdp_id = load(ProgType.XDP, AttachType.XDP)
            kept.callback(kernel.close, net.link(xdp, "one", AttachType.XDP, flags=2))
            ingress, ingress_id = load(ProgType.CGROUP_SKB, 0)
            target = os.open(folder, os.O_RDONLY)
            kept.callback(os.close, target)
            fields = attr.LinkCreate(prog_fd=ingress, target_fd=target, attach_type=0)
            kept.callback(kernel.close, bpf(Cmd.LINK_CREATE, fields))
            found = (await graph_of(client))["attachments"]
            [of_xdp] = [each for each in found if each["program"] == xdp_id]
            assert (of_xdp["kind"], of_xdp["where"]) == ("xdp", "one generic")
            assert of_xdp["link"]
            [of_cgroup] = [each for each in found if each["program"] == ingress_id]
            assert (of_cgroup["kind"], of_cgroup["where"]) == ("cgroup", f"/{folder.name}")
            assert (of_cgroup["attach_type"], of_cgroup["link"] is None) == ("cgroup_inet_ingress", False)

    @pytest.mark.parametrize("attach_type", [0, AttachType.TCX_INGRESS])
    def test_kernel_writes_nothing_behind_the_arguments_of_a_query(self, attach_type: int) -> None:
        """It writes some of what it answers whatever their size is: see attr.Query."""
        size = ctypes.sizeof(attr.Query)
        memory = bytearray(b"\0" * size + b"\xa5" * 64)
        with cgroup(f"jumptable-query-{os.getpid()}") as folder:
            target = os.open(folder, os.O_RDONLY)
            fields = attr.Query.from_buffer(memory)
            fields.target = socket.if_nametoindex("lo") if attach_type else target
            fields.attach_type = attach_type
            with contextlib.suppress(OSError):  # nothing is attached there, or this kernel has no tcx
                bpf(Cmd.PROG_QUERY, fields)
            os.close(target)
        assert bytes(memory[size:]) == b"\xa5" * 64

    @pytest.mark.parametrize("by_link", [True, False])
    async def test_probe_of_a_perf_event_is_told(
        self, client: httpx.AsyncClient, tmp_path: Path, *, by_link: bool
    ) -> None:
        kernel, probed = LinuxKernel(), tmp_path / "probed"
        shutil.copyfile(sys.executable, probed)
        with ExitStack() as kept:
            program, event = kernel.prog_load(ProgType.KPROBE, asm.returns(0), "probe"), uprobe(probed, 0x1000)
            kept.callback(kernel.close, program)
            kept.callback(os.close, event)
            if by_link:
                fields = attr.LinkCreate(prog_fd=program, target_fd=event, attach_type=AttachType.PERF_EVENT)
                try:
                    kept.callback(kernel.close, bpf(Cmd.LINK_CREATE, fields))
                except OSError as error:
                    probes.needs(f"this kernel makes no links of perf events: {error}")
            else:
                fcntl.ioctl(event, PERF_EVENT_IOC_SET_BPF, program)
            id_ = kernel.prog_info(program).id
            [found] = [each for each in (await graph_of(client))["attachments"] if each["program"] == id_]
            assert (found["kind"], found["where"]) == ("perf_event", f"uprobe {probed}+0x1000")
            assert (found["link"] is None) != by_link


PERF_EVENT_IOC_SET_BPF = 0x40042408
_PERF_EVENT_OPEN = {"x86_64": 298, "aarch64": 241}


def uprobe(file: Path, offset: int) -> int:
    """A perf event at a place in a file, of this process alone."""
    type_ = int(Path("/sys/bus/event_source/devices/uprobe/type").read_text())
    path, libc = ctypes.create_string_buffer(bytes(file)), ctypes.CDLL(None, use_errno=True)
    # struct perf_event_attr: type, size; config1 and config2 are the path and the offset
    fields = ctypes.create_string_buffer(struct.pack("=II48xQQ", type_, 72, ctypes.addressof(path), offset), 72)
    fd = libc.syscall(_PERF_EVENT_OPEN[platform.machine()], fields, os.getpid(), -1, -1, 8)  # PERF_FLAG_FD_CLOEXEC
    assert fd >= 0, os.strerror(ctypes.get_errno())
    return int(fd)


@contextmanager
def cgroup(name: str) -> Iterator[Path]:
    """A new control group (version 2)."""
    mounts = (line.split() for line in Path("/proc/self/mounts").read_text().splitlines())
    root = next(fields[1] for fields in mounts if fields[2] == "cgroup2")
    folder = Path(root) / name
    folder.mkdir()
    try:
        yield folder
    finally:
        folder.rmdir()
