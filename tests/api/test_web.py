"""GET /: the page for browsers, and the index of links for everybody else."""

import gzip
import hashlib
import json
import re
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any
from urllib.parse import urljoin

import httpx
import pytest

from app.access.tokens import Token, TokenFile, Tokens
from app.api.authorization import Authentication
from app.bpf.memory.kernel import MemoryKernel
from app.cli import demo
from app.service.registry.registry import Registry
from tests.api.conftest import assert_problem, client_of, started

pytestmark = pytest.mark.anyio

ROOT = Path(__file__).parent.parent.parent
WEB = ROOT / "app" / "web"
BROWSER = {"Accept": "text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8"}
FIRST_VIEW_BYTES = 150 * 1024
SHELLS = ("index.html", "fleet/index.html")


@pytest.fixture
async def client() -> AsyncIterator[httpx.AsyncClient]:
    """What it answers is the same on both kernels."""
    registry = Registry(MemoryKernel())
    demo.fill(registry)
    async with started(registry) as app, client_of(app) as client:
        yield client
    registry.close()


class TestIndex:
    @pytest.mark.parametrize("accept", ["*/*", "application/json", "", "text/html;q=0, */*"])
    async def test_programs_get_links_that_lead_somewhere(self, client: httpx.AsyncClient, accept: str) -> None:
        answer = await client.get("/", headers={"Accept": accept})
        assert answer.headers["content-type"] == "application/json"
        links = answer.json()["links"]
        assert {"maps", "programs", "changes", "events", "docs"} <= links.keys()
        for path in links.values():
            assert (await client.head(path)).status_code == 200, path

    async def test_caller_without_authentication_is_an_admin_without_bounds(self, client: httpx.AsyncClient) -> None:
        told = (await client.get("/")).json()
        assert told["read_only"] is False
        assert told["caller"] == {
            "actor": told["caller"]["actor"],
            "role": "admin",
            "maps": None,
            "entries": None,
            "programs": None,
        }

    @pytest.mark.parametrize("read_only", [False, True])
    async def test_caller_is_told_its_role_and_bounds(self, tmp_path: Path, *, read_only: bool) -> None:
        tokens = TokenFile(tmp_path / "tokens.json")
        bounds: dict[str, Any] = {"maps": ["b", "a"], "entries": ["8-15", "60"], "programs": ["drop"]}
        secret = tokens.add(Token("deploy", "", "writer", time.time(), **bounds))
        authentication = Authentication(tokens=Tokens(tokens), read_only=read_only)
        async with started(Registry(MemoryKernel()), authentication=authentication) as app, client_of(app) as client:
            known = (await client.get("/", headers={"Authorization": f"Bearer {secret}"})).json()
            unknown = await client.get("/", headers={"Authorization": "Bearer jt_wrong"})
            anonymous = await client.get("/")
            page = await client.get("/", headers=BROWSER)
        assert known["read_only"] is read_only
        assert known["caller"] == {
            "actor": "token:deploy",
            "role": "writer",
            "maps": ["a", "b"],
            "entries": ["8-15", "60"],
            "programs": ["drop"],
        }
        assert unknown.json()["caller"] is None
        assert anonymous.json()["caller"] is None
        assert page.status_code == 200


