"""The programs that the network stack runs, as rtnetlink(7) lists them: XDP programs and tc filters.

It takes no capability, and shows the network namespace of the calling thread. Libraries for netlink decode everything
about an interface; this decodes the id of the program alone. (pyroute2 does not decode that of a tc filter.)
"""

import socket
import struct
from collections.abc import Iterator
from typing import Final, NamedTuple

# Messages: include/uapi/linux/netlink.h, rtnetlink.h.
_HEADER: Final = struct.Struct("=IHHII")  # length, type, flags, sequence number, port
_ATTRIBUTE: Final = struct.Struct("=HH")  # length, type
_ERROR, _DONE = 2, 3
_GET_LINK, _GET_FILTER = 18, 46
_DUMP: Final = 0x301  # NLM_F_REQUEST | NLM_F_DUMP
_TYPE_MASK: Final = 0x3FFF  # without NLA_F_NESTED and NLA_F_NET_BYTEORDER
_RECEIVE_BYTES: Final = 1 << 18
_TIMEOUT_SECONDS: Final = 1.0

_LINK: Final = struct.Struct("=BxHiII")  # struct ifinfomsg: family, type, index, flags, change
_LINK_NAME, _LINK_XDP = 3, 43  # IFLA_…
# IFLA_XDP_…: the id by the way in which the program runs.
_XDP_MODES: Final = {5: "driver", 6: "generic", 7: "offload"}
_XDP_ANY: Final = 4  # IFLA_XDP_PROG_ID

_FILTER: Final = struct.Struct("=B3xiIII")  # struct tcmsg: family, ifindex, handle, parent, info
_FILTER_KIND, _FILTER_OPTIONS, _FILTER_PROGRAM = 1, 2, 11  # TCA_KIND, TCA_OPTIONS, TCA_BPF_ID
# Where filters are: the queueing discipline itself, and both sides of clsact.
_PARENTS: Final = {0: "egress", 0xFFFFFFF2: "ingress", 0xFFFFFFF3: "egress"}


class Interface(NamedTuple):
    """A network interface, and its XDP programs: (how it runs, its id)."""

    number: int
    name: str
    xdp: tuple[tuple[str, int], ...]


def interfaces() -> list[Interface]:
    """List the interfaces of this network namespace.

    Raises:
        OSError: No netlink socket can be had (RestrictAddressFamilies= of systemd), or the kernel refuses.
    """
    found = []
    for message in _dump(_GET_LINK, _LINK.pack(0, 0, 0, 0, 0)):
        index = _LINK.unpack_from(message)[2]
        attributes = _attributes(message[_LINK.size :])
        xdp = _attributes(attributes.get(_LINK_XDP, b""))
        programs = [(mode, _number(xdp[type_])) for type_, mode in _XDP_MODES.items() if type_ in xdp]
        if not programs and _XDP_ANY in xdp:
            programs = [("", _number(xdp[_XDP_ANY]))]
        name = attributes.get(_LINK_NAME, b"").rstrip(b"\0").decode("utf-8", "replace")
        found.append(Interface(index, name, tuple(each for each in programs if each[1])))
    return found


def tc_programs(interface: int) -> Iterator[tuple[str, int]]:
    """Yield (direction, id of the program) of each tc filter of an interface.

    Raises:
        OSError: As `interfaces`.
    """
    for parent, direction in _PARENTS.items():
        for message in _dump(_GET_FILTER, _FILTER.pack(0, interface, 0, parent, 0)):
            attributes = _attributes(message[_FILTER.size :])
            options = _attributes(attributes.get(_FILTER_OPTIONS, b""))
            if attributes.get(_FILTER_KIND, b"").rstrip(b"\0") == b"bpf" and _FILTER_PROGRAM in options:
                yield direction, _number(options[_FILTER_PROGRAM])


def _dump(type_: int, payload: bytes) -> Iterator[bytes]:
    """Yield the content of each message of a list. It ends early where there is nothing of the kind."""
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, socket.NETLINK_ROUTE) as channel:
        channel.settimeout(_TIMEOUT_SECONDS)
        channel.send(_HEADER.pack(_HEADER.size + len(payload), type_, _DUMP, 1, 0) + payload)
        while True:
            data = channel.recv(_RECEIVE_BYTES)
            while data:
                length, kind, *_ = _HEADER.unpack_from(data)
                if kind in (_DONE, _ERROR):
                    return
                yield data[_HEADER.size : length]
                data = data[_aligned(length) :]


def _attributes(data: bytes) -> dict[int, bytes]:
    """Return the attributes of a message, by type."""
    found = {}
    while len(data) >= _ATTRIBUTE.size:
        length, type_ = _ATTRIBUTE.unpack_from(data)
        if length < _ATTRIBUTE.size:
            break
        found[type_ & _TYPE_MASK] = data[_ATTRIBUTE.size : length]
        data = data[_aligned(length) :]
    return found


def _number(value: bytes) -> int:
    return int.from_bytes(value[:4], "little")


def _aligned(length: int) -> int:
    return length + 3 & ~3
