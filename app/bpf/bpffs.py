"""bpffs as a file system: what can be told and done there without bpf(2), on both kernels."""

import contextlib
import errno
import os
import re
from pathlib import Path
from typing import Final

from app.bpf.uapi import Cmd, fail

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
