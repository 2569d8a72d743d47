"""The hot step in C does the same as in Python, byte for byte."""

import sys
from collections.abc import Iterator
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from app import native
from app.bpf import asm
from app.bpf.linux import LinuxKernel
from app.bpf.uapi import MapType, ProgType
from app.server import _hot_step as in_c
from app.server import hot_step as in_python
from app.server.hot_step import AnswerText
from app.store.records import EMPTY

HEAD = b"PUT /maps/a/entries/3 HTTP/1.1\r\nHost: x\r\n\r\nbody"
PIECES = st.sampled_from(
    [b"\r\n", b"\r\n\r\n", b"/entries/", b" HTTP/1.1", b"0", b"7", b"4294967295", b"4294967296", b"00", b"GET /maps/a",
     b"Host: x", b" ", b"\n", b"\0", b"\xff", b"/", b"12345678901"]
)  # fmt: skip
U32 = st.integers(0, (1 << 32) - 1)
TEXT = st.binary(max_size=300)


def test_extension_is_built_and_used() -> None:
    assert native.is_built
    assert native.is_used
    assert native.told() == "C extension"


@settings(max_examples=2000, deadline=None)
@given(st.one_of(st.lists(PIECES, max_size=12).map(b"".join), st.binary(max_size=80)))
@example(HEAD)
@example(HEAD.replace(b"/3 ", b"/0 "))
@example(HEAD.replace(b"/3 ", b"/03 "))
@example(HEAD.replace(b"/3 ", b"/ "))
@example(HEAD.replace(b"/3 ", b"/4294967295 "))
@example(HEAD.replace(b"/3 ", b"/4294967296 "))
@example(HEAD.replace(b"/3 ", b"/3?note=a "))
@example(HEAD.replace(b"1.1", b"1.0"))
@example(b"PUT /maps/a/entries/3 HTTP/1.1\r\n\r\n")
@example(b"/entries/3 HTTP/1.1\r\nA: b\r\n\r\n")
def test_heads_are_split_alike(data: bytes) -> None:
    assert in_c.split_head(data) == in_python.split_head(data)


def test_head_is_split_into_its_parts() -> None:
    for step in (in_c, in_python):
        assert step.split_head(HEAD) == (b"PUT /maps/a", 3, b"Host: x", b"body")


def request(step: ModuleType, index: int, body: bytes = b"", audit: Any = None, **values: Any) -> Any:
    made = step.FastRequest(object(), SimpleNamespace(audit=audit), index, body, b"data")
    for name, value in values.items():
        setattr(made, name, value)
    return made


ANSWERED = st.fixed_dictionaries(
    {"index": U32, "before": st.sampled_from([EMPTY, 7, 8]), "after": st.sampled_from([7, 8]),
     "is_written": st.booleans(), "request_id": st.text("abc019._:-", min_size=1, max_size=128)}
)  # fmt: skip
TEXTS = st.builds(AnswerText, *[TEXT] * 7, st.integers(0, 5000))


@settings(deadline=None)
@given(
    st.lists(ANSWERED, max_size=6),
    st.integers(0, (1 << 63) - 1),
    TEXTS,
    TEXTS,
    st.one_of(st.none(), st.tuples(TEXT, TEXT, TEXT)),
)
def test_answers_and_lines_are_made_alike(
    values: list[dict[str, Any]], first_id: int, seven: AnswerText, eight: AnswerText, audit: Any
) -> None:
    texts, facts = {7: seven, 8: eight}, {EMPTY: b"null", 7: b'{"id":7}', 8: b'{"id":8}'}
    made = [
        step.answers([request(step, audit=audit, **each) for each in values], first_id, texts, facts)
        for step in (in_c, in_python)
    ]
    assert made[0] == made[1]
    assert len(made[0][0]) == len(values)


def test_answer_has_the_numbers_in_their_places() -> None:
    text = AnswerText(b"O", b"C", b"T", b"M", b"I", b"G", b"E", 100)
    for step in (in_c, in_python):
        asked = [
            request(step, 30, after=7, request_id="r", audit=(b"1", b"2", b"3"), is_written=True),
            request(step, 5, after=7, request_id="s", audit=(b"1", b"2", b"3"), before=7),
        ]
        assert step.answers(asked, 12, {7: text}, {EMPTY: b"null", 7: b"seven"}) == (
            [b"C1eTchange-id: 12\r\ncontent-length: 104\r\nMrI30G1eE", b"O5Tcontent-length: 102\r\nMsI5G5E"],
            [
                b'"request_id":"r1201230","change":12330,"before":null,"after":seven',
                b'"request_id":"s120025"',
            ],
        )


