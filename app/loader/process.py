"""The process that loads one object file, and ends.

It gives up everything that this does not take, and then reads the file. Whatever happens to it, its caller sees the end
of the channel, and judges by itself what it gets: see `client`.
"""

import contextlib
import ctypes
import errno
import mmap
import os
import re
import socket
import struct
from collections.abc import Mapping, Sequence
from typing import Any, Final, NamedTuple

from app.bpf import attr
from app.bpf.syscall import bpf
from app.bpf.uapi import Cmd, MapType
from app.loader import libbpf
from app.loader.btf_sections import map_places, variables
from app.loader.confinement import confine
from app.loader.elf import Initialiser, initialisers, why_unsupported
from app.loader.files import content_of
from app.loader.messages import (
    MAX_LOG_CHARS,
    MAX_REQUEST_BYTES,
    LoadAnswer,
    LoadRequest,
    MapFacts,
    ProgramFacts,
    Refusal,
)
from app.loader.source_lines import find_line
from app.sandbox.channel import MAX_FDS, receive_with_fds, send_with_fds

# The verifier keeps the end of its log since Linux 6.4, and before that its beginning: so there is room for nearly all.
_LOG_BYTES: Final = 4 << 20
_LOG_LEVEL_STATISTICS: Final = 4  # BPF_LOG_STATS: the reason of a refusal, and no instructions
_STATISTICS, _STATISTICS_CHARS = b"processed ", 256  # how a log ends, and how far from its end that is at most
_LAST_SOURCE: Final = re.compile(r"(?s:.*)^; (.*)$", re.MULTILINE)
_HAS_PLACE: Final = re.compile(r" @ [^@]+:\d+$")  # since Linux 6.12
_INTEGER_SIZES: Final = {1, 2, 4, 8}
_PERCPU_TYPES: Final = {5, 6, 10, 21}  # one value for each processor
_ARRAY_TYPES: Final = {2, 3, 4, 6, 8, 12, 14, 16, 17, 20}  # one value for each entry, and next to nothing besides
_RING_TYPES: Final = {27, 31}  # ring buffers: max_entries is their size in bytes
_ARENA: Final = 33  # max_entries is its size in pages
_HASH_OVERHEAD_BYTES: Final = 64  # of one entry
_MAX_NAMES: Final = 100  # of what a file has, in a refusal
_UNSPECIFIED: Final = 0  # BPF_PROG_TYPE_UNSPEC
# The fields that a map and the one that replaces it must share, in the order of struct bpf_map_info.
_SHAPE: Final = ("type", "key_size", "value_size", "max_entries", "flags")


class Refused(Exception):
    """The file is not loaded. `refusal` says why."""

    def __init__(self, code: str, *, errno: int = 0, log: str = "", **facts: Any) -> None:
        super().__init__(code)
        # An answer is one datagram, and the names in a file may be many.
        bounded = {name: fact[:_MAX_NAMES] if isinstance(fact, list) else fact for name, fact in facts.items()}
        self.refusal = Refusal(code, bounded, errno, log)


def main(channel_fd: str, seconds: str) -> None:
    """Load one object file: the entry point of the process.

    Args:
        channel_fd: The process's end of the channel.
        seconds: The time that the process has.
    """
    channel, fds = socket.socket(fileno=int(channel_fd)), list[int]()
    try:
        lib = libbpf.library()
    except (OSError, AttributeError) as error:
        answer = LoadAnswer(Refusal("loader-unavailable", {"reason": str(error)}))
        # Where a request is left unread, the end of this process resets the channel, and the answer may be lost.
        receive_with_fds(channel, MAX_REQUEST_BYTES)
    else:
        unconfined = confine(float(seconds))
        question, given = receive_with_fds(channel, MAX_REQUEST_BYTES)
        request = LoadRequest.load(question)
        try:
            answer, fds = _load(lib, request, content_of(given[0]), dict(zip(request.replaced, given[1:], strict=True)))
        except Refused as error:
            answer = LoadAnswer(error.refusal)
        except (ValueError, IndexError, struct.error, StopIteration, MemoryError) as error:
            facts = {"reason": f"its sections contradict each other ({type(error).__name__})"}
            answer = LoadAnswer(Refusal("object-unreadable", facts))
        answer = LoadAnswer(answer.refusal, answer.programs, answer.maps, answer.values, unconfined)
    send_with_fds(channel, answer.dump(), fds)
    os._exit(0)  # at once: libbpf may have left anything behind


class _Prepared(NamedTuple):
    """A file that is opened, with all that the request asks for; and what the answer tells of it."""

    file: libbpf.ObjectFile
    programs: list[ProgramFacts]
    maps: list[MapFacts]
    values: list[Initialiser]


