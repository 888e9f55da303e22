r"""Where the entries of an intermediate tensor lie in the input's plane, axis by axis, and how they move there.

Each axis of a tensor is a product of *factors*, the slowest first. A factor is an `Atom`, a run of places along one
line of the input (or of none: channels, heads, samples), or a `Union` of parts laid end to end, such as class tokens
before a grid of patches. Reshapes split and join factors, permutations reorder axes, concatenations make unions: so
windows, heads and tokens are followed exactly, and nothing is guessed. A tensor that an unknown operation makes has
no such description (None).

A tensor may lie in the plane twice, as an attention map does with its queries and its keys: it then moves by the sum
of both motions, and ``copy`` tells them apart.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from liederivative.actions import Axis, Domain
from liederivative.actions.tangents import field_tangents


@dataclass(frozen=True)
class Line:
    """One spatial axis of the input, as a tensor samples it."""

    kind: int
    """which of the input's axes, rows before columns"""
    axis: Axis
    shift: int = 0
    """the samples are rolled by so many places"""
    copy: int = 0
    margins: tuple[int, int] = (0, 0)
    """places before and behind the samples that hold a constant, as padding does; they lie nowhere and do not move"""

    @property
    def size(self) -> int:
        """Places, the margins included."""
        return self.axis.size + sum(self.margins)

    def extended(self) -> Line:
        """The same line with its margins as samples, for what has made more than a constant of them."""
        a = self.axis
        return replace(self, axis=Axis(self.size, a.start - self.margins[0] * a.step, a.step), margins=(0, 0))


@dataclass(frozen=True)
class Atom:
    """``size`` places; along a line they are ``stride`` samples apart."""

    size: int
    line: Line | None = None
    stride: int = 1

    @property
    def whole(self) -> bool:
        """Whether this is a line from end to end."""
        return self.line is not None and self.size == self.line.size and self.stride == 1


@dataclass(frozen=True)
class Union:
    """Parts laid end to end along an axis, each a product of factors."""

    parts: tuple[tuple[Atom | Union, ...], ...]

    @property
    def size(self) -> int:
        """Places of all parts."""
        return sum(length(part) for part in self.parts)


Factors = tuple[Atom | Union, ...]
Axes = tuple[Factors, ...]


def length(factors: Factors) -> int:
    """Places along an axis."""
    return math.prod(factor.size for factor in factors)


def plain(size: int) -> Factors:
    """An axis that does not lie in the plane."""
    return (Atom(size),)


def plain_axes(shape: Sequence[int]) -> Axes:
    """A tensor that does not lie in the plane."""
    return tuple(plain(size) for size in shape)


def lies_in_plane(factors: Factors) -> bool:
    """Whether any part of an axis has a place in the input."""
    return any(
        factor.line is not None if isinstance(factor, Atom) else any(lies_in_plane(part) for part in factor.parts)
        for factor in factors
    )


def simplified(factors: Factors) -> Factors:
    """Without factors of one place, and with neighbouring plain ones joined."""
    kept: list[Atom | Union] = []
    for factor in factors:
        if factor.size == 1:
            continue
        if kept and isinstance(factor, Atom) and factor.line is None:
            last = kept[-1]
            if isinstance(last, Atom) and last.line is None:
                kept[-1] = Atom(last.size * factor.size)
                continue
        kept.append(factor)
    return tuple(kept) or (Atom(1),)


def whole_line(factors: Factors) -> Line | None:
    """The line that an axis is, from end to end; None otherwise."""
    if len(factors) == 1 and isinstance(factors[0], Atom) and factors[0].whole:
        return factors[0].line
    return None


def reshaped(axes: Axes, shape: Sequence[int]) -> Axes | None:
    """The axes after a reshape in row-major order; None if it cuts through what cannot be cut."""
    pool = [factor for factors in axes for factor in factors if factor.size != 1]
    result: list[Factors] = []
    for size in shape:
        taken: list[Atom | Union] = []
        missing = size
        while missing > 1:
            if not pool:
                return None
            factor = pool.pop(0)
            if missing % factor.size == 0:
                taken.append(factor)
                missing //= factor.size
            elif isinstance(factor, Atom) and factor.size % missing == 0:
                rest = factor.size // missing
                taken.append(Atom(missing, factor.line, factor.stride * rest))
                pool.insert(0, Atom(rest, factor.line, factor.stride))
                missing = 1
            else:
                return None
        result.append(_rejoined(simplified(tuple(taken))))
    return None if pool else tuple(result)


def _rejoined(factors: Factors) -> Factors:
    """Neighbouring atoms of one line, the outer one a multiple of the inner, become one again."""
    kept: list[Atom | Union] = []
    for factor in factors:
        last = kept[-1] if kept else None
        if (
            isinstance(factor, Atom)
            and isinstance(last, Atom)
            and factor.line is not None
            and last.line == factor.line
            and last.stride == factor.stride * factor.size
        ):
            kept[-1] = Atom(last.size * factor.size, factor.line, factor.stride)
        else:
            kept.append(factor)
    return tuple(kept)


