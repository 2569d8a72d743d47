"""/docs of a service with tokens, in a real browser."""

import json
import re
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from playwright.sync_api import Page, expect

from tests.running import Service, running, write_config
from tests.system.test_exposed import jumptable
from tests.web.browser import chromium, needs_chromium


@pytest.fixture
def guarded(tmp_path: Path) -> Iterator[tuple[Service, str]]:
    """A service that knows its callers by tokens, and a token."""
    config = write_config(tmp_path)
    text = config.read_text().replace("[server]", '[server]\nhost = "127.0.0.1"\nport = 0')
    config.write_text(f"{text}[tokens]\n")
    (tmp_path / "state").mkdir()
    secret = jumptable("token", "new", "reader", "--role", "reader", "--config", str(config)).stdout.strip()
    with running("serve", "--config", str(config)) as service:
        port = service.wait_for(r'"port": ?([0-9]+)')[1]
        service.wait_for("serving")
        service.url = f"http://127.0.0.1:{port}"
        yield service, secret


@pytest.mark.field
def test_documentation_is_open_where_callers_have_tokens(guarded: tuple[Service, str]) -> None:
    """Field 13: the documentation in a browser: it opens without a token, and nothing else does."""
    with guarded[0].client() as client:
        for path in ("/docs", "/docs/assets/swagger-ui.css", "/openapi.json"):
            assert client.get(path).status_code == 200
            assert client.get(path, headers={"Authorization": "Bearer jt_wrong"}).status_code == 200
        for path in ("/maps", "/version", "/metrics", "/events"):
            assert client.get(path).status_code == 401


@pytest.mark.field
@pytest.mark.slow
@needs_chromium
def test_requests_of_the_page_carry_the_token_that_is_entered(guarded: tuple[Service, str]) -> None:
    """Field 13: the documentation in a browser: it shows all operations, and its requests are authorized."""
    service, secret = guarded
    document = httpx.get(f"{service.url}/openapi.json").json()
    operations = sum(len(path) for path in document["paths"].values())
    with chromium() as browser:
        page = browser.new_page()
        page.goto(f"{service.url}/docs")
        expect(page.locator(".opblock")).to_have_count(operations, timeout=60_000)
        _list_maps(page, "401")
        page = browser.new_page()
        page.goto(f"{service.url}/docs")
        page.click(".auth-wrapper .authorize")
        page.fill(".auth-container input", secret)
        page.click(".auth-btn-wrapper .authorize")
        page.click(".auth-btn-wrapper .btn-done")
        _list_maps(page, "200")
        answer = page.locator(".live-responses-table .highlight-code").first.inner_text()
        assert [each["name"] for each in json.loads(answer[answer.index("{") : answer.rindex("}") + 1])["maps"]]
        page.reload()
        expect(page.locator(".auth-wrapper .authorize")).to_have_class(re.compile("unlocked"))
        assert secret not in page.evaluate("JSON.stringify({...localStorage, ...sessionStorage})")


def _list_maps(page: Page, status: str) -> None:
    """Try the operation out on the page, which then shows the status."""
    page.click("#operations-maps-list_maps .opblock-summary-control")
    page.click("#operations-maps-list_maps .try-out__btn")
    page.click("#operations-maps-list_maps .execute")
    expect(page.locator(".live-responses-table tbody .response-col_status")).to_contain_text(status)
