"""The time loop of the compiled path: DOP853 with a step size for each lane, eight samples side by side.

The equations of motion and the projection are addresses of machine code made for one system (`vector_code`); the loop
is compiled once, by numba, and kept on disk. The steps are those of `lie.integrators.dop853`: the same tableau, error,
step sizes and projection, and outputs that are steps. A lane that is done takes the next sample.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from lie.integrators.tableaux import DOP853
from llvmlite import ir
from numba import njit, types
from numba.extending import intrinsic

LANES = 8
STAGES = 12
EPS = float(np.finfo(np.float64).eps)
SAFETY, SMALLEST, LARGEST = 0.85, 0.2, 10.0
DONE, STUCK, NOT_FINITE, TOO_MANY = 0, 1, 2, 3
A, E = DOP853.A, DOP853.E


@intrinsic
def call(typingctx: Any, address: Any, source: Any, target: Any) -> Any:
    """``f(source, target)`` of the machine code at an address."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        pointer = ir.PointerType(ir.IntType(8))
        data = [
            builder.bitcast(context.make_array(kind)(context, builder, value).data, pointer)
            for kind, value in zip(signature.args[1:], args[1:], strict=True)
        ]
        kind = ir.FunctionType(ir.VoidType(), [pointer, pointer])
        builder.call(builder.inttoptr(args[0], ir.PointerType(kind)), data)
        return context.get_dummy_value()

    return types.void(types.int64, source, target), codegen


@njit(cache=True, nogil=True, fastmath={"contract"}, error_model="numpy", inline="never")
def first_steps(acceleration, Y, K, span, rtol, atol, work, rate):
    """A first step of every lane (Hairer, Norsett, Wanner 1993, section II.4)."""
    size = Y.shape[0]
    h = np.empty(LANES)
    first = np.empty(LANES)
    one = np.empty(LANES)
    for lane in range(LANES):
        d0 = 0.0
        d1 = 0.0
        for i in range(size):
            scale = atol + rtol * abs(Y[i, lane])
            d0 = max(d0, abs(Y[i, lane] / scale))
            d1 = max(d1, abs(K[i, lane] / scale))
        one[lane] = d1
        first[lane] = 1e-6 if d0 < 1e-5 or d1 < 1e-5 else 0.01 * d0 / d1
        for i in range(size):
            work[i, lane] = Y[i, lane] + first[lane] * K[i, lane]
    evaluate(acceleration, work, rate)
    for lane in range(LANES):
        d2 = 0.0
        for i in range(size):
            scale = atol + rtol * abs(Y[i, lane])
            d2 = max(d2, abs((rate[i, lane] - K[i, lane]) / scale))
        largest = max(one[lane], d2 / first[lane])
        second = max(first[lane] * 0.001, 1e-06) if largest <= 1e-15 else (0.01 / largest) ** 0.125
        step = min(100.0 * first[lane], second)
        h[lane] = min(step if step == step else 1e-6, span)
    return h


@njit(cache=True, nogil=True, fastmath={"contract"}, error_model="numpy", inline="never")
def evaluate(acceleration, Y, out):
    """The velocity of the states of all lanes: the velocities themselves, and the accelerations of the program."""
    half = Y.shape[0] // 2
    call(acceleration, Y, out[half:])
    for i in range(half):
        for lane in range(LANES):
            out[i, lane] = Y[half + i, lane]


