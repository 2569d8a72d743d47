"""The verifier's log: why it refuses a program, at which instruction, and which line of the source that came from."""

import re
from dataclasses import dataclass
from typing import Any, Final

_TAIL_LINES: Final = 12  # of the log, that a person is shown
_INSTRUCTION: Final = re.compile(r"(\d+): \([0-9a-f]{2}\) (.+?)(?:\s+; .*)?")
# With file and line since Linux 6.12; before, the text alone.
_SOURCE: Final = re.compile(r"; (.*?)(?: @ ([^@]+):(\d+))?")
_STATISTICS: Final = re.compile(r"(processed \d+ insns|verification time|stack depth|mark_precise|last_idx|regs=).*")
# The state of registers after a jump: 7: R0_w=…, or `from 3 to 5: R0=…`.
_STATE: Final = re.compile(r"(\d+|from \d+ to \d+): ?(frame\d+: ?)?(R\d.*|safe)?")
# Since Linux 7.3 a report of many lines follows the message, and says the same again.
_REPORT: Final = "\nVerification failed: "
# Some messages lack the end of their line, so that the statistics follow on the same one.
_JOINED_STATISTICS: Final = re.compile(r"(?<=.)(?=processed \d+ insns \(limit)")


@dataclass(frozen=True, slots=True)
class Finding:
    """What the end of a log says.

    Attributes:
        message: Why the program is refused. Empty: the log does not say.
        instruction: The index and the text of the instruction. None: it is not told.
        source: The file, the line and the text that the instruction came from; file and line may be None. None: the
            program has no source lines with it.
        tail: The last lines of the log.
    """

    message: str
    instruction: dict[str, Any] | None
    source: dict[str, Any] | None
    tail: list[str]


def finding(log: str) -> Finding:
    """Read the end of a log.

    Args:
        log: As the kernel has written it; its beginning may be missing.
    """
    log = log.partition(_REPORT)[0]
    lines = [line for line in _JOINED_STATISTICS.sub("\n", log).splitlines() if line.strip()]
    instruction: dict[str, Any] | None = None
    source: dict[str, Any] | None = None
    messages: list[str] = []
    for line in lines:
        if found := _INSTRUCTION.fullmatch(line):
            instruction, messages = {"index": int(found[1]), "text": found[2]}, []
        elif found := _SOURCE.fullmatch(line):
            source = {"file": found[2], "line": None if found[3] is None else int(found[3]), "text": found[1]}
        elif not _STATISTICS.match(line) and not _STATE.fullmatch(line):
            messages.append(line.strip())
    return Finding("; ".join(messages[-3:]), instruction, source, lines[-_TAIL_LINES:])
