"""Program: opening, summary, test runs and closing."""

from datetime import UTC, datetime, timedelta

import pytest

from app.bpf import asm
from app.bpf.kernel import Kernel
from app.bpf.uapi import MapType, ProgType
from app.service.errors import NotAProgram, PacketRefused, ProgramNotRunnable
from app.service.objects.program import Program
from tests.conftest import load

PACKET = bytes(14)


class TestInit:
    def test_map_is_refused(self, kernel: Kernel) -> None:
        fd = kernel.map_create(MapType.PROG_ARRAY, 4, 4, 8)
        with pytest.raises(NotAProgram, match="the object is not a program, it is a map;"):
            Program(kernel, fd)

    def test_summary_has_the_facts_of_the_kernel(self, kernel: Kernel) -> None:
        with load(kernel, name="other") as program:
            summary = program.summary("held")
            assert (summary.id, summary.name, summary.type, summary.kernel_name) == (program.id, "held", "xdp", "other")
            assert summary.loaded_at is not None
            assert abs(datetime.now(UTC) - summary.loaded_at) < timedelta(seconds=5)
            assert summary.loaded_at.microsecond == 0


class TestRun:
    @pytest.mark.parametrize(
        ("type_", "value", "meaning"),
        [(ProgType.XDP, 1, "XDP_DROP"), (ProgType.XDP, 99, None), (ProgType.SCHED_CLS, 2, "TC_ACT_SHOT"),
         (ProgType.SCHED_CLS, -1, "TC_ACT_UNSPEC"), (ProgType.SOCKET_FILTER, 1, None)],
    )  # fmt: skip
    def test_run_returns_the_result_and_its_meaning(
        self, kernel: Kernel, type_: int, value: int, meaning: str | None
    ) -> None:
        with load(kernel, value, type_) as program:
            result = program.run(PACKET)
        assert (result.returned, result.meaning, result.packet) == (value % (1 << 32), meaning, PACKET)

    def test_type_that_does_not_run_on_packets_is_refused(self, kernel: Kernel) -> None:
        with load(kernel, type_=ProgType.KPROBE) as program, pytest.raises(ProgramNotRunnable, match="kprobe"):
            program.run(PACKET)

    def test_too_short_packet_is_refused(self, kernel: Kernel) -> None:
        with load(kernel) as program, pytest.raises(PacketRefused, match="13 bytes"):
            program.run(bytes(13))

    @pytest.mark.kernel
    @pytest.mark.parametrize("kernel", ["linux"], indirect=True)
    def test_grown_packet_is_returned_whole(self, kernel: Kernel) -> None:
        """The program calls bpf_xdp_adjust_tail(ctx, 400), helper 65."""
        grow = asm.mov(2, 400) + asm.INSN.pack(0x85, 0, 0, 65) + asm.returns(2)
        with Program(kernel, kernel.prog_load(ProgType.XDP, grow)) as program:
            assert len(program.run(PACKET).packet) == 14 + 400

    @pytest.mark.kernel
    @pytest.mark.parametrize("kernel", ["linux"], indirect=True)
    def test_too_long_packet_is_refused(self, kernel: Kernel) -> None:
        with load(kernel, type_=ProgType.SCHED_CLS) as program, pytest.raises(PacketRefused, match="20000 bytes"):
            program.run(bytes(20000))


class TestClose:
    def test_second_close_is_harmless_and_later_use_fails(self, kernel: Kernel) -> None:
        program = load(kernel)
        program.close()
        program.close()
        with pytest.raises(ValueError, match="closed"):
            program.info()
