"""Bad input gets a named problem, changes nothing, and never causes a 500."""

import json
import string
from pathlib import Path
from typing import Any

import httpx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from app.bpf.kernel import Kernel
from app.bpf.memory.kernel import MemoryKernel
from app.bpf.uapi import MapType
from app.cli.demo import fill
from app.service.registry.registry import Registry
from tests.api.conftest import ENTRY, assert_problem, client_on_registry

pytestmark = pytest.mark.anyio

TABLE = "/maps/jump_table/entries"
JSON = {"Content-Type": "application/json"}


@pytest.fixture(autouse=True)
def nothing_changes(registry: Registry) -> Any:
    yield
    assert registry.maps.get("jump_table").opened().indices() == []
    assert [held.name for held in registry.maps] == ["jump_table"]


@pytest.mark.usefixtures("both_ways")
class TestBody:
    @pytest.mark.parametrize(
        "content",
        [b"", b"{", b"nonsense", b"{'program': 'drop'}", b'{"program": "drop"', b'{"program": "drop"}x', b"\xff\xfe{}",
         b'{"program": "\xff"}', b'{"program": "\\ud800"}', b'{"flags": NaN}', b"\xef\xbb\xbf{}", b"[" * 60_000,
         b'{"program":' * 5000],
    )  # fmt: skip
    async def test_invalid_json_is_malformed(self, client: httpx.AsyncClient, content: bytes) -> None:
        assert_problem(await client.put(ENTRY, content=content, headers=JSON), 400, "malformed-json")

    @pytest.mark.field
    @pytest.mark.parametrize(
        ("method", "path", "content", "place"),
        [
            ("PUT", ENTRY, b'{"program": "drop", "program": "pass"}', "body.program"),
            ("PUT", ENTRY, b'{"program" :"drop","etag":"\\":","\\u0070rogram" : "pass"}', "body.program"),
            ("PUT", ENTRY, b'{"program": {"name": "drop", "name": "pass"}}', "body.program.name"),
            ("PUT", ENTRY, b'{"program": "drop", "etag": [{"a": 1, "a": 1}]}', "body.etag.0.a"),
            ("PUT", TABLE, b'{"entries": [{"index": 1, "program": "drop"}], "entries": []}', "body.entries"),
            ("PATCH", TABLE, b'{"entries": [{"index": 1, "index": 2, "program": "drop"}]}', "body.entries.0.index"),
            ("POST", "/maps/jump_table/reconcile", b'{"to": "kernel", "to": "journal"}', "body.to"),
        ],
    )
    async def test_member_given_twice_is_a_validation_error(
        self, client: httpx.AsyncClient, method: str, path: str, content: bytes, place: str
    ) -> None:
        """Field 7: of a member that is given twice the last one wins, in silence."""
        refused = await client.request(method, path, content=content, headers=JSON)
        assert_problem(refused, 422, "validation")
        assert refused.json()["errors"] == [{"loc": place, "message": "given more than once; send it once"}]

    @pytest.mark.field
    @pytest.mark.parametrize("etag", ['":', "a:b", '" :', '\\":{"etag":', {"etag": {"etag": [{"etag": ":"}]}}])
    async def test_colons_in_strings_are_no_members(self, client: httpx.AsyncClient, etag: object) -> None:
        """Field 7: of a member that is given twice the last one wins; but none is given twice here."""
        for separators in ((",", ":"), (", ", ": "), (" , ", " : ")):
            body = json.dumps({"program": "drop", "etag": etag}, separators=separators)
            answer = await client.put(ENTRY, content=body, headers=JSON)
            assert answer.status_code in {200, 201}, answer.text
        await client.delete(ENTRY)

    async def test_missing_body_is_malformed(self, client: httpx.AsyncClient) -> None:
        assert_problem(await client.put(ENTRY), 400, "malformed-json")

    @pytest.mark.parametrize(
        "body",
        [None, True, 3, "drop", [], ["drop"], {}, {"program": None}, {"program": 3}, {"program": ["drop"]},
         {"program": True}, {"program": ""}, {"program": "a/b"}, {"program": {}}, {"program": {"name": None}},
         {"program": {"id": -1}}, {"program": {"id": "812"}}, {"program": {"id": 1.0}}, {"program": {"id": 1 << 32}},
         {"program": {"id": True}}, {"program": {"pinned": ""}}, {"program": {"pinned": 3}},
         {"program": {"name": "drop", "pinned": "/sys/fs/bpf/drop"}}, {"program": {"id": 1, "pinned": "/x"}},
         {"program": {"name": "drop", "fd": 3}}, {"program": "drop", "flag": 0}, {"Program": "drop"},
         {"program": "drop", "flags": "0"}, {"program": "drop", "flags": 1.5}, {"program": "drop", "flags": -1},
         {"program": "drop", "flags": 1 << 64}, {"program": "drop", "flags": None}, {"program": "drop\n"}],
    )  # fmt: skip
    async def test_body_of_the_wrong_shape_is_a_validation_error(self, client: httpx.AsyncClient, body: object) -> None:
        response = await client.put(ENTRY, content=json.dumps(body), headers=JSON)
        assert_problem(response, 422, "validation")
        assert response.json()["errors"]

    async def test_validation_error_tells_the_location(self, client: httpx.AsyncClient) -> None:
        response = await client.put(ENTRY, json={"program": 3})
        assert response.json()["errors"] == [
            {
                "loc": "body.program",
                "message": 'a program is the name of a held one, or an object: {"name": …}, {"id": …} or {"pinned": …}',
            }
        ]
        for body, place in (
            ({"program": "drop", "flag": 0}, "body.flag"),
            ({"program": {"id": "812"}}, "body.program.id"),
            ({"program": "/sys/fs/bpf/drop"}, "body.program"),
        ):
            response = await client.put(ENTRY, json=body)
            assert [error["loc"] for error in response.json()["errors"]] == [place]

    async def test_megabyte_of_nesting_is_too_large(self, client: httpx.AsyncClient) -> None:
        response = await client.put(ENTRY, content=b"[" * (1 << 20), headers=JSON)
        assert_problem(response, 413, "body-too-large")
        assert response.json()["max_bytes"] == 65536

    @pytest.mark.parametrize(
        "media_type", ["text/plain", "application/x-www-form-urlencoded", "", "application/jsonx", "application/xml"]
    )
    async def test_media_type_other_than_json_is_unsupported(self, client: httpx.AsyncClient, media_type: str) -> None:
        content = b'{"program": "drop"}'
        response = await client.put(ENTRY, content=content, headers={"Content-Type": media_type})
        assert_problem(response, 415, "media-type-unsupported")
        assert "curl --json" in response.json()["detail"]

    async def test_content_encoding_is_unsupported(self, client: httpx.AsyncClient) -> None:
        headers = {**JSON, "Content-Encoding": "gzip"}
        response = await client.put(ENTRY, content=b'{"program": "drop"}', headers=headers)
        assert_problem(response, 415, "media-type-unsupported")

    async def test_media_type_may_have_a_parameter(self, client: httpx.AsyncClient) -> None:
        headers = {"Content-Type": "Application/JSON; charset=utf-8"}
        response = await client.put(f"{ENTRY}?dry_run=true", content=b'{"program": "drop"}', headers=headers)
        assert response.status_code == 201


