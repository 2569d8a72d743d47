"""The functions of libbpf that load an object file, by ctypes: libbpf.so.1, which is any release from 1.0 on.

There are no callbacks from C: they would take memory that can be executed. libbpf prints its warnings to standard
error, which the process that started this one reads.
"""

import ctypes
import re
from collections.abc import Iterator
from ctypes import CDLL, POINTER, Structure, byref, c_bool, c_char_p, c_int, c_size_t, c_uint32, c_void_p
from typing import Any, Final

LIBRARY: Final = "libbpf.so.1"


class OpenOptions(Structure):
    """struct bpf_object_open_opts as of libbpf 0.7; `sz` says how much of it there is."""

    _fields_ = (
        ("sz", c_size_t),
        ("object_name", c_char_p),
        ("relaxed_maps", c_bool),
        ("pin_root_path", c_char_p),
        ("attach_prog_fd", c_uint32),
        ("kconfig", c_char_p),
        ("btf_custom_path", c_char_p),
        ("kernel_log_buf", c_void_p),
        ("kernel_log_size", c_size_t),
        ("kernel_log_level", c_uint32),
    )


# The result and the arguments of each function: libbpf.h and btf.h.
_FUNCTIONS: Final[dict[str, tuple[Any, ...]]] = {
    "bpf_object__open_mem": (c_void_p, c_void_p, c_size_t, c_void_p),
    "bpf_object__load": (c_int, c_void_p),
    "bpf_object__close": (None, c_void_p),
    "bpf_object__next_program": (c_void_p, c_void_p, c_void_p),
    "bpf_object__next_map": (c_void_p, c_void_p, c_void_p),
    "bpf_object__btf": (c_void_p, c_void_p),
    "bpf_program__name": (c_char_p, c_void_p),
    "bpf_program__section_name": (c_char_p, c_void_p),
    "bpf_program__type": (c_int, c_void_p),
    "bpf_program__set_type": (c_int, c_void_p, c_int),
    "bpf_program__expected_attach_type": (c_int, c_void_p),
    "bpf_program__set_expected_attach_type": (c_int, c_void_p, c_int),
    "bpf_program__autoload": (c_bool, c_void_p),
    "bpf_program__set_autoload": (c_int, c_void_p, c_bool),
    "bpf_program__insn_cnt": (c_size_t, c_void_p),
    "bpf_program__fd": (c_int, c_void_p),
    "bpf_map__name": (c_char_p, c_void_p),
    "bpf_map__type": (c_int, c_void_p),
    "bpf_map__key_size": (c_uint32, c_void_p),
    "bpf_map__value_size": (c_uint32, c_void_p),
    "bpf_map__max_entries": (c_uint32, c_void_p),
    "bpf_map__set_max_entries": (c_int, c_void_p, c_uint32),
    "bpf_map__map_flags": (c_uint32, c_void_p),
    "bpf_map__is_internal": (c_bool, c_void_p),
    "bpf_map__pin_path": (c_char_p, c_void_p),
    "bpf_map__set_pin_path": (c_int, c_void_p, c_char_p),
    "bpf_map__reuse_fd": (c_int, c_void_p, c_int),
    "bpf_map__initial_value": (c_void_p, c_void_p, POINTER(c_size_t)),
    "bpf_map__fd": (c_int, c_void_p),
    "bpf_program__set_log_buf": (c_int, c_void_p, c_void_p, c_size_t),
    "bpf_program__set_log_level": (c_int, c_void_p, c_uint32),
    "btf__type_cnt": (c_uint32, c_void_p),
    "btf__type_by_id": (c_void_p, c_void_p, c_uint32),
    "btf__name_by_offset": (c_char_p, c_void_p, c_uint32),
}


def library() -> Any:
    """Load libbpf.

    Raises:
        OSError: It is not installed.
        AttributeError: It lacks a function, as a release before 1.0 would.
    """
    lib = CDLL(LIBRARY, use_errno=True)
    for name, (result, *arguments) in _FUNCTIONS.items():
        function = getattr(lib, name)
        function.restype, function.argtypes = result, arguments
    return lib


class OpenFailed(Exception):
    """libbpf cannot open the file. `errno`: its number, or libbpf's own from 4000 on."""

    def __init__(self, errno: int) -> None:
        super().__init__(errno)
        self.errno = errno


class ObjectFile:
    """An object file that libbpf has opened.

    Attributes:
        programs: libbpf's pointers to the programs, by name.
        maps: Those to the maps, by name. Maps of variables have that of their section, as in `.bss`.
        btf: libbpf's pointer to the type information. None: there is none.
    """

    def __init__(self, lib: Any, content: bytes, name: str) -> None:
        """Open a file. Nothing is loaded yet.

        Args:
            lib: From `library`.
            content: The bytes of the file.
            name: What libbpf names maps of variables after.

        Raises:
            OpenFailed: It is no object file that libbpf understands.
        """
        self.lib = lib
        self._content = content  # libbpf goes on reading it
        object_name = re.sub(r"[^A-Za-z0-9_]", "_", name).encode()
        options = OpenOptions(sz=ctypes.sizeof(OpenOptions), object_name=object_name)
        self._object = lib.bpf_object__open_mem(content, len(content), byref(options))
        if not self._object:
            raise OpenFailed(ctypes.get_errno())
        self.programs = dict(self._named(lib.bpf_object__next_program, lib.bpf_program__name))
        # `parser.bss` becomes `.bss`: libbpf cuts the object's name short there, and it has no dot.
        self.maps = {
            name[name.index(".") :] if lib.bpf_map__is_internal(map_) else name: map_
            for name, map_ in self._named(lib.bpf_object__next_map, lib.bpf_map__name)
        }
        self.btf = lib.bpf_object__btf(self._object)

    def _named(self, following: Any, name_of: Any) -> Iterator[tuple[str, int]]:
        pointer = following(self._object, None)
        while pointer:
            yield text(name_of(pointer)), pointer
            pointer = following(self._object, pointer)

    def set_log(self, log: "ctypes.Array[ctypes.c_char]", level: int = 0) -> None:
        """Let the verifier write into this buffer when it refuses a program. libbpf ends with the first one.

        Args:
            log: The buffer.
            level: What it writes, see BPF_LOG_LEVEL1 and others. 0: all of what it did before it refused.
        """
        for program in self.programs.values():
            self.lib.bpf_program__set_log_buf(program, ctypes.addressof(log), len(log))
            self.lib.bpf_program__set_log_level(program, level)

    def initial_value(self, map_: int) -> "ctypes.Array[ctypes.c_char] | None":
        """Return the variables that a map holds at the start, to be changed in place. None: it holds none."""
        size = c_size_t()
        address = self.lib.bpf_map__initial_value(map_, byref(size))
        return (ctypes.c_char * size.value).from_address(address) if address else None

    def load(self) -> int:
        """Make the maps and load the programs. Return 0, or the errno."""
        return -int(self.lib.bpf_object__load(self._object))

    def close(self) -> None:
        """Close it, with all fds that it has."""
        self.lib.bpf_object__close(self._object)


def text(name: bytes | None) -> str:
    """Return a name of libbpf's as text."""
    return (name or b"").decode("utf-8", "backslashreplace")
