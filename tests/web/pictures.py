"""The pictures of the page in the README: `sudo .venv/bin/python -m tests.web.pictures` makes them anew.

They show a service on the real kernel with made-up tables. Pillow, which is in no requirement, makes them smaller.
"""

import importlib
import tempfile
import time
from pathlib import Path
from typing import Final

import httpx
from playwright.sync_api import Browser, Page, expect

from app.access.tokens import Token, TokenFile
from app.bpf import asm
from app.bpf.linux import LinuxKernel
from app.bpf.uapi import MapType, ProgType
from tests import private_mounts
from tests.running import running
from tests.web.browser import chromium

FOLDER: Final = Path(__file__).parent.parent.parent / ".github"
_TABLES: Final = {"by_ethertype": 16, "by_protocol": 64, "by_service": 4096}
_PROGRAMS: Final = ("arp", "drop", "icmp", "ipv4", "ipv6", "rate_limit", "sctp", "tcp", "tcp_v2", "udp", "vlan")
_AGE_SECONDS: Final = 130  # of all changes but the last
_CONFIG: Final = """
[server]
host = "127.0.0.1"
port = 0
state_dir = "{folder}/state"
pin_dirs = ["{pins}"]
keep_dir = "{pins}/kept"
[tokens]
"""


def main() -> None:
    """Make the pictures."""
    with tempfile.TemporaryDirectory(prefix="jumptable-") as name:
        folder, pins = Path(name), Path("/sys/fs/bpf")
        folder.chmod(0o755)
        private_mounts.mount_bpffs(pins)  # that only this process sees
        (pins / "kept").mkdir()
        (folder / "state").mkdir()
        config = _CONFIG.format(folder=folder, pins=pins) + _pin(pins)
        (folder / "jumptable.toml").write_text(config)
        tokens = TokenFile(folder / "state" / "tokens.json")
        secrets = {each: tokens.add(Token(each, "", "admin", time.time())) for each in ("deploy", "mira")}
        with running("serve", "--config", str(folder / "jumptable.toml")) as service, chromium() as browser:
            port = service.wait_for(r'"port": ?([0-9]+)')[1]
            service.wait_for("serving")
            url = f"http://127.0.0.1:{port}"
            _change(url, secrets)
            _overview(browser, url, secrets["mira"])
            _table(browser, url, secrets["mira"])
        private_mounts.unmount(pins)


def _pin(pins: Path) -> str:
    """Pin the arrays and programs, and return the configuration of them."""
    kernel, text = LinuxKernel(), ""
    for name, size in _TABLES.items():
        fd = kernel.map_create(MapType.PROG_ARRAY, 4, 4, size, name)
        kernel.obj_pin(fd, str(pins / name))
        kernel.close(fd)
        text += f'[maps.{name}]\npinned = "{pins}/{name}"\n'
    for name in _PROGRAMS:
        fd = kernel.prog_load(ProgType.XDP, asm.returns(2), name)
        kernel.obj_pin(fd, str(pins / name))
        kernel.close(fd)
        text += f'[programs.{name}]\npinned = "{pins}/{name}"\n'
    return text


def _change(url: str, secrets: dict[str, str]) -> None:
    """Make some changes, the last of which waits for its confirmation."""
    deploy, mira = (
        httpx.Client(base_url=url, headers={"Authorization": f"Bearer {each}"}) for each in secrets.values()
    )
    with deploy, mira:
        services = [{"index": index, "program": ("tcp", "udp", "tcp_v2")[index * 7 % 11 % 3]} for index in range(900)]
        protocols = dict.fromkeys((*range(2, 4), *range(19, 41), 61, 63), "drop")
        protocols |= {1: "icmp", 4: "ipv4", 6: "tcp", 17: "udp", 33: "sctp", 41: "ipv6", 47: "vlan", 58: "icmp"}
        for client, table, entries, query in (
            (deploy, "by_service", services, {"note": "release 41"}),
            (deploy, "by_ethertype", _entries({0: "ipv4", 1: "arp", 6: "ipv6", 8: "vlan"}), {"note": "release 41"}),
            (deploy, "by_protocol", _entries(protocols), {"note": "release 41"}),
            (mira, "by_protocol", _entries({17: "rate_limit"}), {"note": "flood from AS64500"}),
            (mira, "by_protocol", _entries({17: "udp"}), {"note": "flood is over"}),
            (mira, "by_protocol", _entries({6: "tcp_v2"}), {"note": "try tcp_v2", "confirm_within": "300"}),
        ):
            if "confirm_within" in query:
                time.sleep(_AGE_SECONDS)
            client.patch(f"/maps/{table}/entries", json={"entries": entries}, params=query).raise_for_status()


def _entries(programs: dict[int, str]) -> list[dict[str, object]]:
    return [{"index": index, "program": program} for index, program in programs.items()]


def _open(browser: Browser, url: str, secret: str, scheme: str, height: int) -> Page:
    context = browser.new_context(
        viewport={"width": 1180, "height": height},
        device_scale_factor=1.5,
        color_scheme="dark" if scheme == "dark" else "light",
    )
    page = context.new_page()
    page.goto(url)
    page.fill("input[name=token]", secret)
    page.click(".sign-in button.primary")
    page.wait_for_selector(".live.live")
    page.wait_for_timeout(1500)  # all that is read afterwards, and fonts
    return page


def _overview(browser: Browser, url: str, secret: str) -> None:
    page = _open(browser, url, secret, "light", 760)
    expect(page.locator(".strip i")).not_to_have_count(0)
    _save(page, "overview")


def _table(browser: Browser, url: str, secret: str) -> None:
    page = _open(browser, url, secret, "dark", 820)
    page.goto(f"{url}/#/maps/by_protocol?entry=6")
    page.click("#entry-17")
    page.locator(".target", has_text="rate_limit").click()
    page.click("#entry-6")
    page.wait_for_selector(".history li")
    page.wait_for_timeout(500)
    _save(page, "table")


def _save(page: Page, name: str) -> None:
    file = FOLDER / f"{name}.png"
    page.screenshot(path=file)
    image = importlib.import_module("PIL.Image")  # by name, as the type checker does not have it
    image.open(file).convert("RGB").quantize(224).save(file, optimize=True)


if __name__ == "__main__":
    main()
