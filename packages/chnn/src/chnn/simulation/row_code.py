r"""Straight-line programs on rows: a field of one state, evaluated for a batch of states in memory.

The function made is ``f(source, target, count)`` on contiguous rows, (count, inputs) and (count, outputs), as torch
keeps them. Eight rows (sixteen in float32) at a time are turned into lanes, which `chnn.simulation.vector_code`
computes side by side, and turned back. A program is made of float64 numbers; in float32 its constants are rounded.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir

from chnn.simulation.graph import Program
from chnn.simulation.vector_code import INDEX, define, emit, loop

_KINDS = {"float32": ir.VectorType(ir.FloatType(), 16), "float64": ir.VectorType(ir.DoubleType(), 8)}


def compile_rows(program: Program) -> bytes:
    """The object file of a program on rows: the functions ``float32`` and ``float64``, by the dtype of the rows.

    The count is at least 1.
    """
    module = ir.Module("chnn")
    for dtype, vector in _KINDS.items():
        _define_rows(module, dtype, define(module, f"lanes_{dtype}", program, vector), program, vector)
    return emit(module)


def _define_rows(
    module: ir.Module, name: str, lanes: ir.Function, program: Program, vector: ir.VectorType
) -> ir.Function:
    pointer = ir.PointerType(vector.element)
    function = ir.Function(module, ir.FunctionType(ir.VoidType(), [pointer, pointer, INDEX]), name)
    for argument in function.args[:2]:
        argument.add_attribute("noalias")
    source, target, count = function.args
    builder = ir.IRBuilder(function.append_basic_block("entry"))
    width = ir.Constant(INDEX, vector.count)
    sides: list[tuple[Any, Any, int]] = []
    for rows, size in ((source, program.inputs), (target, len(program.outputs))):
        block = builder.alloca(vector, size=size)
        block.align = 64  # pyright: ignore[reportAttributeAccessIssue]
        sides.append((rows, block, size))
    blocks = builder.udiv(builder.add(count, ir.Constant(INDEX, vector.count - 1)), width)
    last = builder.sub(count, ir.Constant(INDEX, 1))
    with loop(builder, blocks) as block:
        first = builder.mul(block, width)
        _turn(builder, sides[0], first, last, into=True)
        builder.call(lanes, [sides[0][1], sides[1][1]])
        _turn(builder, sides[1], first, last, into=False)
    builder.ret_void()
    return function


def _turn(builder: ir.IRBuilder, side: tuple[Any, Any, int], first: Any, last: Any, *, into: bool) -> None:
    """Rows from ``first`` into lanes, or back; lanes beyond the last row repeat it, and write the same again."""
    rows, block, size = side
    width = block.type.pointee.count
    flat = builder.bitcast(block, rows.type)
    with loop(builder, width) as lane:
        row = builder.add(first, lane)
        row = builder.select(builder.icmp_unsigned("<", row, last), row, last)
        start = builder.mul(row, ir.Constant(INDEX, size))
        with loop(builder, size) as i:
            at = builder.gep(rows, [builder.add(start, i)], inbounds=True)
            place = builder.add(builder.mul(i, ir.Constant(INDEX, width)), lane)
            in_lane = builder.gep(flat, [place], inbounds=True)
            if into:
                builder.store(builder.load(at), in_lane)
            else:
                builder.store(builder.load(in_lane), at)
