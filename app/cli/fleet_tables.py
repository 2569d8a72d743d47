"""The commands `jumptable fleet apply`, `diff` and `rollout`: tables, from a file, on the nodes of the fleet."""

import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final, cast

import click

from app.cli.common import fail
from app.cli.confirmation import is_agreed, terminal
from app.cli.fleet_file import read_fleet_tables
from app.cli.fleet_options import NOTE, TABLE, connects
from app.cli.options import outputs
from app.cli.output import Cell, plural, say, show
from app.cli.table_file import TableFileError
from app.client import JumptableError, Refused, Unreachable
from app.client.answers import Event
from app.client.fleet import FleetClient
from app.client.fleet_answers import FleetRollout, NodeDryRun, StartedRollout, TableDryRun

_MOST: Final = 10  # nodes that are shown one by one
_MOST_ENTRIES: Final = 8  # of the difference of one node
_RETRY_SECONDS: Final = 1.0
_MAX_RETRY_SECONDS: Final = 4.0
_ENDED: Final = frozenset({"complete", "halted", "rolled_back", "rollback_failed"})
_BAD: Final = frozenset({"refused", "unhealthy", "reverted", "drifted"})
_FILE = click.option(
    "-f",
    "--file",
    type=click.Path(path_type=Path, allow_dash=True),
    required=True,
    help="Tables in YAML, TOML or JSON; - is standard input.",
)
_WAIT = click.option("--wait", is_flag=True, help="Follow the rollout until it ends. Exit 1: it was rolled back.")
_YES = click.option("-y", "--yes", is_flag=True, help="Do not ask. Needed where nobody can be asked.")


@click.command("diff", epilog="Example: jumptable fleet diff -f edge.yaml")
@_FILE
@connects
@outputs("json", "yaml", "name")
def diff_command(client: FleetClient, file: Path, output: str | None) -> None:
    """Ask each node what apply would change there. Exit 1: something, or not all nodes accept it.

    The nodes make a dry run: the service of each checks all that it would check.
    """
    plans = _plans(client, _read(file))

    def people() -> None:
        for plan in plans:
            _show_plan(plan)

    show(output, {"tables": plans}, lambda: [plan["table"] for plan in plans if _changes(plan)], people)
    sys.exit(1 if any(_changes(plan) for plan in plans) else 0)


@click.command("apply", epilog="Example: jumptable fleet apply -f edge.yaml --wait --note 'parse v2'")
@_FILE
@_YES
@NOTE
@_WAIT
@connects
@outputs("json", "yaml", "name")
def apply_command(
    client: FleetClient, file: Path, output: str | None, *, yes: bool, note: str | None, wait: bool
) -> None:
    """Bring tables to the nodes as a file says: ask the nodes, ask you, start a rollout.

    The rollout goes on without this command: in waves, and back by itself if a node refuses, cuts itself off, drifts or
    fails a check. Several tables are brought one after the other with --wait, and at the same time without.
    """
    tables = _read(file)
    etags = {name: _etag(client, name) for name in tables}
    plans = _plans(client, tables)
    if output is None:
        for plan in plans:
            _show_plan(plan)
    if not yes:
        _ask(is_asked_for_output=output is not None)
    started: list[StartedRollout] = []
    rollouts: list[FleetRollout] = []
    for name, body in tables.items():
        tag = etags[name]
        condition: dict[str, Any] = {"if_none_match": "*"} if tag is None else {"if_match": tag}
        try:
            answer = cast("StartedRollout", client.put_table(name, body, note=note, **condition))
        except JumptableError:
            _tell_what_is_done([each["rollout"] for each in started], left=name)
            raise
        started.append(answer)
        _tell_start(answer, output)
        if wait and answer["rollout"] is not None:
            rollouts.append(_followed(client, answer, output))
            if rollouts[-1]["phase"] != "complete":
                break
    _end(started, rollouts, output)