@njit(cache=True, nogil=True, fastmath={"contract"}, error_model="numpy", inline="never")
def stages(acceleration, Y, K, H, WORK, RATE, NEW):
    """All stages of a step of every lane, and the new state before its projection."""
    size = Y.shape[0]
    for i in range(size):
        for lane in range(LANES):
            WORK[i, lane] = Y[i, lane] + H[lane] * (A[1][0] * K[0, i, lane])
    evaluate(acceleration, WORK, K[1])
    for i in range(size):
        for lane in range(LANES):
            WORK[i, lane] = Y[i, lane] + H[lane] * (A[2][0] * K[0, i, lane] + A[2][1] * K[1, i, lane])
    evaluate(acceleration, WORK, K[2])
    for i in range(size):
        for lane in range(LANES):
            WORK[i, lane] = Y[i, lane] + H[lane] * (A[3][0] * K[0, i, lane] + A[3][2] * K[2, i, lane])
    evaluate(acceleration, WORK, K[3])
    for i in range(size):
        for lane in range(LANES):
            WORK[i, lane] = Y[i, lane] + H[lane] * (
                A[4][0] * K[0, i, lane] + A[4][2] * K[2, i, lane] + A[4][3] * K[3, i, lane]
            )
    evaluate(acceleration, WORK, K[4])
    for i in range(size):
        for lane in range(LANES):
            WORK[i, lane] = Y[i, lane] + H[lane] * (
                A[5][0] * K[0, i, lane] + A[5][3] * K[3, i, lane] + A[5][4] * K[4, i, lane]
            )
    evaluate(acceleration, WORK, K[5])
    for i in range(size):
        for lane in range(LANES):
            WORK[i, lane] = Y[i, lane] + H[lane] * (
                A[6][0] * K[0, i, lane] + A[6][3] * K[3, i, lane] + A[6][4] * K[4, i, lane] + A[6][5] * K[5, i, lane]
            )
    evaluate(acceleration, WORK, K[6])
    for i in range(size):
        for lane in range(LANES):
            WORK[i, lane] = Y[i, lane] + H[lane] * (
                A[7][0] * K[0, i, lane]
                + A[7][3] * K[3, i, lane]
                + A[7][4] * K[4, i, lane]
                + A[7][5] * K[5, i, lane]
                + A[7][6] * K[6, i, lane]
            )
    evaluate(acceleration, WORK, K[7])
    for i in range(size):
        for lane in range(LANES):
            WORK[i, lane] = Y[i, lane] + H[lane] * (
                A[8][0] * K[0, i, lane]
                + A[8][3] * K[3, i, lane]
                + A[8][4] * K[4, i, lane]
                + A[8][5] * K[5, i, lane]
                + A[8][6] * K[6, i, lane]
                + A[8][7] * K[7, i, lane]
            )
    evaluate(acceleration, WORK, K[8])
    for i in range(size):
        for lane in range(LANES):
            WORK[i, lane] = Y[i, lane] + H[lane] * (
                A[9][0] * K[0, i, lane]
                + A[9][3] * K[3, i, lane]
                + A[9][4] * K[4, i, lane]
                + A[9][5] * K[5, i, lane]
                + A[9][6] * K[6, i, lane]
                + A[9][7] * K[7, i, lane]
                + A[9][8] * K[8, i, lane]
            )
    evaluate(acceleration, WORK, K[9])
    for i in range(size):
        for lane in range(LANES):
            WORK[i, lane] = Y[i, lane] + H[lane] * (
                A[10][0] * K[0, i, lane]
                + A[10][3] * K[3, i, lane]
                + A[10][4] * K[4, i, lane]
                + A[10][5] * K[5, i, lane]
                + A[10][6] * K[6, i, lane]
                + A[10][7] * K[7, i, lane]
                + A[10][8] * K[8, i, lane]
                + A[10][9] * K[9, i, lane]
            )
    evaluate(acceleration, WORK, K[10])
    for i in range(size):
        for lane in range(LANES):
            WORK[i, lane] = Y[i, lane] + H[lane] * (
                A[11][0] * K[0, i, lane]
                + A[11][3] * K[3, i, lane]
                + A[11][4] * K[4, i, lane]
                + A[11][5] * K[5, i, lane]
                + A[11][6] * K[6, i, lane]
                + A[11][7] * K[7, i, lane]
                + A[11][8] * K[8, i, lane]
                + A[11][9] * K[9, i, lane]
                + A[11][10] * K[10, i, lane]
            )
    evaluate(acceleration, WORK, K[11])
    for i in range(size):
        for lane in range(LANES):
            NEW[i, lane] = Y[i, lane] + H[lane] * (
                A[12][0] * K[0, i, lane]
                + A[12][5] * K[5, i, lane]
                + A[12][6] * K[6, i, lane]
                + A[12][7] * K[7, i, lane]
                + A[12][8] * K[8, i, lane]
                + A[12][9] * K[9, i, lane]
                + A[12][10] * K[10, i, lane]
                + A[12][11] * K[11, i, lane]
            )


@njit(cache=True, nogil=True, fastmath={"contract"}, error_model="numpy", inline="never")
def error_sizes(Y, NEW, K, H, rtol, atol, fifth, third):
    """The errors of orders 5 and 3 over the tolerance, the largest entry of each lane."""
    fifth[:] = 0.0
    third[:] = 0.0
    for i in range(Y.shape[0]):
        for lane in range(LANES):
            scale = H[lane] / (atol + rtol * max(abs(Y[i, lane]), abs(NEW[i, lane])))
            a = abs(
                scale
                * (
                    E[0][0] * K[0, i, lane]
                    + E[0][5] * K[5, i, lane]
                    + E[0][6] * K[6, i, lane]
                    + E[0][7] * K[7, i, lane]
                    + E[0][8] * K[8, i, lane]
                    + E[0][9] * K[9, i, lane]
                    + E[0][10] * K[10, i, lane]
                    + E[0][11] * K[11, i, lane]
                )
            )
            b = abs(
                scale
                * (
                    E[1][0] * K[0, i, lane]
                    + E[1][5] * K[5, i, lane]
                    + E[1][6] * K[6, i, lane]
                    + E[1][7] * K[7, i, lane]
                    + E[1][8] * K[8, i, lane]
                    + E[1][9] * K[9, i, lane]
                    + E[1][10] * K[10, i, lane]
                    + E[1][11] * K[11, i, lane]
                )
            )
            # A comparison that NaN fails keeps it.
            fifth[lane] = fifth[lane] if a <= fifth[lane] else a
            third[lane] = third[lane] if b <= third[lane] else b


