"""The heads of messages: where a request ends, whom it is for, and how header fields are sent.

RFC: 9112, sections 3.2, 6 and 11.2.
"""

import re
from http import HTTPStatus
from typing import Final

Headers = list[tuple[bytes, bytes]]

STATUS_LINES: Final = {status.value: f"HTTP/1.1 {status} {status.phrase}\r\n".encode() for status in HTTPStatus}

_SINGLE: Final = frozenset({b"host", b"content-type", b"transfer-encoding"})
_CONTROL_CHARACTER: Final = re.compile(rb"[\x00-\x08\x0a-\x1f\x7f]")


def ambiguity(method: bytes, version: str, headers: Headers) -> str | None:
    """Say why a request with this head must be refused: its end or its host could be understood in two ways.

    The parser checks Content-Length.

    Args:
        method: As `b"GET"`.
        version: Of HTTP, as "1.1".
        headers: Names are lower case.

    Returns:
        The reason for the client; None: the request is unambiguous.
    """
    if version not in {"1.0", "1.1"}:
        return f"version {version} is not spoken here: send HTTP/1.1"
    if method == b"CONNECT":  # what follows it is not HTTP
        return "CONNECT is for proxies, and this is none: send another method"
    seen: set[bytes] = set()
    for name, value in headers:
        if name in _SINGLE:
            if name in seen:
                return f"there are several headers {name.decode()}: send one"
            seen.add(name)
            if name == b"transfer-encoding" and (value.strip().lower() != b"chunked" or version == "1.0"):
                return "the only transfer encoding is chunked, of HTTP/1.1: send that, or Content-Length"
    if version == "1.1" and b"host" not in seen:
        return "there is no header Host: send one"
    return None


def with_target_host(target: bytes, headers: Headers) -> Headers:
    """Replace Host by the host of an absolute target such as `http://host/path`, which prevails (RFC 9112, 3.2.2)."""
    host = target.partition(b"://")[2].partition(b"/")[0]
    if target.startswith(b"/") or not host:
        return headers
    return [(name, host if name == b"host" else value) for name, value in headers]


def header_lines(headers: Headers) -> bytes:
    """Render header fields as they are sent.

    Raises:
        ValueError: A value has a control character, which could end the field early.
    """
    for name, value in headers:
        if _CONTROL_CHARACTER.search(value):
            message = f"the value of {name.decode()} has a control character"
            raise ValueError(message)
    return b"".join([b"%b: %b\r\n" % field for field in headers])


def head_without_upgrade(method: bytes, target: bytes, version: str, headers: Headers) -> bytes:
    """Render the head of a request again, so that it no longer asks for another protocol."""
    rest = [b"%b: %b\r\n" % field for field in headers if field[0] != b"upgrade"]
    return b"%b %b HTTP/%b\r\n%b\r\n" % (method, target, version.encode(), b"".join(rest))