@click.command("rollout", epilog="Example: jumptable fleet rollout jump_table 3 --wait --note 'back to parse v1'")
@click.argument("table", metavar="TABLE", type=TABLE)
@click.argument("revision", metavar="REVISION", type=click.IntRange(1, 99_999_999))
@_YES
@NOTE
@_WAIT
@connects
@outputs("json", "yaml", "name")
def rollout_command(
    client: FleetClient, table: str, revision: int, output: str | None, *, yes: bool, note: str | None, wait: bool
) -> None:
    """Bring a revision to its nodes again, or go back to it.

    With the newest revision, nodes that were added since get the table.
    """
    etag = client.get_table(table)["etag"]
    if output is None:
        _show_plan(cast("TableDryRun", client.start_rollout(table, revision, dry_run=True)))
    if not yes:
        _ask(is_asked_for_output=output is not None)
    answer = cast("StartedRollout", client.start_rollout(table, revision, note=note, if_match=etag))
    _tell_start(answer, output)
    followed = [_followed(client, answer, output)] if wait and answer["rollout"] is not None else []
    _end([answer], followed, output)


def _read(file: Path) -> dict[str, dict[str, Any]]:
    """Read the tables of a file. On a mistake, exit with 2."""
    try:
        if str(file) == "-":
            return read_fleet_tables("" if sys.stdin is None else sys.stdin.read(), "standard input")
        return read_fleet_tables(file.read_text(), str(file))
    except OSError as error:
        fail(f"cannot read {file}: {error.strerror}", 2)
    except UnicodeDecodeError:
        fail(f"{file} is no text in UTF-8", 2)
    except TableFileError as error:
        fail(str(error), 2)


def _etag(client: FleetClient, table: str) -> str | None:
    try:
        return client.get_table(table)["etag"]
    except Refused as error:
        if error.code != "table-unknown":
            raise
        return None


def _plans(client: FleetClient, tables: dict[str, dict[str, Any]]) -> list[TableDryRun]:
    return [cast("TableDryRun", client.put_table(name, body, dry_run=True)) for name, body in tables.items()]


def _changes(plan: TableDryRun) -> bool:
    """Whether anything would change, or not all nodes have said that they would take it."""
    return bool(plan["changed"]) or plan["accepts"] < len(plan["nodes"])


def _show_plan(plan: TableDryRun) -> None:
    waves = " + ".join(str(len(wave)) for wave in plan["waves"])
    say(
        Cell(plan["table"], "bold"),
        f": revision {plan['revision']} on {plural(len(plan['nodes']), 'node')}, in waves of {waves}",
    )
    parts = [f"{plan['accepts']} accept it"]
    for count, text in ((plan["refuses"], "refuse it"), (plan["away"], "away"), (plan["silent"], "silent")):
        parts += [f"{count} {text}"] if count else []
    say(f"  {', '.join(parts)}; {plural(plan['changed'], 'entry')} would change")
    bad = [each for each in plan["nodes"] if each["answer"] != "accepts"]
    for node in bad[:_MOST]:
        style = "red" if node["answer"] == "refuses" else "yellow"
        say(f"  {node['node']}: ", Cell(f"{node['answer']}: {node['detail']}", style))
    if len(bad) > _MOST:
        say(f"  … and {len(bad) - _MOST:,} more")
    _show_differences([node for node in plan["nodes"] if node["diff"]])


def _show_differences(nodes: Sequence[NodeDryRun]) -> None:
    """Show what would change, once for all nodes on which the same would."""
    by_difference: dict[str, list[NodeDryRun]] = {}
    for node in nodes:
        by_difference.setdefault(str(node["diff"]), []).append(node)
    for alike in by_difference.values():
        names = ", ".join(node["node"] for node in alike[:3]) + (
            f" and {len(alike) - 3} more" if len(alike) > 3 else ""
        )
        say(Cell(f"  on {names}:", "dim"))
        difference = alike[0]["diff"]
        for entry in difference[:_MOST_ENTRIES]:
            style = "red" if entry["after"] is None else "green" if entry["before"] is None else "yellow"
            say(f"    {entry['index']}  {entry['before'] or 'empty'} → ", Cell(entry["after"] or "empty", style))
        more = (alike[0]["changed"] or len(difference)) - _MOST_ENTRIES
        if more > 0:
            say(f"    … and {more:,} more")


def _ask(*, is_asked_for_output: bool) -> None:
    """Ask whether to go on; where nobody can be asked, that is an error of usage."""
    with terminal() as tty:
        if tty is None or is_asked_for_output:
            raise click.UsageError("nobody can be asked here, so add --yes; `jumptable fleet diff` shows what it does")
        if not is_agreed(tty, "Start the rollout?"):
            fail("nothing was changed", 1)


