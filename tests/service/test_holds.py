"""Holding and releasing maps and programs: names, sources, and refusals that protect entries."""

import asyncio
import errno
from array import array
from collections.abc import Coroutine
from pathlib import Path
from typing import TypeVar

import pytest

from app.bpf.kernel import Kernel
from app.bpf.memory.kernel import MemoryKernel
from app.bpf.uapi import MapType, ProgType
from app.service.errors import (
    ArrayTooLarge,
    LastReference,
    MapGone,
    MapUnavailable,
    MapUnknown,
    NameTaken,
    NotAMap,
    NotAProgram,
    PinNotAllowed,
    PinUnusable,
    ProgramNotFound,
    ProgramUnknown,
    WrongMapType,
)
from app.service.objects.opening import make_array
from app.service.objects.program import Program, ProgramSummary
from app.service.objects.source import ById, Pinned, checked_name
from app.service.registry.held import HeldMap, HeldProgram
from app.service.registry.programs import ByName
from app.service.registry.registry import Registry
from tests.conftest import load

T = TypeVar("T")


def run(coroutine: Coroutine[object, object, T]) -> T:
    return asyncio.run(coroutine)


@pytest.fixture
def table(kernel: Kernel, pins: Path) -> str:
    """The path of a pinned program array."""
    with make_array(kernel, "table", 8) as array:
        kernel.obj_pin(array.fd, f"{pins}/table")
    return f"{pins}/table"


class TestNames:
    @pytest.mark.parametrize("name", ["a", "A-b_c.9", "x" * 64, "..."])
    def test_valid_name_is_accepted(self, name: str) -> None:
        assert checked_name(name) == name

    @pytest.mark.parametrize("name", ["", "x" * 65, "a/b", "a b", "ä", "a\n", ".", ".."])
    def test_invalid_name_is_refused(self, name: str) -> None:
        with pytest.raises(ValueError, match="name"):
            checked_name(name)


