"""What an operator does on the page, from the first click to what a packet meets."""

import re
import time
from pathlib import Path

import httpx
import pytest
from playwright.sync_api import Browser, Page, expect

from app.bpf import asm
from app.bpf.linux import LinuxKernel
from app.bpf.uapi import MapType, ProgType
from tests.running import Service
from tests.web.browser import Watched, axe_violations, needs_chromium, needs_modules
from tests.web.conftest import Guarded
from tests.web.proxy import cable
from tests.web.test_rights import sign_in

pytestmark = [pytest.mark.kernel, needs_chromium, pytest.mark.slow]

TABLE = "/maps/jump_table/entries"
PACKET = {"packet": "03" + "00" * 13}


def put(client: httpx.Client, index: int, program: str, **query: str | int) -> int:
    """Point an entry to a program, and return the id of the change."""
    answer = client.put(f"{TABLE}/{index}", json={"program": program}, params=query)
    return int(answer.raise_for_status().headers["Change-Id"])


def point(page: Page, index: int, program: str) -> None:
    """Choose an entry in the grid, and collect an edit of it."""
    page.click(f"#entry-{index}")
    expect(page.locator(".panel h2")).to_contain_text(f"Entry {index}")
    page.locator(".targets button.target", has_text=program).click()


def review(page: Page) -> None:
    """Open the dialog for the edits, and wait for its dry run."""
    page.click(".draft button.primary")
    expect(page.locator("dialog")).to_contain_text("they fit")


class TestChanging:
    def test_edits_are_shown_checked_and_applied_as_one_change_that_a_packet_meets(
        self, watched: Watched, client: httpx.Client
    ) -> None:
        put(client, 3, "pass")
        page = watched.open("maps/jump_table")
        point(page, 3, "drop")
        point(page, 4, "tx")
        expect(page.locator(".draft")).to_contain_text("2 edits")
        assert client.get("/changes").json()["changes"][-1]["id"] == 1, "nothing is applied before it is reviewed"
        review(page)
        shown = [each.split() for each in page.locator("dialog tbody tr").all_inner_texts()]
        assert shown == [["3", "pass", "becomes", "drop"], ["4", "empty", "becomes", "tx"]]
        assert page.locator("dialog select[name=within]").input_value() == "60"
        page.fill("dialog input[name=note]", "try the new path")
        page.click("dialog button.primary")
        expect(page.locator(".waiting")).to_contain_text("Change 2 of jump_table waits")
        expect(page.locator(".draft")).to_have_count(0)
        assert client.post("/programs/entry/run", json=PACKET).json()["meaning"] == "XDP_DROP"
        change = client.get("/changes/2").json()
        assert (change["kind"], change["note"], change["state"]) == ("update", "try the new path", "unconfirmed")
        page.click(".waiting button:has-text('Confirm')")
        expect(page.locator(".waiting")).to_have_count(0)
        assert client.get("/changes/2").json()["state"] == "confirmed"

    def test_unconfirmed_change_is_undone_after_its_page_is_lost_and_another_tab_sees_it(
        self, watched: Watched, client: httpx.Client
    ) -> None:
        put(client, 3, "pass")
        watching, page = watched.open(), watched.open("maps/jump_table?entry=3")
        point(page, 3, "drop")
        review(page)
        page.select_option("dialog select[name=within]", "10")
        page.click("dialog button.primary")
        expect(page.locator(".waiting .countdown")).to_contain_text(" s")
        page.close()
        expect(watching.locator(".waiting")).to_contain_text("Change 2")
        left = watching.locator(".waiting .countdown strong")
        shown = int(left.inner_text().split()[0])
        later = "|".join(map(str, range(1, shown - 1)))
        expect(left).to_have_text(re.compile(rf"^({later}) s$"))
        expect(watching.locator(".waiting")).to_have_count(0, timeout=20_000)
        expect(watching.locator("tr", has_text="undone: expired")).to_contain_text("pass")
        assert client.get(f"{TABLE}/3").json()["program"]["name"] == "pass"

    def test_nothing_is_overwritten_that_the_difference_does_not_show(
        self, watched: Watched, client: httpx.Client
    ) -> None:
        page = watched.open("maps/jump_table")
        point(page, 3, "drop")
        review(page)
        put(client, 3, "tx")
        page.click("dialog button.primary")
        expect(page.locator("dialog .problem")).to_contain_text("Somebody has changed the table")
        assert client.get(f"{TABLE}/3").json()["program"]["name"] == "tx"
        page.click("dialog button:has-text('Show the difference anew')")
        expect(page.locator("dialog tbody")).to_contain_text("tx")
        page.click("dialog button.primary")
        expect(page.locator("dialog")).to_have_count(0)
        assert client.get(f"{TABLE}/3").json()["program"]["name"] == "drop"

    def test_refused_change_says_why_and_keeps_the_edits(self, watched: Watched, client: httpx.Client) -> None:
        page = watched.open("maps/jump_table?entry=3")
        page.fill(".by-id input", "4000000000")
        page.click(".by-id button")
        page.click(".draft button.primary")
        expect(page.locator("dialog .problem")).to_contain_text("No such program")
        expect(page.locator("dialog button.primary")).to_have_attribute("aria-disabled", "true")
        page.keyboard.press("Escape")
        expect(page.locator(".draft")).to_contain_text("1 edit")
        assert client.get("/changes").json()["changes"] == []

    def test_change_is_reverted_after_its_dry_run(self, watched: Watched, client: httpx.Client) -> None:
        put(client, 3, "pass")
        put(client, 3, "drop", note="<b>now</b> & here")
        page = watched.open("changes")
        expect(page.locator(".change")).to_have_count(2)
        expect(page.locator(".change").first).to_contain_text("<b>now</b> & here")  # as text
        page.click(".change >> nth=0 >> button.id")
        page.click("button:has-text('Revert')")
        expect(page.locator("dialog tbody tr")).to_contain_text("pass")
        page.select_option("dialog select[name=within]", "0")
        page.click("dialog button.primary")
        expect(page.locator(".change")).to_have_count(3)
        expect(page.locator(".change").nth(1)).to_contain_text("reverted")
        assert client.get(f"{TABLE}/3").json()["program"]["name"] == "pass"


