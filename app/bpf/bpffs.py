"""bpffs as a file system: what can be told and done there without bpf(2), on both kernels."""

import contextlib
import errno
import os
import re
import threading
from pathlib import Path
from typing import Final

from app.bpf.memory.objects import Objects, fail
from app.bpf.uapi import Cmd

KEPT_PIN: Final = re.compile(r"[0-9a-f]{32}_[0-9]+")  # a name in keep_dir: token, program id


class LinuxFolders:
    """Of the running Linux."""

    def unpin(self, path: str) -> None:
        """unlink(2)."""
        Path(path).unlink()

    def check_pin(self, path: str) -> None:
        """By the folder's mount, mode and owner."""
        folder, number = Path(path).parent, 0
        if "." in Path(path).name:
            number = errno.EPERM
        elif not folder.is_dir():
            number = errno.ENOENT
        elif not self.in_bpffs(path):
            number = errno.EPERM
        elif os.statvfs(folder).f_flag & os.ST_RDONLY:
            number = errno.EROFS
        elif not os.access(folder, os.W_OK | os.X_OK, effective_ids=True):
            number = errno.EACCES
        if number:
            fail(Cmd.OBJ_PIN, number)

    def in_bpffs(self, path: str) -> bool:
        """By /proc/self/mounts (proc(5)); of two mounts at one place the later counts."""
        kinds = {}
        for line in Path("/proc/self/mounts").read_text("utf-8", "surrogateescape").splitlines():
            _, place, kind, *_ = line.split(" ")
            kinds[place.replace("\\040", " ")] = kind
        places = (str(each) for each in (Path(path), *Path(path).parents))
        return next((kinds[place] for place in places if place in kinds), "") == "bpf"

    def make_folder(self, path: str) -> None:
        """mkdir(2), 0700."""
        Path(path).mkdir(mode=0o700, exist_ok=True)

    def pins_in(self, folder: str) -> list[str]:
        """readdir(3)."""
        with contextlib.suppress(FileNotFoundError, NotADirectoryError):
            return [each.name for each in Path(folder).iterdir()]
        return []


class MemoryFolders:
    """In memory: every folder is taken to exist, and to be in bpffs."""

    def __init__(self) -> None:
        self._lock = threading.RLock()
        self._objects = Objects()

    def unpin(self, path: str) -> None:
        """unlink(2) of a pin."""
        with self._lock:
            self._objects.drop(self._objects.unpin(path))

    def check_pin(self, path: str) -> None:
        """As `obj_pin`; but not whether something is there."""
        if "." in path.rsplit("/", 1)[-1]:
            fail(Cmd.OBJ_PIN, errno.EPERM)

    def in_bpffs(self, path: str) -> bool:  # noqa: ARG002
        """It is."""
        return True

    def make_folder(self, path: str) -> None:
        """It is there."""

    def pins_in(self, folder: str) -> list[str]:
        """By the beginning of the paths."""
        with self._lock:
            return [path.rpartition("/")[2] for path in self._objects.pins if path.rpartition("/")[0] == folder]
