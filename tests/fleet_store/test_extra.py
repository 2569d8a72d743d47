"""A node without a fleet needs nothing of it."""

import subprocess
import sys

_PROGRAM = """
import sys
class Nothing:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {"grpc", "google", "msgspec", "cryptography"}:
            raise ImportError(f"the extra fleet is not installed: {name}")
sys.meta_path.insert(0, Nothing())
from app.__main__ import main
sys.argv = ["jumptable", "check", "--help"]
main()
"""


def test_service_and_its_commands_run_without_the_extra() -> None:
    modules = [
        "app.cli.serve",
        "app.cli.demo",
        "app.server.startup",
        "app.server.run",
        "app.api.app",
        "app.client.client",
    ]
    imports = "\n".join(f"import {module}" for module in modules)
    program = _PROGRAM.replace("from app.__main__", f"{imports}\nfrom app.__main__")
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "Usage" in done.stdout
