"""SIGHUP: the configuration is read anew while the service runs."""

import json
import signal
from pathlib import Path
from typing import Any

import pytest

from app.bpf.linux import LinuxKernel
from app.bpf.uapi import MapType
from tests.running import Service, serve
from tests.system.test_keeper_gone import ours

__all__ = ["ours"]

pytestmark = [pytest.mark.kernel, pytest.mark.field]

CONFIG = """
[server]
socket = "{folder}/run/api.sock"
state_dir = "{folder}/state"
pin_dirs = ["{pins}/ours"]
{server}
[maps.table]
pinned = "{pins}/ours/table"
[programs.drop]
pinned = "{pins}/ours/drop"
{more}
"""
ENTRY = "/maps/table/entries/1"


def write(folder: Path, pins: Path, server: str = "", more: str = "") -> Path:
    """Write the configuration, which only root may read."""
    config = folder / "jumptable.toml"
    config.write_text(CONFIG.format(folder=folder, pins=pins, server=server, more=more))
    config.chmod(0o600)
    return config


def reload(service: Service, event: str) -> dict[str, Any]:
    """Send SIGHUP, wait for the next line of the log that has this event, and return it."""
    seen = len(service.lines)
    service.process.send_signal(signal.SIGHUP)
    with service.changed:
        assert service.changed.wait_for(lambda: any(event in line for line in service.lines[seen:]), 20)
    line: dict[str, Any] = json.loads(next(line for line in service.lines[seen:] if event in line))
    return line


ANEW = "the configuration was read anew"


def test_maps_and_programs_follow_the_configuration(ours: Path, tmp_path: Path) -> None:
    """Field 23: another map needs no restart, and what is released loses nothing."""
    pins = ours.parent
    kernel = LinuxKernel()
    loose = kernel.map_create(MapType.PROG_ARRAY, 4, 4, 4, "loose")
    by_id = f"[maps.loose]\nid = {kernel.map_info(loose).id}\n"
    before = f'[programs.pass]\npinned = "{ours}/pass"\n{by_id}'
    config = write(tmp_path, pins, more=before)
    with serve(config, tmp_path / "run/api.sock") as service, service.client() as client:
        kernel.close(loose)
        assert client.put(ENTRY, json={"program": "pass"}).status_code == 201
        other = f'[maps.other]\npinned = "{ours}/other"\ncreate = {{ max_entries = 2 }}\n'
        outside = f'[maps.outside]\npinned = "{pins}/elsewhere"\n'
        write(tmp_path, pins, server="drift_interval = 7", more=other + outside)
        line = reload(service, ANEW)
        assert (line["held"], line["released"]) == (["map 'other'"], ["program 'pass'"])
        assert "pinned nowhere" in line["kept"]["map 'loose'"]
        keys = json.loads(service.wait_for(".*after a restart only.*")[0])["keys"]
        assert keys == ["server.drift_interval", "maps.outside"]
        assert [each["name"] for each in client.get("/maps").json()["maps"]] == ["loose", "other", "table"]
        assert client.put("/maps/other/entries/0", json={"program": "drop"}).status_code == 201
        assert client.get("/programs/pass").status_code == 404
        assert client.get(ENTRY).json()["program"]["kernel_name"] == "pass"
        assert client.get("/readyz").status_code == 200
        assert service.stop() == 0


def test_rights_and_limits_follow_the_configuration(ours: Path, tmp_path: Path) -> None:
    """Field 23: a right that is taken away counts at once, on every way of a request."""
    config = write(tmp_path, ours.parent)
    with serve(config, tmp_path / "run/api.sock") as service, service.client() as client:
        assert client.put(ENTRY, json={"program": "drop"}).status_code == 201
        write(tmp_path, ours.parent, server="read_only = true", more="[limits]\nevent_readers = 1\nburst = 1")
        reload(service, ANEW)
        for query in ("", "?dry_run=true"):
            assert client.put(f"{ENTRY}{query}", json={"program": "drop"}).json()["code"] == "read-only"
        write(tmp_path, ours.parent, more="[limits]\nrequests_per_second = 0.001\nburst = 1")
        reload(service, ANEW)
        assert [client.get(ENTRY).status_code for _ in range(2)] == [200, 429]
        assert service.stop() == 0


def test_wrong_configuration_changes_nothing(ours: Path, tmp_path: Path) -> None:
    """Field 23: a slip in the file does not end the service, and all slips are told."""
    config = write(tmp_path, ours.parent)
    with serve(config, tmp_path / "run/api.sock") as service, service.client() as client:
        write(tmp_path, ours.parent, server="read_only = true\nprot = 1", more="[maps.x]\n")
        reasons = reload(service, "the configuration is wrong")["reasons"]
        assert [reason.split(": ")[1] for reason in reasons] == ["server.prot", "maps.x"]
        config.unlink()
        assert "No such file" in reload(service, "the configuration cannot be read")["reasons"][0]
        assert client.put(ENTRY, json={"program": "drop"}).status_code == 201
        assert service.stop() == 0