class TestHoldMap:
    def test_hold_by_pin_twice_returns_the_same_map(self, registry: Registry, table: str) -> None:
        held, is_new = run(registry.maps.hold("table", Pinned(table)))
        assert (is_new, held.opened().max_entries, held.pins) == (True, 8, [table])
        again, is_new = run(registry.maps.hold("table", Pinned(table)))
        assert (again, is_new) == (held, False)

    def test_map_is_held_by_id(self, registry: Registry, kernel: Kernel, table: str) -> None:
        with make_array(kernel, "mortal", 8) as array:
            held, _ = run(registry.maps.hold("by_id", ById(array.id)))
            assert held.opened().id == array.id

    def test_array_is_created_if_the_pin_does_not_exist(self, registry: Registry, kernel: Kernel, pins: Path) -> None:
        held, _ = run(registry.maps.hold("new-map", Pinned(f"{pins}/new"), 32))
        array = held.opened()
        assert (array.max_entries, array.info.name, held.created_here) == (32, "new_map", True)
        fd = kernel.obj_get(f"{pins}/new")
        assert kernel.map_info(fd).id == array.id
        kernel.close(fd)

    def test_existing_pin_is_opened_instead(self, registry: Registry, table: str) -> None:
        held, _ = run(registry.maps.hold("table", Pinned(table), 32))
        assert (held.opened().max_entries, held.created_here) == (8, False)

    def test_dry_run_creates_and_holds_nothing(self, registry: Registry, kernel: Kernel, pins: Path) -> None:
        held, is_new = run(registry.maps.hold("new", Pinned(f"{pins}/new"), 32, dry_run=True))
        assert (is_new, held.opened().max_entries) == (True, 32)
        held.release()
        with pytest.raises(MapUnknown):
            registry.maps.get("new")
        with pytest.raises(FileNotFoundError):
            kernel.obj_get(f"{pins}/new")

    def test_second_name_for_one_array_is_refused(self, registry: Registry, table: str) -> None:
        run(registry.maps.hold("table", Pinned(table)))
        with pytest.raises(NameTaken, match="held under the name 'table'"):
            run(registry.maps.hold("other", Pinned(table)))

    def test_source_of_a_filled_map_cannot_be_replaced(self, registry: Registry, kernel: Kernel, table: str) -> None:
        with load(kernel) as program:
            registry.maps.get("jump_table").opened().set(0, program)
        with pytest.raises(NameTaken, match="entries in it"):
            run(registry.maps.hold("jump_table", Pinned(table)))

    def test_source_of_an_empty_map_can_be_replaced(self, registry: Registry, table: str) -> None:
        held, is_new = run(registry.maps.hold("jump_table", Pinned(table)))
        assert (is_new, held.opened().max_entries, held.created_here) == (False, 8, False)

    @pytest.mark.kernel
    @pytest.mark.parametrize("kernel", ["linux"], indirect=True)
    def test_new_array_at_the_pin_is_opened_only_once_the_old_one_is_empty(
        self, registry: Registry, kernel: Kernel, table: str
    ) -> None:
        """Opening the new array while the old one has entries would lose them."""
        held, _ = run(registry.maps.hold("table", Pinned(table)))
        with load(kernel) as program:
            held.opened().set(0, program)
        Path(table).unlink()
        with make_array(kernel, "second", 16) as second:
            kernel.obj_pin(second.fd, table)
            with pytest.raises(LastReference):
                run(registry.maps.hold("table", Pinned(table)))
            held.opened().clear_index(0)
            again, _ = run(registry.maps.hold("table", Pinned(table)))
            assert again.opened().id == second.id

    def test_object_that_is_no_program_array_is_refused(self, registry: Registry, kernel: Kernel, pins: Path) -> None:
        hash_ = kernel.map_create(MapType.HASH, 4, 4, 8)
        kernel.obj_pin(hash_, f"{pins}/hash")
        kernel.close(hash_)
        with load(kernel) as program:
            kernel.obj_pin(program.fd, f"{pins}/program")
        for source, error in (
            (Pinned(f"{pins}/hash"), WrongMapType),
            (Pinned(f"{pins}/program"), NotAMap),
            (Pinned(f"{pins}/none"), PinUnusable),
            (ById(0x7FFFFFFF), MapGone),
        ):
            with pytest.raises(error):
                run(registry.maps.hold("bad", source))
        with pytest.raises(MapUnknown):
            registry.maps.get("bad")

    def test_map_held_by_id_can_be_held_again_by_its_pin(self, registry: Registry, kernel: Kernel, pins: Path) -> None:
        array = make_array(kernel, "mortal", 8)
        with load(kernel) as program:
            array.set(0, program)
        run(registry.maps.hold("by_id", ById(array.id)))
        kernel.obj_pin(array.fd, f"{pins}/saved")
        array.close()
        held, _ = run(registry.maps.hold("by_id", Pinned(f"{pins}/saved")))
        assert held.pins == [f"{pins}/saved"]
        run(registry.maps.release("by_id"))

    def test_refused_hold_creates_no_array(self, registry: Registry, kernel: Kernel, pins: Path) -> None:
        held, _ = run(registry.maps.hold("new", Pinned(f"{pins}/new"), 8))
        with load(kernel) as program:
            held.opened().set(0, program)
        kernel.unpin(f"{pins}/new")
        with pytest.raises(PinUnusable):
            run(registry.maps.hold("new", Pinned(f"{pins}/new"), 8))
        with pytest.raises(FileNotFoundError):
            kernel.obj_get(f"{pins}/new")

    def test_force_does_not_give_one_array_two_names(self, registry: Registry, kernel: Kernel, pins: Path) -> None:
        first, _ = run(registry.maps.hold("a", Pinned(f"{pins}/a"), 8))
        second, _ = run(registry.maps.hold("b", Pinned(f"{pins}/b"), 8))
        with load(kernel) as program:
            first.opened().set(0, program)
        kernel.unpin(f"{pins}/a")
        kernel.obj_pin(second.opened().fd, f"{pins}/a")
        with pytest.raises(NameTaken, match="held under the name 'b'"):
            run(registry.maps.hold("a", Pinned(f"{pins}/a"), force=True))
        assert first.opened().indices() == [0]

    def test_array_larger_than_the_memory_is_refused(self, pins: Path) -> None:
        class Full(MemoryKernel):
            def map_create(self, type_: int, key_size: int, value_size: int, max_entries: int, name: str = "") -> int:
                raise OSError(errno.ENOMEM, "no memory")

        registry = Registry(Full(), ["/sys/fs/bpf"])
        with pytest.raises(ArrayTooLarge, match="8 entries"):
            run(registry.maps.hold("a", Pinned("/sys/fs/bpf/a"), 8))

    @pytest.mark.kernel
    @pytest.mark.parametrize("kernel", ["linux"], indirect=True)
    @pytest.mark.parametrize("path", ["none/new", "a.b", "../new"])
    def test_dry_run_refuses_an_impossible_pin(self, kernel: Kernel, pins: Path, tmp_path: Path, path: str) -> None:
        registry = Registry(kernel, [str(tmp_path)])  # a folder outside the bpffs is allowed too
        for dry_run in (True, False):
            with pytest.raises(PinUnusable):
                run(registry.maps.hold("new", Pinned(f"{pins}/{path}"), 8, dry_run=dry_run))