@pytest.mark.usefixtures("both_ways")
class TestIndex:
    @pytest.mark.parametrize(
        "index",
        ["-1", "+3", "03", "3.0", "0x3", "4294967296", "18446744073709551616", "three", "3e0", "%203", "3%20", "3%0A",
         "%D9%A3", "1_0", "9" * 5000, "--3", "%2B3"],
    )  # fmt: skip
    async def test_index_that_is_no_decimal_u32_is_a_validation_error(
        self, client: httpx.AsyncClient, index: str
    ) -> None:
        url = f"/maps/jump_table/entries/{index}"
        assert_problem(await client.get(url), 422, "validation")
        assert_problem(await client.put(url, json={"program": "drop"}), 422, "validation")
        assert_problem(await client.delete(url), 422, "validation")

    @pytest.mark.parametrize("index", ["16", "17", "4294967295"])
    async def test_index_beyond_max_entries_is_out_of_range(self, client: httpx.AsyncClient, index: str) -> None:
        url = f"/maps/jump_table/entries/{index}"
        for response in (
            await client.get(url),
            await client.put(url, json={"program": "drop"}),
            await client.delete(url),
        ):
            assert_problem(response, 404, "index-out-of-range")
            assert (response.json()["index"], response.json()["max_entries"]) == (int(index), 16)