def _tell_start(answer: StartedRollout, output: str | None) -> None:
    if output is not None:
        return
    table = answer["table"]["table"]
    if answer["rollout"] is None:
        say(f"{table}: all nodes have it already")
    else:
        say("rollout ", Cell(answer["rollout"], "bold"), f" has started; `jumptable fleet status {answer['rollout']}`")


def _tell_what_is_done(rollouts: Sequence[str | None], left: str) -> None:
    done = ", ".join(each for each in rollouts if each is not None)
    if done:
        say(f"Started before that: {done}; `jumptable fleet abort` takes one back. Not: {left}", err=True)


def _end(started: list[StartedRollout], rollouts: list[FleetRollout], output: str | None) -> None:
    """Show the answers to scripts, and exit: with 1 if a rollout that was waited for was not completed."""
    answer = {"started": started, "rollouts": rollouts}
    show(output, answer, lambda: [each["rollout"] for each in started if each["rollout"] is not None], lambda: None)
    sys.exit(0 if all(each["phase"] == "complete" for each in rollouts) else 1)


def _followed(client: FleetClient, started: StartedRollout, output: str | None) -> FleetRollout:
    """Follow a rollout until it ends or halts, and return it."""
    rollout = str(started["rollout"])
    follower = _Follower(client, started, output)
    pause = _RETRY_SECONDS
    try:
        while not follower.listen() and not follower.has_ended():
            time.sleep(pause)
            pause = min(2 * pause, _MAX_RETRY_SECONDS)
    except KeyboardInterrupt:
        say(f"rollout {rollout} goes on; `jumptable fleet abort {rollout}` takes it back", err=True)
        raise
    return _result(client, rollout, output)


class _Follower:
    """Follows a rollout by the events of the fleet.

    Args:
        client: Where it asks.
        started: The rollout.
        output: None: it shows what happens.
    """

    def __init__(self, client: FleetClient, started: StartedRollout, output: str | None) -> None:
        self._client, self._output, self._shown = client, output, ""
        self._rollout, self._table = str(started["rollout"]), started["table"]["table"]
        # The tag is the revision of etcd that has begun the rollout, and so the id of its first event.
        self._after = int(started["table"]["etag"].strip('"')) - 1

    def listen(self) -> bool:
        """Follow events until the rollout ends (true), or the stream does (false)."""
        try:
            for event in self._client.watch_events(table=self._table, after=self._after):
                self._after = event.id
                self._show(event)
                if _is_end(event, self._rollout):
                    return True
        except Unreachable as error:
            if self._output is None:
                say(Cell(f"cut off: {error}; the rollout goes on; trying again", "yellow"), err=True)
        except Refused as error:
            if error.code == "events-expired":
                self._after = int(error.problem["newest"])
            elif error.status != 503:  # else etcd is away, and comes back
                raise
        return False

    def _show(self, event: Event) -> None:
        """Show where the rollout is, each time that this changes, and each no of a node."""
        data = event.data
        if self._output is not None:
            return
        if event.type == "rollout" and data["id"] == self._rollout and data["phase"] not in _ENDED:
            reason = f": {data['reason']}" if data["reason"] else ""
            line = f"  {data['phase'].replace('_', ' ')}, wave {data['wave'] + 1}{reason}"
            if line != self._shown:  # an event also comes for each step within a wave
                say(line)
            self._shown = line
        elif event.type == "status" and data["state"] in _BAD:
            say(f"  {data['node']}: ", Cell(f"{data['state']}: {data['detail'] or data['code'] or ''}", "red"))

    def has_ended(self) -> bool:
        """Ask whether the rollout has ended, as its events may have been missed."""
        try:
            return self._client.get_rollout(self._rollout)["phase"] in _ENDED
        except Unreachable:
            return False
        except Refused as error:
            if error.status != 503:
                raise
            return False


def _is_end(event: Event, rollout: str) -> bool:
    return event.type == "rollout" and event.data["id"] == rollout and event.data["phase"] in _ENDED


def _result(client: FleetClient, rollout: str, output: str | None) -> FleetRollout:
    found = client.get_rollout(rollout)
    if output is None:
        is_good = found["phase"] == "complete"
        reason = f": {found['reason']}" if found["reason"] and not is_good else ""
        text = f"{rollout} is {found['phase'].replace('_', ' ')}{reason}"
        say(Cell(text, "green" if is_good else "red"))
        for failure in found["failures"]:
            say(f"  {failure['node']}: {failure['state']}: {failure['detail'] or failure['code'] or ''}")
    return found
