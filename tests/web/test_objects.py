"""Object files on the page, against the real routes: from the verifier's answer to what a packet meets."""

import re

import httpx
import pytest
from playwright.sync_api import Browser, FilePayload, Page, expect

from app.access.rights import Role
from tests.compiled import object_file
from tests.web.browser import Watched, needs_chromium
from tests.web.conftest import Guarded
from tests.web.test_rights import sign_in

pytestmark = [
    pytest.mark.kernel,
    needs_chromium,
    pytest.mark.slow,
]

PACKET = "00" * 60


def payload(name: str) -> FilePayload:
    """An object file, as a browser sends it."""
    return {"name": f"{name}.bpf.o", "mimeType": "application/octet-stream", "buffer": object_file(name)}


def choose(page: Page, name: str) -> None:
    """Choose an object file of this computer. The page takes its name from that of the file."""
    page.set_input_files("input[type=file]", payload(name))
    expect(page.locator("input[name=name]")).to_have_value(name)


def say(page: Page, kind: str, *values: str) -> None:
    """Add a variable, a map or a program, and fill in its fields that are no choices."""
    fields = page.locator("fieldset", has=page.locator(f"legend:text-is('{kind}s')"))
    fields.get_by_role("button", name=f"Add a {kind.lower()}").click()
    inputs = fields.locator(".option").last.locator("input:not([type=checkbox])")
    for place, value in enumerate(values):
        inputs.nth(place).fill(value)


def verify(page: Page) -> None:
    """Ask the kernel, and wait until it accepts."""
    page.click("button:text-is('Verify')")
    expect(page.locator(".upload .note.ok")).to_be_visible()


def load(page: Page, name: str, version: int) -> None:
    """Load what was verified."""
    page.locator(".upload button.primary", has_text="Load").click()
    expect(page.locator(".messages")).to_contain_text(f"Object {name} is loaded, as version {version}")
    row = page.locator(".objects tr", has=page.locator(f".name:text-is('{name}')"))
    expect(row.locator(".badge")).to_have_text(f"version {version}")


def verdict(client: httpx.Client, program: str, packet: str = PACKET) -> str:
    """What becomes of a packet."""
    answer = client.post(f"/programs/{program}/run", json={"packet": packet}).raise_for_status()
    return str(answer.json()["meaning"])


