"""The arguments of MAP_LOOKUP_ELEM and MAP_UPDATE_ELEM, kept: to make them anew takes as long as the call."""

import ctypes
import threading
from typing import Final

from app.bpf import attr

# Where the numbers stand, in u32: in struct MapElem, and behind it the key and the value.
FD: Final = 0
FLAGS: Final = 6  # u64
KEY: Final = 8
VALUE: Final = 9


class Element(threading.local):
    """One element of a map with u32 keys and values; each thread has its own.

    `own`: the words that are to be set and read, and what bpf(2) takes besides the command: an address and a size.
    """

    def __init__(self) -> None:
        self._words = (ctypes.c_uint32 * 10)()
        start = ctypes.addressof(self._words)
        fields = attr.MapElem.from_buffer(self._words)
        fields.key, fields.value = start + 4 * KEY, start + 4 * VALUE
        words = memoryview(self._words).cast("B").cast("I")
        self.own = words, (ctypes.c_void_p(start), ctypes.c_int(ctypes.sizeof(fields)))