class TestLive:
    def test_page_says_that_it_is_cut_off_and_catches_up(
        self, browser: Browser, service: Service, client: httpx.Client
    ) -> None:
        put(client, 6, "pass")
        with cable(service.url) as between, Watched(browser, between.url) as watched:
            page = watched.open("maps/jump_table")
            expect(page.locator("#entry-6")).to_contain_text("pass")
            between.cut()
            expect(page.locator("p.cut-off")).to_contain_text("Cut off")
            put(client, 7, "drop")
            expect(page.locator("#entry-7")).to_contain_text("empty")
            with page.expect_request("**/events") as asked:
                between.mend()
            assert asked.value.headers["last-event-id"] == "1"
            expect(page.locator("#entry-7")).to_contain_text("drop")
            expect(page.locator("p.cut-off")).to_have_count(0)

    def test_page_without_a_stream_still_shows_what_is_so(self, watched: Watched, client: httpx.Client) -> None:
        problem = {"code": "too-many-requests", "status": 429, "detail": "8 event streams are open already"}
        watched.context.route("**/events", lambda route: route.fulfill(status=429, json=problem))
        page = watched.open(live=False)
        expect(page.locator("p.cut-off")).to_contain_text("8 event streams are open already")
        expect(page.locator(".readiness")).to_contain_text("Ready")
        put(client, 3, "drop")
        expect(page.locator(".fill")).to_contain_text("1 of 16")

    def test_what_another_tool_writes_is_shown_as_drift_and_put_back(
        self, watched: Watched, client: httpx.Client
    ) -> None:
        put(client, 3, "pass")
        page = watched.open("maps/jump_table?entry=3")
        kernel = LinuxKernel()
        array = kernel.map_get_fd_by_id(client.get("/maps/jump_table").json()["id"])
        program = kernel.prog_get_fd_by_id(client.get("/programs/drop").json()["id"])
        kernel.map_update(array, 3, program)
        kernel.close(array)
        kernel.close(program)
        expect(page.locator(".drift")).to_contain_text("1 entry is not as journalled")
        expect(page.locator("#entry-3")).to_contain_text("drop")
        page.click("button:has-text('Put back what is journalled')")
        expect(page.locator("dialog tbody tr")).to_contain_text("pass")
        page.click("dialog button.primary")
        expect(page.locator(".drift")).to_have_count(0)
        assert client.get(f"{TABLE}/3").json()["program"]["name"] == "pass"


