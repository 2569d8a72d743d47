"""What the commands of the client share: where the service is, options, types of arguments, and how they end.

Exit statuses: 0 done, 1 refused (or not ready, or different), 2 usage, 3 no connection, 130 Ctrl-C, 141 nobody reads.
"""

import contextlib
import difflib
import errno
import functools
import os
import re
import sys
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Final, Literal, NamedTuple, TypeVar

import click
from click.shell_completion import CompletionItem

from app.cli.common import INTERRUPTED, fail, stop_writing
from app.client import Client, Refused, Unexpected, Unreachable
from app.client.answers import ProgramReference
from app.client.http_client import HttpClient

UNREACHABLE: Final = 3

_ANSWER_SECONDS: Final = 30.0
_COMPLETION_SECONDS: Final = 2.0
_NAME: Final = re.compile(r"(?!\.\.?$)[A-Za-z0-9_.-]{1,64}", re.ASCII)
_INDEX: Final = re.compile(r"0|[1-9][0-9]{0,9}", re.ASCII)
_LENGTH: Final = re.compile(r"([1-9][0-9]{0,8})([smhd]?)", re.ASCII)
_SECONDS: Final = {"": 1, "s": 1, "m": 60, "h": 3600, "d": 86_400}

F = TypeVar("F", bound=Callable[..., Any])


class Type(click.ParamType[Any]):
    """A type of arguments. Values that are no such thing are errors of usage."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Read a text; what is read already stays as it is."""
        try:
            return self.read(value) if isinstance(value, str) else value
        except ValueError as error:
            self.fail(str(error), param, ctx)

    def read(self, text: str) -> Any:
        """Return what a text stands for.

        Raises:
            ValueError: It stands for nothing of this type.
        """
        raise NotImplementedError


class _Held(Type):
    """The name of something held, completed by asking the service. Without a kind, the argument `kind` says which."""

    name = "name"

    def __init__(self, kind: Literal["map", "program", "object"] | None = None) -> None:
        self.kind = kind

    def read(self, text: str) -> str:
        if not _NAME.fullmatch(text):
            message = f"{text!r} is no name: write 1 to 64 of A-Z a-z 0-9 _ . -"
            raise ValueError(message)
        return text

    def shell_complete(self, ctx: click.Context, _: click.Parameter, incomplete: str) -> list[CompletionItem]:
        return completed(NODE, ctx, incomplete, lambda client: held_names(client, self.kind or ctx.params["kind"]))


class _Reference(Type):
    """A program as an argument: its held name, `id:812`, or the path of its pin."""

    name = "program"

    def read(self, text: str) -> str | ProgramReference:
        if text.startswith("/"):
            return {"pinned": text}
        if text.startswith("id:") and _INDEX.fullmatch(text[3:]):
            return {"id": int(text[3:])}
        if not _NAME.fullmatch(text):
            message = f"{text!r} is no program: write the name of a held one, id:812, or the path of its pin"
            raise ValueError(message)
        return text

    def shell_complete(self, ctx: click.Context, _: click.Parameter, incomplete: str) -> list[CompletionItem]:
        if incomplete.startswith("/"):
            return [CompletionItem(incomplete, type="file")]
        return completed(NODE, ctx, incomplete, lambda client: held_names(client, "program"))


class _Index(Type):
    """An index: a decimal u32."""

    name = "index"

    def read(self, text: str) -> int:
        if not _INDEX.fullmatch(text) or int(text) >= 1 << 32:
            message = f"{text!r} is no index: write a decimal number, 0 or more, such as 3"
            raise ValueError(message)
        return int(text)


class _Change(Type):
    """The id of a change. Those that wait for a confirmation are completed."""

    name = "id"

    def read(self, text: str) -> int:
        if not _INDEX.fullmatch(text):
            message = f"{text!r} is no id of a change: `jumptable log` lists them"
            raise ValueError(message)
        return int(text)

    def shell_complete(self, ctx: click.Context, _: click.Parameter, incomplete: str) -> list[CompletionItem]:
        def ids(client: Client) -> list[str]:
            page = client.list_changes(
                state="unconfirmed" if ctx.info_name == "confirm" else None, order="desc", limit=20
            )
            return [str(change["id"]) for change in page["changes"]]

        return completed(NODE, ctx, incomplete, ids)


class _Length(Type):
    """A length of time, in seconds: 60s, 5m, 2h, 1d."""

    name = "time"

    def read(self, text: str) -> int:
        found = _LENGTH.fullmatch(text)
        if found is None:
            message = f"{text!r} is no length of time: write it as 60s, 5m, 2h or 1d"
            raise ValueError(message)
        return int(found[1]) * _SECONDS[found[2]]


