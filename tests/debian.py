"""Debian's packages of other suites and architectures: fetched by the ordinary apt client, unpacked beside the system.

apt gets a configuration of its own in a cache folder. It takes the archive from the machine's own sources, with the
names of other suites, and leaves the machine's lists and its installed packages alone.
"""

import os
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

SUITES: Final = ("bullseye", "bookworm", "bookworm-backports", "trixie", "trixie-backports", "forky", "sid")
_KEYRING: Final = "/usr/share/keyrings/debian-archive-keyring.gpg"
_LISTS_SECONDS: Final = 24 * 3600.0  # for so long, lists of packages are not fetched again


class Missing(Exception):
    """Something is missing on this machine. The text is one line: what, and the remedy."""


def cache_folder(name: str) -> Path:
    """Return a folder for what is fetched and built, outside of the repository. It may be removed at any time."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / name


def native_architecture() -> str:
    """Return Debian's name of this machine's architecture, such as `amd64`.

    Raises:
        Missing: It is no Debian machine.
    """
    try:
        return subprocess.run(
            ["dpkg", "--print-architecture"], capture_output=True, text=True, check=True
        ).stdout.strip()
    except (OSError, subprocess.CalledProcessError) as error:
        raise Missing("there is no dpkg: this needs a Debian machine") from error


@dataclass
class Archive:
    """Debian's archive, as this machine reaches it.

    Attributes:
        architecture: Debian's name of the architecture: `amd64`, `arm64`.
        suites: The suites to take packages from. One that the archive does not have is passed over.
        folder: For lists of packages.
    """

    architecture: str
    suites: tuple[str, ...]
    folder: Path

    def run(self, *command: str, check: bool = True, folder: Path | None = None) -> str:
        """Run a command of apt with the configuration of this archive, and return its output."""
        options = {
            "APT::Architecture": self.architecture,
            "APT::Architectures": self.architecture,
            "APT::Sandbox::User": "root",
            "Acquire::Languages": "none",
            "Dir::Etc::sourcelist": str(self.folder / "sources.list"),
            "Dir::Etc::sourceparts": "/dev/null",
            "Dir::State::lists": str(self.folder / "lists"),
            "Dir::State::status": "/dev/null",
            "Dir::Cache": str(self.folder / "cache"),
        }
        words = [command[0], *(f"-o{name}={value}" for name, value in options.items()), *command[1:]]
        done = subprocess.run(words, capture_output=True, text=True, check=False, cwd=folder or self.folder)
        if check and done.returncode:
            message = f"{' '.join(command[:4])}: {done.stderr.strip()[-400:]}"
            raise Missing(message)
        return done.stdout

    def update(self) -> None:
        """Fetch the lists of packages, unless they are of today.

        Raises:
            Missing: They cannot be fetched, and there are none of an earlier day.
        """
        sources, stamp = self.folder / "sources.list", self.folder / "fetched"
        lines = "".join(f"deb [signed-by={_KEYRING}] {_archive_uri()} {suite} main\n" for suite in self.suites)
        if (
            sources.exists()
            and sources.read_text() == lines
            and stamp.exists()
            and time.time() - stamp.stat().st_mtime < _LISTS_SECONDS
        ):
            return
        for each in ("lists/partial", "cache/archives/partial"):
            (self.folder / each).mkdir(parents=True, exist_ok=True)
        sources.write_text(lines)
        self.run("apt-get", "update", "-qq", check=False)  # it also fails where one suite is missing
        if not list((self.folder / "lists").glob("*_Packages*")):
            raise Missing("apt-get update has fetched no list of packages: is the network there?")
        stamp.touch()

    def unpack(self, names: list[str], suite: str, folder: Path) -> None:
        """Unpack packages of a suite, without those that they depend on, into a folder."""
        for name in names:
            with self.fetched(f"{name}/{suite}") as package:
                subprocess.run(["dpkg-deb", "-x", package, folder], check=True)

    @contextmanager
    def fetched(self, what: str) -> Iterator[Path]:
        """Yield a package that is fetched, and removed afterwards.

        Args:
            what: `PACKAGE=VERSION` or `PACKAGE/SUITE`.

        Raises:
            Missing: It cannot be fetched.
        """
        with tempfile.TemporaryDirectory() as folder:
            try:
                self.run("apt-get", "download", "-qq", what, folder=Path(folder))
            except Missing:
                (self.folder / "fetched").unlink(missing_ok=True)  # the lists are of an archive that has changed since
                raise
            yield next(Path(folder).glob("*.deb"))


def _archive_uri() -> str:
    """Return the URI of Debian's archive, from this machine's own sources.

    Raises:
        Missing: It has none.
    """
    fields = "$(REPO_URI)|$(COMPONENT)|$(RELEASE)|$(LABEL)"
    command = ["apt-get", "indextargets", "--format", fields, "Created-By: Packages"]
    try:
        targets = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError) as error:
        raise Missing("there is no apt: this needs a Debian machine") from error
    for target in targets.splitlines():
        uri, component, suite, label = target.split("|")
        # The label is in the lists, which a new machine does not have yet.
        if component == "main" and (label == "Debian" or (not label and suite in SUITES)):
            return uri
    raise Missing("the sources of apt do not have Debian's archive: this needs a Debian machine")
