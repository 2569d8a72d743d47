"""A simple model of one table. It predicts the result of every operation on the table."""

from collections.abc import Collection
from dataclasses import dataclass, field

from app.service import errors
from app.service.errors import ServiceError

ENTRIES = 3

WritePlan = dict[int, tuple[int | None, int | None]]  # program ids before and after, by index and in order
Told = type[ServiceError] | int | None  # the result of a change: an error, its id, or None


@dataclass
class Made:
    """A change as the journal must have it."""

    kind: str
    steps: WritePlan
    state: str = "applied"
    reverts: int | None = None
    within: int | None = None


@dataclass
class Model:
    """The predicted state of the service.

    Programs are ids. `kept`: those that were replaced since the start. `strays`: those that are pinned nowhere.
    `undone`: what was written back of changes that are undone in the kernel, but not in the journal.
    """

    held: frozenset[int]
    keep: bool = True
    now: float = 1000.0
    kernel: dict[int, int] = field(default_factory=dict)
    expected: dict[int, int] = field(default_factory=dict)
    drift: dict[int, int | None] = field(default_factory=dict)  # as the last event told it
    changes: list[Made] = field(default_factory=list)
    deadlines: dict[int, float] = field(default_factory=dict)  # of unconfirmed changes, by change id
    pins: dict[int, set[int]] = field(default_factory=dict)  # programs pinned for an undo, by change id
    undone: dict[int, WritePlan] = field(default_factory=dict)
    kept: set[int] = field(default_factory=set)
    strays: set[int] = field(default_factory=set)
    events: list[tuple[str, object]] = field(default_factory=list)

    @property
    def unconfirmed(self) -> dict[int, int]:
        return {index: id_ for id_ in self.deadlines for index in self.changes[id_ - 1].steps}

    def lost(self, program: int | None) -> bool:
        return program is not None and program not in self.held | self.strays

    def bury(self) -> None:
        """Forget the programs that nothing refers to any more."""
        self.strays &= self.kept.union(self.kernel.values(), *self.pins.values())

    def put(self, entries: dict[int, int], index: int, program: int | None) -> None:
        entries.pop(index, None)
        if program is not None:
            entries[index] = program

    def differing(self) -> WritePlan:
        both = {index: (self.expected.get(index), self.kernel.get(index)) for index in range(ENTRIES)}
        settled = {index for id_ in self.undone.keys() & self.deadlines.keys() for index in self.changes[id_ - 1].steps}
        return {index: pair for index, pair in both.items() if pair[0] != pair[1] and index not in settled}

    def look(self) -> WritePlan:
        found = self.differing()
        now = {index: kernel for index, (_, kernel) in found.items()}
        if now != self.drift:
            self.drift = now
            self.events.append(("drift", [(index, *pair) for index, pair in found.items()]))
        return found

    def refusal(
        self, steps: WritePlan, within: int | None, reverts: int | None, touched: Collection[int] = ()
    ) -> type[ServiceError] | None:
        if any(self.unconfirmed.get(index, reverts) != reverts for index in (*steps, *touched)):
            return errors.EntryWaits
        mortal = any(before in self.strays for before, _ in steps.values())
        return errors.NotRestorable if within is not None and mortal and not self.keep else None

    def repeated(self, kind: str, within: int | None, touched: Collection[int] | None, reverts: int | None) -> int:
        """The id of the change that waits and was made by the same request; 0: there is none."""
        found = 0
        for id_, deadline in self.deadlines.items():
            made = self.changes[id_ - 1]
            if (made.kind, made.within, made.reverts) != (kind, within, reverts):
                continue
            if id_ in self.undone or deadline <= self.now:
                continue
            waiting = made.steps.keys() if touched is None else self.unconfirmed.keys() & touched
            holds = {index: (before, self.kernel.get(index)) for index, (before, _) in made.steps.items()}
            if waiting == made.steps.keys() and holds == made.steps:
                found = id_
        return found

    def change(
        self,
        kind: str,
        steps: WritePlan,
        within: int | None = None,
        dry: bool = False,
        reverts: int | None = None,
        touched: Collection[int] | None = None,
    ) -> Told:
        """The result of a change that makes these steps, if the kernel accepts them. `touched`: what it speaks of."""
        if not steps and within is not None:
            id_ = self.repeated(kind, within, touched, reverts)
            if id_:
                return None if dry else id_
        refused = self.refusal(steps, within, reverts, touched or ())
        if refused or dry or not steps:
            return refused
        for index, (_, after) in steps.items():
            self.put(self.kernel, index, after)
        self.journalled(Made(kind, steps, "applied" if within is None else "unconfirmed", reverts, within))
        if reverts is not None:
            self.changes[reverts - 1].state = "reverted"
            self.end(reverts)
        if within is not None:
            self.deadlines[len(self.changes)] = self.now + within
            self.pins[len(self.changes)] = self.befores(steps) if self.keep else set()
        self.events.append(("change", len(self.changes)))
        self.kept |= self.befores(steps)
        return len(self.changes)

    @staticmethod
    def befores(steps: WritePlan) -> set[int]:
        return {before for before, _ in steps.values() if before is not None}

    def journalled(self, made: Made) -> None:
        self.changes.append(made)
        for index, (_, after) in made.steps.items():
            self.put(self.expected, index, after)
            self.drift.pop(index, None)

    def end(self, id_: int) -> None:
        self.deadlines.pop(id_, None)
        self.pins.pop(id_, None)

    def put_back(self, steps: WritePlan) -> None:
        for index, (before, after) in steps.items():
            if self.kernel.get(index) == after:
                self.put(self.kernel, index, before)

    def expire(self, id_: int, journal_works: bool = True) -> None:
        made = self.changes[id_ - 1]
        steps: WritePlan = {index: (after, before) for index, (before, after) in made.steps.items()}
        if id_ not in self.undone:
            self.undone[id_] = {index: pair for index, pair in steps.items() if self.kernel.get(index) in pair}
            self.put_back(made.steps)
        if journal_works:
            made.state = "expired"
            self.journalled(Made("expire", steps, "applied", id_))
            self.changes[-1].steps = self.undone[id_]
            self.events += [("change", len(self.changes)), ("expired", id_)]
            self.kept |= self.befores(steps)
            self.end(id_)

    def is_superseded(self, id_: int) -> bool:
        undone: set[int] = set()
        for later in range(len(self.changes), id_, -1):
            made = self.changes[later - 1]
            if later not in undone and made.reverts is not None and made.reverts > id_:
                undone.add(made.reverts)
            elif later not in undone and made.steps.keys() & self.changes[id_ - 1].steps.keys():
                return True
        return False

    def revert(self, id_: int, within: int | None, dry: bool, force: bool) -> tuple[WritePlan, Told]:
        if not 0 < id_ <= len(self.changes):
            return {}, errors.ChangeUnknown
        made = self.changes[id_ - 1]
        again = 0 if within is None else self.repeated("revert", within, None, id_)
        if again:
            return ({}, None) if dry else (self.changes[again - 1].steps, again)
        waits_again = made.state == "unconfirmed" and within is not None
        if made.state in {"reverted", "expired"} or waits_again or not made.steps:
            return {}, errors.ChangeNotRevertible
        differs = any(self.kernel.get(index) != after for index, (_, after) in made.steps.items())
        if differs or (not force and self.is_superseded(id_)):
            return {}, errors.ChangeConflict
        if any(self.lost(before) for before, _ in made.steps.values()):
            return {}, errors.ChangeNotRevertible
        steps = {index: (after, before) for index, (before, after) in reversed(made.steps.items())}
        return steps, self.change("revert", steps, within, dry, id_)

    def confirm(self, id_: int) -> type[ServiceError] | None:
        if not 0 < id_ <= len(self.changes):
            return errors.ChangeUnknown
        made = self.changes[id_ - 1]
        if id_ not in self.deadlines:
            return errors.AlreadyUndone if made.state in {"reverted", "expired"} else errors.AlreadyConfirmed
        if id_ in self.undone:
            return errors.AlreadyUndone
        made.state = "confirmed"
        self.end(id_)
        self.events.append(("confirmed", id_))
        return None

    def due(self) -> list[int]:
        return [id_ for id_, deadline in self.deadlines.items() if deadline <= self.now]

    def to_journal(self, found: WritePlan) -> WritePlan:
        """The steps back to the journal: sets by rising index, then clears by falling index."""
        sets: WritePlan = {index: (holds, wanted) for index, (wanted, holds) in found.items() if wanted is not None}
        return sets | {index: (holds, None) for index, (wanted, holds) in reversed(found.items()) if wanted is None}

    def start(self, restore: bool, cut_off: WritePlan) -> None:
        self.kept, self.drift, self.undone = set(), {}, {}
        self.bury()
        self.put_back(cut_off)
        for id_ in self.due():
            self.expire(id_)
        self.bury()
        found = self.look()
        if restore:
            can = {i: pair for i, pair in found.items() if i not in self.unconfirmed and not self.lost(pair[0])}
            self.change("restore", self.to_journal(can))
