"""The part of the kernel port that works on the files of a bpffs, without bpf(2).

`LinuxKernel` inherits it; `memory.kernel` has a counterpart for the kernel in memory.
"""

import contextlib
import errno
import os
import re
from pathlib import Path
from typing import Final

from app.bpf.uapi import Cmd, fail

# The name of a pin in keep_dir: a random token, then the id of the program.
KEPT_PIN: Final = re.compile(r"[0-9a-f]{32}_[0-9]+")

# A space, tab, newline, backslash or # in /proc/self/mounts: mangle() in fs/proc_namespace.c.
_ESCAPE: Final = re.compile(r"\\([0-7]{3})")


class LinuxBpffs:
    """The file operations of `Kernel`, on the running Linux. Thread rule: any thread."""

    def unpin(self, path: str) -> None:
        """Remove a pin: unlink(2)."""
        Path(path).unlink()

    def check_pin(self, path: str) -> None:
        """Raise what OBJ_PIN would raise for a new pin at `path`, judging by the folder's mount, mode and owner."""
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
        """Return whether the path lies in a mounted bpffs.

        Reads /proc/self/mounts (proc(5)). Of two mounts at one place the later one counts.
        """
        types = {}
        for line in Path("/proc/self/mounts").read_text("utf-8", "surrogateescape").strip("\n").split("\n"):
            _, mount_point, type_, *_ = line.split(" ")
            types[_ESCAPE.sub(lambda found: chr(int(found[1], 8)), mount_point)] = type_
        folders = (str(each) for each in (Path(path), *Path(path).parents))
        return next((types[folder] for folder in folders if folder in types), "") == "bpf"

    def make_folder(self, path: str) -> None:
        """Create a folder, unless it exists: mkdir(2), mode 0700."""
        Path(path).mkdir(mode=0o700, exist_ok=True)

    def pins_in(self, folder: str) -> list[str]:
        """Return the names in a folder; an empty list where there is no such folder."""
        with contextlib.suppress(FileNotFoundError, NotADirectoryError):
            return [each.name for each in Path(folder).iterdir()]
        return []