@pytest.mark.usefixtures("both_ways")
class TestName:
    @pytest.mark.parametrize(
        "name", ["a%2Fb", "jump_table%2Fentries", "%2E%2E", "jump_table%0A", "%0Ajump_table", "x" * 10_000, "a%20b",
                 "%00", "%C3%A4", "%ff", "a%25b", "a:b", "jump_table%"],
    )  # fmt: skip
    async def test_invalid_map_name_is_a_validation_error(self, client: httpx.AsyncClient, name: str) -> None:
        url = httpx.URL("http://jumptable/x").copy_with(raw_path=f"/maps/{name}".encode())
        entry = httpx.URL("http://jumptable/x").copy_with(raw_path=f"/maps/{name}/entries/3".encode())
        for response in (
            await client.get(url),
            await client.put(url, json={"id": 1}),
            await client.delete(url),
            await client.put(entry, json={"program": "drop"}),
        ):
            assert_problem(response, 422, "validation")

    @pytest.mark.parametrize("path", ["//maps", "/maps/", "/maps//entries", "/Maps", "/maps/a/b"])
    async def test_unknown_path_is_not_found(self, client: httpx.AsyncClient, path: str) -> None:
        url = httpx.URL("http://jumptable/x").copy_with(raw_path=path.encode())
        assert_problem(await client.get(url), 404, "not-found")

    async def test_name_may_be_percent_encoded(self, client: httpx.AsyncClient) -> None:
        assert (await client.get("/maps/jump%5Ftab%6Ce")).status_code == 200


@pytest.mark.usefixtures("both_ways")
class TestQuery:
    @pytest.mark.parametrize(
        "query", ["dryrun=true", "dry_run=maybe", "dry_run=", "dry_run", "dry_run=true&dry_run=false"]
    )
    async def test_typo_in_query_parameter_writes_nothing(self, client: httpx.AsyncClient, query: str) -> None:
        assert_problem(await client.put(f"{ENTRY}?{query}", json={"program": "drop"}), 422, "validation")
        assert_problem(await client.delete(f"{ENTRY}?allow_missing=true&{query}"), 422, "validation")

    async def test_thousands_of_unknown_parameters_get_a_short_answer(self, client: httpx.AsyncClient) -> None:
        query = "&".join(f"slip{number}" for number in range(2500))
        response = await client.get(f"/maps/jump_table/entries?{query}")
        assert_problem(response, 422, "validation")
        assert len(response.content) < 5000


class TestMethod:
    @pytest.mark.parametrize(
        ("url", "allow"),
        [("/maps", "GET, HEAD"), ("/maps/jump_table", "DELETE, GET, HEAD, PUT"), (ENTRY, "DELETE, GET, HEAD, PUT"),
         ("/programs/entry/run", "POST"), ("/healthz", "GET, HEAD"), ("/docs", "GET, HEAD"),
         ("/openapi.json", "GET, HEAD"), ("/docs/assets/swagger-ui.css", "GET, HEAD")],
    )  # fmt: skip
    async def test_405_lists_the_allowed_methods(self, client: httpx.AsyncClient, url: str, allow: str) -> None:
        for method in ("PATCH", "OPTIONS", "TRACE", "PROPFIND"):
            response = await client.request(method, url)
            assert_problem(response, 405, "method-not-allowed")
            assert response.headers["allow"] == allow


class TestHold:
    async def test_object_that_cannot_be_held_gets_a_named_problem(
        self, client: httpx.AsyncClient, kernel: Kernel, pins: Path, registry: Registry
    ) -> None:
        hash_ = kernel.map_create(MapType.HASH, 4, 4, 8)
        kernel.obj_pin(hash_, f"{pins}/hash")
        id_ = kernel.map_info(hash_).id
        kernel.close(hash_)
        kernel.obj_pin(registry.programs.get("drop").opened().fd, f"{pins}/program")
        kernel.obj_pin(registry.maps.get("jump_table").opened().fd, f"{pins}/table")
        for url, body, status, code in (
            ("/maps/bad", {"pinned": f"{pins}/hash"}, 422, "not-a-program-array"),
            ("/maps/bad", {"id": id_}, 422, "not-a-program-array"),
            ("/maps/bad", {"pinned": f"{pins}/program"}, 422, "not-a-program-array"),
            ("/maps/bad", {"id": 0x7FFFFFFF}, 422, "not-a-program-array"),
            ("/maps/bad", {"pinned": f"{pins}/none"}, 422, "pin-unusable"),
            ("/maps/bad", {"pinned": "/etc/passwd"}, 403, "pin-not-allowed"),
            ("/maps/bad", {"pinned": f"{pins}/../../../../etc/passwd"}, 403, "pin-not-allowed"),
            ("/maps/bad", {"pinned": "etc"}, 422, "pin-unusable"),
            ("/maps/bad", {"pinned": f"{pins}/a\0b"}, 422, "pin-unusable"),
            ("/maps/bad", {"pinned": f"{pins}/table"}, 409, "name-taken"),
            ("/maps/bad", {}, 422, "validation"),
            ("/maps/bad", {"id": 1, "pinned": "/x"}, 422, "validation"),
            ("/maps/bad", {"id": 1, "create": {"max_entries": 4}}, 422, "validation"),
            ("/maps/bad", {"pinned": f"{pins}/new", "create": {"max_entries": 0}}, 422, "validation"),
            ("/maps/bad", {"pinned": f"{pins}/new", "create": {"max_entries": 1 << 32}}, 422, "validation"),
            ("/maps/bad", {"pinned": f"{pins}/new", "create": {}}, 422, "validation"),
            ("/maps/bad", {"pinned": f"{pins}/new", "crate": {"max_entries": 4}}, 422, "validation"),
            ("/maps/bad", {"pinned": f"{pins}/a.b", "create": {"max_entries": 4}}, 422, "pin-unusable"),
            ("/programs/bad", {"pinned": f"{pins}/table"}, 422, "not-a-program"),
            ("/programs/bad", {"pinned": f"{pins}/hash"}, 422, "not-a-program"),
            ("/programs/bad", {"id": 0x7FFFFFFF}, 422, "program-not-found"),
            ("/programs/bad", {"pinned": "/etc/passwd"}, 403, "pin-not-allowed"),
            ("/programs/bad", {"id": 1, "create": None}, 422, "validation"),
        ):
            assert_problem(await client.put(url, json=body), status, code)
        assert_problem(await client.get("/programs/bad"), 404, "program-unknown")


