"""How long the page takes in Chromium: `sudo .venv/bin/python -m tests.web.timing` prints it.

It opens the page of a demo on the real kernel several times, with nothing in the browser's cache, and then a full table
of 65,536 entries. Times are in milliseconds, as the browser tells them.
"""

import statistics
from typing import Final

from playwright.sync_api import Browser, Page

from app.bpf.linux import LinuxKernel
from app.bpf.uapi import MapType
from tests.running import demo
from tests.web.browser import chromium

TIMES: Final = 10
ENTRIES: Final = 65_536
_RUNS_OF: Final = 64  # entries in a row that point to the same program
_PROGRAMS: Final = ("drop", "pass", "tx", "count")

# The time at which something is in the document and was painted.
_WATCH: Final = """
window.shown = (selector) => new Promise((done) => {
  const painted = () => done(performance.now());
  const look = () => requestAnimationFrame(document.querySelector(selector) ? painted : look);
  look();
});
"""


def main() -> None:
    """Measure, and print the median and the largest time."""
    with demo("--kernel", "linux") as service, service.client() as client, chromium() as browser:
        kernel = LinuxKernel()
        array = kernel.map_create(MapType.PROG_ARRAY, 4, 4, ENTRIES, "large")
        client.put("/maps/large", json={"id": kernel.map_info(array).id}).raise_for_status()
        kernel.close(array)
        programs = [_PROGRAMS[index // _RUNS_OF % len(_PROGRAMS)] for index in range(ENTRIES)]
        client.put("/maps/large/entries", json={"programs": programs}, timeout=60).raise_for_status()
        first, table = [], []
        for _ in range(TIMES):
            page = _opened(browser, service.url)
            first.append(page.evaluate("shown('.readiness.ok').then(() => shown('.maps a.name'))"))
            page.wait_for_selector(".live.live")
            page.wait_for_timeout(500)  # everything else is read
            table.append(page.evaluate(_OPEN_TABLE))
            page.context.close()
    _print("first view: ready or not, and the maps", first)
    _print(f"table of {ENTRIES:,} entries: from the click to its cells in colour", table)


_OPEN_TABLE: Final = """
() => {
  const start = performance.now();
  document.querySelector("a[href='#/maps/large']").click();
  return shown(".dense .cell.hue").then((end) => end - start);
}
"""


def _opened(browser: Browser, url: str) -> Page:
    page = browser.new_context(viewport={"width": 1280, "height": 800}).new_page()
    page.add_init_script(_WATCH)
    page.goto(url, wait_until="commit")
    return page


def _print(what: str, times: list[float]) -> None:
    print(f"{what}: median {statistics.median(times):.0f} ms, largest {max(times):.0f} ms, of {len(times)}")


if __name__ == "__main__":
    main()
