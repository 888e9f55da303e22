"""The time loop of the compiled path: DOP853 with a step size for each lane, eight samples side by side.

An attempted step of all lanes is machine code made for one system (`chnn.simulation.vector_code`), called by its
address; the loop around it is compiled once, by numba, and kept on disk. Outputs are steps, as in
`lie.integrators.dop853` with a projection, or lie on the continuous extension of steps that they do not shorten. A
lane that is done takes the next sample.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import ir
from numba import njit, types
from numba.extending import intrinsic

LANES = 8
EPS = float(np.finfo(np.float64).eps)
DONE, STUCK, NOT_FINITE, TOO_MANY = 0, 1, 2, 3


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


_njit = njit(cache=True, nogil=True, fastmath={"contract"}, error_model="numpy")


@_njit
def first_steps(velocity, Y, K, span, rtol, atol, work, rate):
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
    call(velocity, work, rate)  # pyright: ignore[reportCallIssue]  (numba passes the first argument)
    for lane in range(LANES):
        d2 = 0.0
        for i in range(size):
            scale = atol + rtol * abs(Y[i, lane])
            d2 = max(d2, abs((rate[i, lane] - K[i, lane]) / scale))
        largest = max(one[lane], d2 / first[lane])
        second = max(first[lane] * 1e-3, 1e-6) if largest <= 1e-15 else (0.01 / largest) ** 0.125
        step = min(100.0 * first[lane], second)
        h[lane] = min(step if step == step else 1e-6, span[lane])
    return h


@_njit
def project_all(code, states):
    """Projects states (N, D) in place, eight at a time."""
    count, size = states.shape
    block, moved = np.zeros((size, LANES)), np.zeros((size, LANES))
    for first in range(0, count, LANES):
        for lane in range(LANES):
            row = min(first + lane, count - 1)
            for i in range(size):
                block[i, lane] = states[row, i]
        call(code, block, moved)  # pyright: ignore[reportCallIssue]
        for lane in range(min(LANES, count - first)):
            for i in range(size):
                states[first + lane, i] = moved[i, lane]


@_njit
def solve(code, places, start, times, rtol, atol, max_steps, dense, out, status, where):
    """All outputs of all samples.

    Args:
        code: addresses of ``velocity``, ``attempt``, ``extend``, ``accept`` and ``project``.
        places: where y, k, new, rate, work, polynomial, step, rtol, atol, factor and accepted begin in a step's buffer,
            and its end.
        start: (B, D) states. times: (1, T) or (B, T), increasing.
        dense: whether outputs lie on the continuous extension of the steps, projected, in place of ending steps.
        out: (B, T, D), filled. status: (B,), filled with DONE or a failure. where: (B, 2), time and step of a failure.
    """
    velocity, attempt, extend, accept, project = code
    y, k, new, rate, work, polynomial, step, relative, absolute, factor, accepted, end = places
    batch, size = start.shape
    count = times.shape[1]
    own = 1 if times.shape[0] > 1 else 0  # a row of times for each sample
    buffer = np.zeros((end, LANES))
    Y, K, NEW = buffer[y : y + size], buffer[k : k + size], buffer[new : new + size]
    P = buffer[polynomial : polynomial + 7 * size]
    RATE, WORK, STEP = buffer[rate : rate + size], buffer[work : work + size], buffer[step]
    FACTOR, ACCEPTED = buffer[factor], buffer[accepted]
    buffer[relative], buffer[absolute] = rtol, atol
    H = np.zeros(LANES)
    NOW = np.zeros(LANES)
    sample = np.full(LANES, -1)
    target = np.ones(LANES, dtype=np.int64)
    clock = np.zeros(LANES, dtype=np.int64)  # row of times
    TINY, SPAN = np.zeros(LANES), np.zeros(LANES)
    steps = np.zeros(LANES, dtype=np.int64)
    lands = np.zeros(LANES, dtype=np.bool_)
    following = 0
    active = 0
    while True:
        # Lanes without a sample take the next; one that finds none continues with a step of 0 and is not looked at.
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
                clock[lane] = own * row
                first, final = times[own * row, 0], times[own * row, count - 1]
                SPAN[lane], TINY[lane] = final - first, 16.0 * EPS * max(abs(first), abs(final), EPS)
                NOW[lane] = first
                target[lane] = 1
                steps[lane] = -1
                fresh = True
        if active == 0:
            break
        if fresh:
            call(velocity, Y, K)  # pyright: ignore[reportCallIssue]  (lanes under way get the same again)
            proposals = first_steps(velocity, Y, K, SPAN, rtol, atol, WORK, RATE)
            for lane in range(LANES):
                if steps[lane] == -1:
                    H[lane] = proposals[lane]
                    steps[lane] = 1
        for lane in range(LANES):
            limit = times[clock[lane], count - 1 if dense else target[lane]]
            lands[lane] = NOW[lane] + H[lane] * (1.0 + 1e-10) >= limit
            STEP[lane] = (limit - NOW[lane] if lands[lane] else H[lane]) if sample[lane] >= 0 else 0.0
        call(attempt, buffer, buffer)  # pyright: ignore[reportCallIssue]
        if dense:
            extended = False
            for lane in range(LANES):
                if sample[lane] < 0 or ACCEPTED[lane] != 1.0:
                    continue
                final = times[clock[lane], count - 1]
                reach = final if lands[lane] else NOW[lane] + STEP[lane]
                while target[lane] < count and times[clock[lane], target[lane]] <= reach:
                    if not extended:
                        call(extend, buffer, buffer)  # pyright: ignore[reportCallIssue]
                        extended = True
                    x = (times[clock[lane], target[lane]] - NOW[lane]) / STEP[lane]
                    for i in range(size):
                        value = 0.0
                        for part in range(6, -1, -1):
                            value = (x if part % 2 == 0 else 1.0 - x) * (P[part * size + i, lane] + value)
                        out[sample[lane], target[lane], i] = Y[i, lane] + value
                    target[lane] += 1
        for lane in range(LANES):
            if sample[lane] < 0:
                ACCEPTED[lane] = 0.0
                continue
            wanted = STEP[lane] * FACTOR[lane]
            if ACCEPTED[lane] == 1.0:
                # A step cut short by its limit says little about the next one: it may not shrink the proposal.
                H[lane] = max(H[lane], wanted) if lands[lane] else wanted
                if lands[lane]:
                    NOW[lane] = times[clock[lane], count - 1 if dense else target[lane]]
                else:
                    NOW[lane] += STEP[lane]
                continue
            H[lane] = wanted
            if wanted < TINY[lane]:
                finite = True
                for i in range(size):
                    finite = finite and abs(NEW[i, lane]) < np.inf
                status[sample[lane]] = STUCK if finite else NOT_FINITE
                where[sample[lane], 0] = NOW[lane]
                where[sample[lane], 1] = H[lane]
                sample[lane] = -1
                target[lane] = 1
                active -= 1
        call(accept, buffer, buffer)  # pyright: ignore[reportCallIssue]
        for lane in range(LANES):
            if sample[lane] < 0:
                continue
            if ACCEPTED[lane] == 1.0 and lands[lane]:
                if not dense:
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
    if dense:
        for row in range(batch):
            project_all(project, out[row])
