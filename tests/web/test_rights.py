"""What a token of each role can do on the page, and what is said where it cannot."""

import pytest
from playwright.sync_api import Browser, Page, expect

from app.access.rights import Role
from tests.web.browser import Watched, axe_violations, needs_chromium, needs_modules
from tests.web.conftest import Guarded

pytestmark = [pytest.mark.kernel, needs_chromium, pytest.mark.slow]


def sign_in(watched: Watched, token: str, view: str = "", *, keep: bool = False) -> Page:
    """Open a view, and sign in."""
    page = watched.open(view, live=False)
    page.fill("input[name=token]", token)
    if keep:
        page.check("input[name=keep]")
    page.click(".sign-in button.primary")
    page.wait_for_selector(".live.live")
    return page


def stored(page: Page) -> str:
    """Everything that the page has left where others could find it."""
    return str(
        page.evaluate("JSON.stringify([location.href, document.cookie, {...localStorage}, {...sessionStorage}])")
    )


class TestSigningIn:
    @needs_modules
    def test_axe_finds_nothing_where_a_token_is_asked_for(self, browser: Browser, guarded: Guarded) -> None:
        with Watched(browser, guarded.service.url) as watched:
            page = watched.open(live=False)
            page.wait_for_selector("input[name=token]")
            assert axe_violations(page) == []

    def test_token_is_kept_in_memory_and_elsewhere_only_on_request(self, browser: Browser, guarded: Guarded) -> None:
        token = guarded.token("reader")
        with Watched(browser, guarded.service.url) as watched:
            page = sign_in(watched, token)
            expect(page.locator("a.name")).to_have_text("jump_table")
            expect(page.locator(".message")).to_have_count(0)
            assert token not in stored(page)
            page.reload()
            expect(page.locator("input[name=token]")).to_be_visible()
            page = sign_in(watched, token, keep=True)
            assert token in page.evaluate("JSON.stringify({...sessionStorage})")
            page.reload()
            expect(page.locator("a.name")).to_have_text("jump_table")
            page.click("button:has-text('Sign out')")
            expect(page.locator("input[name=token]")).to_be_visible()
            assert token not in stored(page)

    def test_unknown_token_is_refused_and_a_revoked_one_is_asked_for_again(
        self, browser: Browser, guarded: Guarded
    ) -> None:
        token = guarded.token("reader")
        with Watched(browser, guarded.service.url) as watched:
            page = watched.open(live=False)
            page.fill("input[name=token]", "jt_wrong")
            page.click(".sign-in button.primary")
            expect(page.locator(".note.bad")).to_contain_text("unknown, revoked or expired")
            page.close()
            page = sign_in(watched, token)
            [name] = guarded.tokens.read()
            guarded.tokens.revoke(name)
            page.evaluate("location.hash = '#/changes'")  # a link may be gone already, as the stream has ended
            expect(page.locator("input[name=token]")).to_be_visible()


