"""The end of the verifier's log, as kernels of different ages write it."""

from app.service.loading.verifier_log import finding

# Linux 6.18: with the file and the line; the registers after each instruction.
NEW = """\
; if (data + 4 > end) @ parser.bpf.c:13
4: (2d) if r2 > r1 goto pc+4          ; R1=pkt_end() R2=pkt(off=4,r=4)
; return data[4] == 7 ? XDP_TX : XDP_PASS; @ parser.bpf.c:15
5: (71) r1 = *(u8 *)(r2 +0)
invalid access to packet, off=4 size=1, R2(id=0,off=4,r=4)
R2 offset is outside of the packet
processed 6 insns (limit 1000000) max_states_per_insn 0 total_states 0 peak_states 0 mark_read 0
"""
# Linux 6.1: the text of the line alone, and the registers on lines of their own.
OLD = """\
from 3 to 5: R1_w=pkt_end(off=0,imm=0) R2_w=pkt(off=4,r=0,imm=0) R10=fp0
; return data[4] == 7 ? XDP_TX : XDP_PASS;
5: (71) r1 = *(u8 *)(r2 +0)
invalid access to packet, off=4 size=1, R2(id=0,off=4,r=4)
R2 offset is outside of the packet
processed 6 insns (limit 1000000) max_states_per_insn 0 total_states 0 peak_states 0 mark_read 0
"""


def test_new_kernels_tell_file_and_line() -> None:
    found = finding(NEW)
    assert found.message == (
        "invalid access to packet, off=4 size=1, R2(id=0,off=4,r=4); R2 offset is outside of the packet"
    )
    assert found.instruction == {"index": 5, "text": "r1 = *(u8 *)(r2 +0)"}
    assert found.source == {
        "file": "parser.bpf.c", "line": 15, "text": "return data[4] == 7 ? XDP_TX : XDP_PASS;",
    }  # fmt: skip
    assert found.tail == NEW.splitlines()


def test_old_kernels_tell_the_text_of_the_line_alone() -> None:
    found = finding(OLD)
    assert found.message == finding(NEW).message
    assert found.instruction == finding(NEW).instruction
    assert found.source == {"file": None, "line": None, "text": "return data[4] == 7 ? XDP_TX : XDP_PASS;"}


def test_message_without_an_end_of_line_is_told_from_the_statistics() -> None:
    found = finding(
        "0: (85) call bpf_trace_printk#6\ncannot call GPL-restricted functionprocessed 1 insns (limit 1000000)\n"
    )
    assert found.message == "cannot call GPL-restricted function"


def test_registers_after_an_instruction_are_no_message() -> None:
    found = finding("7: (b7) r0 = 2\n8: R0_w=2 R10=fp0\n8: (95) exit\nprocessed 2 insns (limit 1000000)\n")
    assert (found.message, found.instruction) == ("", {"index": 8, "text": "exit"})


def test_empty_log_tells_nothing() -> None:
    found = finding("")
    assert (found.message, found.instruction, found.source, found.tail) == ("", None, None, [])


def test_log_is_told_by_its_end() -> None:
    found = finding("".join(f"{each}: (b7) r0 = {each}\n" for each in range(1000)) + "too complex\n")
    assert (len(found.tail), found.message) == (12, "too complex")


# Linux 7.3: what follows the message says it again.
REPORT = """
Verification failed: Memory Safety: Access outside bounds

Reason:
  The verifier cannot prove offset + access_size <= object_size.

At:
  reads_too_far @ parser.bpf.c:15:12
  Instruction context:
      4 | (2d) if r2 > r1 goto pc+4
  >>> 5 | (71) r1 = *(u8 *)(r2 +0)

Suggestion:
  Add or adjust a bounds check that proves offset + access_size stays within the object.

processed 6 insns (limit 1000000) max_states_per_insn 0 total_states 0 peak_states 0 mark_read 0
"""


def test_report_of_the_newest_kernels_does_not_hide_the_message() -> None:
    log, statistics, _ = NEW.partition("processed")
    assert statistics
    found = finding(log + REPORT)
    assert (found.message, found.instruction, found.source) == (
        finding(NEW).message, finding(NEW).instruction, finding(NEW).source,
    )  # fmt: skip
    assert found.tail == log.splitlines()