class TestRun:
    @pytest.mark.parametrize(
        "body",
        [{}, {"packet": ""}, {"packet": "00" * 13}, {"packet": "0" * 29}, {"packet": "zz" * 14}, {"packet": 3},
         {"packet": "00" * 14, "repeat": 0}, {"packet": "00" * 14, "repeat": 1_000_001}, {"packet": "00" * 14 + "\n"},
         {"packet": "00" * 14, "repeat": "1"}, {"packet": "00 " * 14}, {"packet": "00" * 14, "times": 1}],
    )  # fmt: skip
    async def test_invalid_run_request_is_a_validation_error(
        self, client: httpx.AsyncClient, body: dict[str, object]
    ) -> None:
        assert_problem(await client.post("/programs/drop/run", json=body), 422, "validation")

    async def test_error_tells_the_minimum_packet_length(self, client: httpx.AsyncClient) -> None:
        response = await client.post("/programs/drop/run", json={"packet": "00" * 13})
        assert response.json()["detail"] == "body.packet: a packet has 14 bytes at least; this one has 13"


@pytest.mark.usefixtures("both_ways")
class TestRandomRequests:
    @pytest.fixture(autouse=True)
    def nothing_changes(self) -> None:
        """Each request gets a service of its own, which it may change."""

    @settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
    @given(
        method=st.sampled_from(["GET", "PUT", "DELETE", "POST", "PATCH", "HEAD"]),
        path=st.lists(
            st.one_of(
                st.sampled_from(["maps", "programs", "jump_table", "entries", "3", "drop", "run", "problems"]),
                st.text(string.printable, max_size=8),
            ),
            max_size=5,
        ),
        body=st.one_of(
            st.binary(max_size=64),
            st.recursive(
                st.none() | st.booleans() | st.integers() | st.text(max_size=8),
                lambda inner: (
                    st.lists(inner, max_size=3)
                    | st.dictionaries(st.sampled_from(["program", "id", "name", "pinned", "flags", "create"]), inner)
                ),
                max_leaves=6,
            ).map(lambda value: json.dumps(value).encode()),
        ),
        header=st.sampled_from(
            [{}, {"If-Match": "x"}, {"If-Match": "*"}, {"If-None-Match": '"a"'}, {"X-Request-ID": "ä"}]
        ),
    )
    async def test_no_request_causes_a_500(
        self, method: str, path: list[str], body: bytes, header: dict[str, str]
    ) -> None:
        """Every error is a problem in the form that all problems have."""
        fresh = Registry(MemoryKernel(), ["/sys/fs/bpf"])
        fill(fresh)
        url = httpx.URL("http://jumptable/x").copy_with(raw_path=("/" + "/".join(map(_quoted, path))).encode())
        async with client_on_registry(fresh) as client:
            headers = {**JSON, **{name: value.encode("latin-1").decode("latin-1") for name, value in header.items()}}
            response = await client.request(method, url, content=body, headers=list(_encoded(headers)))
        fresh.close()
        assert response.status_code < 500, response.text
        if response.status_code >= 400 and method != "HEAD":
            assert_problem(response, response.status_code, response.json()["code"])


def _quoted(segment: str) -> str:
    return "".join(each if each.isalnum() or each in "_-." else f"%{ord(each):02X}" for each in segment)


def _encoded(headers: dict[str, str]) -> list[tuple[bytes, bytes]]:
    return [(name.encode(), value.encode("latin-1")) for name, value in headers.items()]
