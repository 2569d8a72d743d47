"""JSON for people: indented while it is sent, for requests with `?pretty=true`."""

import asyncio
import codecs
import re
from typing import Any, Final
from urllib.parse import parse_qs

from pydantic import TypeAdapter, ValidationError
from starlette.types import Message, Send

_BOOL: Final = TypeAdapter(bool)
_JSON: Final = (b"application/json", b"application/problem+json")
_SLICE_CHARS: Final = 1 << 14  # are indented in about 2 ms
_INDENT: Final = "  "
# A string, a bracket, a comma, a colon, or a number or word. White space is none of them.
_TOKEN: Final = re.compile(r'"(?:[^"\\]|\\.)*"|[{}\[\],:]|[^\s"{}\[\],:]+')


def is_pretty(query: bytes) -> bool:
    """Whether a query asks for indented JSON. If it is malformed, it does not."""
    if b"pretty" not in query:
        return False
    values = parse_qs(query.decode("latin-1")).get("pretty", [])
    try:
        return len(values) == 1 and _BOOL.validate_python(values[0])
    except ValidationError:
        return False


class Indenter:
    """Indents one JSON text that comes in parts, which may end anywhere."""

    def __init__(self) -> None:
        self._decoder: Any = codecs.getincrementaldecoder("utf-8")()
        self._rest = ""  # the beginning of a token that has not ended yet
        self._depth = 0
        self._is_open = False  # a bracket was opened, and nothing is in it yet

    def feed(self, part: bytes, *, is_last: bool) -> bytes:
        """Return the next part of the indented text."""
        text = self._rest + self._decoder.decode(part, is_last)
        written: list[str] = []
        end = 0
        for found in _TOKEN.finditer(text):
            # A number, a word or a string at the end of a part may go on in the next one.
            if found.end() == len(text) and not is_last and found[0] not in "{}[],:":
                break
            if text[end : found.start()].strip():
                break  # a string that has not ended
            end = found.end()
            written.append(self._indented(found[0]))
        self._rest = text[end:].lstrip()
        if is_last:
            written.append("\n")
        return "".join(written).encode()

    def _indented(self, piece: str) -> str:
        if piece in "}]":
            self._depth -= 1
            before = "" if self._is_open else self._line()
            self._is_open = False
            return before + piece
        before = self._line() if self._is_open else ""
        self._is_open = piece in "{["
        if self._is_open:
            self._depth += 1
        if piece == ",":
            return f",{self._line()}"
        return before + (": " if piece == ":" else piece)

    def _line(self) -> str:
        return "\n" + _INDENT * self._depth


class PrettySender:
    """Sends a response, and indents it if it is JSON."""

    def __init__(self, send: Send) -> None:
        self._send = send
        self._start: Message | None = None  # held back until it is known how long the body becomes
        self._indenter: Indenter | None = None

    async def __call__(self, message: Message) -> None:
        """Send one message of ASGI."""
        if message["type"] == "http.response.start":
            type_ = next((value for name, value in message["headers"] if name.lower() == b"content-type"), b"")
            if type_.split(b";")[0] in _JSON:
                self._start, self._indenter = message, Indenter()
                return
        elif self._indenter is not None:
            await self._send_indented(self._indenter, message.get("body", b""), more=message.get("more_body", False))
            return
        await self._send(message)

    async def _send_indented(self, indenter: Indenter, body: bytes, *, more: bool) -> None:
        if len(body) <= _SLICE_CHARS:
            parts = [body]
        else:
            parts = [body[start : start + _SLICE_CHARS] for start in range(0, len(body), _SLICE_CHARS)]
        for number, part in enumerate(parts, 1):
            has_more = more or number < len(parts)
            indented = indenter.feed(part, is_last=not has_more)
            if self._start is not None:
                headers = [each for each in self._start["headers"] if each[0].lower() != b"content-length"]
                if not has_more:
                    headers.append((b"content-length", b"%d" % len(indented)))
                await self._send({**self._start, "headers": headers})
                self._start = None
            await self._send({"type": "http.response.body", "body": indented, "more_body": has_more})
            if has_more:
                await asyncio.sleep(0)  # others have their turn
