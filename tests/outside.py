"""Other tools: processes that read and write pinned objects, independently of the service.

`Bpftool` needs bpftool to be installed. `Script` needs only Python, and makes the system calls itself.
"""

import ctypes
import json
import os
import platform
import struct
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_PATH = f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"


class Bpftool:
    """bpftool, called as an operator calls it."""

    def _run(self, *arguments: str) -> str:
        done = subprocess.run(
            ["bpftool", *arguments], check=True, capture_output=True, text=True, env={**os.environ, "PATH": _PATH}
        )
        return done.stdout

    def make_array(self, path: Path, max_entries: int) -> None:
        """Create a program array and pin it."""
        self._run("map", "create", str(path), "type", "prog_array", "key", "4", "value", "4",
                  "entries", str(max_entries), "name", "outside")  # fmt: skip

    def set(self, path: Path, index: int, program: Path) -> None:
        """Point an entry to a pinned program."""
        key = struct.pack("<I", index).hex(" ").split()
        self._run("map", "update", "pinned", str(path), "key", "hex", *key, "value", "pinned", str(program))

    def clear(self, path: Path, index: int) -> None:
        """Clear an entry."""
        self._run("map", "delete", "pinned", str(path), "key", "hex", *struct.pack("<I", index).hex(" ").split())

    def dump(self, path: Path) -> dict[int, int]:
        """The program ids of the filled entries, by index."""
        found = {}
        for each in json.loads(self._run("--json", "map", "dump", "pinned", str(path))):
            if isinstance(each["value"], list):
                index, program = (
                    int.from_bytes(bytes(int(byte, 16) for byte in each[part]), "little") for part in ("key", "value")
                )
                found[index] = program
        return found


class Script:
    """The same with direct bpf(2) calls in a process of its own."""

    def _run(self, *arguments: object) -> str:
        command = [sys.executable, __file__, *map(str, arguments)]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout

    def make_array(self, path: Path, max_entries: int) -> None:
        """Create a program array and pin it."""
        self._run("make_array", path, max_entries)

    def set(self, path: Path, index: int, program: Path) -> None:
        """Point an entry to a pinned program."""
        self._run("set", path, index, program)

    def clear(self, path: Path, index: int) -> None:
        """Clear an entry."""
        self._run("clear", path, index)

    def dump(self, path: Path) -> dict[int, int]:
        """The program ids of the filled entries, by index."""
        return {int(index): program for index, program in json.loads(self._run("dump", path)).items()}

    def run(self, program_id: int, packet: bytes) -> int:
        """Run a program, found by its id, on a packet and return its result."""
        return int(self._run("run", program_id, packet.hex()))


def _bpf(command: int, attr: bytes) -> tuple[int, bytes]:
    buffer = ctypes.create_string_buffer(attr, 128)
    libc = ctypes.CDLL(None, use_errno=True)
    number = {"x86_64": 321, "aarch64": 280}[platform.machine()]
    result = libc.syscall(number, command, buffer, 128)
    return (result if result >= 0 else -ctypes.get_errno()), buffer.raw


def _get(path: str) -> int:
    name = ctypes.create_string_buffer(path.encode())
    return _bpf(7, struct.pack("<QII", ctypes.addressof(name), 0, 0))[0]


def _elem(command: int, path: str, index: int, value: int | None) -> int | None:
    key, cell = ctypes.c_uint32(index), ctypes.c_uint32(value or 0)
    at = 0 if command == 3 else ctypes.addressof(cell)
    result, _ = _bpf(command, struct.pack("<IIQQQ", _get(path), 0, ctypes.addressof(key), at, 0))
    if result == -2 and command == 1:
        return None
    assert result >= 0, os.strerror(-result)
    return cell.value


def _main(verb: str, *arguments: str) -> None:
    if verb == "make_array":
        path, max_entries = arguments
        name = ctypes.create_string_buffer(path.encode())
        fd, _ = _bpf(0, struct.pack("<IIII", 3, 4, 4, int(max_entries)))
        assert _bpf(6, struct.pack("<QI", ctypes.addressof(name), fd))[0] == 0
    elif verb == "set":
        path, index, program = arguments
        _elem(2, path, int(index), _get(program))
    elif verb == "clear":
        path, index = arguments
        _elem(3, path, int(index), None)
    elif verb == "dump":
        found = {index: _elem(1, arguments[0], index, 0) for index in range(64)}
        sys.stdout.write(json.dumps({index: program for index, program in found.items() if program is not None}))
    elif verb == "run":
        program_id, packet = int(arguments[0]), bytes.fromhex(arguments[1])
        fd, _ = _bpf(13, struct.pack("<III", program_id, 0, 0))
        data = ctypes.create_string_buffer(packet, len(packet))
        result, answer = _bpf(10, struct.pack("<IIIIQQII", fd, 0, len(packet), 0, ctypes.addressof(data), 0, 1, 0))
        assert result == 0, os.strerror(-result)
        sys.stdout.write(str(struct.unpack_from("<I", answer, 4)[0]))


if __name__ == "__main__":
    _main(*sys.argv[1:])


@contextmanager
def journal_reader(file: Path) -> Iterator[None]:
    """Another process that holds a read transaction of a journal open."""
    code = """
import sqlite3, sys
connection = sqlite3.connect(sys.argv[1], isolation_level=None)
connection.execute("BEGIN")
connection.execute("SELECT count(*) FROM changes").fetchone()
print("reading", flush=True)
sys.stdin.read()
"""
    process = subprocess.Popen(
        [sys.executable, "-c", code, str(file)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdin is not None
    assert process.stdout is not None
    with process.stdin, process.stdout:
        assert process.stdout.readline() == "reading\n"
        try:
            yield
        finally:
            process.stdin.close()
            assert process.wait(20) == 0
