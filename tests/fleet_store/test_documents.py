"""What keys hold: it is read as it was written, and garbage is refused with a reason."""

import contextlib
import itertools
import json
import random
import zlib
from pathlib import Path

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from app.fleet_store import documents, keys
from app.fleet_store.documents import (
    BadDocument,
    DesiredTable,
    DryRunAnswer,
    MetricCheck,
    Node,
    NodeFacts,
    OpenMap,
    PacketCheck,
    Phase,
    Plan,
    Rollout,
    Strategy,
    TableRevision,
    TableState,
    TableStatus,
)
from app.fleet_store.signatures import DESIRED_TABLE, DRY_RUN, BadKey, BadSignature, Signer, Verifier
from app.fleet_store.specification import MAX_ENTRIES, BadSpecification, ProgramName, Run, Specification

_DROP, _PASS = ProgramName("drop"), ProgramName("pass", ("0123456789abcdef", "fedcba9876543210"))
_SPECIFICATION = Specification.from_entries(8, 63, {9: _DROP, 10: _DROP, 12: _PASS})


def desired(**changes: object) -> DesiredTable:
    table = DesiredTable(
        node="edge-1",
        table="jump_table",
        rollout="jump_table-7",
        revision=7,
        specification=_SPECIFICATION.to_bytes(),
        undo=False,
        sequence=12,
        at=1.5,
        confirm_within=60,
        checks=(
            PacketCheck(program="entry", packet="0b", returned=3),
            MetricCheck(metric='drops{map="a"}', at_most=1.0),
        ),
    )
    return msgspec.structs.replace(table, **changes)


def rollout() -> Rollout:
    return Rollout(
        id="t-1", table="t", revision=1, phase=Phase.PROGRESSING, wave=0, since=1.0, by="alice", reason="because"
    )


_DOCUMENTS = [
    desired(),
    desired(specification=None, revision=None, undo=True, confirm_within=None, checks=()),
    Node(labels={"role": "edge"}, user="edge-1", by="alice", at=1.0),
    TableRevision(
        table="t", revision=1, selector={}, strategy=Strategy(), specification=b"x", by="alice", at=1.0, note="ä\n"
    ),
    rollout().moved(at=2.0, by="controller", phase=Phase.HALTED, reason="no"),
    Plan(
        waves=(("a",), ("b", "c")),
        base={"a": 1},
        max_unavailable=1,
        bake_seconds=0,
        confirm_within=60,
        deadline=300,
        on_failure="rollback",
    ),
    TableStatus(seen=4, state=TableState.DRIFTED, at=1.0, indexes=(3,), code="drifted", detail="somebody did it"),
    DryRunAnswer(seen=4, accepted=True, at=1.0, changed=1, diff=((3, None, "drop"),)),
    NodeFacts(version="1", kernel="6.1", at=1.0, maps=(OpenMap(name="t", max_entries=8, ranges=((0, 3),)),)),
]


@pytest.mark.parametrize("document", _DOCUMENTS, ids=lambda document: type(document).__name__)
def test_document_is_read_as_it_was_written(document: documents.Document) -> None:
    assert type(document).from_bytes(document.to_bytes()) == document


@pytest.mark.parametrize("document", _DOCUMENTS, ids=lambda document: type(document).__name__)
def test_bytes_that_were_changed_are_refused_or_read_as_a_document(document: documents.Document) -> None:
    value = document.to_bytes()
    source = random.Random(1)
    for _ in range(300):
        garbled = bytearray(value)
        for _ in range(source.randint(1, 3)):
            garbled[source.randrange(len(garbled))] = source.randrange(256)
        with contextlib.suppress(BadDocument):
            assert isinstance(type(document).from_bytes(bytes(garbled)), type(document))


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        (b"", "truncated"),
        (b"{}", "missing required field"),
        (b"null", "got `null`"),
        (b"\xff\xfe", "malformed"),
        (b"[" * 60_000, "no TableStatus"),
        (b'{"seen":1,"state":"gone","at":1}', "state"),
        (b'{"seen":-1,"state":"applied","at":1}', ">= 0"),
        (b'{"seen":1,"state":"applied","at":1,"code":"A\\n"}', "regex"),
        (b'{"seen":1,"state":"applied","at":1,"detail":"' + b"x" * 1001 + b'"}', "<= 1000"),
        (b" " * 70_000, "at most 65536"),
    ],
)
def test_garbage_is_refused_with_a_reason(value: bytes, reason: str) -> None:
    with pytest.raises(BadDocument, match=reason):
        TableStatus.from_bytes(value)