class TestRoles:
    def test_reader_sees_everything_and_is_told_why_it_can_change_nothing(
        self, browser: Browser, guarded: Guarded
    ) -> None:
        token = guarded.token("reader")
        with Watched(browser, guarded.service.url) as watched:
            page = sign_in(watched, token, "maps/jump_table?entry=9")
            expect(page.locator(".status")).to_contain_text("reader")
            expect(page.locator(".panel .note")).to_contain_text("has the role reader; this needs writer or admin")
            expect(page.locator(".targets")).to_have_count(0)
            page.click("nav a:has-text('Packet')")
            run = page.locator("button:has-text('Run')")
            expect(run).to_have_attribute("aria-disabled", "true")
            run.click(force=True)  # Playwright itself would wait until it can be pressed
            expect(page.locator(".messages")).to_contain_text("Not possible: token:reader")  # also where nothing hovers
            expect(page.locator(".outcome")).to_have_count(0)
            expect(page.locator("main")).to_contain_text("this needs writer or admin")

    def test_bounded_writer_changes_what_is_within_its_bounds(self, browser: Browser, guarded: Guarded) -> None:
        token = guarded.token("writer", maps=["jump_table"], entries=["0-1", "8-15"], programs=["drop", "entry"])
        with Watched(browser, guarded.service.url) as watched:
            with guarded.service.client() as client:
                client.headers["Authorization"] = f"Bearer {guarded.token('admin')}"
                client.put("/maps/jump_table/entries/5", json={"program": "drop"}).raise_for_status()
            page = sign_in(watched, token)
            expect(page.locator(".maps .fill")).to_have_text("0 of 10")
            page.click("text=jump_table")
            page.click("#entry-5")
            expect(page.locator("#entry-5")).to_contain_text("hidden")  # and not "empty", which it is not
            expect(page.locator(".panel")).to_contain_text("You may not see it: it is beyond the bounds")
            page.click("#entry-1")
            expect(page.locator(".panel .note")).to_contain_text("only an admin may change it")
            page.click("#entry-9")
            assert page.locator(".targets .chip").all_inner_texts() == ["drop", "entry", "empty"]
            expect(page.locator(".by-id")).to_have_count(0)
            page.locator(".target", has_text="drop").click()
            page.click(".draft button.primary")
            page.click("dialog button.primary:not([aria-disabled=true])")
            expect(page.locator(".waiting")).to_contain_text("Change 2")
            page.click(".waiting button:has-text('Confirm')")
            expect(page.locator(".waiting")).to_have_count(0)
            expect(page.locator("#entry-9")).to_contain_text("drop")

    def test_admin_changes_protected_entries_and_names_programs_by_pin(
        self, browser: Browser, guarded: Guarded
    ) -> None:
        token = guarded.token("admin")
        with Watched(browser, guarded.service.url) as watched:
            page = sign_in(watched, token, "maps/jump_table?entry=2")
            page.fill(".by-id input", f"{guarded.pins}/pass")
            page.click(".by-id button")
            page.click(".draft button.primary")
            page.select_option("dialog select[name=within]", "0")
            page.click("dialog button.primary:not([aria-disabled=true])")
            expect(page.locator("#entry-2")).to_contain_text("pass")
            page.click("nav a:has-text('Overview')")
            expect(page.locator(".facts")).to_contain_text("running")  # the keeper
            expect(page.locator(".readiness")).to_contain_text("Ready")


VIEWS = ("", "maps/jump_table?entry=9", "changes", "changes?id=1", "graph", "programs", "objects", "packet")


@needs_modules
class TestViews:
    @pytest.mark.parametrize("role", ["reader", "writer", "admin"])
    def test_axe_finds_nothing_and_no_reader_can_press_what_changes_anything(
        self, browser: Browser, guarded: Guarded, role: Role
    ) -> None:
        with guarded.service.client() as client:
            client.headers["Authorization"] = f"Bearer {guarded.token('admin')}"
            for index, confirm_within in ((1, None), (8, 3600)):
                query = {} if confirm_within is None else {"confirm_within": confirm_within}
                client.put(f"/maps/jump_table/entries/{index}", json={"program": "drop"}, params=query)
        bounds = {"maps": ["jump_table"], "entries": ["8-15"], "programs": ["drop"]} if role == "writer" else {}
        with Watched(browser, guarded.service.url) as watched:
            page = sign_in(watched, guarded.token(role, **bounds))
            changing: list[str] = []
            watched.context.on("request", lambda sent: changing.extend([sent.url] if sent.method != "GET" else []))
            found = {}
            for view in VIEWS:
                page.goto(f"{watched.url}/#/{view}")
                page.wait_for_selector("main h1", state="attached")
                expect(page.locator(".loading")).to_have_count(0)
                found[view] = axe_violations(page)
                if role != "reader":
                    continue
                for button in page.locator("main button").all():
                    button.click(force=True)
                expect(page.locator("dialog")).to_have_count(0)
        assert {view: each for view, each in found.items() if each} == {}
        assert changing == []