class _Moment(Type):
    """A moment, as the service wants it: so long ago, or as it is written."""

    name = "time"

    def read(self, text: str) -> str:
        if _LENGTH.fullmatch(text):
            seconds = LENGTH.read(text)
            return (datetime.now(UTC) - timedelta(seconds=seconds)).isoformat()
        try:
            return datetime.fromisoformat(text).astimezone(UTC).isoformat()
        except (ValueError, OverflowError) as error:
            message = f"{text!r} is no time: write 2h, 3d or 2026-11-22T15:04:05Z"
            raise ValueError(message) from error


MAP: Final = _Held("map")
PROGRAM: Final = _Held("program")
OBJECT: Final = _Held("object")
HELD: Final = _Held()
REFERENCE: Final = _Reference()
INDEX: Final = _Index()
CHANGE: Final = _Change()
LENGTH: Final = _Length()
MOMENT: Final = _Moment()


def held_names(client: Client, kind: str) -> list[str]:
    """Return the names of what is held, of one kind."""
    if kind == "map":
        return [each["name"] for each in client.list_maps()]
    if kind == "program":
        return [each["name"] for each in client.list_programs(uses=0)]
    return [each["name"] for each in client.list_objects()]


class Service(NamedTuple):
    """A kind of service that commands talk to.

    Attributes:
        client: Makes a client: of a URL, a token, and the seconds to wait for an answer.
        url_variable: The environment variable with its URL.
        token_variable: That with the token.
        start: How to start it, for those who cannot reach it.
        lost: How to find out whether a change was made whose answer did not arrive.
        explain: Says a problem in one line.
    """

    client: Callable[..., HttpClient]
    url_variable: str
    token_variable: str
    start: str
    lost: str
    explain: Callable[[Refused, Any], str]


def connects_to(service: Service) -> Callable[[F], F]:
    """Return what gives a command the options --url and --token-file, and the client as its first argument."""

    def connects(command: F) -> F:
        @click.option(
            "--url",
            envvar=service.url_variable,
            metavar="URL",
            help=f"The service: unix:///PATH or http(s)://HOST:PORT [env: {service.url_variable}]",
        )
        @click.option(
            "--token-file",
            type=click.Path(path_type=Path),
            metavar="FILE",
            help=f"The token is in this file [env: {service.token_variable}]",
        )
        @functools.wraps(command)
        def connected(*args: Any, url: str | None, token_file: Path | None, **options: Any) -> None:
            with _client(service, url, token_file) as client, _errors_told(service, client):
                command(client, *args, **options)

        return connected  # type: ignore[return-value]  # click has taken the signature over

    return connects


def outputs(*forms: str) -> Callable[[F], F]:
    """Give a command the option -o with these forms, beside the one for people."""
    return click.option(
        "-o",
        "--output",
        type=click.Choice(forms),
        help="For scripts, instead of the text for people.",
    )


NOTE: Final = click.option("--note", metavar="TEXT", help="Why; kept with the change.")
FORCE: Final = click.option("--force", is_flag=True, help="Also if a pin leads to another object by now.")
DRY_RUN: Final = click.option("--dry-run", is_flag=True, help="Check it, and show what it would do.")
CONFIRM_WITHIN: Final = click.option(
    "--confirm-within",
    type=LENGTH,
    metavar="TIME",
    help='Undo it unless it is confirmed in time (60s, 5m). A terminal waits for your "y".',
)


def _client(service: Service, url: str | None, token_file: Path | None) -> HttpClient:
    try:
        return service.client(url, token=_token(token_file, service.token_variable), timeout=_ANSWER_SECONDS)
    except (ValueError, OSError) as error:
        fail(str(error), 2)


def _token(file: Path | None, variable: str) -> str | None:
    """Return the token of the file, or of the environment.

    Raises:
        ValueError: There is none in the file.
    """
    if file is None:
        return os.environ.get(variable, "").strip() or None
    try:
        token = file.read_text().strip()
    except (OSError, UnicodeDecodeError) as error:
        message = f"cannot read the token in {file}: {getattr(error, 'strerror', None) or error}"
        raise ValueError(message) from error
    if not token or any(not "!" <= each <= "~" for each in token):
        message = f"{file} has no token: write the one that `jumptable token new` printed into it, and nothing else"
        raise ValueError(message)
    return token


