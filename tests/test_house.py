"""The house rules, held by tools: what they find fails the tests."""

import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


@pytest.mark.parametrize(
    "command",
    [
        pytest.param(["-m", "ruff", "format", "--check", "."], id="format"),
        pytest.param(["-m", "ruff", "check", "."], id="lint"),
        pytest.param(["-m", "mypy"], id="types", marks=[pytest.mark.slow, pytest.mark.timeout(300)]),
        pytest.param(["-c", "from importlinter.cli import lint_imports_command; lint_imports_command()"], id="imports"),
    ],
)
def test_the_tool_finds_nothing(command: list[str]) -> None:
    done = subprocess.run([sys.executable, *command], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_nothing_else_is_at_the_top() -> None:
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=False).stdout
    top = {Path(line).parts[0] for line in listed.splitlines()}
    allowed = {"app", "tests", "deploy", "Dockerfile", "README.md", "CHANGELOG.md", "LICENSE"}
    allowed |= {"pyproject.toml", "uv.lock"}
    assert {name for name in top if not name.startswith(".")} <= allowed


def test_the_lock_file_fits_the_dependencies() -> None:
    """What pyproject.toml asks for, uv.lock was made from. The remedy is `uv lock`."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = set(project["dependencies"])
    for extra, dependencies in project["optional-dependencies"].items():
        wanted |= {f"{each} of {extra}" for each in dependencies}
    packages = tomllib.loads((ROOT / "uv.lock").read_text())["package"]
    [ours] = [package for package in packages if package["name"] == project["name"]]
    locked = set()
    for each in ours["metadata"]["requires-dist"]:
        extras = f"[{','.join(each['extras'])}]" if "extras" in each else ""
        extra = each["marker"].split("'")[1] if "marker" in each else None  # extra == 'test'
        locked.add(each["name"] + extras + each.get("specifier", "") + (f" of {extra}" if extra else ""))
    assert locked == wanted
