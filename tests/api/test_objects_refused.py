"""Object files that are not loaded: each gets its own problem, changes nothing, and leaves nothing behind."""

import asyncio
import os
import struct
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi import FastAPI

from app.bpf.linux import LinuxKernel
from app.bpf.uapi import AttachType, MapType
from app.loader.client import RunningLoader
from app.service.registry.registry import Registry
from tests import probes
from tests.api.conftest import assert_problem, client_of, started
from tests.api.test_objects import BINARY, PARSER, app, client, files, kernel, options, put, send, verdict
from tests.compiled import compiled, object_file

__all__ = ["app", "client", "files", "kernel"]  # fixtures

pytestmark = [
    pytest.mark.kernel,
    pytest.mark.anyio,
]

BEGINNING = '#include <linux/bpf.h>\n#include <bpf/bpf_helpers.h>\nchar LICENSE[] SEC("license") = "GPL";\n'


def array(name: str, entries: int, type_: str = "ARRAY", value: str = "__u64", more: str = "") -> str:
    """The source of a map."""
    return (
        f"struct {{ __uint(type, BPF_MAP_TYPE_{type_}); __uint(max_entries, {entries}); __type(key, __u32); "
        f'__type(value, {value}); {more} }} {name} SEC(".maps");\n'
    )


def program(body: str = "return 2;", section: str = "xdp", name: str = "p") -> str:
    """The source of a program."""
    return f'SEC("{section}") int {name}(struct xdp_md *ctx) {{ {body} }}\n'


def source(*parts: str) -> bytes:
    return compiled(BEGINNING + "".join(parts))


def children() -> set[str]:
    """The processes that this one has started."""
    return {pid for file in Path("/proc/self/task").glob("*/children") for pid in file.read_text().split()}


async def refused(client: httpx.AsyncClient, content: bytes, status: int, code: str) -> dict[str, Any]:
    """Send a file that is refused with this problem, and return the problem. No process and no name is left."""
    before = children()
    answer = await send(client, content)
    assert_problem(answer, status, code)
    assert children() == before
    assert_problem(await client.get(PARSER), 404, "object-unknown")
    told: dict[str, Any] = answer.json()
    return told


class TestBytes:
    @pytest.mark.parametrize(
        ("content", "code", "told"),
        [
            pytest.param(b"", "object-unsupported", "does not begin as an ELF file does", id="empty"),
            pytest.param(b"garbage" * 100, "object-unsupported", "does not begin as an ELF file does", id="garbage"),
            pytest.param(b"\x7fELF\x02\x01", "object-unsupported", "ends within the header", id="header"),
        ],
    )
    async def test_what_is_no_object_file(
        self, client: httpx.AsyncClient, content: bytes, code: str, told: str
    ) -> None:
        assert told in (await refused(client, content, 422, code))["reason"]

    @pytest.mark.parametrize(
        ("offset", "byte", "told"),
        [
            pytest.param(4, 1, "32 bits", id="32-bit"),
            pytest.param(5, 2, "big-endian", id="big-endian"),
            pytest.param(18, 62, "another machine (e_machine 62)", id="machine"),
            pytest.param(16, 2, "no object file that was just compiled (e_type 2)", id="executable"),
        ],
    )
    async def test_object_file_of_another_kind(
        self, client: httpx.AsyncClient, offset: int, byte: int, told: str
    ) -> None:
        content = bytearray(object_file("parser"))
        content[offset] = byte
        assert told in (await refused(client, bytes(content), 422, "object-unsupported"))["detail"]

    @pytest.mark.parametrize("part", [0.05, 0.3, 0.6, 0.95])
    async def test_truncated_file(self, client: httpx.AsyncClient, part: float) -> None:
        content = object_file("parser")
        await refused(client, content[: int(len(content) * part)], 422, "object-unreadable")

    async def test_file_beyond_the_limit_is_not_read(self, client: httpx.AsyncClient, files: Path) -> None:
        content = bytes(9 << 20)
        assert_problem(await send(client, content), 413, "body-too-large")
        with (files / "large.o").open("wb") as file:
            file.truncate(50 << 20)
        answer = await client.put(PARSER, json={"file": str(files / "large.o")})
        assert_problem(answer, 422, "object-too-large")
        assert (answer.json()["map"], answer.json()["limit"]) == (None, 8 << 20)

    async def test_sections_of_variables_beyond_any_memory_end_with_the_process(
        self, client: httpx.AsyncClient
    ) -> None:
        """Each section of zeros takes no byte in the file. libbpf maps memory for each."""
        told = await refused(client, many_sections(object_file("parser"), 20_000), 422, "object-unreadable")
        assert told["signal"] is None or told["signal"].startswith("SIG")


