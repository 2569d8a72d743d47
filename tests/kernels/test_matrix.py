"""The parts of the matrix that need no guest."""

import json
import os
from pathlib import Path

import pytest

from tests.debian import Missing
from tests.kernels.__main__ import HEADER, QUICK_TESTS, TESTS, choose, lines
from tests.kernels.image import ROOT, pack
from tests.kernels.machine import Verdict, judge
from tests.kernels.packages import KernelPackage

KERNELS = [
    KernelPackage((5, 10, 223), "5.10.223-1", "bullseye", "linux-image-5.10.0-32-cloud-amd64"),
    KernelPackage((6, 1, 176), "6.1.176-1", "bookworm", "linux-image-6.1.0-50-cloud-amd64"),
    KernelPackage((6, 12, 117), "6.12.117-1", "trixie", "linux-image-6.12.117+deb13-cloud-amd64"),
]
TOLD = {"release": "6.1.0", "machine": "x86_64", "status": 0, "passed": ["a", "b"], "failed": {}, "skipped": {}}


def result(**changed: object) -> str:
    return f"..\nRESULT {json.dumps(TOLD | changed)}\n"


def test_kernels_are_chosen_by_series_and_newest() -> None:
    assert choose(KERNELS, None) == KERNELS
    assert choose(KERNELS, ["newest", "5.10", "6.12"]) == [KERNELS[0], KERNELS[2]]
    with pytest.raises(Missing, match=r"4\.19.*6\.12"):
        choose(KERNELS, ["4.19"])


def test_a_guest_is_well_only_if_tests_ran_and_none_failed() -> None:
    assert judge(result(), "ended", "6.1.176", "x86_64").is_good
    for told in (
        "",
        "Kernel panic",
        result(passed=[]),
        result(failed={"test_it": "why"}),
        result(status=2),
        result(release="6.12.0"),
        result(machine="aarch64"),
    ):
        assert not judge(told, "ended", "6.1.176", "x86_64").is_good, told


def test_a_line_has_the_numbers_the_reasons_and_what_is_bad() -> None:
    told = result(skipped={"no writer": ["c", "d"]}, failed={"test_it": "it is wrong"})
    printed = list(lines(judge(told, "ended", "6.1.176", "x86_64")))
    assert printed[0].split() == ["6.1.176", "x86_64", "2", "1", "2", "0"]
    assert printed[1:] == ["    2 cannot: no writer", "    BAD test_it\nit is wrong"]


def test_no_line_looks_like_the_summary_of_pytest() -> None:
    verdict = Verdict("6.1.176", "x86_64", 200, {"test_it": "why"}, {"no writer": 3}, 9.0)
    for line in (HEADER, *lines(verdict)):
        assert not {"passed", "failed", "skipped"} & set(line.split()), line


def test_what_runs_in_the_guests_exists() -> None:
    assert all((ROOT / each).exists() for each in (*TESTS, *QUICK_TESTS))


def test_an_image_has_files_folders_and_links_and_follows_another(tmp_path: Path) -> None:
    root, first, image = tmp_path / "root", tmp_path / "first", tmp_path / "image"
    (root / "bin").mkdir(parents=True)
    (root / "bin/tool").write_bytes(b"#!tool")
    (root / "link").symlink_to("bin/tool")
    first.write_bytes(b"before")
    pack(root, image, first)
    packed = image.read_bytes().removeprefix(b"before")
    found = {}
    while packed:
        fields = [int(packed[at : at + 8], 16) for at in range(6, 110, 8)]
        assert packed[:6] == b"070701"
        name = packed[110 : 110 + fields[11] - 1].decode()
        start = 110 + fields[11] + -(110 + fields[11]) % 4
        found[name] = (fields[1], packed[start : start + fields[6]])
        packed = packed[start + fields[6] + -fields[6] % 4 :]
    assert set(found) == {"bin", "bin/tool", "link", "TRAILER!!!"}
    assert found["bin/tool"] == ((root / "bin/tool").stat().st_mode, b"#!tool")
    assert found["link"] == (os.lstat(root / "link").st_mode, b"bin/tool")
