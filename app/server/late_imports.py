"""Imports after the process has given up its rights: can it still read the code?

The interpreter and the environment may be in a folder that only root may enter, such as /root. What `app.api.deferred`
loads is imported when the process is another user, without any capability.
"""

import importlib
import importlib.util
import os
import stat
import sys
from pathlib import Path
from typing import Final

import app
from app.api.deferred import MODULES
from app.sandbox.subtree import open_subtree

# A module of each folder that is read from: the service, its dependencies, and the standard library.
_SAMPLES: Final = (MODULES[0], "fastapi", "starlette", "anyio", "prometheus_client", "json")


def prepare(uid: int) -> None:
    """Make sure that this process can load the application when it is another user, or load it now.

    Args:
        uid: Of the user that the process is then.
    """
    if not _can_be_read_later(uid):
        for module in MODULES:
            importlib.import_module(module)


def _can_be_read_later(uid: int) -> bool:
    """Whether the user may read the code: by its paths, or through folders that are opened now for that."""
    opened: dict[Path, str] = {}
    for module in _SAMPLES:
        found = importlib.util.find_spec(module)
        if found is None or found.origin is None:
            return False
        file = Path(found.origin)
        if all(_may_read(each, uid) for each in (file, *file.parents)):
            continue
        folder = _folder_of(module, file)
        within = [each for each in (file, *file.parents) if each.is_relative_to(folder)]
        if not all(_may_read(each, uid) for each in within):
            return False
        if folder not in opened:
            try:
                opened[folder] = f"/proc/self/fd/{open_subtree(folder)}"  # for as long as the process runs
            except OSError:
                return False
    _import_from(opened)
    return True


def _may_read(path: Path, uid: int) -> bool:
    """Whether the mode permits it without a capability: to the owner, or to everybody."""
    status = path.stat()
    wanted = stat.S_IXOTH if stat.S_ISDIR(status.st_mode) else stat.S_IROTH
    return bool(status.st_mode & (wanted << 6 if status.st_uid == uid else wanted))


def _folder_of(module: str, file: Path) -> Path:
    """The folder that a module is imported from. Of the service it is the package alone: beside it may be anything."""
    if module.startswith(f"{app.__name__}."):
        return Path(app.__path__[0])
    return file.parents[1]  # behind the folder of its package


def _import_from(opened: dict[Path, str]) -> None:
    """Import what is below these folders by other paths from here on."""

    def redirected(path: str) -> str:
        for folder, other in opened.items():
            if Path(path).is_relative_to(folder):
                return os.path.normpath(f"{other}/{Path(path).relative_to(folder)}")
        return path

    sys.path[:] = map(redirected, sys.path)
    for module in list(sys.modules.values()):
        folders = getattr(module, "__path__", None)
        if isinstance(folders, list):
            folders[:] = map(redirected, folders)