@contextlib.contextmanager
def _errors_told(service: Service, client: HttpClient) -> Iterator[None]:
    """End the process with one line for what went wrong."""
    try:
        yield
        sys.stdout.flush()
    except Unreachable as error:
        fail(f"{error}; {_remedy(service, error)}", UNREACHABLE)
    except Unexpected as error:
        fail(f"{error}; check --url and {service.url_variable}", UNREACHABLE)
    except Refused as error:
        fail(service.explain(error, client), 1)
    except BrokenPipeError:
        stop_writing()
    except KeyboardInterrupt:
        click.echo(err=True)
        sys.exit(INTERRUPTED)


def _remedy(service: Service, error: Unreachable) -> str:
    """Say what to do about a service that cannot be reached."""
    if error.was_sent:
        return f"a change may have been made all the same: {service.lost} tells"
    if error.errno in {errno.EACCES, errno.EPERM}:
        return f"run this as root, or as a member of the group {_group(error.url)}"
    if error.url.startswith("https:"):
        return "check --url; SSL_CERT_FILE names the certificates to trust"
    return f"is it running ({service.start})? Elsewhere: --url or {service.url_variable}"


def _group(url: str) -> str:
    """Return which group may connect to a unix socket, as far as it can be seen."""
    import grp  # noqa: PLC0415 - for errors alone

    with contextlib.suppress(OSError, KeyError):
        return grp.getgrgid(Path(url.removeprefix("unix://")).stat().st_gid).gr_name
    return "that may connect (socket_group)"


# By the code of a problem: what to do, in terms of the command line. The service says it in terms of HTTP.
_REMEDIES: Final = {
    "change-unknown": "`jumptable log` lists the changes",
    "entry-empty": "`jumptable set` points it to a program",
    "forbidden": "",
    "index-out-of-range": "the indexes are 0 to {last}",
    "last-reference": "pin it first (bpftool map pin id {id} PATH), or add --force",
    "map-unknown": "",
    "object-unknown": "",
    "pin-moved": "`jumptable hold {kind} {name} --pinned {pinned}` opens the new one; --force uses the held one",
    "precondition-failed": "somebody has changed the table meanwhile: look again, and repeat the command",
    "program-not-found": "",
    "program-unknown": "",
    "unauthenticated": "give a valid token: --token-file FILE or JUMPTABLE_TOKEN",
}


# Of names that are unknown: what kind of thing the name is for. The problem has the name as the member of that name.
_KINDS: Final = {
    "map-unknown": "map",
    "object-unknown": "object",
    "program-not-found": "program",
    "program-unknown": "program",
}


def explained(error: Refused, client: Client) -> str:
    """Return one line for a problem: what is wrong, and what to do on the command line."""
    if error.code not in _REMEDIES:
        return error.detail.replace("send ?force=true", "add --force")
    fact = error.detail.partition("; ")[0]
    facts = {"last": error.problem.get("max_entries", 1) - 1, **error.problem}
    try:
        remedy = _REMEDIES[error.code].format_map(facts) or _names_there(error, client)
    except KeyError:
        return error.detail
    return f"{fact}; {remedy}" if remedy else error.detail


def _names_there(error: Refused, client: Client) -> str:
    """Return which names there are, where one is unknown. A slip is corrected."""
    kind = _KINDS.get(error.code)
    asked = error.problem.get(kind or "")
    if kind is None or not isinstance(asked, str):
        return ""
    with contextlib.suppress(Refused, Unreachable, Unexpected):
        names = held_names(client, kind)
        close = difflib.get_close_matches(asked, names, n=1)
        if close:
            return f"did you mean {close[0]!r}? `jumptable {kind}s` lists them"
        if names:
            return f"there are {', '.join(names[:5])}{', …' if len(names) > 5 else ''}"
        holds = f"load {asked} FILE.o" if kind == "object" else f"hold {kind} {asked} --pinned PATH"
        return f"there is none: `jumptable {holds}` makes one"
    return ""


NODE: Final = Service(
    Client,
    "JUMPTABLE_URL",
    "JUMPTABLE_TOKEN",
    "systemctl status jumptable, or jumptable demo to try",
    "`jumptable log`",
    explained,
)
connects: Final = connects_to(NODE)


def completed(
    service: Service, ctx: click.Context, incomplete: str, names: Callable[[Any], list[str]]
) -> list[CompletionItem]:
    """Ask the service for names that go on like this. Where it cannot be asked, there are none."""
    try:
        token = _token(ctx.params.get("token_file"), service.token_variable)
        url = ctx.params.get("url") or os.environ.get(service.url_variable)
        with service.client(url, token=token, timeout=_COMPLETION_SECONDS) as client:
            return [CompletionItem(each) for each in names(client) if each.startswith(incomplete)]
    except (ValueError, OSError, Refused, Unreachable, Unexpected):
        return []
