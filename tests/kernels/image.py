"""The initramfs that the guests boot: a Python, what the project needs, the project with its tests, and `guest.py`.

Nothing else is in it, no shell and no distribution: /init is `guest.py`. The kernel unpacks several archives one after
the other, so the image is two of them: the base, which is kept in the cache for as long as the interpreter and the
packages stay the same, and the project, which is packed for each run.
"""

import compileall
import hashlib
import importlib.metadata
import os
import platform
import py_compile
import re
import shutil
import stat
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Final

from packaging.requirements import Requirement

from tests.compiled import SOURCES, object_file
from tests.debian import Missing
from tests.kernels.packages import Archive, cache_folder

ROOT: Final = Path(__file__).parents[2]
# What the tests in the guest import besides the project itself. What these depend on comes along.
_TEST_PACKAGES: Final = ("httpx", "hypothesis", "pytest", "pytest-timeout", "pytest-xdist")
# Parts of the standard library that no test needs. They would double its size.
_UNUSED: Final = {"test", "tests", "idlelib", "tkinter", "turtledemo", "ensurepip", "lib2to3", "pydoc_data",
                  "site-packages", "dist-packages", "__pycache__"}  # fmt: skip
_SITE: Final = Path("site")  # where the packages are in the guest
PROJECT: Final = Path("project")  # where the project is in the guest
OBJECTS: Final = Path("objects")  # where the object files of tests/objects are in the guest
MODULES: Final = Path("modules")  # where the modules of the kernel are in the guest
# What tests call, and the library that loads object files: from this machine.
_TOOLS: Final = {"bpftool": "bpftool", "ip": "iproute2", "tc": "iproute2", "nsenter": "util-linux",
                 "unshare": "util-linux", "sleep": "coreutils"}  # fmt: skip
_LIBBPF: Final = "libbpf.so.1"
_FILES: Final = {
    "etc/passwd": "root:x:0:0:root:/:/bin/false\nnobody:x:65534:65534:nobody:/:/bin/false\n",
    "etc/group": "root:x:0:\nnogroup:x:65534:\n",
    "etc/hosts": "127.0.0.1 localhost\n::1 localhost\n",
}
# The interpreter for machines other than this one.
_FOREIGN_SUITE: Final = "bookworm"
_FOREIGN_VERSION: Final = "3.11"
_FOREIGN_PYTHON: Final = f"/usr/bin/python{_FOREIGN_VERSION}"
_FOREIGN_PACKAGES: Final = (
    "python3.11-minimal", "libpython3.11-minimal", "libpython3.11-stdlib", "libc6", "libgcc-s1", "libstdc++6",
    "libexpat1", "zlib1g", "libffi8", "libssl3", "libsqlite3-0", "libbz2-1.0", "liblzma5", "libuuid1", "libcrypt1",
    "libtinfo6", "libncursesw6", "libreadline8", "media-types",
    "libbpf1", "libelf1", "bpftool", "iproute2", "util-linux", "coreutils", "libcap2", "libmnl0", "libbsd0", "libmd0",
    "libxtables12", "libselinux1", "libpcre2-8-0",
)  # fmt: skip
_KEPT_SECONDS: Final = 7 * 24 * 3600.0  # a base image of packages of then is removed
_FOLDERS: Final = ("dev", "proc", "sys", "tmp", "run", "var", "root")


def build(machine: str, image: Path, archive: Archive) -> None:
    """Write the image.

    Args:
        machine: The machine that is to boot it, as `platform.machine` names it.
        image: The file to write.
        archive: Has the interpreter, where this machine is another one.
    """
    packages, is_native = _needed_packages(), machine == platform.machine()
    versions = "\n".join([machine, sys.version, sys.base_prefix, *(f"{each.name} {each.version}" for each in packages)])
    key = hashlib.sha256(versions.encode() + Path(__file__).read_bytes()).hexdigest()[:16]
    base = cache_folder() / archive.architecture / "images" / f"base-{key}.cpio"
    if not base.exists():
        base.parent.mkdir(parents=True, exist_ok=True)
        for old in base.parent.iterdir():
            if time.time() - old.stat().st_mtime > _KEPT_SECONDS:
                old.unlink(missing_ok=True)
        with tempfile.TemporaryDirectory() as folder:
            if is_native:
                _lay_out_base(Path(folder), packages)
            else:
                _lay_out_foreign_base(Path(folder), packages, machine, archive)
            _lay_out_files(Path(folder))
            part = base.with_suffix(f".{os.getpid()}")  # another run may make the same one
            pack(Path(folder), part)
        part.rename(base)
    with tempfile.TemporaryDirectory() as folder:
        native = f"{sys.base_prefix}/bin/python{sysconfig.get_python_version()}"
        _lay_out_project(Path(folder), native if is_native else _FOREIGN_PYTHON, is_native=is_native)
        pack(Path(folder), image, base)