def _load(lib: Any, request: LoadRequest, content: bytes, replaced: Mapping[str, int]) -> tuple[LoadAnswer, list[int]]:
    file, programs, maps, values = _prepare(lib, request, content, replaced)
    loaded = [each for each in programs if each.is_loaded]
    made = [each for each in maps if not each.is_replaced]
    log = ctypes.create_string_buffer(_LOG_BYTES)
    file.set_log(log)
    number = file.load()
    if number == errno.ENOSPC and log.value and _STATISTICS not in log.value[-_STATISTICS_CHARS:]:
        # The end of the log is lost, and with it the reason. Without the instructions there is room for it.
        file.close()
        file, *_ = _prepare(lib, request, content, replaced)
        file.set_log(log, _LOG_LEVEL_STATISTICS)
        number = file.load()
    if number:
        facts: dict[str, Any] = {"types": {each.name: (each.type, each.attach_type) for each in loaded}}
        text = libbpf.text(log.value)[-MAX_LOG_CHARS:]
        source = _LAST_SOURCE.search(text)
        if source is not None and not _HAS_PLACE.search(source[1]):
            with contextlib.suppress(ValueError, IndexError, struct.error):  # the file is damaged there
                facts["line"] = find_line(lib, file.btf, content, source[1].strip())
        raise Refused("object-refused", errno=number, log=text, **facts)
    fds = [lib.bpf_program__fd(file.programs[each.name]) for each in loaded]
    fds += [lib.bpf_map__fd(file.maps[each.name]) for each in made]
    return LoadAnswer(programs=programs, maps=maps, values=values), fds


def _prepare(lib: Any, request: LoadRequest, content: bytes, replaced: Mapping[str, int]) -> _Prepared:
    """Open a file, check it, and set all that the request asks for."""
    why = why_unsupported(content)
    if why is not None:
        raise Refused("object-unsupported", reason=why)
    file = _opened(lib, content, request)
    _check_names(file, request)
    values, without = initialisers(content, map_places(lib, file.btf), set(replaced))
    _check_values(file, request, values)
    if without != content:
        file.close()
        file = _opened(lib, without, request)
    programs = _chosen(file, request)
    for name, value in request.variables.items():
        _set_variable(file, name, value)
    maps = _prepared(file, request, replaced)
    _check_sizes(maps, request)
    loaded = [each for each in programs if each.is_loaded]
    made = [each for each in maps if not each.is_replaced]
    if len(loaded) + len(made) > MAX_FDS:
        raise Refused(
            "object-unsupported", reason=f"it has {len(loaded)} programs and {len(made)} maps; at most {MAX_FDS} in all"
        )
    return _Prepared(file, programs, maps, values)


def _opened(lib: Any, content: bytes, request: LoadRequest) -> libbpf.ObjectFile:
    try:
        return libbpf.ObjectFile(lib, content, request.name)
    except libbpf.OpenFailed as error:
        raise Refused("object-unreadable", errno=error.errno) from error


def _check_names(file: libbpf.ObjectFile, request: LoadRequest) -> None:
    """Check that the file has the programs and maps that the request names."""
    for name in request.programs:
        if name not in file.programs:
            raise Refused("program-not-found", program=name, programs=sorted(file.programs))
    for name in (*request.max_entries, *request.replaced):
        if name not in file.maps:
            raise Refused("map-not-found", map=name, maps=sorted(file.maps))


def _check_values(file: libbpf.ObjectFile, request: LoadRequest, values: Sequence[Initialiser]) -> None:
    for map_, index, program in values:
        is_program_array = file.lib.bpf_map__type(file.maps[map_]) == MapType.PROG_ARRAY
        if request.values == "refuse" or not is_program_array:
            raise Refused("values-on-replaced-map", map=map_, index=index, program=program)


def _chosen(file: libbpf.ObjectFile, request: LoadRequest) -> list[ProgramFacts]:
    """Set how each program is loaded, and return the facts."""
    lib, found = file.lib, list[ProgramFacts]()
    for name, program in file.programs.items():
        choice = request.programs.get(name)
        if choice is not None and choice.type is not None:
            lib.bpf_program__set_type(program, choice.type)
        attach_type = request.attach_types.get(lib.bpf_program__type(program))
        if choice is not None and choice.attach_type is not None:
            attach_type = choice.attach_type
        if attach_type is not None:
            lib.bpf_program__set_expected_attach_type(program, attach_type)
        if choice is not None and choice.load is not None:
            lib.bpf_program__set_autoload(program, choice.load)
        facts = ProgramFacts(
            name,
            libbpf.text(lib.bpf_program__section_name(program)),
            lib.bpf_program__type(program),
            lib.bpf_program__expected_attach_type(program),
            lib.bpf_program__insn_cnt(program),
            lib.bpf_program__autoload(program),
        )
        if facts.is_loaded and facts.type == _UNSPECIFIED:
            raise Refused("program-type-unknown", program=name, section=facts.section)
        if facts.is_loaded and facts.type not in request.limits.program_types:
            raise Refused("program-type-not-allowed", program=name, section=facts.section, type=facts.type)
        found.append(facts)
    return found


