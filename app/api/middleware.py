"""What goes around every request, as plain ASGI: its id, its path, HEAD, and the answer when all else fails."""

import asyncio
import os
import re
import time
from collections.abc import Mapping
from typing import Final

import structlog
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.api.authorization import AUTHORIZATION
from app.api.problems import HttpProblem, code_of, failure, problem
from app.service.errors import ServiceError

# Keys in the scope.
REQUEST_ID: Final = "jumptable.request_id"
IS_HEAD: Final = "jumptable.is_head"
FAILED: Final = "jumptable.failed"  # the ServiceError with which it ended before it came here

_HARMLESS_ID: Final = re.compile(r"[A-Za-z0-9._:-]{1,128}")
_ENCODED: Final = re.compile(rb"%[0-9A-Fa-f]{2}")
_UNRESERVED: Final = frozenset(b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-._~")

log = structlog.get_logger()


class RequestMiddleware:
    """The outermost layer. `app.state.draining`: the service is on its way out."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one request."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        began, code = time.perf_counter(), None
        exchange = _Exchange(scope, receive, send)
        try:
            _check(scope)
            await self.app(exchange.scope, exchange.receive, exchange.send)
        except (ServiceError, HttpProblem, HTTPException) as error:
            if exchange.status:
                raise
            code = code_of(error)
            if isinstance(error, HTTPException):  # there is no such operation: the route may be another method's
                exchange.scope.pop("route", None)
            response = failure(error, exchange.scope, exchange.request_id)
            await response(exchange.scope, receive, exchange.send)
        except ClientDisconnect:
            log.info("client went away", request_id=exchange.request_id, path=scope["path"])
        except asyncio.CancelledError:
            # The service ends, and the grace is over.
            if not exchange.status:
                stopping = problem("draining", "the service is stopping", exchange.request_id)
                await stopping(exchange.scope, receive, exchange.send)
        except Exception:
            log.exception("internal error", request_id=exchange.request_id, path=scope["path"])
            if exchange.status:
                raise
            response = problem("internal", "the log tells what, under this request_id", exchange.request_id)
            await response(exchange.scope, receive, exchange.send)
        finally:
            operation = getattr(exchange.scope.get("route"), "operation_id", None) or "none"
            state = scope["app"].state
            state.audit.attempt(exchange.scope, operation, exchange.status, code, exchange.request_id)
            if operation != "watch_events":
                state.service.counters.add_request(operation, exchange.status, time.perf_counter() - began)


def _check(scope: Scope) -> None:
    """Raises what a request ends with before it is routed."""
    if scope["app"].state.service.is_stopping and scope["path"] not in {"/healthz", "/readyz"}:
        raise HttpProblem("draining", "the service is stopping")
    if FAILED in scope:
        raise scope[FAILED]
    if [name for name, _ in scope["headers"]].count(b"authorization") > 1:
        raise HttpProblem("malformed-header", "there are several Authorization headers")


class _Exchange:
    """One request and its answer."""

    def __init__(self, scope: Scope, receive: Receive, send: Send) -> None:
        # By hand, as every request comes this way: Starlette's Headers would cost it ten times as much.
        headers: dict[bytes, bytes] = dict(reversed(scope["headers"]))
        self.request_id = request_id_of(headers)
        self.is_head = scope["method"] == "HEAD"
        self.status = 0  # until the answer begins
        self.body_is_open = b"transfer-encoding" in headers or headers.get(b"content-length", b"0") != b"0"
        # A copy: the server looks at its own to know that a HEAD has no body.
        self.scope: Scope = {
            **scope,
            REQUEST_ID: self.request_id,
            IS_HEAD: self.is_head,
            AUTHORIZATION: headers.get(b"authorization"),
            "path": _path(scope),
        }
        if self.is_head:
            self.scope["method"] = "GET"
        self._receive, self._send = receive, send

    async def receive(self) -> Message:
        message = await self._receive()
        if message["type"] == "http.request" and not message.get("more_body", False):
            self.body_is_open = False
        return message

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
            headers = [*message["headers"], (b"x-request-id", self.request_id.encode("latin-1"))]
            if self.body_is_open:
                # What still comes of this body would be read as the next request.
                headers.append((b"connection", b"close"))
            message = {**message, "headers": headers}
        elif self.is_head:
            message = {**message, "body": b""}
        await self._send(message)


def request_id_of(headers: Mapping[bytes, bytes]) -> str:
    """The one that the request brings, where that is harmless, or a new one."""
    given = headers.get(b"x-request-id")
    if given is not None and _HARMLESS_ID.fullmatch(text := given.decode("latin-1")):
        return text
    return os.urandom(16).hex()


def _path(scope: Scope) -> str:
    """The path with only those characters decoded that may be encoded at will (RFC 3986, 2.3).

    Everything else stays as it came, so that `%2F` or `%0A` in a name cannot become another path.
    """
    raw: bytes = scope.get("raw_path") or scope["path"].encode()

    def decoded(match: re.Match[bytes]) -> bytes:
        byte = int(match[0][1:], 16)
        return bytes([byte]) if byte in _UNRESERVED else match[0]

    return _ENCODED.sub(decoded, raw).decode("latin-1")