def test_unknown_members_are_ignored() -> None:
    assert TableStatus.from_bytes(b'{"seen":1,"state":"applied","at":1,"later":[1]}').seen == 1


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", "a\n", "ä", "x" * 65, "a b"])
def test_names_that_would_leave_their_place_among_the_keys_are_refused(name: str) -> None:
    with pytest.raises(ValueError, match="is no name"):
        keys.desired_table(name, "t")
    with pytest.raises(ValueError, match="is no name"):
        keys.table_status("n", name)
    with pytest.raises(BadDocument):
        DesiredTable.from_bytes(desired(table=name).to_bytes())


def test_table_of_any_name_has_a_key_of_its_own() -> None:
    """Also a table that is called as what else a node writes."""
    of_a_node = [keys.facts("n"), keys.alive("n")]
    of_tables = [keys.table_status("n", name) for name in ("facts", "alive", "dry_runs", "tables")]
    assert len({*of_a_node, *of_tables}) == 6
    assert not any(a != b and a.startswith(f"{b}/") for a, b in itertools.permutations([*of_a_node, *of_tables], 2))


def test_revisions_are_in_the_order_of_their_numbers() -> None:
    numbers = [1, 9, 10, 99, 100, 12_345]
    assert sorted(numbers, key=lambda number: keys.revision("t", number)) == numbers


def test_desired_table_without_specification_can_only_be_an_undo() -> None:
    members = json.loads(desired().to_bytes())
    with pytest.raises(BadDocument, match="nothing to apply"):
        DesiredTable.from_bytes(json.dumps({**members, "specification": None, "revision": None}).encode())
    with pytest.raises(BadDocument, match="has a revision"):
        DesiredTable.from_bytes(json.dumps({**members, "revision": None, "undo": True}).encode())


def test_plan_with_a_node_in_two_waves_is_refused() -> None:
    with pytest.raises(BadDocument, match="in two waves"):
        Plan.from_bytes(
            b'{"waves":[["a"],["a"]],"base":{},"max_unavailable":1,"bake_seconds":0,"confirm_within":1,"deadline":1,'
            b'"on_failure":"halt"}'
        )


def test_history_of_a_rollout_keeps_the_last_transitions() -> None:
    moved = rollout()
    for number in range(300):
        moved = moved.moved(at=float(number), by="alice", phase=Phase.PAUSED, reason="x" * 5000)
    assert len(moved.history) == documents.MAX_TRANSITIONS
    assert moved.history[-1].at == 299
    assert Rollout.from_bytes(moved.to_bytes()) == moved


_PROGRAMS = st.sampled_from([None, _DROP, _PASS, ProgramName("a")])


@settings(deadline=None, max_examples=200)
@given(st.integers(0, 1000), st.lists(_PROGRAMS, min_size=1, max_size=40))
def test_specification_is_read_as_it_was_written(first: int, programs: list[ProgramName | None]) -> None:
    specification = Specification.from_programs(first, programs)
    last = first + len(programs) - 1
    assert Specification.from_bytes(specification.to_bytes()) == specification
    assert list(specification.entries()) == list(enumerate(programs, first))
    assert Specification.from_entries(first, last, dict(enumerate(programs, first))) == specification
    filled = {index: program for index, program in enumerate(programs, first) if program is not None}
    assert Specification.from_entries(first, last, filled) == specification


def test_largest_table_fits_into_a_request_of_etcd() -> None:
    source = random.Random(1)
    names = [ProgramName(f"program_{number}") for number in range(1000)]
    worst = Specification.from_programs(0, source.choices(names, k=65_536))
    value = desired(specification=worst.to_bytes()).to_bytes()
    assert len(value) < 512 << 10
    assert Specification.from_bytes(worst.to_bytes()) == worst