def _needed_packages() -> list[importlib.metadata.Distribution]:
    """Return the installed packages that the project and its tests in the guest need, by name."""
    found: dict[str, importlib.metadata.Distribution] = {}
    wanted = [("jumptable", ""), *((name, "") for name in _TEST_PACKAGES)]
    while wanted:
        name, extra = wanted.pop()
        distribution = importlib.metadata.distribution(name)
        if f"{name}[{extra}]" in found:
            continue
        found[f"{name}[{extra}]"] = distribution
        for each in map(Requirement, distribution.requires or []):
            if each.marker is None or each.marker.evaluate({"extra": extra}):
                wanted += [(each.name, other) for other in ("", *each.extras)]
    needed = {each.name: each for each in found.values()}
    del needed["jumptable"]
    return [needed[name] for name in sorted(needed)]


def _lay_out_base(root: Path, packages: list[importlib.metadata.Distribution]) -> None:
    """Copy the interpreter of this process with its standard library, and the packages."""
    version, prefix = sysconfig.get_python_version(), Path(sys.base_prefix)
    library = prefix / "lib" / f"python{version}"
    executable = prefix / "bin" / f"python{version}"
    _copy(executable, root)
    shutil.copytree(
        library,
        _inside(root, library),
        ignore=lambda _, names: [each for each in names if each in _UNUSED or each.startswith("config-")],
    )
    for package in packages:
        for file in package.files or []:
            source, target = Path(str(file.locate())), root / _SITE / file
            if ".." not in file.parts and "__pycache__" not in file.parts and source.is_file():
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(source, target)
    tools = [Path(need(command, package)).resolve() for command, package in _TOOLS.items()]
    (root / "bin").mkdir(exist_ok=True)
    for command, tool in zip(_TOOLS, tools, strict=True):
        shutil.copy(tool, root / "bin" / command)
    _copy(_library(_LIBBPF, "libbpf1"), root)
    _copy_libraries(root, [_inside(root, executable), *tools, *root.rglob("*.so"), *root.rglob("*.so.*")])
    _compile(root, _inside(root, library), root / _SITE)


def _lay_out_foreign_base(
    root: Path, packages: list[importlib.metadata.Distribution], machine: str, archive: Archive
) -> None:
    """Unpack Debian's interpreter for another machine, and the packages as wheels for it."""
    archive.unpack(list(_FOREIGN_PACKAGES), _FOREIGN_SUITE, root)
    platforms = [f"--platform=manylinux_2_{minor}_{machine}" for minor in (17, 28, 34)]
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--only-binary=:all:",
               f"--python-version={_FOREIGN_VERSION}", f"--target={root / _SITE}",
               f"--platform=manylinux2014_{machine}", *platforms]  # fmt: skip
    subprocess.run([*command, *(f"{each.name}=={each.version}" for each in packages)], check=True)
    if _is_same_python():
        _compile(root, root / "usr/lib" / f"python{_FOREIGN_VERSION}", root / _SITE)


def _is_same_python() -> bool:
    """Whether bytecode that this interpreter makes is good for the one of the other machine."""
    return sysconfig.get_python_version() == _FOREIGN_VERSION


def _lay_out_files(root: Path) -> None:
    for name, text in _FILES.items():
        (root / name).parent.mkdir(exist_ok=True)
        (root / name).write_text(text)
    for folder in _FOLDERS:
        (root / folder).mkdir(exist_ok=True)


