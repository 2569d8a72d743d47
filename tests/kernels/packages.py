"""Debian's kernels and programs of other architectures, fetched by the ordinary apt client.

apt gets a configuration of its own in the cache folder. It takes the archive from the machine's own sources, adds the
names of the other suites, and leaves the machine's lists and its installed packages alone.
"""

import lzma
import os
import re
import shutil
import subprocess
import tarfile
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

# The suites that hold kernels. One that the archive does not have any more, or not yet, is passed over.
SUITES: Final = ("bullseye", "bookworm", "bookworm-backports", "trixie", "trixie-backports", "forky", "sid")
_KEYRING: Final = "/usr/share/keyrings/debian-archive-keyring.gpg"
_MODULES: Final = ("veth", "sch_ingress", "cls_bpf")  # with which tests make networks
_WANTED: Final = re.compile(rf"/(vmlinu[zx][^/]*|(?P<module>({'|'.join(_MODULES)})\.ko)(?P<xz>\.xz)?)$")
_LISTS_SECONDS: Final = 24 * 3600.0  # for so long, lists of packages are not fetched again


class MatrixError(Exception):
    """Something is missing on this machine. The text is one line: what, and the remedy."""


def cache_folder() -> Path:
    """Return the folder for what is fetched and built, outside of the repository. It may be removed at any time."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "jumptable-kernels"


@dataclass(frozen=True, order=True)
class KernelPackage:
    """A package with a kernel. Sorts by version.

    Attributes:
        release: The numbers of the upstream version, such as (6, 12, 117).
        version: The version of the package.
        suite: Where it is.
        name: The package.
    """

    release: tuple[int, ...]
    version: str
    suite: str
    name: str

    @property
    def series(self) -> str:
        """The first two numbers of the version, as in `6.12`."""
        return ".".join(map(str, self.release[:2]))


@dataclass
class Archive:
    """Debian's archive, as this machine reaches it, for one architecture of Debian (`amd64`, `arm64`)."""

    architecture: str
    folder: Path = field(init=False)

    def __post_init__(self) -> None:
        self.folder = cache_folder() / self.architecture / "apt"

    def _run(self, *command: str, check: bool = True, folder: Path | None = None) -> str:
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
            raise MatrixError(message)
        return done.stdout

    def update(self) -> None:
        """Fetch the lists of packages, unless they are of today.

        Raises:
            MatrixError: They cannot be fetched, and there are none of an earlier day.
        """
        sources, stamp = self.folder / "sources.list", self.folder / "fetched"
        lines = "".join(f"deb [signed-by={_KEYRING}] {_archive_uri()} {suite} main\n" for suite in SUITES)
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
        self._run("apt-get", "update", "-qq", check=False)  # it also fails where one suite is missing
        if not list((self.folder / "lists").glob("*_Packages*")):
            raise MatrixError("apt-get update has fetched no list of packages: is the network there?")
        stamp.touch()

    def kernels(self) -> list[KernelPackage]:
        """Return the newest kernel of each series, by rising version."""
        pattern = f"^linux-(image|binary)-[0-9].*-cloud-{self.architecture}$"
        found = self._run("apt-cache", "search", "--names-only", pattern)
        names = {line.split()[0] for line in found.splitlines()}
        # From 6.19 on, the kernel itself is in linux-binary-…, on which linux-image-… depends.
        names -= {name.replace("linux-binary-", "linux-image-") for name in names if name.startswith("linux-binary-")}
        if not names:
            message = f"no suite of {', '.join(SUITES)} has a kernel for {self.architecture}"
            raise MatrixError(message)
        newest: dict[str, KernelPackage] = {}
        for line in self._run("apt-cache", "madison", *sorted(names)).splitlines():
            name, version, origin = (part.strip() for part in line.split("|"))
            numbers = re.match(r"\d+(\.\d+)+", version)
            if numbers is None:
                continue
            release = tuple(map(int, numbers[0].split(".")))
            kernel = KernelPackage(release, version, origin.split()[1].split("/")[0], name)
            if kernel > newest.get(kernel.series, KernelPackage((), "", "", "")):
                newest[kernel.series] = kernel
        return sorted(newest.values())

    def kernel_folder(self, kernel: KernelPackage) -> Path:
        """Return a folder with a kernel, `vmlinuz`, and the modules that tests need, fetched if necessary."""
        folder = cache_folder() / self.architecture / kernel.suite / kernel.name / kernel.version / "with-modules"
        if not folder.exists():
            folder.parent.mkdir(parents=True, exist_ok=True)
            part = folder.with_suffix(f".{os.getpid()}")  # another run may fetch the same one
            part.mkdir()
            # From 6.19 on, the modules are in a package of their own.
            for name in dict.fromkeys((kernel.name, kernel.name.replace("linux-binary-", "linux-modules-"))):
                with self._fetched(f"{name}={kernel.version}") as package:
                    _extract_kernel(package, part)
            lacking = {"vmlinuz", *(f"{each}.ko" for each in _MODULES)} - {each.name for each in part.iterdir()}
            if lacking:
                shutil.rmtree(part)
                message = f"{kernel.name} has no {', '.join(sorted(lacking))} in it"
                raise MatrixError(message)
            part.rename(folder)
        return folder

    def unpack(self, names: list[str], suite: str, folder: Path) -> None:
        """Unpack packages of a suite, without those that they depend on, into a folder."""
        for name in names:
            with self._fetched(f"{name}/{suite}") as package:
                subprocess.run(["dpkg-deb", "-x", package, folder], check=True)

    @contextmanager
    def _fetched(self, what: str) -> Iterator[Path]:
        """Yield a package that is fetched, and removed afterwards."""
        with tempfile.TemporaryDirectory() as folder:
            try:
                self._run("apt-get", "download", "-qq", what, folder=Path(folder))
            except MatrixError:
                (self.folder / "fetched").unlink(missing_ok=True)  # the lists are of an archive that has changed since
                raise
            yield next(Path(folder).glob("*.deb"))


def _archive_uri() -> str:
    """Return the URI of Debian's archive, from this machine's own sources.

    Raises:
        MatrixError: It has none.
    """
    fields = "$(REPO_URI)|$(COMPONENT)|$(RELEASE)|$(LABEL)"
    command = ["apt-get", "indextargets", "--format", fields, "Created-By: Packages"]
    try:
        targets = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError) as error:
        raise MatrixError("there is no apt: the kernels are those of Debian, and run on a Debian machine") from error
    for target in targets.splitlines():
        uri, component, suite, label = target.split("|")
        # The label is in the lists, which a new machine does not have yet.
        if component == "main" and (label == "Debian" or (not label and suite in SUITES)):
            return uri
    raise MatrixError("the sources of apt do not have Debian's archive: the kernels run on a Debian machine")


def _extract_kernel(package: Path, folder: Path) -> None:
    """Copy the kernel and the modules of a package to a folder, as far as they are in it."""
    with subprocess.Popen(["dpkg-deb", "--fsys-tarfile", package], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        with tarfile.open(fileobj=process.stdout, mode="r|") as tar:
            for member in tar:
                found = _WANTED.search(member.name) if member.isfile() else None
                content = None if found is None else tar.extractfile(member)
                if found is None or content is None:
                    continue
                file = folder / (found["module"] or "vmlinuz")
                if found["xz"]:
                    file.write_bytes(lzma.decompress(content.read()))
                else:
                    with file.open("wb") as out:
                        shutil.copyfileobj(content, out)
