"""What can go wrong between the client and the service."""

from typing import Any


class JumptableError(Exception):
    """The root of all errors of the client. The text is one line."""


class Unreachable(JumptableError):
    """The service cannot be reached, or the connection ended before the answer was complete.

    Attributes:
        url: Where it was looked for.
        reason: Why not, in a few words.
        errno: The number of the system's error, such as `errno.ECONNREFUSED`; None: it is not known.
        was_sent: Whether the request may have arrived. A change may then have been made: look into the journal.
    """

    def __init__(self, url: str, reason: str, errno: int | None = None, *, was_sent: bool = False) -> None:
        what = "the connection ended before the answer came from" if was_sent else "cannot connect to"
        super().__init__(f"{what} {url}: {reason}")
        self.url, self.reason, self.errno, self.was_sent = url, reason, errno, was_sent


class Unexpected(JumptableError):
    """Something answers at the URL, but it is not jumptable."""

    def __init__(self, url: str, what: str) -> None:
        super().__init__(f"{url} does not answer as jumptable does: {what}")
        self.url = url


class Refused(JumptableError):
    """The service refuses the request: a problem of RFC 9457. The text is its `detail`.

    Attributes:
        status: The status of HTTP.
        code: What is wrong, for programs; `GET /problems/{code}` explains it.
        title: The same for people, in general.
        detail: The same for people, about this request, and what to do.
        request_id: Under this id the service has logged it.
        problem: All members of the problem, with the facts of its code.
    """

    def __init__(self, problem: dict[str, Any]) -> None:
        super().__init__(problem["detail"])
        self.status: int = problem["status"]
        self.code: str = problem["code"]
        self.title: str = problem.get("title", "")
        self.detail: str = problem["detail"]
        self.request_id: str | None = problem.get("request_id")
        self.problem = problem