class TestPinPaths:
    @pytest.mark.parametrize("path", ["/etc/passwd", "{pins}/../../etc/passwd", "{pins}", "{pins}/a/../.."])
    def test_path_outside_pin_dirs_is_refused(self, registry: Registry, pins: Path, path: str) -> None:
        with pytest.raises(PinNotAllowed):
            run(registry.maps.hold("bad", Pinned(path.format(pins=pins))))

    @pytest.mark.parametrize("path", ["relative", "{pins}/a\0b", "{pins}/\ud800", "", "{pins}/" + "x" * 5000])
    def test_invalid_path_is_refused(self, registry: Registry, pins: Path, path: str) -> None:
        with pytest.raises(PinUnusable):
            run(registry.maps.hold("bad", Pinned(path.format(pins=pins))))

    @pytest.mark.kernel
    @pytest.mark.parametrize("kernel", ["linux"], indirect=True)
    def test_symlink_out_of_pin_dirs_is_refused(
        self, registry: Registry, pins: Path, tmp_path: Path, kernel: Kernel
    ) -> None:
        outside = tmp_path / "outside"
        outside.mkdir()
        (pins / "link").symlink_to(outside)
        with pytest.raises(PinNotAllowed):
            run(registry.maps.hold("bad", Pinned(f"{pins}/link/table"), 8))

    @pytest.mark.kernel
    @pytest.mark.parametrize("kernel", ["linux"], indirect=True)
    def test_symlink_inside_pin_dirs_is_followed(
        self, registry: Registry, pins: Path, table: str, kernel: Kernel
    ) -> None:
        (pins / "link").symlink_to(table)
        held, _ = run(registry.maps.hold("table", Pinned(f"{pins}/link")))
        assert held.pins == [table]