@njit(cache=True, nogil=True, fastmath={"contract"}, error_model="numpy")
def solve(acceleration, project, start, times, rtol, atol, max_steps, out, status, where):
    """All outputs of all samples.

    Args:
        acceleration, project: addresses of the machine code of the system.
        start: (B, D) states. times: (T,), increasing.
        out: (B, T, D), filled. status: (B,), filled with DONE or a failure. where: (B, 2), time and step of a failure.
    """
    batch, size = start.shape
    count = times.shape[0]
    span = times[count - 1] - times[0]
    tiny = 16.0 * EPS * max(abs(times[0]), abs(times[count - 1]), EPS)
    Y = np.zeros((size, LANES))
    NEW = np.zeros((size, LANES))
    WORK = np.zeros((size, LANES))
    K = np.zeros((STAGES, size, LANES))
    RATE = np.zeros((size, LANES))
    H = np.zeros(LANES)
    STEP = np.zeros(LANES)
    NOW = np.zeros(LANES)
    sample = np.full(LANES, -1)
    target = np.ones(LANES, dtype=np.int64)
    steps = np.zeros(LANES, dtype=np.int64)
    lands = np.zeros(LANES, dtype=np.bool_)
    fifth = np.zeros(LANES)
    third = np.zeros(LANES)
    ok = np.zeros(LANES, dtype=np.bool_)
    following = 0
    active = 0
    while True:
        # Lanes without a sample take the next; one that finds none repeats a sample and is not looked at.
        fresh = False
        for lane in range(LANES):
            if sample[lane] < 0 and (following < batch or steps[lane] == 0):
                row = following if following < batch else 0
                for i in range(size):
                    Y[i, lane] = start[row, i]
                if following < batch:
                    for i in range(size):
                        out[row, 0, i] = start[row, i]
                    sample[lane] = row
                    following += 1
                    active += 1
                NOW[lane] = times[0]
                target[lane] = 1
                steps[lane] = -1
                fresh = True
        if active == 0:
            return
        if fresh:
            evaluate(acceleration, Y, RATE)
            for lane in range(LANES):
                if steps[lane] == -1:
                    for i in range(size):
                        K[0, i, lane] = RATE[i, lane]
            proposals = first_steps(acceleration, Y, K[0], span, rtol, atol, WORK, RATE)
            for lane in range(LANES):
                if steps[lane] == -1:
                    H[lane] = proposals[lane]
                    steps[lane] = 1
        for lane in range(LANES):
            limit = times[target[lane]]
            lands[lane] = NOW[lane] + H[lane] * (1.0 + 1e-10) >= limit
            STEP[lane] = limit - NOW[lane] if lands[lane] else H[lane]
            if sample[lane] < 0:
                STEP[lane] = 0.0
        stages(acceleration, Y, K, STEP, WORK, RATE, NEW)
        error_sizes(Y, NEW, K, STEP, rtol, atol, fifth, third)
        call(project, NEW, WORK)
        evaluate(acceleration, WORK, RATE)
        for lane in range(LANES):
            if sample[lane] < 0:
                ok[lane] = False
                continue
            five = fifth[lane]
            length = np.sqrt(five * five + 0.01 * third[lane] * third[lane])
            error = length if length == 0.0 or length != length else five * five / length
            accepted = error <= 1.0
            ok[lane] = accepted
            factor = SAFETY * np.exp(-0.125 * np.log(max(error, 1e-12))) if error < np.inf else SMALLEST
            factor = min(max(factor, SMALLEST), LARGEST)
            if not accepted:
                factor = min(factor, 1.0)
            wanted = STEP[lane] * factor
            H[lane] = max(H[lane], wanted) if lands[lane] and accepted else wanted
            if not accepted and H[lane] < tiny:
                finite = True
                for i in range(size):
                    finite = finite and abs(NEW[i, lane]) < np.inf
                status[sample[lane]] = STUCK if finite else NOT_FINITE
                where[sample[lane], 0] = NOW[lane]
                where[sample[lane], 1] = H[lane]
                sample[lane] = -1
                active -= 1
                continue
            if accepted:
                NOW[lane] = times[target[lane]] if lands[lane] else NOW[lane] + STEP[lane]
        for i in range(size):
            for lane in range(LANES):
                Y[i, lane] = WORK[i, lane] if ok[lane] else Y[i, lane]
                K[0, i, lane] = RATE[i, lane] if ok[lane] else K[0, i, lane]
        for lane in range(LANES):
            if sample[lane] < 0:
                continue
            if ok[lane] and lands[lane]:
                for i in range(size):
                    out[sample[lane], target[lane], i] = Y[i, lane]
                target[lane] += 1
                if target[lane] == count:
                    status[sample[lane]] = DONE
                    sample[lane] = -1
                    target[lane] = 1
                    active -= 1
                    continue
            if steps[lane] >= max_steps:
                status[sample[lane]] = TOO_MANY
                where[sample[lane], 0] = NOW[lane]
                where[sample[lane], 1] = H[lane]
                sample[lane] = -1
                target[lane] = 1
                active -= 1
            steps[lane] += 1