def many_sections(content: bytes, count: int) -> bytes:
    """The same file, with so many more sections `.bss.x` of 1 GiB each."""
    header = bytearray(content)
    start, names = struct.unpack_from("<Q", content, 40)[0], struct.unpack_from("<H", content, 62)[0]
    number = struct.unpack_from("<H", content, 60)[0]
    headers = [content[start + 64 * each : start + 64 * each + 64] for each in range(number)]
    texts = struct.unpack_from("<QQ", headers[names], 24)
    name_table = content[texts[0] : texts[0] + texts[1]] + b".bss.x\0"
    offset = len(content)
    headers[names] = headers[names][:24] + struct.pack("<QQ", offset, len(name_table)) + headers[names][40:]
    bss = struct.pack("<IIQQQQIIQQ", texts[1], 8, 3, 0, offset, 1 << 30, 0, 0, 8, 0)
    struct.pack_into("<Q", header, 40, offset + len(name_table))
    struct.pack_into("<H", header, 60, number + count)
    return bytes(header) + name_table + b"".join(headers) + bss * count


class TestAsked:
    async def test_sizes_of_maps_are_checked_before_any_is_made(self, client: httpx.AsyncClient) -> None:
        told = await refused(client, source(array("small", 1), array("huge", 3_000_000_000), program()), 422,
                             "object-too-large")  # fmt: skip
        assert (told["map"], told["bytes"], told["limit"]) == ("huge", 24_000_000_008, 64 << 20)
        many = source(*(array(f"m{each}", 1 << 20) for each in range(9)), program())
        assert (await refused(client, many, 422, "object-too-large"))["map"] == "m8"

    async def test_number_of_entries_can_be_given(self, client: httpx.AsyncClient, files: Path) -> None:
        (files / "huge.o").write_bytes(source(array("huge", 3_000_000_000), program()))
        body = {"file": str(files / "huge.o"), "maps": {"huge": {"max_entries": 7}}}
        assert (await client.put(PARSER, json=body)).json()["object"]["maps"][0]["max_entries"] == 7

    async def test_types_of_programs(self, client: httpx.AsyncClient, files: Path) -> None:
        content = source(program("return 0;", "kprobe/do_nanosleep", "probe"), program())
        told = await refused(client, content, 403, "program-type-not-allowed")
        assert (told["program"], told["program_type"], told["section"]) == ("probe", "kprobe", "kprobe/do_nanosleep")
        told = await refused(client, source(program(section="my_own")), 422, "program-type-unknown")
        assert (told["program"], told["section"]) == ("p", "my_own")
        (files / "own.o").write_bytes(source(program(section="my_own")))
        body = {"file": str(files / "own.o"), "programs": {"p": {"type": "xdp"}}}
        assert (await client.put(PARSER, json=body)).json()["object"]["programs"][0]["type"] == "xdp"
        (files / "probe.o").write_bytes(content)
        body = {"file": str(files / "probe.o"), "programs": {"probe": {"load": False}}}
        told = (await client.put(PARSER, json=body)).json()["object"]
        assert [each["program"] for each in told["programs"]] == ["p"]

    async def test_names_that_the_file_does_not_have(self, client: httpx.AsyncClient, files: Path) -> None:
        for code, body in (
            ("program-not-found", {"programs": {"nope": {"load": False}}}),
            ("map-not-found", {"maps": {"nope": {"max_entries": 1}}}),
            ("map-not-found", {"maps": {"nope": {"use": "jump_table"}}}),
            ("map-not-found", {"maps": {"stages": {"use": "nope"}}}),
            ("map-not-found", {"switch": {"map": "nope", "index": 0, "program": "entry"}}),
            ("program-not-found", {"switch": {"map": "jump_table", "index": 0, "program": "nope"}}),
            ("index-out-of-range", {"switch": {"map": "jump_table", "index": 16, "program": "entry"}}),
            ("variable-unknown", {"variables": {"nope": 1}}),
            ("map-not-replaceable", {"maps": {"stats": {"use": "previous"}}}),
        ):
            assert_problem(await put(client, files, **body), 422, code)
        assert_problem(await client.get(PARSER), 404, "object-unknown")

    async def test_values_that_do_not_fit_their_variable(self, client: httpx.AsyncClient, files: Path) -> None:
        for value, name in ((1 << 32, "verdict"), (-(1 << 31) - 1, "verdict"), ("12345", "verdict"),
                            ("123456789", "label")):  # fmt: skip
            answer = await put(client, files, variables={name: value})
            assert_problem(answer, 422, "variable-too-long")
            assert answer.json()["size"] == {"verdict": 4, "label": 8}[name]
        assert (await put(client, files, variables={"verdict": -1, "label": "12345678"})).status_code == 201

    async def test_map_of_another_shape_takes_no_place(
        self, client: httpx.AsyncClient, files: Path, app: FastAPI
    ) -> None:
        (files / "other.o").write_bytes(source(array("stages", 8, "PROG_ARRAY", "__u32"), program()))
        body = {"file": str(files / "other.o"), "maps": {"stages": {"use": "jump_table"}}}
        answer = await client.put(PARSER, json=body)
        assert_problem(answer, 422, "map-not-replaceable")
        assert answer.json()["differences"] == [{"field": "max_entries", "object": 8, "map": 16}]
        assert "max_entries is 16 and not 8" in answer.json()["detail"]

    async def test_pins_by_name_are_refused_unless_they_are_to_be_ignored(
        self, client: httpx.AsyncClient, files: Path
    ) -> None:
        content = object_file("pinned")
        assert (await refused(client, content, 422, "pinning-refused"))["map"] == "shared"
        (files / "pinned.o").write_bytes(content)
        body = {"file": str(files / "pinned.o"), "pinning": "ignore"}
        assert (await client.put(PARSER, json=body)).status_code == 201
        assert_problem(await client.put(PARSER, json=body | {"pinning": "hold"}), 422, "object-unsupported")

    async def test_names_beyond_64_characters(self, client: httpx.AsyncClient) -> None:
        name = f"p{'x' * 62}"
        told = await refused(client, source(program(name=name)), 422, "object-unsupported")
        assert f"parser.{name}" in told["detail"]

    async def test_name_that_something_else_has(self, client: httpx.AsyncClient, files: Path) -> None:
        pass_ = (await client.get("/programs/pass")).json()["id"]
        await client.put("/programs/parser.drop", json={"id": pass_})
        assert_problem(await put(client, files), 409, "name-taken")
        assert_problem(await client.get("/programs/parser.entry"), 404, "program-unknown")

    @pytest.mark.parametrize(
        "body",
        [
            {"file": ""},
            {},
            {"file": "/x", "programs": {"p": {"type": "unspec"}}},
            {"file": "/x", "programs": {"p": {"attach_type": "xdp"}}},
            {"file": "/x", "maps": {"m": {"use": "a", "max_entries": 1}}},
            {"file": "/x", "variables": {"v": 1.5}},
            {"file": "/x", "variables": {"v": 1 << 64}},
            {"file": "/x", "values": "maybe"},
            {"file": "/x", "move": True, "switch": {"map": "m", "index": 0, "program": "p"}},
            {"file": "/x", "values": "set", "switch": {"map": "m", "index": 0, "program": "p"}},
            {"file": "/x", "more": 1},
        ],
    )
    async def test_body_of_another_form(self, client: httpx.AsyncClient, body: dict[str, Any]) -> None:
        assert_problem(await client.put(PARSER, json=body), 422, "validation")

    async def test_body_of_another_type(self, client: httpx.AsyncClient) -> None:
        answer = await client.put(PARSER, content=b"x", headers={"Content-Type": "text/plain"})
        assert_problem(answer, 415, "media-type-unsupported")
        assert "application/octet-stream" in answer.json()["detail"]