class TestReading:
    def test_changes_are_read_to_the_end_and_filtered(self, watched: Watched, client: httpx.Client) -> None:
        for number in range(120):
            put(client, number % 5, ("drop", "pass")[number // 5 % 2])
        page = watched.open("changes")
        expect(page.locator(".change")).to_have_count(50)
        while page.locator(".change").count() < 120:
            page.mouse.wheel(0, 4000)
            page.wait_for_timeout(50)
        expect(page.locator(".end")).to_contain_text("That is all: 120")
        ids = [int(each) for each in page.locator(".change button.id").all_inner_texts()]
        assert ids == list(range(120, 0, -1))
        page.fill("input[name=index]", "4")
        page.press("input[name=index]", "Tab")
        expect(page.locator(".change")).to_have_count(24)
        page.select_option("select[name=state]", "reverted")
        expect(page.locator(".end")).to_contain_text("No change is like that")

    def test_change_of_a_whole_table_hides_no_other_one(self, watched: Watched, client: httpx.Client) -> None:
        kernel = LinuxKernel()
        array = kernel.map_create(MapType.PROG_ARRAY, 4, 4, 10_000, "large")
        client.put("/maps/large", json={"id": kernel.map_info(array).id}).raise_for_status()
        kernel.close(array)
        put(client, 3, "pass", note="before")
        client.put("/maps/large/entries", json={"programs": ["drop"] * 10_000}).raise_for_status()
        page = watched.open()
        rows = page.locator("section", has=page.locator("#last")).locator("tbody tr")
        expect(rows).to_have_count(2)
        expect(rows.first).to_contain_text("and 9,998 more")
        expect(rows.last).to_contain_text("before")
        page.goto(f"{watched.url}/#/changes")
        page.click(".change >> nth=0 >> button.id")
        expect(page.locator(".details")).to_contain_text("and 9,900 entries more")
        page.goto(f"{watched.url}/#/maps/large?entry=7777")
        expect(page.locator(".history li")).to_contain_text("drop")

    def test_entry_tells_its_program_and_its_own_history(self, watched: Watched, client: httpx.Client) -> None:
        for program in ("pass", "drop"):
            put(client, 3, program)
        put(client, 4, "tx")
        page = watched.open("maps/jump_table?entry=3")
        drop = client.get("/programs/drop").json()
        for told in (drop["tag"], str(drop["id"]), "xdp"):
            expect(page.locator(".panel .pairs")).to_contain_text(told)
        expect(page.locator(".history li > span > a")).to_have_text(["2", "1"])
        put(client, 3, "tx")
        expect(page.locator(".history li > span > a").first).to_have_text("4")

    def test_packet_shows_where_it_comes_out(self, watched: Watched, client: httpx.Client) -> None:
        page = watched.open("packet?program=entry")
        page.click("button.primary")
        expect(page.locator(".outcome")).to_contain_text("XDP_ABORTED")
        put(client, 3, "drop")
        page.click("button.primary")
        expect(page.locator(".outcome")).to_contain_text("XDP_DROP")
        page.fill("textarea", "03 0")
        expect(page.locator("button.primary")).to_have_attribute("aria-disabled", "true")

    def test_table_of_a_million_entries_keeps_the_document_small(
        self, watched: Watched, client: httpx.Client, service: Service
    ) -> None:
        kernel = LinuxKernel()
        array = kernel.map_create(MapType.PROG_ARRAY, 4, 4, 1 << 20, "big")
        try:
            client.put("/maps/big", json={"id": kernel.map_info(array).id}).raise_for_status()
        finally:
            kernel.close(array)
        edits = [{"index": index, "program": "drop"} for index in (5, 777_777, (1 << 20) - 1)]
        client.patch("/maps/big/entries", json={"entries": edits}).raise_for_status()
        page = watched.open("maps/big")
        expect(page.get_by_role("gridcell", name="Entry 5: drop")).to_have_count(1)
        page.fill("input.go", "777777")
        page.press("input.go", "Enter")
        expect(page.get_by_role("gridcell", name="Entry 777777: drop")).to_be_in_viewport()
        page.locator("[role=grid]").press("Control+End")
        expect(page.get_by_role("gridcell", name="Entry 1048575: drop")).to_be_in_viewport()
        assert page.locator("[role=gridcell]").count() < 4000


def load_again(guarded: Guarded) -> Path:
    """Pin another program where `drop` is pinned, as a loader does that runs again."""
    kernel, pin = LinuxKernel(), guarded.pins / "drop"
    pin.unlink()
    fd = kernel.prog_load(ProgType.XDP, asm.returns(3), "drop")
    kernel.obj_pin(fd, str(pin))
    kernel.close(fd)
    return pin


@needs_modules
class TestReadiness:
    def test_page_says_why_the_service_is_not_ready_and_when_it_is_again(
        self, browser: Browser, guarded: Guarded
    ) -> None:
        with Watched(browser, guarded.service.url) as watched:
            page = sign_in(watched, guarded.token("admin"))
            expect(page.locator(".readiness")).to_contain_text("Ready")
            pin = load_again(guarded)
            reason = page.locator(".readiness li")
            expect(reason).to_contain_text("the pin of program 'drop' leads to another program now")
            expect(page.locator(".readiness")).to_have_class("readiness bad")
            expect(page).to_have_title("(not ready) Overview · jumptable")
            assert axe_violations(page) == []
            with guarded.service.client() as client:
                client.headers["Authorization"] = f"Bearer {guarded.token('admin')}"
                client.put("/programs/drop", json={"pinned": str(pin)}).raise_for_status()
            expect(page.locator(".readiness")).to_contain_text("Ready")

    def test_page_says_so_where_it_shows_something_else(self, browser: Browser, guarded: Guarded) -> None:
        load_again(guarded)
        with Watched(browser, guarded.service.url) as watched:
            page = sign_in(watched, guarded.token("reader"), "changes")
            expect(page).to_have_title("(not ready) Changes · jumptable")
            expect(page.locator("nav")).to_contain_text("not ready")


class TestKeyboard:
    def test_change_is_made_without_a_mouse(self, watched: Watched, client: httpx.Client) -> None:
        page = watched.open("maps/jump_table")
        page.locator("[role=grid]").focus()
        for key in ("ArrowRight", "ArrowDown", "Shift+ArrowRight"):
            page.keyboard.press(key)
        expect(page.locator(".panel h2")).to_contain_text("Entries 9\u201310")
        page.keyboard.press("Enter")
        expect(page.locator(".target").first).to_be_focused()
        page.keyboard.press("Enter")
        page.locator(".draft button.primary").press("Enter")
        expect(page.locator("dialog")).to_contain_text("they fit")
        page.locator("dialog button.primary").press("Enter")
        expect(page.locator("dialog")).to_have_count(0)
        deadline = time.monotonic() + 10
        while [each["index"] for each in client.get(TABLE).json()["entries"]] != [9, 10]:
            assert time.monotonic() < deadline
