"""Where the tests take etcd from: the machine, or another suite of Debian, unpacked beside the system.

Run as `python3 -m tests.fleet_store.etcd_binary`, it fetches etcd if need be and prints the path. It needs the standard
library alone.
"""

import fcntl
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Final

from tests import debian
from tests.debian import Missing

# From this version on, a node cannot write the keys of others (and Debian's suites have none between 3.5.28 and it).
_FIRST_VERSION: Final = (3, 5, 30)
_SUITES: Final = ("trixie", "trixie-backports", "forky", "sid")


def etcd_binary() -> Path:
    """Return the path of etcd, in the first version that the fleet works with, or later.

    Raises:
        Missing: There is none, and none can be fetched.
    """
    installed = shutil.which("etcd")
    if installed is not None and _version(Path(installed)) >= _FIRST_VERSION:
        return Path(installed)
    folder = debian.cache_folder("jumptable-etcd")
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "lock").open("w") as lock:  # several processes of a test run ask at the same time
        fcntl.flock(lock, fcntl.LOCK_EX)
        fetched = sorted(folder.glob("*/usr/bin/etcd"))
        return fetched[-1] if fetched else _fetch(folder)


def _fetch(folder: Path) -> Path:
    archive = debian.Archive(debian.native_architecture(), _SUITES, folder / "apt")
    archive.update()
    listed = archive.run("apt-cache", "madison", "etcd-server").splitlines()
    versions = [line.split("|")[1].strip() for line in listed]
    suitable = [version for version in versions if _numbers(version) >= _FIRST_VERSION]
    if not suitable:
        message = f"Debian has no etcd-server from {'.'.join(map(str, _FIRST_VERSION))} on in {', '.join(_SUITES)}"
        raise Missing(message)
    version = min(suitable, key=_numbers)
    part, whole = folder / "part", folder / version.replace(":", "_")
    shutil.rmtree(part, ignore_errors=True)
    with archive.fetched(f"etcd-server={version}") as package:
        subprocess.run(["dpkg-deb", "-x", package, part], check=True)
    part.rename(whole)
    return whole / "usr/bin/etcd"


def _version(binary: Path) -> tuple[int, ...]:
    text = subprocess.run([binary, "--version"], capture_output=True, text=True, check=True).stdout
    return _numbers(text.partition("etcd Version:")[2].strip())


def _numbers(version: str) -> tuple[int, ...]:
    found = re.match(r"\d+(\.\d+)+", version)
    return tuple(map(int, found[0].split("."))) if found else ()


if __name__ == "__main__":
    try:
        print(etcd_binary())
    except Missing as error:
        sys.exit(f"etcd: {error}")