def test_specification_that_is_too_large_is_refused() -> None:
    source = random.Random(1)
    names = [ProgramName(f"{source.getrandbits(200):050x}") for _ in range(65_536)]
    with pytest.raises(BadSpecification, match="at most 524288"):
        Specification.from_programs(0, names).to_bytes()


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (b"[]", "no JSON object"),
        (b"{}", "malformed"),
        (b'{"range":[0,1],"programs":[],"runs":[1,0]}', "do not cover"),
        (b'{"range":[0,1],"programs":[],"runs":[3,0]}', "do not cover"),
        (b'{"range":[0,1],"programs":[],"runs":[2]}', "malformed"),
        (b'{"range":[0,1],"programs":[],"runs":[2,1]}', "malformed"),
        (b'{"range":[0,1],"programs":[],"runs":[2,-1]}', "no number"),
        (b'{"range":[0,1],"programs":[],"runs":[2,true]}', "no number"),
        (b'{"range":[0,1],"programs":[],"runs":[1,0,1,0]}', "neighbouring"),
        (b'{"range":[0,0],"programs":[["a"]],"runs":[0,0,1,1]}', "ends before"),
        (b'{"range":[1,0],"programs":[],"runs":[]}', "range"),
        (b'{"range":[0,4294967295],"programs":[],"runs":[4294967296,0]}', "no number"),
        (b'{"range":[0,4294967294],"programs":[],"runs":[4294967295,0]}', f"at most {MAX_ENTRIES}"),
        (b'{"range":[0,0],"programs":[["../a"]],"runs":[1,1]}', "no name"),
        (b'{"range":[0,0],"programs":[["a","XYZ"]],"runs":[1,1]}', "no tag"),
        (b'{"range":[0,0],"programs":[[7]],"runs":[1,1]}', "no name"),
    ],
)
def test_garbled_specification_is_refused_with_a_reason(text: bytes, reason: str) -> None:
    with pytest.raises(BadSpecification, match=reason):
        Specification.from_bytes(zlib.compress(text))


@pytest.mark.parametrize(
    ("packed", "reason"),
    [
        (b"", "cut off"),
        (b"nonsense", "cannot be unpacked"),
        (zlib.compress(b"{}")[:-4], "cut off"),
        (b"x" * 600_000, "at most 524288"),
        (zlib.compress(b"[" * 100_000), "cannot be unpacked"),
        (zlib.compress(b" " * (200 << 20), level=1)[: 512 << 10], "too large|at most|cannot"),
    ],
)
def test_bytes_that_cannot_be_unpacked_are_refused(packed: bytes, reason: str) -> None:
    with pytest.raises(BadSpecification, match=reason):
        Specification.from_bytes(packed)


def test_runs_must_cover_the_range() -> None:
    with pytest.raises(BadSpecification, match="do not cover"):
        Specification(0, 3, (Run(0, 1, _DROP), Run(3, 3, None)))
    with pytest.raises(BadSpecification, match="outside of the range"):
        Specification.from_entries(0, 3, {4: _DROP})


def test_signed_table_is_read_with_the_key_of_the_fleet_alone(tmp_path: Path) -> None:
    signer, other = Signer.generate(), Signer.generate()
    value = signer.sign(DESIRED_TABLE, desired().to_bytes())
    assert DesiredTable.from_bytes(signer.verifier().document(DESIRED_TABLE, value)) == desired()
    with pytest.raises(BadSignature):
        other.verifier().document(DESIRED_TABLE, value)
    files = []
    for number, each in enumerate((other, signer)):  # while a key is replaced, two count
        files.append(tmp_path / f"{number}.pem")
        files[-1].write_bytes(each.verifier().to_pem())
    assert Verifier.read(files).document(DESIRED_TABLE, value) == desired().to_bytes()
    private = tmp_path / "private.pem"
    private.write_bytes(signer.to_pem())
    assert Signer.read(private).sign(DESIRED_TABLE, b"x") == signer.sign(DESIRED_TABLE, b"x")


def test_value_that_was_changed_after_it_was_signed_is_refused() -> None:
    signer = Signer.generate()
    verifier = signer.verifier()
    value = signer.sign(DESIRED_TABLE, desired().to_bytes())
    for number in range(len(value)):
        garbled = bytearray(value)
        garbled[number] ^= 1
        with pytest.raises(BadSignature):
            verifier.document(DESIRED_TABLE, bytes(garbled))
    for other in (b"", b"\n", value[:88], value[89:], value + b" ", desired().to_bytes()):
        with pytest.raises(BadSignature):
            verifier.document(DESIRED_TABLE, other)


def test_signature_for_a_dry_run_does_not_count_for_a_table() -> None:
    signer = Signer.generate()
    with pytest.raises(BadSignature):
        signer.verifier().document(DESIRED_TABLE, signer.sign(DRY_RUN, b"x"))


def test_file_with_another_key_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "key.pem"
    file.write_text("nonsense")
    with pytest.raises(BadKey, match="no private key"):
        Signer.read(file)
    with pytest.raises(BadKey, match="no public key"):
        Verifier.read([file])
    file.write_bytes(Signer.generate().verifier().to_pem())
    with pytest.raises(BadKey, match="no private key"):
        Signer.read(file)
