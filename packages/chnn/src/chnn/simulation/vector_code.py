"""Straight-line programs as machine code on vectors of eight doubles, one sample in each lane.

A program becomes one LLVM function of two pointers, ``f(source, target)`` on contiguous float64 arrays (inputs, 8) and
(outputs, 8); every operation is one vector instruction, and nothing is left to a vectoriser. The machine code for the
processor at hand is an object file that can be kept on disk.
"""

from __future__ import annotations

import threading
from typing import Any

import llvmlite.binding as llvm
from llvmlite import ir

from chnn.simulation.graph import Program

LANES = 8
_DOUBLE = ir.DoubleType()
_VECTOR = ir.VectorType(_DOUBLE, LANES)
_COMPARE = {"eq": "==", "ne": "!=", "lt": "<", "le": "<=", "gt": ">", "ge": ">="}
_CONTRACT = ("contract",)  # products and sums may be fused, nothing else
_lock = threading.Lock()  # LLVM's set-up is not for several threads


def machine() -> llvm.TargetMachine:
    """LLVM for this processor."""
    llvm.initialize_native_target()
    llvm.initialize_native_asmprinter()
    features = llvm.get_host_cpu_features().flatten()
    target = llvm.Target.from_default_triple()
    return target.create_target_machine(cpu=llvm.get_host_cpu_name(), features=features, opt=3, jit=True)


def processor() -> str:
    """The processor that code is made for, by name and features."""
    return llvm.get_host_cpu_name() + llvm.get_host_cpu_features().flatten()


def compile_programs(programs: dict[str, Program]) -> bytes:
    """The object file with one function for each program."""
    module = ir.Module("chnn")
    for name, program in programs.items():
        _define(module, name, program)
    with _lock:
        target = machine()
        parsed = llvm.parse_assembly(str(module))
        parsed.verify()
        options = llvm.create_pipeline_tuning_options(speed_level=2)
        llvm.create_pass_builder(target, options).getModulePassManager().run(
            parsed, llvm.create_pass_builder(target, options)
        )
        return target.emit_object(parsed)


class Code:
    """The functions of an object file, by their addresses; keep it as long as they are called."""

    def __init__(self, object_file: bytes, names: tuple[str, ...]) -> None:
        with _lock:
            target = machine()
            empty = llvm.parse_assembly("")
            self._engine = llvm.create_mcjit_compiler(empty, target)
            self._engine.add_object_file(llvm.ObjectFileRef.from_data(object_file))
            self._engine.finalize_object()
            self.addresses = {name: self._engine.get_function_address(name) for name in names}
        if not all(self.addresses.values()):
            raise OSError(f"expected the functions {names} in the object file")


def _define(module: ir.Module, name: str, program: Program) -> None:
    pointer = ir.PointerType(_VECTOR)
    function = ir.Function(module, ir.FunctionType(ir.VoidType(), [pointer, pointer]), name)
    for argument in function.args:
        argument.add_attribute("noalias")
    builder = ir.IRBuilder(function.append_basic_block("entry"))
    source, target = function.args

    def place(base: Any, index: int) -> Any:
        return builder.gep(base, [ir.Constant(ir.IntType(64), index)], inbounds=True)

    def constant(x: float) -> Any:
        return ir.Constant(_VECTOR, [ir.Constant(_DOUBLE, float(x))] * LANES)

    values: list[Any] = [None] * program.inputs

    def get(x: Any) -> Any:
        if isinstance(x, float):
            return constant(x)
        if x < program.inputs and values[x] is None:
            values[x] = builder.load(place(source, x), align=8)
        return values[x]

    def call(intrinsic: str, operand: Any) -> Any:
        full = f"llvm.{intrinsic}.v{LANES}f64"
        if full not in module.globals:
            ir.Function(module, ir.FunctionType(_VECTOR, [_VECTOR]), full)
        return builder.call(module.globals[full], [operand])

    arithmetic = {"add": builder.fadd, "sub": builder.fsub, "mul": builder.fmul, "div": builder.fdiv}
    for operation, *operands in program.operations:
        given = [get(x) for x in operands]
        if operation == "neg":
            values.append(builder.fsub(constant(-0.0), given[0], flags=_CONTRACT))
        elif operation in arithmetic:
            values.append(arithmetic[operation](*given, flags=_CONTRACT))
        elif operation in _COMPARE:
            values.append(builder.fcmp_ordered(_COMPARE[operation], *given))
        elif operation == "select":
            values.append(builder.select(*given))
        else:  # sqrt, sin, cos, exp, log
            values.append(call(operation, given[0]))
    for index, output in enumerate(program.outputs):
        builder.store(get(output), place(target, index), align=8)
    builder.ret_void()
