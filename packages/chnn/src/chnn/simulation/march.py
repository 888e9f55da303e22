"""RATTLE by machine code: the loop over steps and over groups of eight samples, compiled once by numba."""

from __future__ import annotations

import numpy as np
from numba import njit

from chnn.simulation.loops import LANES, call


@njit(cache=True, nogil=True, error_model="numpy")
def march(few, many, weights, counts, lengths, enough, limit, state, out, where):
    """Steps all samples on to the end of every interval.

    Args:
        few, many: addresses of the step with few and with many iterations: (x, v, a, h) -> (x, v, a, left).
        weights: parts of a step. counts, lengths: (I,), steps of each interval and their length.
        enough, limit: what may be left, after few and after many iterations.
        state: (B, 3 N), position, velocity and acceleration, changed in place.
        out: (B, I, 2 N). where: (B, 2), NaN, or interval and step at which a sample failed.
    """
    batch, size = state.shape
    source, target = np.zeros((size + 1, LANES)), np.zeros((size + 1, LANES))
    for first in range(0, batch, LANES):
        members = min(LANES, batch - first)
        for lane in range(LANES):
            for i in range(size):
                source[i, lane] = state[first + min(lane, members - 1), i]
        failed = False
        for interval in range(counts.shape[0]):
            for step in range(counts[interval]):
                for weight in weights:
                    source[size] = weight * lengths[interval]
                    call(few, source, target)  # pyright: ignore[reportCallIssue]  (numba passes the first argument)
                    left = 0.0
                    for lane in range(LANES):
                        left = target[size, lane] if not target[size, lane] <= left else left
                    if not left <= enough:
                        call(many, source, target)  # pyright: ignore[reportCallIssue]
                        for lane in range(members):
                            if not target[size, lane] <= limit:
                                where[first + lane, 0], where[first + lane, 1] = interval, step
                                failed = True
                        if failed:
                            break
                    source[:size] = target[:size]
                if failed:
                    break
            if failed:
                break
            for lane in range(members):
                for i in range(out.shape[2]):
                    out[first + lane, interval, i] = source[i, lane]
        for lane in range(members):
            for i in range(size):
                state[first + lane, i] = source[i, lane]
