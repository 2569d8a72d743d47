"""A headless Chromium, and a page of it that records what it must not do."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final, Self

import pytest
from playwright.sync_api import Browser, BrowserContext, ConsoleMessage, Page, expect, sync_playwright

REQUIRED: Final = os.environ.get("KERNEL_TESTS") == "required"
CHROMIUM: Final = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
MODULES: Final = Path(__file__).parent / "node_modules"
_FLAGS: Final = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
# Each violation of the Content-Security-Policy, also where the console does not tell it.
_RECORD_VIOLATIONS: Final = """
window.violations = [];
addEventListener("securitypolicyviolation", e => violations.push(`${e.violatedDirective} ${e.blockedURI} ${e.sample}`));
"""

expect.set_options(timeout=20_000)  # milliseconds: other tests run at the same time

needs_chromium = pytest.mark.skipif(CHROMIUM is None and not REQUIRED, reason="apt-get install chromium")
needs_modules = pytest.mark.skipif(not MODULES.is_dir() and not REQUIRED, reason="npm ci --prefix tests/web")


@contextmanager
def chromium() -> Iterator[Browser]:
    """Run a browser, with a profile of its own that is gone afterwards."""
    assert CHROMIUM is not None, "KERNEL_TESTS=required, but there is no Chromium: apt-get install chromium"
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=_FLAGS)
        yield browser
        browser.close()


class Watched:
    """A context of a browser. When its block ends, none of its pages must have done what pages must not.

    That is: a violation of the policy, an error, a request to another host.

    Args:
        browser: The browser.
        url: Of the service, without a slash at its end.
        options: As `Browser.new_context` takes them.
    """

    def __init__(self, browser: Browser, url: str, **options: Any) -> None:
        self.url = url
        self.context: BrowserContext = browser.new_context(
            viewport=options.pop("viewport", {"width": 1280, "height": 800}), **options
        )
        self.context.set_default_timeout(20_000)
        self.context.add_init_script(_RECORD_VIOLATIONS)
        self.errors: list[str] = []
        self.hosts: set[str] = set()
        self.pages: list[Page] = []
        self.context.on("console", self._console)
        self.context.on("weberror", lambda error: self.errors.append(str(error.error)))
        self.context.on("request", lambda request: self.hosts.add("/".join(request.url.split("/")[:3])))

    def _console(self, message: ConsoleMessage) -> None:
        # Chromium reports each answer from 400 on as an error; the page tells the user of those.
        if message.type in {"error", "warning"} and not message.text.startswith("Failed to load resource"):
            self.errors.append(message.text)

    def open(self, view: str = "", *, live: bool = True) -> Page:
        """Open a view, as in `maps/jump_table`, in a new tab. `live`: wait until it follows the events."""
        page = self.context.new_page()
        self.pages.append(page)
        page.goto(f"{self.url}/#/{view}")
        if live:
            page.wait_for_selector(".live.live")
        return page

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        violations = [each for page in self.pages if not page.is_closed() for each in page.evaluate("violations")]
        self.context.close()
        if kind is None:
            assert violations == []
            assert self.errors == []
            assert self.hosts <= {self.url}


def axe_violations(page: Page) -> list[str]:
    """What axe finds in the page as it is now."""
    page.evaluate((MODULES / "axe-core" / "axe.min.js").read_text())
    found = page.evaluate("async () => (await axe.run()).violations")
    return [
        f"{each['id']}: {each['help']}: {node['html'][:200]} {node['failureSummary']}"
        for each in found
        for node in each["nodes"]
    ]