def _lay_out_project(root: Path, interpreter: str, *, is_native: bool) -> None:
    """Copy the project as git knows it, its C extensions if they are built, and /init, which `interpreter` runs."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard", "app", "tests", "pyproject.toml"],
        cwd=ROOT, capture_output=True, text=True, check=True,
    ).stdout  # fmt: skip
    extensions = [str(each.relative_to(ROOT)) for each in (ROOT / "app").rglob("*.so")] if is_native else []
    for name in (*filter(None, listed.split("\0")), *extensions):
        if (ROOT / name).is_file():  # else it is removed, and git does not know yet
            target = root / PROJECT / name
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(ROOT / name, target)
    _compile_objects(root / OBJECTS)
    version = importlib.metadata.version("jumptable")
    metadata = root / PROJECT / f"jumptable-{version}.dist-info" / "METADATA"
    metadata.parent.mkdir()
    metadata.write_text(f"Metadata-Version: 2.1\nName: jumptable\nVersion: {version}\n")
    if is_native or _is_same_python():
        _compile(root, root / PROJECT)
    init = root / "init"
    code = (Path(__file__).parent / "guest.py").read_text()
    init.write_text(f"#!{interpreter} -I\n{code}")
    init.chmod(0o755)


def _compile_objects(folder: Path) -> None:
    """Compile tests/objects: the guest has no compiler."""
    folder.mkdir()
    need("clang", "clang")
    for source in SOURCES.glob("*.bpf.c"):
        name = source.name.removesuffix(".bpf.c")
        (folder / f"{name}.o").write_bytes(object_file(name))


def with_modules(image: Path, modules: Path, out: Path) -> None:
    """Write an initramfs that also has the modules of a kernel.

    Args:
        image: The initramfs without them.
        modules: The folder with the modules.
        out: The file to write.
    """
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / MODULES).mkdir()
        for each in modules.glob("*.ko"):
            shutil.copy(each, Path(folder) / MODULES)
        pack(Path(folder), out, image)


def _library(name: str, package: str) -> Path:
    """Return the path of a shared library of this machine.

    Raises:
        Missing: It is not installed. The text names the package.
    """
    listed = subprocess.run([need("ldconfig", "libc-bin"), "-p"], capture_output=True, text=True, check=True).stdout
    found = re.search(rf"^\s*{re.escape(name)} .*=> (\S+)$", listed, re.MULTILINE)
    if found is None:
        message = f"{name} is not installed: apt-get install {package}"
        raise Missing(message)
    return Path(found[1])


def _inside(root: Path, path: Path) -> Path:
    return root / path.relative_to("/")


def _copy(file: Path, root: Path) -> None:
    target = _inside(root, file)
    if not target.exists():
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(file, target)


def _copy_libraries(root: Path, binaries: list[Path]) -> None:
    """Copy the shared libraries that these binaries name, and the loader, to the paths that they have here."""
    listed = subprocess.run(["ldd", *binaries], capture_output=True, text=True, check=False).stdout
    for path in sorted(set(re.findall(r"(/[^ :]+\.so[^ :]*)", listed))):
        if not path.startswith(str(root)) and Path(path).exists():
            _copy(Path(path), root)


def _compile(root: Path, *folders: Path) -> None:
    """Compile all modules. The bytecode is never checked against the source, whose time the archive may not keep."""
    for folder in folders:
        mode = py_compile.PycInvalidationMode.UNCHECKED_HASH
        # Packages have templates and test data that are no Python of this version.
        compileall.compile_dir(folder, stripdir=str(root), prependdir="/", quiet=2, invalidation_mode=mode, workers=0)


def pack(root: Path, archive: Path, *before: Path) -> None:
    """Write a folder as a cpio archive of the form `newc`, behind the content of other archives.

    Kernel: Documentation/driver-api/early-userspace/buffer-format.rst.
    """
    with archive.open("wb") as out:
        for each in before:
            with each.open("rb") as file:
                shutil.copyfileobj(file, out, 1 << 20)
        for number, path in enumerate(_paths(root), 1):
            _write_entry(out, number, str(path.relative_to(root)), path)
        _write_entry(out, 0, "TRAILER!!!", None)


def _paths(root: Path) -> Iterator[Path]:
    for folder, folders, files in os.walk(root):
        for name in sorted(folders + files):
            yield Path(folder) / name


def _write_entry(out: IO[bytes], number: int, name: str, path: Path | None) -> None:
    status = None if path is None else path.lstat()
    mode = 0 if status is None else status.st_mode
    content = b""
    if path is not None and stat.S_ISLNK(mode):
        content = os.fsencode(path.readlink())
    elif path is not None and stat.S_ISREG(mode):
        content = path.read_bytes()
    encoded = os.fsencode(name) + b"\0"
    # c_ino, c_mode, c_uid, c_gid, c_nlink, c_mtime, c_filesize, c_maj, c_min, c_rmaj, c_rmin, c_namesize, c_chksum
    numbers = (number, mode, 0, 0, 1, 0, len(content), 0, 0, 0, 0, len(encoded), 0)
    header = b"070701" + b"".join(b"%08x" % each for each in numbers) + encoded
    out.write(header + bytes(-len(header) % 4) + content + bytes(-len(content) % 4))


def need(command: str, package: str) -> str:
    """Return the path of a command.

    Raises:
        Missing: It is not installed. The text names the package.
    """
    found = shutil.which(command, path=f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin")
    if found is None:
        message = f"{command} is not installed: apt-get install {package}"
        raise Missing(message)
    return found