class TestPage:
    async def test_browser_gets_a_page_with_a_strict_policy(self, client: httpx.AsyncClient) -> None:
        answer = await client.get("/", headers=BROWSER)
        assert answer.headers["content-type"] == "text/html; charset=utf-8"
        policy = dict(each.split(" ", 1) for each in answer.headers["content-security-policy"].split("; "))
        assert policy["default-src"] == "'none'"
        assert policy["frame-ancestors"] == "'none'"
        assert {policy[each] for each in ("script-src", "style-src", "img-src", "connect-src")} == {"'self'"}
        assert "Accept" in answer.headers["vary"]

    async def test_no_file_has_inline_code_or_names_another_host(self) -> None:
        for page in SHELLS:
            assert re.findall(r"<script(?![^>]* src=)|<style|style=|\son[a-z]+=", (WEB / page).read_text()) == []
        for file in (*WEB.glob("*.*"), *WEB.glob("fleet/*.*")):
            hosts = re.findall(r"https?://[\w.]+", file.read_text())
            assert set(hosts) <= {"http://www.w3.org"}, file  # the name of SVG

    async def test_unchanged_file_is_not_sent_again(self, client: httpx.AsyncClient) -> None:
        for path in ("/", "/web/style.css"):
            first = await client.get(path, headers=BROWSER)
            again = await client.get(path, headers={**BROWSER, "If-None-Match": first.headers["etag"]})
            assert (again.status_code, again.content) == (304, b"")

    async def test_files_are_compressed_only_on_request(self, client: httpx.AsyncClient) -> None:
        plain = await client.get("/web/style.css", headers={"Accept-Encoding": "identity"})
        refused = await client.get("/web/style.css", headers={"Accept-Encoding": "gzip;q=0"})
        packed = await client.get("/web/style.css", headers={"Accept-Encoding": "gzip, br"})
        assert "content-encoding" not in plain.headers
        assert "content-encoding" not in refused.headers
        assert packed.headers["content-encoding"] == "gzip"
        assert plain.content == refused.content == packed.content

    @pytest.mark.parametrize("shell", SHELLS)
    async def test_first_view_is_small(self, shell: str) -> None:
        preloaded = re.findall(r'(?:href|src)="/web/([^"]+)"', (WEB / shell).read_text())
        files = [WEB / shell, *(WEB / each for each in preloaded)]
        assert sum(len(gzip.compress(each.read_bytes())) for each in files) < FIRST_VIEW_BYTES

    @pytest.mark.parametrize("shell", SHELLS)
    async def test_first_view_asks_at_once_for_every_module_that_it_imports(
        self, client: httpx.AsyncClient, shell: str
    ) -> None:
        """Otherwise the browser learns of some of them only when it has read others."""
        listed = set(re.findall(r'(?:href|src)="(/web/[^"]+js)"', (await client.get(f"/web/{shell}")).text))
        found, waiting = set(), [urljoin(f"/web/{shell}", "main.js")]
        while waiting:
            module = waiting.pop()
            if module in found:
                continue
            found.add(module)
            text = (await client.get(module)).text
            names = re.findall(r"""(?:^|;|\})import\s*(?:[\w{},*\s$]+?from\s*)?["']([^"']+)["']""", text, re.MULTILINE)
            waiting += [urljoin(module, each) for each in names]
        assert found == listed

    async def test_unknown_file_is_not_found(self, client: httpx.AsyncClient) -> None:
        for path in ("/web/nope.js", "/web/", "/web/..%2f__init__.py", "/web/vendor/vendor.json", "/web/types.d.ts"):
            assert_problem(await client.get(path), 404, "not-found")


class TestVendored:
    async def test_files_are_those_of_the_list(self) -> None:
        libraries = json.loads((WEB / "vendor" / "vendor.json").read_text())
        for each in libraries:
            content = (WEB / "vendor" / each["file"]).read_bytes()
            assert hashlib.sha256(content).hexdigest() == each["sha256"], "bring it anew: .ci/vendor"
        listed = {each["file"] for each in libraries} | {"vendor.json"}
        licences = {f"{each['package'].removeprefix('@').replace('/', '-')}.LICENSE" for each in libraries}
        assert {each.name for each in (WEB / "vendor").iterdir()} == listed | licences

    async def test_modules_import_libraries_by_paths_that_exist(self, client: httpx.AsyncClient) -> None:
        for file in WEB.rglob("*.*js"):
            path = f"/web/{file.relative_to(WEB)}"
            text = (await client.get(path)).text
            for name in re.findall(r"""\bimport[\s("'{][^;]*?["']([^"'\n]+)["']""", text):
                assert name.startswith(("/web/", "./", "../")), (path, name)
                if not name.endswith(".d.ts"):  # only for the type checker
                    assert (await client.head(urljoin(path, name))).status_code == 200, (path, name)