class TestSent:
    def test_verifiers_answer_is_shown_beside_the_source_line(self, watched: Watched, client: httpx.Client) -> None:
        page = watched.open("objects")
        choose(page, "refused")
        page.click("button:text-is('Verify')")
        expect(page.locator(".problem")).to_contain_text("The kernel refuses program reads_too_far (EACCES)")
        expect(page.locator(".source-line")).to_contain_text("return data[4] == 7 ? XDP_TX : XDP_PASS;")
        expect(page.locator(".source-line")).to_contain_text("invalid access to packet")
        line = page.locator(".log tbody tr", has_text="return data[4]")
        expect(line).to_contain_text("R2 offset is outside of the packet")
        expect(page.locator("button:text-is('Load')")).to_have_attribute("title", "it is not verified yet")
        assert client.get("/objects").json()["objects"] == []

    def test_what_the_configuration_lets_nobody_load_cannot_be_pressed_and_says_why(self, watched: Watched) -> None:
        """The demo takes files that are sent, and reads none of the machine."""
        page = watched.open("objects")
        expect(page.locator(".upload")).not_to_contain_text("Nothing can be loaded so")
        page.check("text=on the machine of the service")
        page.fill("input[name=path]", "/tmp/parser.o")
        expect(page.locator(".upload")).to_contain_text("Nothing can be loaded so: the service may read no file")
        expect(page.locator("button:text-is('Verify')")).to_have_attribute("title", re.compile("objects.object_dirs"))

    def test_file_is_loaded_with_variables_replaced_by_a_version_and_unloaded(
        self, watched: Watched, client: httpx.Client
    ) -> None:
        page = watched.open("objects")
        choose(page, "parser")
        verify(page)
        expect(page.locator(".upload")).to_contain_text("The kernel takes 4 programs. Nothing is loaded yet")
        expect(page.locator(".upload tbody")).to_contain_text("parser.stages")
        assert client.get("/objects").json()["objects"] == []
        load(page, "parser", 1)
        assert verdict(client, "parser.entry", "02" + "00" * 13) == "XDP_PASS"

        page.click("button:has-text('New version')")
        page.set_input_files("input[type=file]", payload("parser"))
        page.click("details.how summary")
        say(page, "Variable", "verdict", "3")
        expect(page.locator("details.how summary")).to_contain_text("1 variable")
        verify(page)
        load(page, "parser", 2)
        expect(page.locator(".objects")).to_contain_text("Version 1, loaded")
        assert verdict(client, "parser.entry", "02" + "00" * 13) == "XDP_TX"

        page.click("button:has-text('Unload')")
        expect(page.locator("dialog .note.ok")).to_contain_text("No entry of another table holds any of them")
        page.click("dialog button:text-is('Unload')")
        expect(page.locator(".objects")).to_have_count(0)
        assert client.get("/objects").json()["objects"] == []

    def test_unknown_variable_is_refused_with_those_that_there_are(self, watched: Watched) -> None:
        page = watched.open("objects")
        choose(page, "parser")
        page.click("details.how summary")
        say(page, "Variable", "verdct", "3")
        page.click("button:text-is('Verify')")
        expect(page.locator(".upload")).to_contain_text("There are: label, packets, verdict")

    def test_fields_that_are_not_as_they_have_to_be_are_told_before_anything_is_sent(self, watched: Watched) -> None:
        page = watched.open("objects")
        choose(page, "parser")
        page.click("details.how summary")
        for kind, values, told in (
            ("Variable", ("verdict", "99999999999999999999"), "verdict is beyond 2^53"),
            ("Map", ("stages", ""), "what takes the place of stages"),
            ("Program", ("entry", "xdp", "no"), "the attach type of entry is no number"),
        ):
            say(page, kind, *values)
            expect(page.locator(".upload .note.warn")).to_contain_text(told)
            expect(page.locator("button:text-is('Verify')")).to_have_attribute("aria-disabled", "true")
            page.click("button:text-is('Leave out')")
        expect(page.locator("button:text-is('Verify')")).to_have_attribute("aria-disabled", "false")

    def test_whole_table_is_switched_and_switched_back_unless_somebody_confirms(
        self, watched: Watched, client: httpx.Client
    ) -> None:
        page = watched.open("objects")
        choose(page, "root")
        verify(page)
        load(page, "root", 1)
        page.goto(f"{watched.url}/#/")
        page.goto(f"{watched.url}/#/objects")
        choose(page, "parser")
        page.click("details.how summary")
        page.check("input[name=switch]")
        page.select_option("select[name=switch-map]", "root.root")
        page.fill("input[name=switch-program]", "entry")
        verify(page)
        difference = page.get_by_role("region", name="Difference")
        assert difference.locator("tbody tr").inner_text().split() == [
            "root.root",
            "0",
            "empty",
            "becomes",
            "parser.entry",
        ]
        page.select_option("select[name=within]", "10")
        load(page, "parser", 1)
        assert verdict(client, "root.start", "03" + "00" * 13) == "XDP_DROP"
        expect(page.locator(".waiting")).to_contain_text("of root.root waits for a confirmation")
        expect(page.locator(".waiting")).to_have_count(0, timeout=25_000)
        assert verdict(client, "root.start", "03" + "00" * 13) == "XDP_ABORTED"

    def test_nothing_is_loaded_over_what_somebody_else_has_loaded_meanwhile(
        self, watched: Watched, client: httpx.Client
    ) -> None:
        page = watched.open("objects")
        choose(page, "parser")
        verify(page)
        binary = {"Content-Type": "application/octet-stream"}
        client.put("/objects/parser", content=object_file("root"), headers=binary).raise_for_status()
        page.locator(".upload button.primary", has_text="Load").click()
        expect(page.locator(".upload .problem")).to_contain_text("If-None-Match does not hold")
        assert client.get("/objects/parser").json()["version"] == 1


