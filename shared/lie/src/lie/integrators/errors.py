"""The error of an integration that cannot go on."""

from __future__ import annotations

from torch import Tensor


class IntegrationError(FloatingPointError):
    """An integration that cannot go on: step underflow, values that are not finite, too many steps, no convergence.

    Attributes:
        reached: the states found so far, (T, ...) like the result, NaN from where a sample stopped; or None.
        time: the earliest time at which a sample stopped.
        step_size: the step that failed there.
        samples: positions of the samples that stopped along the leading axis of the state.
    """

    def __init__(
        self, reason: str, remedy: str, *, time: float, step_size: float, samples: list[int], reached: Tensor | None
    ) -> None:
        shown = ", ".join(map(str, samples[:5])) + (", ..." if len(samples) > 5 else "")
        where = f" (sample{'s' if len(samples) > 1 else ''} {shown})" if samples else ""
        when = f" at t = {time:.6g}" if time == time else ""  # NaN where there is no time, as in a projection
        when += f" with step {step_size:.3g}" if step_size == step_size else ""
        super().__init__(f"{reason}{when}{where}; {remedy}")
        self.time, self.step_size, self.samples, self.reached = time, step_size, samples, reached