def _set_variable(file: libbpf.ObjectFile, name: str, value: int | bool | str) -> None:
    known = variables(file.lib, file.btf)
    if name not in known:
        raise Refused("variable-unknown", variable=name, variables=sorted(known))
    section, offset, size = known[name]
    content = _as_bytes(name, value, size)
    memory = file.initial_value(file.maps[section]) if section in file.maps else None
    if memory is not None and offset + size <= len(memory):
        ctypes.memmove(ctypes.addressof(memory) + offset, content, size)
        return
    raise Refused("variable-unknown", variable=name, variables=sorted(known))


def _as_bytes(name: str, value: int | bool | str, size: int) -> bytes:
    if isinstance(value, str):
        content = value.encode()
        if len(content) > size:
            raise Refused("variable-too-long", variable=name, size=size, reason=f"the text has {len(content)} bytes")
        return content.ljust(size, b"\0")
    if size not in _INTEGER_SIZES:
        raise Refused("variable-too-long", variable=name, size=size, reason="a number is for one of 1, 2, 4 or 8 bytes")
    try:
        return int(value).to_bytes(size, "little", signed=value < 0)
    except OverflowError:
        raise Refused("variable-too-long", variable=name, size=size, reason=f"{value} does not fit") from None


def _prepared(file: libbpf.ObjectFile, request: LoadRequest, replaced: Mapping[str, int]) -> list[MapFacts]:
    """Set sizes, replace maps, switch pinning off, and return the facts."""
    lib, found = file.lib, list[MapFacts]()
    for name, map_ in file.maps.items():
        if name in request.max_entries:
            lib.bpf_map__set_max_entries(map_, request.max_entries[name])
        is_pinned = lib.bpf_map__pin_path(map_) is not None
        if is_pinned and not request.allow_pinning and name not in replaced:
            raise Refused("pinning-refused", map=name)
        lib.bpf_map__set_pin_path(map_, None)
        facts = MapFacts(
            name,
            lib.bpf_map__type(map_),
            lib.bpf_map__key_size(map_),
            lib.bpf_map__value_size(map_),
            lib.bpf_map__max_entries(map_),
            lib.bpf_map__map_flags(map_),
            lib.bpf_map__is_internal(map_),
            is_pinned,
            name in replaced,
        )
        found.append(facts)
        if name in replaced:
            _replace(file, facts, map_, replaced[name])
    return found


def _replace(file: libbpf.ObjectFile, facts: MapFacts, map_: int, fd: int) -> None:
    """Let another map take the place of one. libbpf itself compares nothing."""
    there = dict(zip(_SHAPE, _shape(fd), strict=True))
    differences = [
        {"field": each, "object": getattr(facts, each), "map": there[each]}
        for each in _SHAPE
        if getattr(facts, each) != there[each]
    ]
    if differences:
        raise Refused("map-not-replaceable", map=facts.name, differences=differences)
    number = -int(file.lib.bpf_map__reuse_fd(map_, fd))
    if number:
        raise Refused("map-not-replaceable", errno=number, map=facts.name, differences=[])


def _shape(fd: int) -> tuple[int, int, int, int, int]:
    """Return type, key_size, value_size, max_entries and flags of a map (OBJ_GET_INFO_BY_FD, Linux 4.13)."""
    buffer = ctypes.create_string_buffer(attr.MAP_INFO_SIZE)
    bpf(Cmd.OBJ_GET_INFO_BY_FD, attr.Info(bpf_fd=fd, info_len=len(buffer), info=ctypes.addressof(buffer)))
    type_, _, key_size, value_size, max_entries, flags, _ = attr.MAP_INFO.unpack_from(buffer)
    return type_, key_size, value_size, max_entries, flags


def _check_sizes(maps: Sequence[MapFacts], request: LoadRequest) -> None:
    """Check what the maps will take. It is done before any is made: no limit of the process bounds memory of maps."""
    limits, total = request.limits, 0
    for each in maps:
        if each.is_replaced:
            continue
        is_counted_in_entries = each.type not in {*_RING_TYPES, _ARENA}
        total += _bytes_of(each)
        if total > limits.map_bytes or (is_counted_in_entries and each.max_entries > limits.max_map_entries):
            raise Refused(
                "object-too-large",
                map=each.name,
                bytes=total,
                limit=limits.map_bytes,
                max_entries=each.max_entries,
                max_map_entries=limits.max_map_entries,
            )


def _bytes_of(map_: MapFacts) -> int:
    """Return about how many bytes of memory a map takes, rather too many than too few."""
    if map_.type in _RING_TYPES:
        return map_.max_entries
    if map_.type == _ARENA:
        return map_.max_entries * mmap.PAGESIZE
    value_bytes = (map_.value_size + 7) // 8 * 8 * ((os.cpu_count() or 1) if map_.type in _PERCPU_TYPES else 1)
    entry_bytes = value_bytes if map_.type in _ARRAY_TYPES else value_bytes + map_.key_size + _HASH_OVERHEAD_BYTES
    return map_.max_entries * entry_bytes