class TestNamed:
    def test_file_of_the_machine_changes_a_held_table_and_is_unloaded_when_nothing_holds_its_programs(
        self, browser: Browser, guarded: Guarded
    ) -> None:
        (guarded.objects / "parser.bpf.o").write_bytes(object_file("parser"))
        token = guarded.token("admin")
        with Watched(browser, guarded.service.url) as watched, guarded.service.client() as client:
            client.headers["Authorization"] = f"Bearer {token}"
            page = sign_in(watched, token, "objects")
            page.check("text=on the machine of the service")
            page.fill("input[name=path]", str(guarded.objects / "parser.bpf.o"))
            page.press("input[name=path]", "Tab")
            expect(page.locator("input[name=name]")).to_have_value("parser")
            page.click("details.how summary")
            say(page, "Map", "stages", "jump_table")
            page.click("button:text-is('Verify')")
            expect(page.locator(".upload .problem")).to_contain_text("initialisers for an array that is replaced")
            page.select_option("select[name=values]", "set")
            verify(page)
            expect(page.locator(".upload")).to_contain_text("stages is jump_table")
            expect(page.locator(".upload .note.warn")).to_have_count(0)  # it would be pinned in keep_dir
            rows = page.get_by_role("region", name="Difference").locator("tbody tr").all_inner_texts()
            assert [each.split() for each in rows] == [
                ["jump_table", "1", "empty", "becomes", "parser.ipv4"],
                ["jump_table", "2", "empty", "becomes", "parser.tcp"],
                ["jump_table", "3", "empty", "becomes", "parser.drop"],
            ]
            load(page, "parser", 1)
            assert verdict(client, "entry", "03" + "00" * 13) == "XDP_DROP"
            page.click(".waiting button:has-text('Confirm')")
            expect(page.locator(".waiting")).to_have_count(0)

            page.click("button:has-text('Unload')")
            expect(page.locator("dialog .problem")).to_contain_text("Something else needs the object")
            expect(page.locator("dialog")).to_contain_text("jump_table 3 holds drop")
            expect(page.locator("dialog button:text-is('Unload')")).to_have_attribute("aria-disabled", "true")
            page.keyboard.press("Escape")
            client.put("/maps/jump_table/entries", json={"entries": []}).raise_for_status()
            page.click("button:has-text('Unload')")
            page.click("dialog button:text-is('Unload'):not([aria-disabled=true])")
            expect(page.locator(".objects")).to_have_count(0)

    def test_file_beyond_the_folders_is_refused(self, browser: Browser, guarded: Guarded) -> None:
        with Watched(browser, guarded.service.url) as watched:
            page = sign_in(watched, guarded.token("admin"), "objects")
            page.check("text=on the machine of the service")
            page.fill("input[name=path]", "/etc/passwd")
            page.press("input[name=path]", "Tab")
            page.click("button:text-is('Verify')")
            expect(page.locator(".upload .problem")).to_contain_text("not below one of objects.object_dirs")

    @pytest.mark.parametrize("role", ["reader", "writer"])
    def test_caller_who_may_not_load_object_files_is_told_so(
        self, browser: Browser, guarded: Guarded, role: Role
    ) -> None:
        with Watched(browser, guarded.service.url) as watched:
            page = sign_in(watched, guarded.token(role), "objects")
            expect(page.locator("main")).to_contain_text("You may not see them")
            expect(page.locator("main")).to_contain_text(f"has the role {role}; this needs admin")
            expect(page.locator(".upload")).to_have_count(0)
