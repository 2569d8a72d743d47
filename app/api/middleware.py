"""The outermost ASGI layer. It sets the request id and the path, handles HEAD, and turns errors into responses."""

import asyncio
import re
import time
from typing import Final

import structlog
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.api.authorization import ACTOR, AUTHORIZATION
from app.api.error_responses import error_code, error_response, problem
from app.api.limits import ClientGone
from app.api.pretty import PrettySender, is_pretty
from app.api.problems import INTERNAL_DETAIL, HttpProblem
from app.api.scope import BODY_IS_READ, FAILED, IS_HEAD, REQUEST_ID, request_id_of
from app.service.errors import ServiceError, Stopping

_PERCENT_ENCODED: Final = re.compile(rb"%[0-9A-Fa-f]{2}")
_PROBES: Final = frozenset({"/healthz", "/livez", "/readyz"})  # are answered also while the service stops
_UNRESERVED: Final = frozenset(b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-._~")

log = structlog.get_logger()


class RequestMiddleware:
    """The outermost layer of the application. While `app.state.draining` is true, it refuses requests."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one request, as ASGI says."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        started, code, reason = time.perf_counter(), None, None
        exchange = _Exchange(scope, send)
        try:
            _check_admission(exchange.scope)
            await self.app(exchange.scope, receive, exchange.send)
        except (ServiceError, HttpProblem, HTTPException) as error:
            if exchange.status:
                raise
            code, reason = error_code(error), str(error)
            if isinstance(error, HTTPException):  # no operation matches; the route may be that of another method
                exchange.scope.pop("route", None)
            response = error_response(error, exchange.scope, exchange.request_id)
            await response(exchange.scope, receive, exchange.send)
        except (ClientDisconnect, ClientGone):
            log.info("the client disconnected", request_id=exchange.request_id, path=scope["path"])
        except asyncio.CancelledError:
            # The service is shutting down, and the grace period has ended.
            if not exchange.status:
                response = problem("draining", str(Stopping()), exchange.request_id)
                await response(exchange.scope, receive, exchange.send)
        except Exception:
            log.exception("internal error", request_id=exchange.request_id, path=scope["path"])
            if exchange.status:
                raise
            response = problem("internal", INTERNAL_DETAIL, exchange.request_id)
            await response(exchange.scope, receive, exchange.send)
        finally:
            routed = getattr(exchange.scope.get("route"), "operation_id", None)
            operation = scope[FAILED].operation if FAILED in scope else routed or "none"
            state = scope["app"].state
            state.audit.attempt(exchange.scope, operation, exchange.status, code, exchange.request_id, reason)
            if operation != "watch_events":
                state.add_request(operation, exchange.status, time.perf_counter() - started)


def _check_admission(scope: Scope) -> None:
    """Raise the error of a request that must not be routed."""
    if scope["app"].state.is_stopping and scope["path"] not in _PROBES:
        raise Stopping
    if FAILED in scope:
        scope[ACTOR], scope[BODY_IS_READ] = scope[FAILED].actor, True
        raise scope[FAILED].error
    if [name for name, _ in scope["headers"]].count(b"authorization") > 1:
        raise HttpProblem("malformed-header", "there are several Authorization headers; send one")


class _Exchange:
    """One request and its response, with the `scope` and `send` that the application gets."""

    def __init__(self, scope: Scope, send: Send) -> None:
        # The first of several headers with the same name counts. A dict costs a tenth of Starlette's Headers.
        headers: dict[bytes, bytes] = dict(reversed(scope["headers"]))
        self.request_id = request_id_of(headers)
        self.is_head = scope["method"] == "HEAD"
        self.status = 0  # until the response starts
        self.has_body = b"transfer-encoding" in headers or headers.get(b"content-length", b"0") != b"0"
        # A copy, because the server needs the original method to know that the response to a HEAD has no body.
        self.scope: Scope = {
            **scope,
            REQUEST_ID: self.request_id,
            IS_HEAD: self.is_head,
            AUTHORIZATION: headers.get(b"authorization"),
            "path": _normalized_path(scope),
        }
        if self.is_head:
            self.scope["method"] = "GET"
        self._send_on = send
        self.send: Send = PrettySender(self._send) if is_pretty(scope["query_string"]) else self._send

    async def _send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
            headers = [*message["headers"], (b"x-request-id", self.request_id.encode("latin-1"))]
            if self.has_body and not self.scope.get(BODY_IS_READ, False):
                # The server would read the rest of the body as the next request.
                headers.append((b"connection", b"close"))
            message = {**message, "headers": headers}
        elif self.is_head:
            message = {**message, "body": b""}
        await self._send_on(message)


def _normalized_path(scope: Scope) -> str:
    """Return the path with its unreserved characters decoded (RFC 3986, 2.3).

    All other characters stay encoded, so that `%2F` or `%0A` in a name cannot turn into another path.
    """
    raw: bytes = scope.get("raw_path") or scope["path"].encode()

    def decoded(match: re.Match[bytes]) -> bytes:
        byte = int(match[0][1:], 16)
        return bytes([byte]) if byte in _UNRESERVED else match[0]

    return _PERCENT_ENCODED.sub(decoded, raw).decode("latin-1")
