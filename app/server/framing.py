"""What a head must not leave in doubt: where the request ends, and whom it is for (RFC 9112, 3.2, 6 and 11.2)."""

from typing import Final

Headers = list[tuple[bytes, bytes]]

_ONCE: Final = frozenset({b"host", b"content-type", b"transfer-encoding"})


def ambiguity(version: str, headers: Headers) -> str | None:
    """Why a request with this head is not answered; None: it is. (Of Content-Length the parser takes care.)"""
    if version not in {"1.0", "1.1"}:
        return f"version {version} is not spoken here: send HTTP/1.1"
    seen: set[bytes] = set()
    for name, value in headers:
        if name in _ONCE:
            if name in seen:
                return f"there are several headers {name.decode()}: send one"
            seen.add(name)
            if name == b"transfer-encoding" and (value.strip().lower() != b"chunked" or version == "1.0"):
                return "the only transfer encoding is chunked, of HTTP/1.1"
    if version == "1.1" and b"host" not in seen:
        return "there is no header Host"
    return None


def addressed(target: bytes, headers: Headers) -> Headers:
    """The headers, with the host that the target names, if it does: that one counts (RFC 9112, 3.2.2)."""
    authority = target.partition(b"://")[2].partition(b"/")[0]
    if not authority:
        return headers
    return [(name, authority if name == b"host" else value) for name, value in headers]


def length_alone(method: bytes, headers: Headers) -> bytes:
    """A head with nothing but what tells how long the body is."""
    lengths = [field for field in headers if field[0] in {b"content-length", b"transfer-encoding"}]
    return b"%b / HTTP/1.1\r\nHost: again\r\n%b\r\n" % (method, b"".join(b"%b: %b\r\n" % each for each in lengths))
