"""A run of a model, recorded as linear maps between tangents, so that terms can be pushed through what follows them.

The layers' terms are known only once the run has met them. They are pushed afterwards, a few at a time: each through
the operations behind it alone, with the values of the run, which are kept.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from liederivative.derivative.dual import Dual, DualMode, rows_of, wrap
from liederivative.derivative.rules import Call
from liederivative.layerwise.demand import WORTH, Region, enclosing, gathered, narrowed, positions, renumbered, union

ROWS = 32
"""terms that are pushed at once: their tangents of one layer then stay near the core"""


@dataclass(frozen=True)
class Place:
    """What stands for a `Dual` of the run: where its tangents are kept, and how it views them."""

    value: Tensor
    root: Tensor
    slot: int
    views: tuple[Callable[[Tensor], Tensor], ...] = ()

    def view(self, tangents: Tensor) -> Tensor:
        """This tensor's tangents from those of its root."""
        for view in self.views:
            tangents = view(tangents)
        return tangents

    def dual(self, live: dict[int, Dual]) -> Dual | None:
        """The value with the tangents that are pushed now; None if there are none."""
        root = live.get(self.slot)
        return root if root is None or not self.views else Dual(self.value, base=(root, self.view))


@dataclass
class Step:
    """One thing that happened in the run: an operation, a write, a copy, or a term that was split off."""

    name: str
    targets: tuple[Place | None, ...]
    call: Call | None = None
    source: Place | None = None
    term: Tensor | None = None
    row: int = -1
    write: bool = False


@dataclass
class Tape:
    """The steps of a run in order."""

    steps: list[Step] = field(default_factory=list)
    _count: int = 0
    _users: dict[int, list[Call]] = field(default_factory=dict)

    # --- recording ---

    def place(self, dual: Dual) -> Place:
        """What stands for ``dual``."""
        views, base = [], dual
        while base._source is not None:
            base, view = base._source
            views.append(view)
        if base.slot is None:
            base.slot, self._count = self._count, self._count + 1
        return Place(dual.primal, base.primal, base.slot, tuple(reversed(views)))

    def operation(self, name: str, call: Call, outs: Sequence[Any], *, write: bool = False) -> None:
        """An operation that made ``outs``, or wrote into the one tensor of it."""
        kept = Call(
            call.func, self._placed(call.raw), self._placed(call.raw_kwargs), call.args, call.kwargs, call.out, ()
        )
        targets = tuple(self.place(out) if isinstance(out, Dual) else None for out in outs)
        self.steps.append(Step(name, targets, kept, write=write))
        for value in _tensors((kept.args, kept.kwargs, kept.out)):
            self._users.setdefault(value.untyped_storage().data_ptr(), []).append(kept)

    def copy(self, source: Dual, target: Dual) -> None:
        """``target`` was made with the tangents of ``source``."""
        self.steps.append(Step("copy", (self.place(target),), source=self.place(source)))

    def term(self, dual: Dual, row: int, term: Tensor) -> None:
        """A term begins at ``dual``."""
        self.steps.append(Step("term", (self.place(dual),), term=term, row=row))

    def preserve(self, value: Tensor) -> None:
        """Keep a copy of memory that is about to be overwritten, for the operations that have read it."""
        storage = value.untyped_storage()
        calls = self._users.pop(storage.data_ptr(), None)
        if calls is None:
            return
        copy = storage.clone()
        self._users[copy.data_ptr()] = calls

        def moved(a: Any) -> Any:
            if (
                isinstance(a, Tensor)
                and a.layout is torch.strided
                and a.untyped_storage().data_ptr() == storage.data_ptr()
            ):
                return a.new_empty(0).set_(copy, a.storage_offset(), a.shape, a.stride())
            if isinstance(a, list | tuple):
                return type(a)(moved(item) for item in a)
            return a

        for call in calls:
            call.args, call.out = moved(call.args), moved(call.out)
            call.kwargs = {key: moved(a) for key, a in call.kwargs.items()}

    def _placed(self, a: Any) -> Any:
        if isinstance(a, Dual):
            return self.place(a)
        if isinstance(a, dict):
            return {key: self._placed(item) for key, item in a.items()}
        return type(a)(self._placed(item) for item in a) if isinstance(a, list | tuple) else a

    # --- pushing ---

    def push(self, out: Place) -> dict[int, Tensor]:
        """Every term at ``out``, by its row."""
        plan = Plan(self.steps, out)
        found: dict[int, Tensor] = {}
        order = sorted(plan.begins, key=plan.begins.__getitem__)
        for start in range(0, len(order), ROWS):
            rows = order[start : start + ROWS]
            last = plan.run(rows)
            tangents = None if last is None else last.tangents
            if last is not None and tangents is not None:
                found |= dict(zip(last.rows, tangents, strict=True))
        return {row: found[row] if row in found else torch.zeros_like(out.value) for row in order}


