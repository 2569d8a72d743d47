"""The modules of the page: their types, and that their libraries are as published."""

import json
import subprocess
from pathlib import Path

import pytest

from tests.web.browser import MODULES, REQUIRED

ROOT = Path(__file__).parent.parent.parent
VENDOR = ROOT / "app" / "web" / "vendor"

pytestmark = pytest.mark.skipif(not MODULES.is_dir() and not REQUIRED, reason="npm ci --prefix tests/web")


@pytest.mark.slow
def test_type_checker_finds_nothing() -> None:
    command = [str(MODULES / ".bin" / "tsc"), "--project", str(ROOT / "tests" / "web")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_libraries_are_as_published_and_of_the_versions_whose_types_are_checked() -> None:
    for each in json.loads((VENDOR / "vendor.json").read_text()):
        package = MODULES / each["package"]
        published = json.loads((package / "package.json").read_text())
        assert (published["version"], published["license"]) == (each["version"], each["licence"]), each["package"]
        assert (package / each["member"]).read_bytes() == (VENDOR / each["file"]).read_bytes(), each["file"]
