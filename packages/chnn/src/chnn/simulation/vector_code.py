r"""Straight-line programs as machine code on vectors of eight doubles, one sample in each lane.

A program becomes one LLVM function of two pointers, ``f(source, target)`` on contiguous float64 arrays (inputs, 8) and
(outputs, 8); every operation is one vector instruction, and nothing is left to a vectoriser. The machine code for the
processor at hand is an object file that can be kept on disk.

Around the two programs of a system, its velocities and its projection, `compile_kernel` puts one attempted step of
DOP853 for all lanes, with its error and the factor of the next step size, on one buffer of vectors laid out by
`layout`. The steps are those of `lie.integrators.dop853` (Hairer, Norsett, Wanner 1993, sections II.4 and II.10), and
so is the continuous extension within them (section II.6).
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import llvmlite.binding as llvm
from lie.integrators.tableaux import DOP853, LARGEST_FACTOR, SAFETY, SMALLEST_FACTOR
from llvmlite import ir

from chnn.simulation.graph import Program

LANES = 8
INDEX = ir.IntType(64)
VECTOR = ir.VectorType(ir.DoubleType(), LANES)
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


def layout(size: int) -> dict[str, int]:
    """Where the parts of a step begin in its buffer, in vectors, for states of ``size`` numbers; "end" its length."""
    names = ("y", "k", "new", "projected", "rate", "work", "polynomial")
    lengths = (size, 16 * size, size, size, size, size, 7 * size)
    places, place = {}, 0
    for name, length in zip(names, lengths, strict=True):
        places[name] = place
        place += length
    for name in ("step", "rtol", "atol", "error", "factor", "accepted"):
        places[name] = place
        place += 1
    return {**places, "end": place}


def compile_kernel(velocity: Program, project: Program) -> bytes:
    """The object file of a system: ``velocity(state, rate)``, ``project(state, state)``, ``attempt(buffer, buffer)``,
    ``extend(buffer, buffer)``, the polynomial within the step attempted, and ``accept(buffer, buffer)``, which moves
    on the lanes whose step was accepted.
    """  # fmt: skip
    module = ir.Module("chnn")
    functions = {name: define(module, name, program) for name, program in
                 (("velocity", velocity), ("project", project))}  # fmt: skip
    _define_attempt(module, functions, velocity.inputs)
    _define_extend(module, functions, velocity.inputs)
    _define_accept(module, velocity.inputs)
    return emit(module)


def compile_programs(programs: dict[str, Program]) -> bytes:
    """The object file of programs, each a function of its name."""
    module = ir.Module("chnn")
    for name, program in programs.items():
        define(module, name, program)
    return emit(module)


def emit(module: ir.Module) -> bytes:
    """The object file of a module."""
    with _lock:
        target = machine()
        parsed = llvm.parse_assembly(str(module))
        parsed.verify()
        builder = llvm.create_pass_builder(target, llvm.create_pipeline_tuning_options(speed_level=2))
        builder.getModulePassManager().run(parsed, builder)
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


def constant(x: float, vector: ir.VectorType = VECTOR) -> ir.Constant:
    """A vector of the same number in every lane."""
    return ir.Constant(vector, [ir.Constant(vector.element, float(x))] * vector.count)


def intrinsic(builder: ir.IRBuilder, name: str, *operands: Any) -> Any:
    """The value of one of LLVM's own functions of vectors, by name."""
    vector = operands[0].type
    full = f"llvm.{name}.v{vector.count}f{32 if isinstance(vector.element, ir.FloatType) else 64}"
    module = builder.module
    if full not in module.globals:
        ir.Function(module, ir.FunctionType(vector, [vector] * len(operands)), full)
    return builder.call(module.globals[full], operands)


@contextmanager
def loop(builder: ir.IRBuilder, count: Any) -> Iterator[Any]:
    """The block of a loop over an index from 0 to ``count`` (a number or a value), which is at least 1."""
    before, body = builder.block, builder.append_basic_block("body")
    after = builder.append_basic_block("after")
    builder.branch(body)
    builder.position_at_end(body)
    index = builder.phi(INDEX)
    index.add_incoming(ir.Constant(INDEX, 0), before)
    yield index
    following = builder.add(index, ir.Constant(INDEX, 1))
    index.add_incoming(following, builder.block)
    end = ir.Constant(INDEX, count) if isinstance(count, int) else count
    builder.cbranch(builder.icmp_unsigned("<", following, end), body, after)
    builder.position_at_end(after)


