"""Debian's kernels and programs of other architectures."""

import os
import re
import shutil
import subprocess
import tarfile
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from tests import debian
from tests.debian import SUITES, Missing


def cache_folder() -> Path:
    """Return the folder for what is fetched and built. It may be removed at any time."""
    return debian.cache_folder("jumptable-kernels")


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


class Archive(debian.Archive):
    """Debian's archive with its kernels, for one architecture of Debian (`amd64`, `arm64`)."""

    def __init__(self, architecture: str) -> None:
        super().__init__(architecture, SUITES, cache_folder() / architecture / "apt")

    def kernels(self) -> list[KernelPackage]:
        """Return the newest kernel of each series, by rising version."""
        pattern = f"^linux-(image|binary)-[0-9].*-cloud-{self.architecture}$"
        found = self.run("apt-cache", "search", "--names-only", pattern)
        names = {line.split()[0] for line in found.splitlines()}
        # From 6.19 on, the kernel itself is in linux-binary-…, on which linux-image-… depends.
        names -= {name.replace("linux-binary-", "linux-image-") for name in names if name.startswith("linux-binary-")}
        if not names:
            message = f"no suite of {', '.join(SUITES)} has a kernel for {self.architecture}"
            raise Missing(message)
        newest: dict[str, KernelPackage] = {}
        for line in self.run("apt-cache", "madison", *sorted(names)).splitlines():
            name, version, origin = (part.strip() for part in line.split("|"))
            numbers = re.match(r"\d+(\.\d+)+", version)
            if numbers is None:
                continue
            release = tuple(map(int, numbers[0].split(".")))
            kernel = KernelPackage(release, version, origin.split()[1].split("/")[0], name)
            if kernel > newest.get(kernel.series, KernelPackage((), "", "", "")):
                newest[kernel.series] = kernel
        return sorted(newest.values())

    def kernel_file(self, kernel: KernelPackage) -> Path:
        """Return the path of a kernel's image, which is fetched if it is not in the cache."""
        file = cache_folder() / self.architecture / kernel.suite / kernel.name / kernel.version / "vmlinuz"
        if not file.exists():
            file.parent.mkdir(parents=True, exist_ok=True)
            part = file.with_suffix(f".{os.getpid()}")  # another run may fetch the same one
            with self.fetched(f"{kernel.name}={kernel.version}") as package, part.open("wb") as out:
                _extract_kernel(package, out)
            part.rename(file)
        return file


def _extract_kernel(package: Path, out: IO[bytes]) -> None:
    """Copy boot/vmlinuz-… of a package to a file."""
    with subprocess.Popen(["dpkg-deb", "--fsys-tarfile", package], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        with tarfile.open(fileobj=process.stdout, mode="r|") as tar:
            for member in tar:
                content = tar.extractfile(member) if re.search(r"/vmlinu[zx][^/]*$", member.name) else None
                if content is not None and member.isfile():
                    shutil.copyfileobj(content, out)
                    process.kill()
                    return
    message = f"{package.name} has no kernel in it"
    raise Missing(message)