@dataclass(frozen=True)
class _Read:
    """How an operation's argument is had from what is kept of its root."""

    place: Place
    value: Tensor
    region: Region | None = None
    gather: Tensor | None = None
    """flat places in what is kept, where only a region is"""

    def dual(self, live: dict[int, Dual]) -> Dual | None:
        root = live.get(self.place.slot)
        if root is None or not root.moves:
            return None
        if self.gather is not None:
            tangents = root.tangents
            return None if tangents is None else Dual(self.value, gathered(tangents, self.gather), root.rows)
        dual = self.place.dual(live)
        if self.region is None or dual is None or dual.tangents is None:
            return dual
        return Dual(self.value, self.region.of(dual.tangents, 1), root.rows)


class Plan:
    """The steps that terms go through to ``out``, each for those places alone that it depends on."""

    def __init__(self, steps: Sequence[Step], out: Place) -> None:
        self.steps, self.begins = steps, dict[int, int]()
        self._needs: dict[int, Region | None] = {}
        """what of each slot is asked for: a region, or None for everything; absent for nothing"""
        self._narrowed: dict[int, tuple[Call, dict[int, Region]]] = {}
        self._over: list[list[int]] = [[] for _ in range(len(steps) + 1)]
        self._ask(out, None, len(steps))
        for index, step in reversed(list(enumerate(steps))):
            if step.term is not None:
                self.begins[step.row] = index
            elif any(place is not None and place.slot in self._needs for place in step.targets):
                self._follow(index, step)
        self._buffers: dict[int, Tensor] = {}
        """memory with a free row, for the term that begins in the next step"""
        self._calls: dict[int, Call] = {}
        for index, step in enumerate(steps):
            if step.call is not None and any(t is not None and t.slot in self._needs for t in step.targets):
                call, regions = self._narrowed.get(index, (step.call, {}))
                raw = [self._read(a, call.args[i], regions.get(i)) for i, a in enumerate(call.raw)]
                kwargs = {key: self._read(a, call.kwargs[key], None) for key, a in call.raw_kwargs.items()}
                self._calls[index] = Call(call.func, raw, kwargs, call.args, call.kwargs, call.out, ())
        self._last = self._read(out, out.value, None)

    def _follow(self, index: int, step: Step) -> None:
        """Ask for what a step reads."""
        if step.source is not None:
            self._ask(step.source, None, index)
            (target,) = step.targets
            assert target is not None
            self._ask(target, None, index)
            return
        assert step.call is not None
        needed = [place for place in step.targets if place is not None and place.slot in self._needs]
        region = self._needs[needed[0].slot]
        short = None
        if region is not None and not step.write and len(needed) == 1 and needed[0] is step.targets[0]:
            short = narrowed(step.name, step.call, region)
        for place in needed:
            if short is None:
                self._ask(place, None, index)
        regions = {} if short is None else short[1]
        if short is not None:
            self._narrowed[index] = short
        for i, a in enumerate(step.call.raw):
            for place in places(a):
                self._ask(place, regions.get(i), index)
        for place in places(list(step.call.raw_kwargs.values())):
            self._ask(place, None, index)

    def _ask(self, place: Place, region: Region | None, index: int) -> None:
        """Note that step ``index`` reads ``region`` of ``place``, or all of it."""
        if place.slot not in self._needs:
            self._over[index].append(place.slot)  # nothing behind reads it: what was kept of it may go
        elif self._needs[place.slot] is None:
            return
        if place.views:
            whole = region is None and place.value.numel() > WORTH * place.root.numel()
            flat = None if whole else positions(place.root, region, place.view)
            region = None if flat is None else enclosing(flat, place.root)
        old = self._needs.get(place.slot, region)
        self._needs[place.slot] = region if place.slot not in self._needs else union(old, region)

    def _read(self, a: Any, value: Any, region: Region | None) -> Any:
        if isinstance(a, list | tuple):
            return type(a)(self._read(item, value[i], None) for i, item in enumerate(a))
        if not isinstance(a, Place):
            return a
        kept = self._needs[a.slot]
        if kept is None or (not a.views and kept.same(region)):
            return _Read(a, value, None if kept is not None else region)
        flat = positions(a.root, region, a.view)
        return _Read(a, value, None, renumbered(flat, a.root, kept))

    def run(self, rows: Sequence[int]) -> Dual | None:
        """The terms of ``rows`` at the output."""
        mode = DualMode()  # for its rules; it is never on
        live: dict[int, Dual] = {}
        for index in range(min(self.begins[row] for row in rows), len(self.steps)):
            self._run(index, mode, live, rows)
            for slot in self._over[index]:
                live.pop(slot, None)
        return self._last.dual(live)

    def _run(self, index: int, mode: DualMode, live: dict[int, Dual], rows: Sequence[int]) -> None:
        step = self.steps[index]
        target = step.targets[0] if step.targets else None
        if step.term is not None:
            assert target is not None
            buffer = self._buffers.pop(index, None)
            if step.row in rows and target.slot in self._needs:
                region = self._needs[target.slot]
                term, value = (x if region is None else region.of(x) for x in (step.term, target.root))
                if region is None or bool(term.any()):
                    _add_row(live.setdefault(target.slot, Dual(value)), step.row, term, buffer)
            return
        if step.source is not None:
            source = step.source.dual(live)
            if source is not None and source.moves and target is not None:
                live[target.slot] = Dual(target.root, source.tangents, source.rows)
            return
        if index not in self._calls:
            return
        call = self._calls[index]
        moving: list[Dual] = []
        raw, raw_kwargs = _live(call.raw, live, moving), _live(call.raw_kwargs, live, moving)
        if not moving:
            return
        call = Call(call.func, raw, raw_kwargs, call.args, call.kwargs, call.out, rows_of(moving))
        if step.write:
            assert target is not None
            live.setdefault(target.slot, Dual(target.root))
            dual = target.dual(live)
            assert dual is not None
            mode.write(dual, step.name, call)
            return
        behind = self.steps[index + 1] if index + 1 < len(self.steps) else step
        if behind.term is not None and behind.row in rows and _slot(behind) == _slot(step):
            call.spare = 1
        wrapped = wrap(call.out, mode.tangents_of(step.name, call), call.rows)
        if call.spare and call.buffer is not None:
            self._buffers[index + 1] = call.buffer
        for place, dual in zip(step.targets, wrapped if isinstance(wrapped, list | tuple) else [wrapped], strict=True):
            if place is not None and isinstance(dual, Dual) and place.slot in self._needs:
                live[place.slot] = dual