class Buffer:
    """Loads and stores of the vectors of a buffer."""

    def __init__(self, builder: ir.IRBuilder, base: Any) -> None:
        self.builder, self.base = builder, base
        self.align = 4 if isinstance(base.type.pointee.element, ir.FloatType) else 8

    def at(self, place: int, index: Any = None) -> Any:
        offset: Any = ir.Constant(INDEX, place)
        if index is not None:
            offset = self.builder.add(index, offset)
        return self.builder.gep(self.base, [offset], inbounds=True)

    def load(self, place: int, index: Any = None) -> Any:
        return self.builder.load(self.at(place, index), align=self.align)

    def store(self, value: Any, place: int, index: Any = None) -> None:
        self.builder.store(value, self.at(place, index), align=self.align)


def start(module: ir.Module, name: str, vector: ir.VectorType = VECTOR) -> tuple[ir.Function, ir.IRBuilder]:
    """A function of two pointers to vectors, begun."""
    pointer = ir.PointerType(vector)
    function = ir.Function(module, ir.FunctionType(ir.VoidType(), [pointer, pointer]), name)
    return function, ir.IRBuilder(function.append_basic_block("entry"))


class _Step(Buffer):
    """The buffer of a step, laid out by `layout`."""

    def __init__(self, builder: ir.IRBuilder, base: Any, size: int) -> None:
        super().__init__(builder, base)
        self.size, self.place = size, layout(size)

    def fma(self, a: Any, b: Any, c: Any) -> Any:
        return intrinsic(self.builder, "fma", a, b, c)

    def combination(self, row: tuple[float, ...], i: Any) -> Any:
        """The sum of the stages' velocities with the weights ``row``."""
        total = None
        for stage, weight in enumerate(row):
            if weight != 0.0:
                k = self.load(self.place["k"] + stage * self.size, i)
                total = (
                    self.builder.fmul(constant(weight), k) if total is None else self.fma(constant(weight), k, total)
                )
        return total

    def stage(self, velocity: ir.Function, row: tuple[float, ...], stage: int) -> None:
        """The velocity at y + h times a combination of those before."""
        h, target = self.load(self.place["step"]), self.place["work"]
        with loop(self.builder, self.size) as i:
            self.store(self.fma(h, self.combination(row, i), self.load(self.place["y"], i)), target, i)
        self.builder.call(velocity, [self.at(target), self.at(self.place["k"] + stage * self.size)])


def _define_attempt(module: ir.Module, functions: dict[str, ir.Function], size: int) -> None:
    function, builder = start(module, "attempt")
    buffer = _Step(builder, function.args[0], size)
    place, fma, combination = buffer.place, buffer.fma, buffer.combination
    h = buffer.load(place["step"])
    for stage in range(1, 12):
        buffer.stage(functions["velocity"], DOP853.A[stage], stage)
    with loop(builder, size) as i:
        buffer.store(fma(h, combination(DOP853.A[12], i), buffer.load(place["y"], i)), place["new"], i)
    # The largest entry of each error over the tolerance; a comparison that NaN fails keeps it.
    rtol, atol = buffer.load(place["rtol"]), buffer.load(place["atol"])
    largest = [builder.alloca(VECTOR), builder.alloca(VECTOR)]
    for each in largest:
        builder.store(constant(0.0), each)
    with loop(builder, size) as i:
        y, new = (intrinsic(builder, "fabs", buffer.load(place[name], i)) for name in ("y", "new"))
        scale = builder.fdiv(h, fma(rtol, builder.select(builder.fcmp_ordered(">", y, new), y, new), atol))
        for each, row in zip(largest, DOP853.E, strict=True):
            error = intrinsic(builder, "fabs", builder.fmul(scale, combination(row, i)))
            before = builder.load(each)
            builder.store(builder.select(builder.fcmp_ordered("<=", error, before), before, error), each)
    fifth, third = (builder.load(each) for each in largest)
    square = builder.fmul(fifth, fifth)
    length = intrinsic(builder, "sqrt", fma(constant(0.01), builder.fmul(third, third), square))
    zero = builder.fcmp_ordered("==", length, constant(0.0))
    error = builder.select(zero, length, builder.fdiv(square, length))
    accepted = builder.fcmp_ordered("<=", error, constant(1.0))
    buffer.store(error, place["error"])
    buffer.store(builder.select(accepted, constant(1.0), constant(0.0)), place["accepted"])
    # SAFETY / error^(1/8) between the bounds; at most 1 after a rejected step, the least after one not finite.
    root = builder.select(builder.fcmp_ordered(">", error, constant(1e-12)), error, constant(1e-12))
    for _ in range(3):
        root = intrinsic(builder, "sqrt", root)
    factor = builder.fdiv(constant(SAFETY), root)
    factor = builder.select(
        builder.fcmp_ordered("<", factor, constant(LARGEST_FACTOR)), factor, constant(LARGEST_FACTOR)
    )
    factor = builder.select(
        builder.fcmp_ordered(">", factor, constant(SMALLEST_FACTOR)), factor, constant(SMALLEST_FACTOR)
    )
    shorter = builder.select(builder.fcmp_ordered("<", factor, constant(1.0)), factor, constant(1.0))
    factor = builder.select(accepted, factor, shorter)
    finite = builder.fcmp_ordered("<", error, constant(float("inf")))
    buffer.store(builder.select(finite, factor, constant(SMALLEST_FACTOR)), place["factor"])
    builder.call(functions["project"], [buffer.at(place["new"]), buffer.at(place["projected"])])
    builder.call(functions["velocity"], [buffer.at(place["projected"]), buffer.at(place["rate"])])
    builder.ret_void()