class TestReleaseMap:
    def test_pinned_map_is_released(self, registry: Registry, table: str) -> None:
        run(registry.maps.hold("table", Pinned(table)))
        run(registry.maps.release("table"))
        with pytest.raises(MapUnknown):
            registry.maps.get("table")

    def test_release_of_the_last_reference_needs_force(self, registry: Registry) -> None:
        with pytest.raises(LastReference):
            run(registry.maps.release("jump_table"))
        registry.maps.get("jump_table").opened()
        run(registry.maps.release("jump_table", force=True))
        with pytest.raises(MapUnknown):
            run(registry.maps.release("jump_table"))

    def test_dry_run_releases_nothing(self, registry: Registry, table: str) -> None:
        run(registry.maps.hold("table", Pinned(table)))
        run(registry.maps.release("table", dry_run=True))
        assert registry.maps.get("table").opened().max_entries == 8

    def test_second_release_does_not_end_a_later_hold(self, registry: Registry, table: str) -> None:
        """Two releases wait for the lock, and a hold waits behind them."""

        async def race() -> list[object]:
            await registry.maps.hold("table", Pinned(table))
            async with registry.maps.get("table").lock:
                releases = [asyncio.create_task(registry.maps.release("table")) for _ in range(2)]
                await asyncio.sleep(0)
                hold = asyncio.create_task(registry.maps.hold("table", Pinned(table)))
                await asyncio.sleep(0)
            return list(await asyncio.gather(*releases, hold, return_exceptions=True))

        first, second, held = run(race())
        assert first is None
        assert isinstance(second, MapUnknown)
        assert isinstance(held, tuple)
        assert registry.maps.get("table") is held[0]
        assert registry.maps.get("table").opened().max_entries == 8

    def test_second_release_of_a_program_does_not_end_a_later_hold(self, registry: Registry) -> None:
        drop = registry.programs.get("drop").opened()

        async def race() -> list[object]:
            await registry.programs.hold("deny", ById(drop.id), {})
            async with registry.programs.get("deny").lock:
                releases = [asyncio.create_task(registry.programs.release("deny")) for _ in range(2)]
                await asyncio.sleep(0)
                hold = asyncio.create_task(registry.programs.hold("deny", ById(drop.id), {}))
                await asyncio.sleep(0)
            return list(await asyncio.gather(*releases, hold, return_exceptions=True))

        first, second, _ = run(race())
        assert first is None
        assert isinstance(second, ProgramUnknown)
        assert registry.programs.get("deny").opened().id == drop.id


class TestLargeTables:
    def test_readers_share_a_scan_that_starts_after_their_request(self, kernel: Kernel) -> None:
        registry = Registry(kernel)
        table = make_array(kernel, "large", 5000)
        held = registry.maps.adopt("large", table)

        async def race(program: Program) -> tuple[list[object], list[object]]:
            early = [asyncio.create_task(held.read()) for _ in range(3)]
            for _ in range(3):
                await asyncio.sleep(0)  # the scan is under way by now
            table.set(0, program)
            late = [asyncio.create_task(held.read()) for _ in range(50)]
            return list(await asyncio.gather(*early)), list(await asyncio.gather(*late))

        with load(kernel) as program:
            early, late = run(race(program))
            empty = array("I", bytes(4 * 5000))
            assert early == [empty] * 3
            assert late == [array("I", [program.id]) + empty[1:]] * 50
            assert all(each is late[0] for each in late), "one scan for all of them"
        registry.close()

    def test_scan_yields_to_the_event_loop(self, kernel: Kernel) -> None:
        registry = Registry(kernel)
        held = registry.maps.adopt("large", make_array(kernel, "large", 20_000))

        async def turns() -> int:
            reading = asyncio.create_task(held.read())
            count = 0
            while not reading.done():
                await asyncio.sleep(0)
                count += 1
            return count

        assert run(turns()) >= 20_000 // 2048
        registry.close()


