"""The page of the fleet, against its real server, controller and etcd. The agents of its nodes are played."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, Page, expect

from app.fleet_store.documents import OpenMap, TableState
from tests.fleet_store.cluster import Cluster
from tests.web.browser import Watched, axe_violations, needs_chromium, needs_modules
from tests.web.fleet import ServedFleet, served_fleet
from tests.web.test_rights import sign_in
from tests.web.test_views import SHAPES

pytestmark = [needs_chromium, pytest.mark.slow]

REFUSAL = "program 'parse_v2' is not held on this node; PUT /programs/parse_v2 holds it"
VIEWS = {
    "overview": "",
    "rollouts": "rollouts",
    "rollout": "rollouts/jump_table-2",
    "ended rollout": "rollouts/jump_table-1",
    "unknown rollout": "rollouts/jump_table-9",
    "nodes": "nodes",
    "node": "nodes/edge-4",
    "away node": "nodes/edge-7",
    "node without the table": "nodes/shut",
    "table": "tables/jump_table",
    "history": "history",
    "nothing": "nothing-there",
}


@pytest.fixture
def fleet(etcd_cluster: Cluster, browser: Browser, tmp_path: Path) -> Iterator[ServedFleet]:
    """A fleet without nodes. `browser` is a parameter so that it starts first: what follows starts none."""
    assert browser.is_connected()
    with ThreadPoolExecutor(1) as thread:  # while Playwright runs in this one, it takes no other event loop
        thread.submit(etcd_cluster.empty).result()
    with served_fleet(etcd_cluster, tmp_path) as fleet:
        yield fleet
    etcd_cluster.repair()


def names(count: int) -> list[str]:
    return [f"edge-{number}" for number in range(1, count + 1)]


def fill(fleet: ServedFleet) -> None:
    """A complete rollout, and a halted one with nodes in every state that an agent can tell."""
    nodes = fleet.nodes
    nodes.add(names(9), site="fra")
    fleet.wait_until(fleet.put(note="first"), "complete")
    nodes.go("edge-7")
    nodes.answers = {"edge-4": (TableState.REFUSED, REFUSAL), "edge-5": None}
    nodes.held = {"edge-6"}
    fleet.put("parse_v2", note="parse v2", on_failure="halt", waves=[2, "100%"])
    fleet.wait_until("jump_table-2", "halted")
    nodes.wait_for("edge-5", "edge-6")
    nodes.tell("edge-1", TableState.DRIFTED, "entry 3 was changed by hand", indexes=(3,))
    nodes.tell("edge-8", TableState.UNHEALTHY, "program entry has returned 1")
    nodes.tell("edge-9", TableState.REVERTED, "it was cut off")
    nodes.add(["shut"], opens=(OpenMap(name="other", max_entries=4),))
    nodes.add(["narrow"], opens=(OpenMap(name="jump_table", max_entries=64, ranges=((0, 7),)),))


def is_complete(page: Page) -> None:
    """Wait until a view has read all that it shows."""
    page.wait_for_selector("main h1", state="attached")
    expect(page.locator(".loading")).to_have_count(0)


@needs_modules
class TestAccessibility:
    @pytest.mark.parametrize("shape", SHAPES, ids=["wide, light", "narrow, dark"])
    def test_axe_finds_nothing_in_any_view_and_none_is_wider_than_the_screen(
        self, browser: Browser, fleet: ServedFleet, shape: dict[str, Any]
    ) -> None:
        fill(fleet)
        found = {}
        with fleet.watched(browser, **shape) as watched:
            page = watched.open()
            for name, path in VIEWS.items():
                page.goto(f"{fleet.url}/#/{path}")
                is_complete(page)
                found[name] = axe_violations(page)
                assert page.evaluate("document.documentElement.scrollWidth <= innerWidth"), name
            page.goto(f"{fleet.url}/#/rollouts/jump_table-2")
            page.click("button:has-text('Abort')")
            page.wait_for_selector("dialog[open]")
            found["abort"] = axe_violations(page)
            page.click("dialog button.primary")
            fleet.wait_until("jump_table-2", "rolled_back")
            page.goto(f"{fleet.url}/#/tables/jump_table")
            page.click("button:has-text('Go back')")
            expect(page.locator("dialog .sentences li")).to_have_count(2)  # they have not opened the table
            found["nodes that are not ready"] = axe_violations(page)
            page.click("dialog button[aria-label='Close']")
            for name in ("shut", "narrow"):
                fleet.client.delete(f"/fleet/nodes/{name}")
            fleet.nodes.refusals = {"edge-2": REFUSAL}
            page.click("button:has-text('Go back')")
            page.wait_for_selector("dialog .note")
            found["going back"] = axe_violations(page)
        assert {name: each for name, each in found.items() if each} == {}

    def test_axe_finds_nothing_where_a_token_is_asked_for(self, browser: Browser, fleet: ServedFleet) -> None:
        with Watched(browser, fleet.url) as watched:
            page = watched.open(live=False)
            expect(page.locator("main")).to_contain_text("jumptable fleet token new NAME")
            assert axe_violations(page) == []


class TestRollout:
    def test_cells_follow_a_rollout_from_wave_to_wave_without_a_reload(
        self, browser: Browser, fleet: ServedFleet
    ) -> None:
        fleet.nodes.add(names(5))
        fleet.nodes.answers = {"edge-1": None, "edge-3": None}
        fleet.nodes.held = {"edge-2"}
        rollout = fleet.put(waves=[1, 2, "100%"])
        with fleet.watched(browser) as watched:
            page = watched.open(f"rollouts/{rollout}")
            cell = "a.spot[aria-label^='{}: {}']"
            expect(page.locator(cell.format("edge-1", "opened"))).to_be_visible()
            expect(page.locator(".spot.s-waiting")).to_have_count(4)
            expect(page.locator(".wave.open")).to_contain_text("Wave 1")
            fleet.nodes.tell("edge-1", TableState.APPLIED)
            expect(page.locator(cell.format("edge-2", "unconfirmed"))).to_be_visible()
            expect(page.locator(".wave.open")).to_contain_text("Wave 2")
            fleet.nodes.confirm("edge-2")
            expect(page.locator(cell.format("edge-3", "opened"))).to_be_visible()
            fleet.nodes.tell("edge-3", TableState.APPLIED)
            expect(page.locator(".spot.s-applied")).to_have_count(5)
            expect(page.locator(".now")).to_contain_text("complete")

    def test_refusal_is_told_in_its_sentence_and_the_nodes_are_shown_as_set_back(
        self, browser: Browser, fleet: ServedFleet
    ) -> None:
        fleet.nodes.add(names(6))
        fleet.wait_until(fleet.put(), "complete")
        fleet.nodes.answers["edge-4"] = (TableState.REFUSED, REFUSAL)
        rollout = fleet.put("parse_v2", waves=[2, 4, "100%"])
        with fleet.watched(browser) as watched:
            page = watched.open(f"rollouts/{rollout}")
            expect(page.locator(".now")).to_contain_text("its nodes have what they had before")
            expect(page.locator(".sentences li")).to_contain_text(["edge-4"])
            expect(page.locator(".sentences li")).to_contain_text([REFUSAL])
            expect(page.locator(".spot.s-back")).to_have_count(4)
            expect(page.locator(".spot.s-waiting")).to_have_count(2)
            expect(page.locator(".buttons button").first).to_have_attribute("aria-disabled", "true")
            expect(page.locator(".buttons button").first).to_contain_text("it has ended: went back")

    def test_node_that_was_away_at_its_turn_is_absent_until_it_is_back(
        self, browser: Browser, fleet: ServedFleet
    ) -> None:
        fleet.nodes.add(names(3))
        fleet.nodes.go("edge-3")
        rollout = fleet.put(waves=["100%"], max_unavailable=3)
        with fleet.watched(browser) as watched:
            page = watched.open(f"rollouts/{rollout}")
            expect(page.locator("a.spot[aria-label='edge-3: absent, away']")).to_be_visible()
            expect(page.locator(".note.warn")).to_contain_text("get the table when they are back")
            fleet.nodes.come("edge-3")
            expect(page.locator("a.spot[aria-label='edge-3: applied']")).to_be_visible()
            expect(page.locator(".note.warn")).to_have_count(0)


class TestSteps:
    def test_pause_resume_and_abort_ask_first_and_are_in_the_history_with_their_reason(
        self, browser: Browser, fleet: ServedFleet
    ) -> None:
        fleet.nodes.add(names(4))
        fleet.nodes.held = {"edge-1"}
        rollout = fleet.put(waves=[1, "100%"])
        fleet.nodes.wait_for("edge-1")
        with fleet.watched(browser) as watched:
            page = watched.open(f"rollouts/{rollout}")
            page.click("button:has-text('Pause')")
            expect(page.locator("dialog")).to_contain_text("What was given to 1 node so far stays there")
            page.click("dialog button:has-text('Leave it')")
            expect(page.locator(".now .badge")).to_have_text("under way")
            for step, phase, note in (("Pause", "paused", "lunch"), ("Resume", "under way", "back again")):
                page.click(f"button:has-text('{step}')")
                page.fill("dialog input[name=note]", note)
                page.click("dialog button.primary")
                expect(page.locator("dialog")).to_have_count(0)
                expect(page.locator(".now .badge")).to_have_text(phase)
                expect(page.locator(".history li").first).to_contain_text(note)
            page.click("button:has-text('Abort')")
            expect(page.locator("dialog")).to_contain_text("1 node go back to what they had")
            page.fill("dialog input[name=note]", "packets are lost")
            page.click("dialog button.primary")
            expect(page.locator(".now .badge")).to_have_text("went back")
            page.click("nav a:has-text('History')")
            row = page.locator("tbody tr", has_text="packets are lost").first
            expect(row).to_contain_text("token:admin")
            expect(row).to_contain_text("going back")

    def test_reader_is_told_why_no_step_is_possible(self, browser: Browser, fleet: ServedFleet) -> None:
        fleet.nodes.add(names(2))
        fleet.nodes.held = set(names(2))
        rollout = fleet.put()
        with fleet.watched(browser, "reader") as watched:
            page = watched.open(f"rollouts/{rollout}")
            for step in ("Pause", "Abort"):
                button = page.locator(f"button:has-text('{step}')")
                expect(button).to_have_attribute("aria-disabled", "true")
                expect(button).to_contain_text("has the role reader; this needs writer or admin")
                button.click(force=True)  # Playwright itself would wait until it can be pressed
                expect(page.locator("dialog")).to_have_count(0)
            page.goto(f"{fleet.url}/#/tables/jump_table")
            expect(page.locator(".revision button[title]")).to_have_attribute("aria-disabled", "true")

    @pytest.mark.parametrize(
        ("bounds", "why"),
        [
            ({"maps": ["other"]}, "the table is not among those of token:writer"),
            ({"labels": {"site": "ams"}}, "it is for nodes beyond the labels of token:writer"),
            ({"entries": ["0-7"]}, None),
        ],
        ids=["table", "labels", "entries"],
    )
    def test_bounds_of_a_writer_are_told_before_the_server_refuses(
        self, browser: Browser, fleet: ServedFleet, bounds: dict[str, Any], why: str | None
    ) -> None:
        fleet.nodes.add(names(2))
        fleet.nodes.held = set(names(2))
        rollout = fleet.put()
        with fleet.watched(browser, "writer", bounds=bounds) as watched:
            page = watched.open(f"rollouts/{rollout}")
            if "maps" in bounds:
                expect(page.locator(".problem")).to_contain_text("not among the tables of this caller")
                return
            expect(page.locator(".pairs").first).to_be_visible()
            button = page.locator("button:has-text('Abort')")
            expect(button).to_have_attribute("aria-disabled", "false" if why is None else "true")
            if why is not None:
                expect(button).to_contain_text(why)


class TestTable:
    def test_going_back_asks_every_node_first_and_starts_a_rollout(self, browser: Browser, fleet: ServedFleet) -> None:
        fleet.nodes.add(names(4))
        fleet.wait_until(fleet.put(note="first"), "complete")
        fleet.wait_until(fleet.put("parse_v2", note="second"), "complete")
        fleet.nodes.refusals = {"edge-3": "program 'parse' is not held any more"}
        with fleet.watched(browser) as watched:
            page = watched.open("tables/jump_table")
            expect(page.locator(".revision").first).to_contain_text("parse_v2")
            page.click("button[aria-label='Go back to revision 1']")
            dialog = page.locator("dialog")
            expect(dialog).to_contain_text("3 nodes take it, in 2 waves of 1, 3")
            expect(dialog).to_contain_text("1 node refuses it")
            expect(dialog.locator(".sentences")).to_contain_text("program 'parse' is not held any more")
            dialog.locator("input[name=note]").fill("second was slow")
            dialog.locator("button.primary").click()
            expect(page.locator("h1")).to_contain_text("Revision 3 of jump_table")
            expect(page.locator(".head")).to_contain_text("has the content of revision 1")
            expect(page.locator(".now .badge")).to_have_text("complete")

    def test_going_back_does_not_overwrite_what_somebody_else_has_written_meanwhile(
        self, browser: Browser, fleet: ServedFleet
    ) -> None:
        fleet.nodes.add(names(2))
        fleet.wait_until(fleet.put(), "complete")
        fleet.wait_until(fleet.put("parse_v2"), "complete")
        with fleet.watched(browser) as watched:
            page = watched.open("tables/jump_table")
            page.click("button[aria-label='Go back to revision 1']")
            page.wait_for_selector("dialog .note")
            fleet.wait_until(fleet.put("parse_v3"), "complete")
            page.click("dialog button.primary")
            expect(page.locator("dialog .problem")).to_be_visible()
            expect(page.locator("h1")).to_have_text("Table jump_table")


class TestNodes:
    def test_overview_counts_nodes_that_need_somebody_and_leads_to_them(
        self, browser: Browser, fleet: ServedFleet
    ) -> None:
        fill(fleet)
        with fleet.watched(browser) as watched:
            page = watched.open()
            counts = page.locator(".counts")
            for text in ("1 away", "4 failed", "1 drifted", "2 not opened", "2 changing"):
                expect(counts).to_contain_text(text)
            needing = page.locator("section", has_text="Nodes that need somebody").locator("li")
            expect(needing).to_have_count(7)
            expect(needing.filter(has_text="edge-1")).to_contain_text("drifted: entry 3 was changed by hand")
            expect(needing.filter(has_text="shut")).to_contain_text("jump_table is not open to the fleet")
            expect(needing.filter(has_text="narrow")).to_contain_text("only 0-7 is open")
            page.click(".counts a:has-text('not opened')")
            expect(page.locator("tbody tr")).to_have_count(2)
            page.fill("input[name=text]", "site=fra")
            expect(page.locator("tbody tr")).to_have_count(0)
            page.select_option("select[name=show]", "away")
            expect(page.locator("tbody tr")).to_have_count(1)
            page.click("tbody a:has-text('edge-7')")
            expect(page.locator("h1")).to_have_text("Node edge-7")
            expect(page.locator(".note.bad")).to_contain_text("it goes on with what it has")
            fleet.nodes.come("edge-7")
            expect(page.locator(".note.bad")).to_have_count(0)

    def test_thousand_nodes_are_cells_that_arrow_keys_go_through(self, browser: Browser, fleet: ServedFleet) -> None:
        fleet.nodes.add([f"edge-{number:04}" for number in range(1000)])
        fleet.nodes.answers["edge-0999"] = None
        rollout = fleet.put(waves=[1, "10%", "100%"], max_unavailable=1000)
        with fleet.watched(browser) as watched:
            page = watched.open(f"rollouts/{rollout}")
            expect(page.locator(".spot")).to_have_count(1000)
            expect(page.locator(".spot.s-applied")).to_have_count(999)
            first = page.locator(".spot").first
            first.focus()
            page.keyboard.press("End")
            expect(page.locator(".spot:focus")).to_have_attribute("aria-label", "edge-0999: opened")
            expect(page.locator(".looked")).to_have_text("edge-0999: opened")
            page.keyboard.press("ArrowUp")
            page.keyboard.press("ArrowDown")
            expect(page.locator(".spot:focus")).to_have_attribute("aria-label", "edge-0999: opened")
            page.keyboard.press("Home")
            page.keyboard.press("ArrowRight")
            expect(page.locator(".spot:focus")).to_have_attribute("aria-label", "edge-0001: applied")
            assert page.locator(".spot[tabindex='0']").count() == 1
            page.keyboard.press("Enter")
            expect(page.locator("h1")).to_have_text("Node edge-0001")
            page.click("nav a:has-text('Nodes')")
            expect(page.locator("tbody tr")).to_have_count(100)
            page.fill("input[name=text]", "0999")
            expect(page.locator("tbody tr")).to_have_count(1)


class TestStore:
    def test_page_says_that_etcd_is_away_and_goes_on_when_it_is_back(
        self, browser: Browser, fleet: ServedFleet, etcd_cluster: Cluster
    ) -> None:
        fleet.nodes.add(names(2))
        fleet.wait_until(fleet.put(), "complete")
        with fleet.watched(browser) as watched:
            page = watched.open()
            expect(page.locator(".readiness")).to_contain_text("by controller c1")
            for member in etcd_cluster.members:
                member.kill()
            page.reload()
            expect(page.locator(".readiness")).to_contain_text("etcd cannot be used", timeout=60_000)
            expect(page.locator(".readiness")).to_contain_text("Nodes go on with what they have")
            etcd_cluster.repair()
            expect(page.locator(".readiness")).to_contain_text("by controller c1", timeout=60_000)
            expect(page.locator(".tables tbody")).to_contain_text("2 of 2")

    def test_revoked_token_is_asked_for_again(self, browser: Browser, fleet: ServedFleet) -> None:
        token = fleet.token("reader")
        with Watched(browser, fleet.url) as watched:
            page = sign_in(watched, token)
            expect(page.locator(".status")).to_contain_text("reader")
            fleet.tokens.revoke(next(name for name in fleet.tokens.read() if name.startswith("reader")))
            page.evaluate("location.hash = '#/history'")
            expect(page.locator("input[name=token]")).to_be_visible()
