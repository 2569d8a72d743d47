"""Each view: axe finds nothing in it, and it says plainly what the service does not have."""

import json
import re
from pathlib import Path
from typing import Any

import httpx
import pytest
from playwright.sync_api import Browser, FilePayload, Route, expect

from app.bpf import asm
from app.bpf.linux import LinuxKernel
from app.bpf.uapi import MapType, ProgType
from tests.compiled import object_file
from tests.running import Service
from tests.web.browser import Watched, axe_violations, needs_chromium, needs_modules

pytestmark = [
    pytest.mark.kernel,
    needs_chromium,
    pytest.mark.slow,
]

FAKES = Path(__file__).parent
TABLE = "/maps/jump_table/entries"
VIEWS = {
    "overview": "",
    "table": "maps/jump_table?entry=3",
    "large table": "maps/large",
    "changes": "changes",
    "change": "changes?id=2",
    "graph": "graph",
    "programs": "programs",
    "objects": "objects",
    "packet": "packet",
    "nothing": "nothing-there",
}
SHAPES: list[dict[str, Any]] = [
    {"viewport": {"width": 1280, "height": 800}, "color_scheme": "light"},
    {"viewport": {"width": 390, "height": 800}, "color_scheme": "dark"},
]


def fill(client: httpx.Client) -> None:
    """Entries, a change that waits, and one that was reverted; and a table that is too large for names."""
    for index, program in ((0, "pass"), (3, "drop"), (9, "tx")):
        client.put(f"{TABLE}/{index}", json={"program": program}).raise_for_status()
    client.put(f"{TABLE}/3", json={"program": "pass"}, params={"confirm_within": 3600}).raise_for_status()
    client.post("/changes/3/revert").raise_for_status()
    kernel = LinuxKernel()
    array = kernel.map_create(MapType.PROG_ARRAY, 4, 4, 1024, "large")
    client.put("/maps/large", json={"id": kernel.map_info(array).id}).raise_for_status()
    kernel.close(array)
    client.put("/maps/large/entries/5", json={"program": "drop"}).raise_for_status()
    binary = {"Content-Type": "application/octet-stream"}
    client.put("/objects/parser", content=object_file("parser"), headers=binary).raise_for_status()


def answer_instead(watched: Watched, path: str, body: Any, status: int = 200, method: str = "GET") -> None:
    """Answer a path of the service in its place."""

    def answer(route: Route) -> None:
        if route.request.method == method:
            media_type = "application/json" if status < 400 else "application/problem+json"
            route.fulfill(status=status, body=json.dumps(body), content_type=media_type)
        else:
            route.fallback()

    watched.context.route(re.compile(rf":\d+{path}(\?|$)"), answer)


@needs_modules
class TestAccessibility:
    @pytest.mark.parametrize("shape", SHAPES, ids=["wide, light", "narrow, dark"])
    def test_axe_finds_nothing_in_any_view(
        self, browser: Browser, service: Service, client: httpx.Client, shape: dict[str, Any]
    ) -> None:
        fill(client)
        refused: FilePayload = {"name": "refused.o", "mimeType": "", "buffer": object_file("refused")}
        with Watched(browser, service.url, **shape) as watched:
            answer_instead(watched, "/graph", json.loads((FAKES / "fake_graph.json").read_text()))
            page = watched.open()
            found = {}
            for name, path in VIEWS.items():
                page.goto(f"{service.url}/#/{path}")
                page.wait_for_selector("main h1", state="attached")
                expect(page.locator(".loading")).to_have_count(0)
                if name == "change":
                    page.wait_for_selector(".details")
                if name == "graph":
                    page.wait_for_selector("svg.graph")
                    page.click("summary")
                if name == "objects":
                    page.set_input_files("input[type=file]", refused)
                    page.click("button:text-is('Verify')")
                    page.wait_for_selector(".source-line")
                    page.click("details.how summary")
                    for each in ("variable", "map", "program"):
                        page.click(f"text=Add a {each}")
                    page.check("input[name=switch]")
                found[name] = axe_violations(page)
            page.goto(f"{service.url}/#/maps/jump_table?entry=4")
            page.click(".targets .target >> nth=0")
            page.click(".draft button.primary")
            expect(page.locator("dialog")).to_contain_text("they fit")
            found["review"] = axe_violations(page)
        assert {name: each for name, each in found.items() if each} == {}

    def test_nothing_is_wider_than_a_narrow_screen(
        self, browser: Browser, service: Service, client: httpx.Client
    ) -> None:
        fill(client)
        with Watched(browser, service.url, viewport={"width": 360, "height": 700}) as watched:
            page = watched.open()
            for path in VIEWS.values():
                page.goto(f"{service.url}/#/{path}")
                page.wait_for_selector("main h1", state="attached")
                expect(page.locator(".loading")).to_have_count(0)
                assert page.evaluate("document.documentElement.scrollWidth") <= 360, path