class TestPaths:
    async def test_each_path_has_its_problem(self, client: httpx.AsyncClient, files: Path) -> None:
        (files / "link.o").symlink_to("/etc/passwd")
        os.mkfifo(files / "fifo.o")
        (files / "folder.o").mkdir()
        for path, status, code in (
            ("/etc/passwd", 403, "file-not-allowed"),
            (f"{files}/../copies/x", 403, "file-not-allowed"),
            ("parser.o", 403, "file-not-allowed"),
            (f"{files}/link.o", 403, "file-not-allowed"),
            (f"{files}/fifo.o", 422, "file-unusable"),
            (f"{files}/folder.o", 422, "file-unusable"),
            (f"{files}/none.o", 422, "file-unusable"),
            (f"{files}/a\0.o", 422, "file-unusable"),
            (f"{files}/" + "x" * 300, 422, "file-unusable"),
        ):
            assert_problem(await client.put(PARSER, json={"file": path}), status, code)

    async def test_file_that_changes_while_it_is_read(
        self, client: httpx.AsyncClient, files: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        read = os.read

        def changing(fd: int, size: int) -> bytes:
            monkeypatch.undo()
            with (files / "parser.o").open("ab") as file:
                file.write(b"more")
            return read(fd, size)

        monkeypatch.setattr(os, "read", changing)
        assert_problem(await put(client, files), 409, "file-changing")

    async def test_file_in_the_request_only_with_upload(self, registry: Registry, files: Path) -> None:
        without = options(files)
        object.__setattr__(without, "upload", False)
        async with started(registry, objects=without) as app, client_of(app) as client:
            assert_problem(await send(client, object_file("parser")), 403, "file-not-allowed")
            assert (await put(client, files)).status_code == 201


class TestKernelRefuses:
    async def test_line_and_instruction_are_told(self, client: httpx.AsyncClient) -> None:
        told = await refused(client, object_file("refused"), 422, "object-refused")
        assert (told["program"], told["errno"]) == ("reads_too_far", "EACCES")
        assert told["message"].startswith("invalid access to packet, off=4 size=1")
        assert told["instruction"] == {"index": 5, "text": "r1 = *(u8 *)(r2 +0)"}
        lines = (Path(__file__).parents[1] / "objects/refused.bpf.c").read_text().splitlines()
        assert (
            told["source"]["text"]
            == lines[told["source"]["line"] - 1].strip()
            == "return data[4] == 7 ? XDP_TX : XDP_PASS;"
        )
        assert told["source"]["file"].endswith("refused.bpf.c")
        assert "refused.bpf.c:15" in told["detail"]
        assert any(line.startswith("invalid access to packet, off=4 size=1") for line in told["log_tail"])

    async def test_long_log_is_told_by_its_end(self, client: httpx.AsyncClient) -> None:
        told = await refused(client, object_file("too_complex"), 422, "object-refused")
        assert "too complex" in told["message"] or "too large" in told["message"]
        assert len(told["log_tail"]) <= 12

    async def test_helper_that_wants_the_gpl(self, client: httpx.AsyncClient) -> None:
        told = await refused(client, object_file("not_gpl"), 422, "object-refused")
        assert told["message"] == "cannot call GPL-restricted function from non-GPL compatible program"

    async def test_missing_kernel_function(self, client: httpx.AsyncClient) -> None:
        told = await refused(client, object_file("missing_function"), 422, "kfunc-missing")
        assert told["function"] == "no_such_function"
        assert (await send(client, object_file("weak_function"))).status_code == 201

    async def test_field_that_the_kernel_does_not_have(self, client: httpx.AsyncClient) -> None:
        told = await refused(client, object_file("missing_field"), 422, "relocation-failed")
        assert told["program"] == "p"
        assert (await send(client, object_file("absent_field"))).status_code == 201

    async def test_program_that_does_not_fit_the_array_it_jumps_through(
        self, client: httpx.AsyncClient, files: Path
    ) -> None:
        (files / "tc.o").write_bytes(object_file("tc_stage"))
        answer = await client.put(PARSER, json={"file": str(files / "tc.o"), "maps": {"stages": {"use": "jump_table"}}})
        assert_problem(answer, 422, "program-incompatible")
        assert (answer.json()["owner_program_type"], answer.json()["program_type"]) == ("xdp", "sched_cls")
        owner = "unset" if probes.compares_attach_types() is None else None
        assert (answer.json()["owner_attach_type"], answer.json()["attach_type"]) == (owner, "unset")
        assert "takes only programs of type xdp, and this one is sched_cls" in answer.json()["reason"]

    async def test_program_whose_attach_type_does_not_fit_the_array_it_jumps_through(
        self, client: httpx.AsyncClient, files: Path
    ) -> None:
        """The array is that of the demo, whose programs have none."""
        probes.needs(probes.iterators())
        probes.needs(probes.compares_attach_types())
        answer = await put(
            client,
            files,
            maps={"stages": {"use": "jump_table"}},
            values="ignore",
            programs={name: {"attach_type": AttachType.XDP} for name in ("entry", "ipv4", "tcp", "drop")},
        )
        assert_problem(answer, 422, "program-incompatible")
        told = answer.json()
        assert (told["maps"], told["owner_attach_type"], told["attach_type"]) == (["stages"], "unset", "xdp")
        assert (
            told["reason"] == "the array takes only programs with the expected attach type unset, and this one has xdp"
        )

    async def test_array_without_owner_is_not_claimed_by_what_is_refused(
        self, registry: Registry, client: httpx.AsyncClient, files: Path
    ) -> None:
        """The first program that jumps through an array fixes for good what fits."""
        linux = LinuxKernel()
        fd = linux.map_create(MapType.PROG_ARRAY, 4, 4, 8, "fresh")
        await client.put("/maps/fresh", json={"id": linux.map_info(fd).id})
        (files / "claims.o").write_bytes(object_file("claims"))
        body = {"file": str(files / "claims.o"), "maps": {"fresh": {"use": "fresh"}}}
        assert_problem(await client.put(PARSER, json=body), 422, "object-refused")
        assert linux.map_state(fd).owner_type is None
        only = body | {"programs": {"bad": {"load": False}}}
        dry = await client.put(f"{PARSER}?dry_run=true", json=only)
        assert (dry.status_code, linux.map_state(fd).owner_type) == (201, None)
        assert (await client.put(PARSER, json=only)).status_code == 201
        assert linux.map_state(fd).owner_type == 6
        linux.close(fd)


class TestProcess:
    async def test_loader_that_hangs(self, registry: Registry, files: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(RunningLoader, "code", "import time; time.sleep(60)")
        async with started(registry, objects=options(files, timeout=0.3)) as app, client_of(app) as client:
            await refused(client, object_file("parser"), 422, "object-timeout")

    async def test_loader_that_dies(self, client: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(RunningLoader, "code", "import os; os.kill(os.getpid(), 11)")
        told = await refused(client, object_file("parser"), 422, "object-unreadable")
        assert told["signal"] == "SIGSEGV"

    async def test_missing_library(self, client: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch) -> None:
        """As where libbpf is not installed: the process tells of it before it reads the file."""
        code = RunningLoader.code.replace(
            "from app.loader.process", 'import app.loader.libbpf; app.loader.libbpf.LIBRARY = "none.so"; '
            "from app.loader.process",
        )  # fmt: skip
        monkeypatch.setattr(RunningLoader, "code", code)
        told = await refused(client, object_file("parser"), 503, "loader-unavailable")
        assert "none.so" in told["detail"]

    async def test_two_uploads_at_once(self, client: httpx.AsyncClient, files: Path) -> None:
        """Of the same name: one is loaded after the other. Of others: beside each other."""
        answers = await asyncio.gather(
            *(put(client, files, variables={"verdict": number}) for number in (1, 2)),
            *(put(client, files, f"/objects/p{number}") for number in range(4)),
        )
        assert sorted(each.status_code for each in answers) == [200, 201, 201, 201, 201, 201]
        assert (await client.get(PARSER)).json()["version"] == 2
        assert await verdict(client, 3) == "XDP_DROP"

    async def test_service_that_ends_gives_up_what_is_loaded(
        self, registry: Registry, files: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(RunningLoader, "code", "import time; time.sleep(60)")
        before = children()
        async with started(registry, objects=options(files)) as app, client_of(app) as client:
            task = asyncio.create_task(client.put(PARSER, content=b"x", headers=BINARY))
            while children() == before:
                await asyncio.sleep(0.01)
            await app.state.service.finish()
            assert_problem(await task, 503, "draining")
        assert children() == before