@pytest.mark.parametrize("text", [(*[b"x" * 9000] * 7, 1), (*["x"] * 7, 1), (b"x",), None])
def test_text_that_is_too_long_or_none_is_an_error_and_no_overrun(text: Any) -> None:
    asked = [request(in_c, 1, after=7, request_id="r")]
    with pytest.raises((ValueError, TypeError)):
        in_c.answers(asked, 1, {7: text}, {7: b"x", EMPTY: b"null"})


@pytest.mark.parametrize("step", [in_c, in_python])
def test_line_of_the_audit_is_never_left_out(step: ModuleType) -> None:
    text, audit = AnswerText(b"O", b"C", b"T", b"M", b"I", b"G", b"E", 100), (b"1", b"2", b"3")
    asked = [request(step, 30, after=7, request_id="r", audit=audit, is_written=True)]
    with pytest.raises((KeyError, TypeError)):
        step.answers(asked, 12, {7: text}, {EMPTY: b"null"})


def test_request_that_cannot_be_made_leaves_its_parts_alone() -> None:
    parts = object(), object(), bytes(bytearray(b"body")), bytes(bytearray(b"data"))
    connection, meaning, body, data = parts
    make: Any = in_c.FastRequest
    before = [sys.getrefcount(each) for each in parts]
    for _ in range(10):
        with pytest.raises(TypeError):
            make(connection, meaning, "x", body, data)
        made = make(connection, meaning, 1, body, data)
        made.__init__(connection, meaning, 2, body, data)
        del made
    assert [sys.getrefcount(each) for each in parts] == before


@pytest.fixture(scope="module")
def array() -> Iterator[tuple[LinuxKernel, int, dict[bytes, tuple[int, int]]]]:
    """A kernel, an array of 4 entries, and programs by the body that names them."""
    kernel = LinuxKernel()
    fd = kernel.map_create(MapType.PROG_ARRAY, 4, 4, 4, "hot")
    fds = {name: kernel.prog_load(ProgType.XDP, asm.returns(number), name) for number, name in enumerate(("a", "b"))}
    misfit = kernel.prog_load(ProgType.SOCKET_FILTER, asm.returns(1), "misfit")
    targets = {name.encode(): (kernel.prog_info(each).id, each) for name, each in fds.items()}
    kernel.map_update(fd, 0, fds["a"])
    yield kernel, fd, {**targets, b"misfit": (kernel.prog_info(misfit).id, misfit)}
    for each in (fd, misfit, *fds.values()):
        kernel.close(each)


ASKED = st.lists(st.tuples(st.integers(0, 5), st.sampled_from([b"a", b"b", b"misfit", b"unknown"])), max_size=12)


@settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(ASKED, ASKED)
def test_entries_are_read_and_written_alike(
    array: tuple[LinuxKernel, int, dict[bytes, tuple[int, int]]],
    first: list[tuple[int, bytes]],
    second: list[tuple[int, bytes]],
) -> None:
    kernel, fd, targets = array
    told = []
    for step in (in_c, in_python):
        for index in range(4):
            if index:
                kernel.map_update(fd, index, targets[b"a"][1])
                kernel.map_delete(fd, index)
        kernel.map_update(fd, 0, targets[b"a"][1])
        kept: list[int] = []
        outcome: list[Any] = []
        for asked, wanted in ((first, targets), (second, None), (second, targets), (first, None)):
            requests = [request(step, index, body) for index, body in asked]
            lookups, updates = step.go_through(requests, kernel, fd, 4, wanted, kept.append)
            outcome.append([(each.before, each.after, each.is_written) for each in requests])
            outcome.append((lookups[0], updates[0]))
            assert 0 <= lookups[2] <= lookups[1] < 10
        told.append((outcome, kept))
    assert told[0] == told[1]


def test_failure_to_keep_a_program_ends_the_step_before_its_write(
    array: tuple[LinuxKernel, int, dict[bytes, tuple[int, int]]],
) -> None:
    kernel, fd, targets = array

    def fail(_: int) -> None:
        message = "no memory"
        raise MemoryError(message)

    for step in (in_c, in_python):
        kernel.map_update(fd, 0, targets[b"a"][1])
        requests = [request(step, 0, b"b")]
        with pytest.raises(MemoryError):
            step.go_through(requests, kernel, fd, 4, targets, fail)
        assert kernel.map_lookup(fd, 0) == targets[b"a"][0]
        assert not requests[0].is_written
        assert requests[0].before == EMPTY  # nothing is to be released


def test_requests_of_another_type_are_refused() -> None:
    foreign = [request(in_python, 1, after=7, request_id="r")]
    with pytest.raises(TypeError, match="FastRequests of this module"):
        in_c.answers(foreign, 1, {}, {})
    with pytest.raises(TypeError, match="FastRequests of this module"):
        in_c.go_through(foreign, LinuxKernel(), 0, 4, None, print)
