"""The protocol between the listener and its keeper.

The channel is a socketpair of type SOCK_SEQPACKET. A question is REQUEST, then a text in UTF-8; an answer is REPLY,
then the bytes that the operation returns. Either may carry one fd (SCM_RIGHTS, unix(7)). The keeper answers each
question with exactly one datagram, in order. The listener may send several questions before it reads the answers. The
answer has the sequence number of its question, so that one that comes late is not taken for the answer to a later one.
"""

import json
import struct
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from enum import IntEnum
from typing import Final, Self

from app.loader.messages import NO_OBJECTS, ObjectLimits


class Op(IntEnum):
    """The operations of the keeper. It answers any other number with EINVAL.

    Each comment says: what the question carries -> what the answer carries. A description is JSON with the keys `kind`
    (as `Kernel.obj_kind`) and `info` (the fields of `MapInfo`, or null).
    """

    OPEN_PIN = 1  # text: the path of a pin -> the fd of a program array or program; else the description of the object
    MAP_BY_ID = 2  # number: the id of a map -> the fd of a program array; else the description of the map
    PROG_BY_ID = 3  # number: the id of a program -> its fd
    MAKE_ARRAY = 4  # number: max_entries; text: the name -> the fd of a new program array
    PIN_ARRAY = 5  # text: the path of the new pin; the fd of a program array -> nothing
    UNPIN = 6  # text: the path of a pin that this keeper has made -> nothing
    CHECK_PIN = 7  # text: a path -> nothing; refused as a pin there would be
    KEEP_DIR = 8  # -> an fd (O_PATH) of keep_dir, which is created where it is missing
    READ = 9  # text: one of KeeperConfig.reads -> its fd, open for reading
    AUDIT = 10  # -> the fd of the audit file, open for appending
    TOKEN = 11  # text: SHA-256 of a bearer token, in hex -> its record (JSON) or nothing; an fd (O_PATH) of the tokens
    TABLE_PROGRAM = 12  # number: 0 for the writer of app.bpf.bulk, 1 for the reader -> its fd, or none if it has none
    ABILITIES = 13  # -> what the kernel can with the keeper's rights: JSON, a list of [name, can, detail] (`Ability`)
    MAP_STATE = 14  # the fd of a program array -> the fields of `MapState`: JSON
    ITERATOR = 15  # number: 0 for the one that lists arrays, 1 for programs (app.bpf.iterators) -> the fd of its link
    CODES = 16  # text: ids of programs, with commas -> JSON: for the first ones, as many as take SLICE_SECONDS, a list
    #             [map ids, jumps], each jump the fields of `Jump`; null for a program that cannot be opened
    ATTACHMENTS = 17  # number: 0 to begin, 1 to go on -> JSON: a list of what was found in SLICE_SECONDS, each the
    #                   fields of `Attachment`, or a text: what could not be looked at; null at the end
    READ_OBJECT = 18  # text: the path of an object file -> the fd of sealed memory with its content
    LOAD_OBJECT = 19  # the fd of a channel with a LoadRequest in it -> nothing yet: see `app.keeper.loads`


REQUEST: Final = struct.Struct("<III")  # operation, number, sequence number
REPLY: Final = struct.Struct("<iI")  # errno (0: success), sequence number (0: of a question too short to have one)
MAX_SEQUENCE: Final = (1 << 32) - 1  # 1 comes after it
MAX_TEXT: Final = 4095  # bytes; PATH_MAX without the closing NUL
MAX_REPLY: Final = 1 << 16  # bytes behind REPLY


SLICE_SECONDS: Final = 0.01  # for an answer to a question that may be asked in parts: others have their turn between


@dataclass(frozen=True, slots=True)
class KeeperConfig:
    """The limits of a keeper. They come from the configuration, before the first question, and never change.

    Attributes:
        pin_dirs: Folders; below them the keeper opens and makes pins.
        pins: Paths that it opens and pins as well, wherever they are.
        keep_dir: The folder for pins of the listener's own; None: not configured.
        owner: (uid, gid) to whom keep_dir is given; -1: it is not given away.
        reads: Files that the keeper opens for reading.
        audit: The audit file; None: not configured.
        tokens: The file of bearer tokens; None: not configured.
        socket: The listener's unix socket, which the keeper removes at its end unless somebody listens on it.
        objects: What object files may ask for.
    """

    pin_dirs: Sequence[str] = ()
    pins: Sequence[str] = ()
    keep_dir: str | None = None
    owner: Sequence[int] = (-1, -1)
    reads: Sequence[str] = ()
    audit: str | None = None
    tokens: str | None = None
    socket: str | None = None
    objects: ObjectLimits = NO_OBJECTS

    def dump(self) -> bytes:
        """Return the configuration as JSON."""
        return json.dumps(asdict(self)).encode()

    @classmethod
    def load(cls, text: bytes) -> Self:
        """Return the configuration that `dump` has written."""
        facts = json.loads(text)
        return cls(**facts | {"objects": ObjectLimits(**facts["objects"])})