def _define_extend(module: ir.Module, functions: dict[str, ir.Function], size: int) -> None:
    """Coefficients F of y + x (F0 + (1 - x) (F1 + x (F2 + ...))), x the fraction of the step, as `lie` has them."""
    function, builder = start(module, "extend")
    buffer = _Step(builder, function.args[0], size)
    place, velocity = buffer.place, functions["velocity"]
    builder.call(velocity, [buffer.at(place["new"]), buffer.at(place["k"] + 12 * size)])
    for extra, row in enumerate(DOP853.extra_A):
        buffer.stage(velocity, row, 13 + extra)
    h = buffer.load(place["step"])
    with loop(builder, size) as i:
        change = builder.fsub(buffer.load(place["new"], i), buffer.load(place["y"], i))
        first = builder.fsub(builder.fmul(h, buffer.load(place["k"], i)), change)
        last = builder.fmul(h, buffer.load(place["k"] + 12 * size, i))
        rest = builder.fsub(builder.fsub(change, last), first)
        higher = [builder.fmul(h, buffer.combination(row, i)) for row in DOP853.D]
        for number, value in enumerate((change, first, rest, *higher)):
            buffer.store(value, place["polynomial"] + number * size, i)
    builder.ret_void()


def _define_accept(module: ir.Module, size: int) -> None:
    function, builder = start(module, "accept")
    buffer, place = Buffer(builder, function.args[0]), layout(size)
    accepted = builder.fcmp_ordered("==", buffer.load(place["accepted"]), constant(1.0))
    for source, target in (("projected", "y"), ("rate", "k")):
        with loop(builder, size) as i:
            new, old = buffer.load(place[source], i), buffer.load(place[target], i)
            buffer.store(builder.select(accepted, new, old), place[target], i)
    builder.ret_void()


def define(module: ir.Module, name: str, program: Program, vector: ir.VectorType = VECTOR) -> ir.Function:
    """The function ``name(source, target)`` of a program."""
    function, builder = start(module, name, vector)
    function.attributes.add("noinline")
    for argument in function.args:
        argument.add_attribute("noalias")
    source, target = (Buffer(builder, argument) for argument in function.args)
    values: list[Any] = [None] * program.inputs

    def get(x: Any) -> Any:
        if isinstance(x, float):
            return constant(x, vector)
        if x < program.inputs and values[x] is None:
            values[x] = source.load(x)
        return values[x]

    arithmetic: dict[str, Any] = {"add": builder.fadd, "sub": builder.fsub, "mul": builder.fmul, "div": builder.fdiv}
    for operation, *operands in program.operations:
        given = [get(x) for x in operands]
        if operation == "neg":
            values.append(arithmetic["sub"](constant(-0.0, vector), given[0], flags=_CONTRACT))
        elif operation in arithmetic:
            values.append(arithmetic[operation](*given, flags=_CONTRACT))
        elif operation in _COMPARE:
            values.append(builder.fcmp_ordered(_COMPARE[operation], *given))
        elif operation == "select":
            values.append(builder.select(*given))
        else:  # sqrt, sin, cos, exp, log
            values.append(intrinsic(builder, operation, given[0]))
    for index, output in enumerate(program.outputs):
        target.store(get(output), index)
    builder.ret_void()
    return function
