"""What clients of HTTP services share: requests, errors, and streams of events."""

import ssl
from collections.abc import Callable, Generator, Mapping
from pathlib import Path
from typing import Any, Final, Self
from urllib.parse import quote

import httpx

from app.client.answers import Event
from app.client.errors import Refused, Unexpected, Unreachable
from app.client.events import events_of

_UNIX: Final = "unix://"
_CONNECT_SECONDS: Final = 5.0
_EVENTS_SECONDS: Final = 40.0  # without events there is a comment every 15 s
_PROBLEM: Final = "application/problem+json"


def url_of(socket: Path, loopback: str) -> str:
    """Return where a service is unless something else is said: its unix socket if there is one, else loopback."""
    try:
        socket.stat()
    except PermissionError:
        pass  # it may be there, and to connect says what is missing
    except OSError:
        return loopback
    return f"{_UNIX}{socket}"


class HttpClient:
    """Talks to one service, over connections that are kept open. It may be used by several threads.

    Args:
        url: `unix:///PATH`, `http://…` or `https://…`.
        token: The bearer token, if one is needed.
        timeout: How long to wait for an answer, in seconds.
        transport: Another transport of httpx, for tests.

    Raises:
        ValueError: The URL is of no such form.
    """

    def __init__(
        self, url: str, token: str | None = None, timeout: float = 30.0, transport: httpx.BaseTransport | None = None
    ) -> None:
        self.url = url
        self._http = httpx.Client(
            transport=transport or _transport(self.url),
            base_url="http://localhost" if self.url.startswith(_UNIX) else self.url,
            headers={} if token is None else {"Authorization": f"Bearer {token}"},
            timeout=httpx.Timeout(timeout, connect=_CONNECT_SECONDS),
            trust_env=False,  # neither a proxy nor .netrc belongs between an operator and the service
        )
        self._actor: dict[str, str] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    def _watch(
        self, path: str, query: Mapping[str, object], after: int | None, on_open: Callable[[int], None] | None
    ) -> Generator[Event]:
        """Yield the events of a stream, until the service ends it.

        Raises:
            Unreachable: The connection ended.
        """
        headers = {"Accept": "text/event-stream"} | ({} if after is None else {"Last-Event-ID": str(after)})
        timeout = httpx.Timeout(_EVENTS_SECONDS, connect=_CONNECT_SECONDS)
        request = self._http.build_request("GET", path, params=query_of(query), headers=headers, timeout=timeout)
        try:
            response = self._http.send(request, stream=True)
            try:
                if not response.is_success:
                    response.read()
                self._check(response)
                yield from events_of(response.iter_text(), on_open)
            finally:
                response.close()
        except httpx.TransportError as error:
            raise self._unreachable(error) from error

    def _get(self, path: str, query: Mapping[str, object] | None = None) -> Any:
        return self._send("GET", path, query).json()

    def _send(
        self,
        method: str,
        path: str,
        query: Mapping[str, object] | None = None,
        body: object = None,
        headers: dict[str, str] | None = None,
        timeout: float | None = None,
    ) -> httpx.Response:
        headers = self._actor | (headers or {})
        content: dict[str, Any] = {"json": body}
        if isinstance(body, bytes):
            headers["Content-Type"], content = "application/octet-stream", {"content": body}
        if timeout is not None:
            content["timeout"] = httpx.Timeout(timeout, connect=_CONNECT_SECONDS)
        try:
            response = self._http.request(method, path, params=query_of(query or {}), headers=headers, **content)
        except httpx.TransportError as error:
            raise self._unreachable(error) from error
        self._check(response)
        return response

    def _check(self, response: httpx.Response) -> None:
        """Raise what the answer says."""
        kind = response.headers.get("content-type", "").partition(";")[0]
        if kind == _PROBLEM:
            raise Refused(response.json())
        if not response.is_success or "x-request-id" not in response.headers:
            raise Unexpected(self.url, f"{response.status_code} {kind or 'without a body'}")

    def _unreachable(self, error: httpx.TransportError) -> Unreachable:
        if isinstance(error, httpx.ConnectTimeout | httpx.PoolTimeout):
            return Unreachable(self.url, "it does not answer")
        if isinstance(error, httpx.TimeoutException):
            return Unreachable(self.url, "it took too long", was_sent=True)
        cause: BaseException | None = error
        while cause is not None and not (isinstance(cause, OSError) and cause.errno):
            cause = cause.__cause__ or cause.__context__
        reason = str(error) if cause is None else cause.strerror or str(cause)
        number = None if cause is None else cause.errno
        return Unreachable(self.url, reason, number, was_sent=not isinstance(error, httpx.ConnectError))


def _transport(url: str) -> httpx.BaseTransport:
    """Return how the service is reached.

    Raises:
        ValueError: The URL is of none of the forms that it may have.
    """
    forms = "write unix:///PATH/OF/THE/SOCKET, http://HOST:PORT or https://HOST:PORT"
    if url.startswith(f"{_UNIX}/"):
        return httpx.HTTPTransport(uds=url.removeprefix(_UNIX), verify=False, trust_env=False)
    try:
        parsed = httpx.URL(url)
    except httpx.InvalidURL as error:
        message = f"{url!r} is no URL: {error}; {forms}"
        raise ValueError(message) from error
    if parsed.scheme not in {"http", "https"} or not parsed.host:
        message = f"{url!r} is no URL of a service; {forms}"
        raise ValueError(message)
    # The certificates that the system trusts, or those of SSL_CERT_FILE. Loading them takes time, so only where needed.
    verify = ssl.create_default_context() if parsed.scheme == "https" else False
    return httpx.HTTPTransport(verify=verify, trust_env=False)


def path_of(*parts: str | int) -> str:
    """Return a path of these parts."""
    return "".join(f"/{quote(str(part), safe='')}" for part in parts)


def query_of(values: Mapping[str, object]) -> dict[str, str]:
    """Return a query of what is given: neither None nor False."""
    texts = {name: "true" if value is True else value for name, value in values.items()}
    return {name: str(value) for name, value in texts.items() if value is not None and value is not False}
