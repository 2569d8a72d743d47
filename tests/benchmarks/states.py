"""What is no rate of a running server: its start, its memory, and how soon its events come."""

from tests.benchmarks.bench import Bench, Server
from tests.benchmarks.servers import go, ours, start_cpu, start_time
from tests.benchmarks.table import Row, told
from tests.benchmarks.works import Compared, Measure, Work

_READERS = 1000
_REST_BYTES = 50e6


def _delay(figure: str, pause: float) -> Measure:
    """From sending a PUT to its answer, or to its event at a reader: s."""

    def measure(bench: Bench) -> float:
        chosen = bench.servers["ours"]
        path = f"/maps/{chosen.prefix}64/entries/0"
        return bench.delay(chosen, path, bench.changes(), seconds=1.0, pause=pause)[figure]

    return measure


def _events(name: str, pause: float) -> Work:
    measures = {"event": _delay("p50", pause), "answer": _delay("answer", pause)}
    return Work(name, "s", measures, (Compared("event", "answer"),))


WORKS = [
    _events("a change alone, until a reader of events has it", 0.03),
    _events("changes one after another, until a reader of events has each", 0.0),
    Work("start to first answer", "s",
         {"ours": lambda bench: start_time(ours(bench, "fresh", ["fresh64"])),
          "Go": lambda bench: start_time(go(bench, ["go64"]))},
         (Compared("ours", "Go"),)),
    Work("start to first answer, CPU of all processes", "s",
         {"ours": lambda bench: start_cpu(ours(bench, "fresh", ["fresh64"])),
          "Go": lambda bench: start_cpu(go(bench, ["go64"]))},
         (Compared("ours", "Go", most=0.6),)),
]  # fmt: skip


def memory(bench: Bench) -> list[Row]:
    """Of a server with one array of 64 entries: at rest, after a load, and with many readers of events."""
    with ours(bench, "memory", ["memory64"]) as mine, go(bench, ["go64"]) as peer:
        rows = [_memory("memory at rest, with the keeper", mine, peer, goal=_REST_BYTES)]
        mine.ask(mine.connect(), "GET", "/maps")
        rows.append(_memory("memory at rest, after a request that needs FastAPI", mine, peer))
        for server in (mine, peer):
            for bodies in (bench.changes(), ""):
                bench.load(server, f"/maps/{server.prefix}64/entries/%d", bodies, connections=64, seconds=3.0)
        rows.append(_memory("memory after sets and gets at 64 connections", mine, peer))
        with bench.watched(mine, _READERS) as watched:
            bench.load(mine, f"/maps/{mine.prefix}64/entries/0", bench.changes(), connections=1, seconds=3.0)
            rows.append(Row(f"memory with {_READERS:,} readers of events", f"ours {told(mine.memory(), 'B')}"))
            watched()
    return rows


def _memory(name: str, mine: Server, peer: Server, goal: float | None = None) -> Row:
    each = {"ours": mine.memory(), "Go": peer.memory()}
    ratio = each["ours"] / each["Go"]
    return Row(
        name,
        ", ".join(f"{who} {told(size, 'B')}" for who, size in each.items()),
        ratio,
        "Go",
        "" if goal is None else f"≤ {told(goal, 'B')}",
        goal is None or each["ours"] <= goal,
        1 / ratio,
    )