class TestRoutesThatAreNotThere:
    @pytest.mark.parametrize(("path", "heading"), [("maps", "Maps"), ("nowhere", "No such view")])
    def test_address_of_no_view_leads_on(self, watched: Watched, path: str, heading: str) -> None:
        """The maps are on the first view."""
        page = watched.open(path)
        expect(page.locator("main")).to_contain_text(heading)

    def test_graph_and_objects_that_the_service_does_not_have_are_told_plainly(self, watched: Watched) -> None:
        problem = {"code": "not-found", "title": "No such resource", "status": 404, "detail": "there is no resource"}
        for path in ("/graph", "/objects"):
            answer_instead(watched, path, problem, 404)
        page = watched.open("graph")
        expect(page.locator("main")).to_contain_text("This service has no route /graph (404)")
        page.click("nav a:has-text('Objects')")
        expect(page.locator("main")).to_contain_text("This service has no route /objects (404)")
        page.goto(f"{watched.url}/#/maps/jump_table?entry=3")
        expect(page.locator(".panel")).to_contain_text("it has no route /graph")


class TestGraph:
    def test_what_is_wrong_stands_out_and_leads_to_the_table(self, watched: Watched) -> None:
        answer_instead(watched, "/graph", json.loads((FAKES / "fake_graph.json").read_text()))
        page = watched.open("graph")
        findings = page.locator(".findings")
        expect(findings).to_contain_text("jumps to entry 5 of jump_table, which is empty")
        expect(findings).to_contain_text("The longest chain has 2 jumps; the kernel allows 33")
        expect(findings).to_contain_text("Never reached: entry 9 of jump_table")
        page.click("svg.graph .gap")
        expect(page.locator(".panel h2")).to_contain_text("Entry 5")
        expect(page.locator(".panel .callers")).to_contain_text("jumps to one of 6 entries")

    def test_jump_into_an_empty_entry_of_loaded_programs_stands_out(
        self, watched: Watched, client: httpx.Client
    ) -> None:
        binary = {"Content-Type": "application/octet-stream"}
        client.put("/objects/chain", content=object_file("xdp_chain"), headers=binary).raise_for_status()
        page = watched.open("graph?map=chain.table")
        expect(page.locator(".findings")).to_contain_text("jumps to entry 9 of chain.table, which is empty")
        expect(page.locator("svg.graph .gap")).to_contain_text("9 is empty")
        client.put("/maps/chain.table/entries/9", json={"program": "chain.drop"}).raise_for_status()
        expect(page.locator("svg.graph .gap")).to_have_count(0)
        page.click("svg.graph .array")
        expect(page.locator("h1")).to_have_text("chain.table")

    def test_chain_near_what_the_kernel_allows_stands_out(self, watched: Watched, client: httpx.Client) -> None:
        kernel, jumps = LinuxKernel(), 31
        array = kernel.map_create(MapType.PROG_ARRAY, 4, 4, 64, "chain")
        client.put("/maps/chain", json={"id": kernel.map_info(array).id}).raise_for_status()
        for step in range(jumps + 1):
            code = asm.map_fd(2, array) + asm.mov(3, step) + asm.tail_call() if step < jumps else b""
            program = kernel.prog_load(ProgType.XDP, code + asm.returns(2), f"step{step}")
            client.put(f"/programs/step{step}", json={"id": kernel.prog_info(program).id}).raise_for_status()
            kernel.close(program)
            if step > 0:
                client.put(f"/maps/chain/entries/{step - 1}", json={"program": f"step{step}"}).raise_for_status()
        kernel.close(array)
        page = watched.open("graph?map=chain")
        expect(page.locator(".findings .bad")).to_contain_text("The longest chain has 31 jumps; the kernel allows 33")
        expect(page.locator("svg.graph .node.long")).to_have_count(jumps + 1)
        client.put(f"{TABLE}/3", json={"program": "drop"}).raise_for_status()
        page.goto(f"{watched.url}/#/graph?map=jump_table")  # which is not connected with it
        expect(page.locator(".findings")).to_contain_text("The longest chain has 1 jump;")

    def test_graph_is_moved_and_zoomed_by_keys_and_mouse(self, watched: Watched) -> None:
        answer_instead(watched, "/graph", json.loads((FAKES / "fake_graph.json").read_text()))
        page = watched.open("graph")
        picture = page.locator("svg.graph")
        fitted = picture.locator("> g").get_attribute("transform")
        picture.focus()
        for key in ("+", "ArrowLeft"):
            before = picture.locator("> g").get_attribute("transform")
            page.keyboard.press(key)
            expect(picture.locator("> g")).not_to_have_attribute("transform", before or "")
        page.keyboard.press("0")
        expect(picture.locator("> g")).to_have_attribute("transform", fitted or "")
        box = picture.bounding_box()
        assert box is not None
        page.mouse.move(box["x"] + 20, box["y"] + 20)
        page.mouse.down()
        page.mouse.move(box["x"] + 120, box["y"] + 60, steps=4)
        page.mouse.up()
        expect(picture.locator("> g")).not_to_have_attribute("transform", fitted or "")
        page.click("button[aria-label='Fit it in']")
        expect(picture.locator("> g")).to_have_attribute("transform", fitted or "")

    def test_more_than_a_hundred_programs_are_a_list(self, watched: Watched) -> None:
        graph = json.loads((FAKES / "fake_graph.json").read_text())
        shape, array = graph["programs"][0], graph["arrays"][0]
        more = [shape | {"id": 1000 + number, "name": f"more{number}"} for number in range(100)]
        graph["programs"] += more
        array["entries"] += [{"index": 10, "program": each["id"]} for each in more]
        answer_instead(watched, "/graph", graph)
        page = watched.open("graph")
        expect(page.locator("main")).to_contain_text("106 programs, too many for a picture")
        expect(page.locator("svg.graph")).to_have_count(0)
        expect(page.locator("tbody tr")).to_have_count(106)
