"""What the process that listens and its keeper say to each other: one datagram each way, over a socketpair.

A question is REQUEST, then a text; an answer is REPLY, then what the operation tells. File descriptors go beside them
(SCM_RIGHTS, unix(7)), one at the most.
"""

import json
import struct
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from enum import IntEnum
from typing import Final, Self


class Op(IntEnum):
    """What the keeper can be asked for; the rest it answers with EINVAL."""

    OPEN_PIN = 1  # text: the path of a program array or a program -> its fd, or what it is instead
    MAP_BY_ID = 2  # number: of a program array -> its fd, or what it is instead
    PROG_BY_ID = 3  # number: of a program -> its fd
    MAKE_ARRAY = 4  # number: max_entries, text: name -> the fd of a new program array
    PIN_ARRAY = 5  # text: where to pin it, and the fd of a program array
    UNPIN = 6  # text: the path of one that this keeper has pinned
    CHECK_PIN = 7  # text: a path; whether something could be pinned there
    KEEP_DIR = 8  # -> keep_dir, made where it is missing: an fd to name paths below (O_PATH)
    READ = 9  # text: one of the files of Duties.reads -> its fd, to read
    AUDIT = 10  # -> the audit file, to append to
    TOKEN = 11  # text: the SHA-256 of a bearer token, in hex -> what is kept of it (JSON) or nothing; the file (O_PATH)
    TABLE_PROGRAM = 12  # number: 0 for the one that writes tables, 1: that reads them -> its fd; none: not to be had


REQUEST: Final = struct.Struct("<II")  # operation, number
REPLY: Final = struct.Struct("<i")  # errno; 0: done
MAX_TEXT: Final = 4095  # bytes: PATH_MAX
MAX_REPLY: Final = 1 << 16


@dataclass(frozen=True, slots=True)
class KeeperConfig:
    """What a keeper is there for, by the configuration: it does nothing beyond.

    `pin_dirs`: below these it opens and makes pins; `pins`: it opens these as well; `owner`: (uid, gid) of keep_dir;
    `socket`: is removed at the end, if nobody listens there.
    """

    pin_dirs: Sequence[str] = ()
    pins: Sequence[str] = ()
    keep_dir: str | None = None
    owner: Sequence[int] = (-1, -1)
    reads: Sequence[str] = ()
    audit: str | None = None
    tokens: str | None = None
    socket: str | None = None

    def dump(self) -> bytes:
        """As JSON."""
        return json.dumps(asdict(self)).encode()

    @classmethod
    def load(cls, text: bytes) -> Self:
        """From what `dump` made."""
        return cls(**json.loads(text))