def _add_row(dual: Dual, row: int, term: Tensor, buffer: Tensor | None) -> None:
    tangents, rows = dual.tangents, dual.rows
    if tangents is None:
        dual.set_tangents(term[None], (row,))
    elif buffer is not None and row > rows[-1] and _begins_with(buffer, tangents):
        buffer[len(rows)] = term
        dual.set_tangents(buffer, (*rows, row))
    elif row in rows:
        whole = tangents.clone()
        whole[rows.index(row)] += term
        dual.set_tangents(whole, rows)
    else:
        new_rows = tuple(sorted((*rows, row)))
        at = new_rows.index(row)
        dual.set_tangents(torch.cat([tangents[:at], term[None], tangents[at:]]), new_rows)


def _begins_with(buffer: Tensor, tangents: Tensor) -> bool:
    """Whether ``tangents`` are the first rows of ``buffer``, all but one."""
    first = buffer[:-1]
    same = first.shape == tangents.shape and first.stride() == tangents.stride()
    return same and first.data_ptr() == tangents.data_ptr()


def _slot(step: Step) -> int:
    place = step.targets[0] if step.targets else None
    return -1 if place is None else place.slot


def _live(a: Any, live: dict[int, Dual], moving: list[Dual]) -> Any:
    if isinstance(a, _Read):
        dual = a.dual(live)
        if dual is None:
            return a.value
        moving.append(dual)
        return dual
    if isinstance(a, dict):
        return {key: _live(item, live, moving) for key, item in a.items()}
    return type(a)(_live(item, live, moving) for item in a) if isinstance(a, list | tuple) else a


def places(a: Any) -> list[Place]:
    """All places in an argument."""
    if isinstance(a, Place):
        return [a]
    return [place for item in a for place in places(item)] if isinstance(a, list | tuple) else []


def _tensors(a: Any) -> list[Tensor]:
    if isinstance(a, Tensor):
        return [a] if a.layout is torch.strided else []
    if isinstance(a, dict):
        a = list(a.values())
    return [t for item in a for t in _tensors(item)] if isinstance(a, list | tuple) else []
