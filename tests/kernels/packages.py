"""Debian's kernels and programs of other architectures."""

import lzma
import os
import re
import shutil
import subprocess
import tarfile
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from tests import debian
from tests.debian import SUITES, Missing

_MODULES: Final = ("veth", "sch_ingress", "cls_bpf")  # with which tests make networks
_WANTED: Final = re.compile(rf"/(vmlinu[zx][^/]*|(?P<module>({'|'.join(_MODULES)})\.ko)(?P<xz>\.xz)?)$")


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

    def kernel_folder(self, kernel: KernelPackage) -> Path:
        """Return a folder with a kernel, `vmlinuz`, and the modules that tests need, fetched if necessary.

        Where the archive no longer has the modules of a kernel, there are none: tests then say what is lacking.
        """
        folder = cache_folder() / self.architecture / kernel.suite / kernel.name / kernel.version / "with-modules"
        if not folder.exists():
            folder.parent.mkdir(parents=True, exist_ok=True)
            part = folder.with_suffix(f".{os.getpid()}")  # another run may fetch the same one
            part.mkdir()
            with self.fetched(f"{kernel.name}={kernel.version}") as package:
                _extract_kernel(package, part)
            # From 6.19 on, the modules are in a package of their own.
            modules = kernel.name.replace("linux-binary-", "linux-modules-")
            has_modules = modules == kernel.name or kernel.version in self.run("apt-cache", "madison", modules)
            if modules != kernel.name and has_modules:
                with self.fetched(f"{modules}={kernel.version}") as package:
                    _extract_kernel(package, part)
            needed = {"vmlinuz", *(f"{each}.ko" for each in _MODULES if has_modules)}
            lacking = needed - {each.name for each in part.iterdir()}
            if lacking:
                shutil.rmtree(part)
                message = f"{kernel.name} has no {', '.join(sorted(lacking))} in it"
                raise Missing(message)
            part.rename(folder)
        return folder


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