def completed(axes: Axes) -> Axes:
    """The axes after a sum over the inner places of a line: each outer place stands for the middle of its block.

    So patches that a reshape cuts out and a matrix sums up lie where those of a strided convolution do.
    """
    found: dict[Line, list[Atom]] = {}

    def collect(factors: Factors) -> None:
        for factor in factors:
            if isinstance(factor, Union):
                for part in factor.parts:
                    collect(part)
            elif factor.line is not None:
                found.setdefault(factor.line, []).append(factor)

    for factors in axes:
        collect(factors)
    coarse: dict[Line, tuple[Line, int]] = {}
    for line, atoms in found.items():
        atoms = sorted(atoms, key=lambda atom: atom.stride)
        block, reach = atoms[0].stride, atoms[0].stride
        for atom in atoms:
            reach = reach * atom.size if atom.stride == reach else 0
        if block > 1 and reach == line.size and line.shift % block == 0:
            # A block that is part margin, part image moves.
            whole = line if all(margin % block == 0 for margin in line.margins) else line.extended()
            a = whole.axis
            axis = Axis(a.size // block, a.start + (block - 1) / 2 * a.step, a.step * block)
            margins = (whole.margins[0] // block, whole.margins[1] // block)
            coarse[line] = (replace(line, axis=axis, shift=line.shift // block, margins=margins), block)
    if not coarse:
        return axes

    def renewed(factors: Factors) -> Factors:
        return tuple(
            Union(tuple(renewed(part) for part in factor.parts))
            if isinstance(factor, Union)
            else factor
            if factor.line not in coarse
            else Atom(factor.size, coarse[factor.line][0], factor.stride // coarse[factor.line][1])
            for factor in factors
        )

    return tuple(_rejoined(renewed(factors)) for factors in axes)


def with_copy(factors: Factors, copy: int) -> Factors:
    """The same axis, lying in another copy of the plane."""
    return tuple(
        (factor if factor.line is None else replace(factor, line=replace(factor.line, copy=copy)))
        if isinstance(factor, Atom)
        else Union(tuple(with_copy(part, copy) for part in factor.parts))
        for factor in factors
    )


def copies(axes: Sequence[Factors]) -> set[int]:
    """The copies of the plane that some axes lie in."""
    found: set[int] = set()
    for factors in axes:
        for factor in factors:
            if isinstance(factor, Atom):
                found |= set() if factor.line is None else {factor.line.copy}
            else:
                found |= copies(factor.parts)
    return found


def velocity(value: Tensor, axes: Axes, coefficients: Tensor, domain: Domain) -> Tensor | None:
    """How ``value`` moves under one generator as its places do; None where it has none, so that it stays.

    Args:
        value: any tensor.
        axes: where its entries lie.
        coefficients: of the generator, (1, D).
        domain: of the input.
    """
    if not any(lies_in_plane(factors) for factors in axes):
        return None
    for dim, factors in enumerate(axes):
        for place, factor in enumerate(factors):
            if isinstance(factor, Union):
                return _by_parts(value, axes, dim, place, factor, coefficients, domain)
    return _of_atoms(value, axes, coefficients, domain)


def _by_parts(
    value: Tensor, axes: Axes, dim: int, place: int, union: Union, coefficients: Tensor, domain: Domain
) -> Tensor:
    factors = axes[dim]
    split = value.reshape(
        *value.shape[:dim], length(factors[:place]), union.size, length(factors[place + 1 :]), *value.shape[dim + 1 :]
    )
    pieces, start = [], 0
    for part in union.parts:
        piece = split.narrow(dim + 1, start, length(part))
        start += length(part)
        inner = (*axes[:dim], factors[:place] or (Atom(1),), part, factors[place + 1 :] or (Atom(1),), *axes[dim + 1 :])
        moved = velocity(piece, inner, coefficients, domain)
        pieces.append(torch.zeros_like(piece) if moved is None else moved)
    return torch.cat(pieces, dim + 1).reshape(value.shape)


def _of_atoms(value: Tensor, axes: Axes, coefficients: Tensor, domain: Domain) -> Tensor | None:
    atoms = [factor for factors in axes for factor in factors if isinstance(factor, Atom)]
    fine = value.reshape([atom.size for atom in atoms])
    total, gain = None, coefficients[:, -1 - len(domain.flows)].clone()
    for copy in sorted({atom.line.copy for atom in atoms if atom.line is not None}):
        order, lines, shape = [], [], []
        for kind in range(len(domain.size)):
            mine = [
                i for i, a in enumerate(atoms) if a.line is not None and a.line.copy == copy and a.line.kind == kind
            ]
            mine.sort(key=lambda i: -atoms[i].stride)
            line = atoms[mine[0]].line if mine else None
            # A line of which entries are missing is like one that is gone: what is left moves along the others.
            if (
                line is None
                or math.prod(atoms[i].size for i in mine) != line.size
                or len({atoms[i].line for i in mine}) != 1
            ):
                lines.append(None)
                continue
            order += mine
            lines.append(line)
            shape.append(line.size)
        if not shape:
            continue
        others = [i for i in range(len(atoms)) if i not in order]
        moved = fine.permute(*others, *order)
        kept = moved.shape
        moved = moved.reshape(*kept[: len(others)], *shape)
        present = [line for line in lines if line is not None]
        for i, line in enumerate(present):
            if line.shift:
                moved = moved.roll(-line.shift, i - len(present))
        padded = moved
        for i, line in enumerate(present):
            if any(line.margins):
                moved = moved.narrow(i - len(present), line.margins[0], line.axis.size)
        row = coefficients.clone()
        row[:, -1 - len(domain.flows)] = gain
        gain.zero_()  # the values grow once, however often they lie in the plane
        moved = field_tangents(moved, row, domain, [None if line is None else line.axis for line in lines])[0]
        if moved.shape != padded.shape:
            inside, moved = moved, torch.zeros_like(padded)
            inner = moved
            for i, line in enumerate(present):
                inner = inner.narrow(i - len(present), line.margins[0], line.axis.size)
            inner.copy_(inside)
        for i, line in enumerate(present):
            if line.shift:
                moved = moved.roll(line.shift, i - len(present))
        back = [0] * len(atoms)
        for position, i in enumerate([*others, *order]):
            back[i] = position
        moved = moved.reshape(kept).permute(back)
        total = moved if total is None else total + moved
    return None if total is None else total.reshape(value.shape)