class TestPrograms:
    def test_hold_by_pin_twice_returns_the_same_program(self, registry: Registry, kernel: Kernel, pins: Path) -> None:
        with load(kernel) as program:
            kernel.obj_pin(program.fd, f"{pins}/other")
            held, is_new = run(registry.programs.hold("other", Pinned(f"{pins}/other"), run(registry.maps.uses())))
            assert (is_new, held.opened().id) == (True, program.id)
            again, is_new = run(registry.programs.hold("other", Pinned(f"{pins}/other"), run(registry.maps.uses())))
            assert (again, is_new) == (held, False)

    def test_program_may_have_two_names(self, registry: Registry) -> None:
        drop = registry.programs.get("drop").opened()
        run(registry.programs.hold("deny", ById(drop.id), run(registry.maps.uses())))
        assert registry.programs.describe(drop.id).name == "drop"
        run(registry.programs.release("drop"))
        assert registry.programs.describe(registry.programs.get("deny").opened().id).name == "deny"

    def test_program_with_several_names_is_described_by_the_first_held(
        self, registry: Registry, kernel: Kernel
    ) -> None:
        programs, other = registry.programs, registry.programs.get("pass").opened().id
        with load(kernel) as program:
            late = programs.add(HeldProgram("late", ById(program.id)))
            run(programs.hold("deny", ById(program.id), {}))
            assert programs.describe(program.id).name == "deny"
            programs.open(late)
            assert programs.describe(program.id).name == "late"
            run(programs.hold("late", ById(other), {}))
            assert (programs.describe(program.id).name, programs.describe(other).name) == ("deny", "pass")
            run(programs.release("deny"))
            assert (programs.describe(program.id).name, programs.held_as(program.id)) == (None, None)

    def test_cost_of_a_hold_does_not_grow_with_the_number_held(
        self, registry: Registry, kernel: Kernel, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        told: list[str | None] = []
        summary = Program.summary

        def counted(self: Program, name: str | None = None) -> ProgramSummary:
            told.append(name)
            return summary(self, name)

        monkeypatch.setattr(Program, "summary", counted)
        for number in range(100):
            registry.programs.adopt(f"adopted{number}", load(kernel))
        held = registry.programs.add(HeldProgram("more", ById(registry.programs.get("adopted0").opened().id)))
        registry.programs.open(held)
        run(registry.programs.release("more"))
        run(registry.programs.release("adopted1"))
        assert len(told) <= 103

    def test_source_of_a_used_program_cannot_be_replaced(self, registry: Registry) -> None:
        drop, other = registry.programs.get("drop").opened(), registry.programs.get("pass").opened()
        registry.maps.get("jump_table").opened().set(0, drop)
        with pytest.raises(NameTaken, match="entries point to"):
            run(registry.programs.hold("drop", ById(other.id), run(registry.maps.uses())))
        registry.maps.get("jump_table").opened().clear_index(0)
        held, _ = run(registry.programs.hold("drop", ById(other.id), run(registry.maps.uses())))
        assert held.opened().id == other.id

    def test_object_that_is_no_program_is_refused(self, registry: Registry, table: str) -> None:
        for source, error in ((Pinned(table), NotAProgram), (ById(0x7FFFFFFF), ProgramNotFound)):
            with pytest.raises(error):
                run(registry.programs.hold("bad", source, run(registry.maps.uses())))
        with pytest.raises(ProgramUnknown):
            registry.programs.get("bad")

    def test_release_leaves_entries_alone(self, registry: Registry) -> None:
        drop = registry.programs.get("drop").opened()
        array = registry.maps.get("jump_table").opened()
        array.set(0, drop)
        run(registry.programs.release("drop"))
        program_id = array.get(0)
        assert program_id is not None
        summary = registry.programs.describe(program_id)
        assert (summary.name, summary.kernel_name) == (None, "drop")

    def test_held_program_is_resolved_by_id_without_opening_it(self, registry: Registry) -> None:
        drop = registry.programs.get("drop").opened()
        with registry.programs.resolve(ById(drop.id)) as program:
            assert program is drop

    def test_unknown_name_is_not_found(self, registry: Registry) -> None:
        with pytest.raises(ProgramNotFound), registry.programs.resolve(ByName("nope")):
            pass


class TestUnavailable:
    def test_unavailable_object_has_a_reason_and_is_opened_later(
        self, registry: Registry, kernel: Kernel, pins: Path
    ) -> None:
        registry.maps.add(HeldMap("late", Pinned(f"{pins}/late")))
        registry.programs.add(HeldProgram("late", Pinned(f"{pins}/program")))
        assert registry.open_unavailable() == []
        with pytest.raises(MapUnavailable, match="ENOENT"):
            registry.maps.get("late").opened()
        with make_array(kernel, "late", 8) as array:
            kernel.obj_pin(array.fd, f"{pins}/late")
        with load(kernel, type_=ProgType.XDP) as program:
            kernel.obj_pin(program.fd, f"{pins}/program")
        assert [held.name for held in registry.open_unavailable()] == ["late", "late"]
        assert registry.maps.get("late").opened().max_entries == 8
        assert registry.unavailable() == []
