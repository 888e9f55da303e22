"""What every integrator checks where users enter: the state, the times, the first velocity and the numbers.

States in half precision are integrated in float32 and rounded once: there, a small step changes nothing at all. The
field alone sees them in half precision. Methods that control an error or iterate to rounding refuse them, since the
rounding of such a field is far larger than what they look at.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import Tensor

from lie.groups.precision import FLOATING, HALF
from lie.integrators.fields import Field, Finer
from lie.integrators.transforms import active, anywhere

MOST_STEPS = 100_000_000
"""Steps of fixed size beyond which a step size is taken for a mistake: a list of them takes a gigabyte."""

Solver = TypeVar("Solver", bound=Callable[..., Any])


def entrance(*, same_shape: bool = True, per_sample: bool = False, half: bool = True) -> Callable[[Solver], Solver]:
    """Decorate an integrator ``solve(field, y0, t, ...)`` that users may call directly.

    Args:
        same_shape: whether velocities have the shape of the state.
        per_sample: whether each sample has its own step size.
        half: whether the method takes half precisions, in float32.

    The attribute ``unchecked`` of the result is the integrator for a problem that `check_problem` has passed.
    """

    def decorate(solve: Solver) -> Solver:
        @functools.wraps(solve)
        def unchecked(field: Field, y0: Tensor, t: Tensor, **options: Any) -> Any:
            if y0.dtype not in HALF:
                return solve(field, y0, t, **options)
            if not half:
                raise no_half(solve.__name__, y0.dtype)
            wide = torch.promote_types(t.dtype, torch.float32)
            return solve(Finer(field, y0.dtype), y0.float(), t.to(wide), **options).to(y0.dtype)

        @functools.wraps(solve)
        def checked(field: Field, y0: Tensor, t: Tensor, **options: Any) -> Any:
            check_problem(field, y0, t, same_shape=same_shape, per_sample=per_sample)
            return unchecked(field, y0, t, **options)

        checked.unchecked = unchecked  # type: ignore[attr-defined]
        return checked  # type: ignore[return-value]

    return decorate


def unchecked(solver: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """The integrator without the checks of its entrance."""
    if isinstance(solver, functools.partial):
        return functools.partial(unchecked(solver.func), **solver.keywords)
    return getattr(solver, "unchecked", solver)


def no_half(method: str, dtype: torch.dtype) -> TypeError:
    """The error of a method that takes no half precision."""
    return TypeError(
        f"expected a state of float32 or float64 for {method}, got {dtype}, whose rounding is larger than what it "
        "controls; use y0.float(), or a method with fixed steps such as rk4"
    )


def check_problem(field: Field, y0: Tensor, t: Tensor, *, same_shape: bool, per_sample: bool) -> None:
    """Raise unless ``y0`` and ``t`` are a state and times, and the field gives velocities of the state.

    Raises:
        TypeError: for what is no tensor, and for dtypes.
        ValueError: for shapes, devices, values that are not finite, and times that are not strictly monotonic.
    """
    for name, value in (("a state", y0), ("times", t)):
        if not isinstance(value, Tensor):
            raise TypeError(f"expected {name} as a tensor, got {type(value).__name__}; use torch.as_tensor")
    if y0.dtype not in FLOATING or t.dtype not in FLOATING:
        raise TypeError(
            "expected floating-point state and times (float16, bfloat16, float32 or float64), got "
            f"{y0.dtype} and {t.dtype}; use .to(torch.float64)"
        )
    if y0.is_meta or t.is_meta:
        raise ValueError("expected a state and times with values, got one on the device 'meta'; use .to('cpu')")
    if t.device != y0.device and (per_sample or t.device.type != "cpu"):
        raise ValueError(
            f"expected state and times on one device, got {y0.device} and {t.device}; use t.to({str(y0.device)!r})"
        )
    if t.ndim != 1 or t.numel() == 0:
        raise ValueError(f"expected times of shape (T,) with T >= 1, got {tuple(t.shape)}; use t.reshape(-1)")
    compiling = torch.compiler.is_compiling()
    if not compiling:
        if anywhere(~torch.isfinite(y0)) or anywhere(~torch.isfinite(t)):
            raise ValueError("expected a finite initial state and finite times, got NaN or infinity")
        steps = t.diff()
        if anywhere(steps <= 0) and anywhere(steps >= 0):
            raise ValueError("expected strictly increasing or strictly decreasing times; sort them and drop repeats")
    if per_sample and y0.ndim == 0:
        raise ValueError("expected samples along the leading axis, shape (B, ...), got a number; use y0.view(1, 1)")
    if y0.numel() == 0:
        return
    # A view made without gradients of a tensor with them passes for a leaf, and breaks fields that differentiate.
    t, y0 = t.detach(), y0.detach()
    now = t[0]
    if per_sample:
        now = now.to(torch.promote_types(t.dtype, y0.dtype)).expand(len(y0)).view(-1, *([1] * (y0.ndim - 1)))
    with torch.no_grad():
        velocity = _called(field, now, y0, per_sample)
        if not isinstance(velocity, Tensor):
            raise TypeError(f"expected a tensor from field(t, y), got {type(velocity).__name__}")
        if same_shape and velocity.shape != y0.shape:
            raise ValueError(
                f"expected a field of the state's shape {tuple(y0.shape)}, got {tuple(velocity.shape)} from field(t, y)"
            )
        if velocity.device != y0.device:
            raise ValueError(
                f"expected a field on the state's device {y0.device}, got {velocity.device} from field(t, y); move its "
                "parameters or the state"
            )
        allowed = torch.promote_types(t.dtype, y0.dtype)  # coarser, as under autocast, is widened
        if velocity.dtype not in FLOATING or torch.promote_types(velocity.dtype, allowed) != allowed:
            raise TypeError(
                f"expected a field of the state's dtype {y0.dtype}, got {velocity.dtype} from field(t, y); use "
                f".to({y0.dtype}) there, or give the state in {velocity.dtype}"
            )
        if per_sample and not (compiling or active()) and len(y0) > 1:
            _check_samples_apart(field, now, y0, velocity)


def _called(field: Field, now: Tensor, y0: Tensor, per_sample: bool) -> Tensor:
    try:
        return field(now, y0)
    except Exception as error:
        if per_sample:
            dtype = "" if now.dtype == y0.dtype else f" and {now.dtype}, as the times are (t.to(y) has the state's)"
            error.add_note(
                f"with a step size for each sample the field is called with t of shape {tuple(now.shape)}{dtype}"
            )
        raise


def _check_samples_apart(field: Field, now: Tensor, y0: Tensor, velocity: Tensor) -> None:
    """Raise where the first sample's state changes another's velocity: their clocks run apart."""
    moved = torch.cat([y0[:1] + 1e-3 * (1.0 + y0[:1].abs()), y0[1:]])
    rest, again = velocity[1:], field(now, moved)[1:]
    # A batched product may round otherwise for other neighbours.
    scale = rest.abs().amax().clamp(min=1.0)
    if bool(torch.isfinite(again).all()) and bool((again - rest).abs().amax() > 1e-5 * scale):
        raise ValueError(
            f"the field mixes samples: with a step size for each, the {len(y0)} rows of a state {tuple(y0.shape)} are "
            "samples of their own; put a batch axis in front of a single state (y0.unsqueeze(0)), or use a method with "
            "one step size"
        )


def check_tolerances(rtol: Any, atol: Any, *, positive: bool) -> None:
    """Raise unless both are finite and not negative; with ``positive`` also where both are zero."""
    zero = []
    for name, value in (("rtol", rtol), ("atol", atol)):
        if isinstance(value, bool):
            raise TypeError(f"expected {name} as a number, got {value!r}")
        try:
            values = torch.as_tensor(value, dtype=torch.float64).detach()
        except (TypeError, ValueError, RuntimeError):
            raise TypeError(f"expected {name} as a number, got {value!r}") from None
        if not bool((torch.isfinite(values) & (values >= 0)).all()):
            raise ValueError(f"expected a finite {name} that is not negative, got {value}")
        zero.append(bool((values == 0).any()))
    if positive and all(zero):
        raise ValueError(f"expected tolerances that are not both zero, got rtol={rtol}, atol={atol}; raise one")


def check_step_size(step_size: Any, span: float = 0.0) -> None:
    """Raise unless the step size is None or a positive number that cuts ``span`` into a sensible number of steps."""
    if step_size is None:
        return
    if isinstance(step_size, bool) or not isinstance(step_size, int | float | Tensor):
        raise TypeError(f"expected step_size as a number, got {step_size!r}")
    if not step_size > 0:
        raise ValueError(f"expected a positive step_size, got {step_size}; the direction comes from the times")
    if span > MOST_STEPS * float(step_size):
        raise ValueError(
            f"expected a step_size of at most {MOST_STEPS:,} steps, got {step_size} for times {span:g} apart; take a "
            "larger one"
        )


def check_count(value: Any, name: str) -> None:
    """Raise unless ``value`` is an integer of at least 1."""
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"expected {name} as an integer, got {value!r}")
    if not 1 <= value < 2**63:
        raise ValueError(f"expected {name} of at least 1 and below 2^63, got {name}={value}")


def check_first_step(first_step: Any) -> None:
    """Raise unless the first step is None or a finite, positive number."""
    if first_step is None:
        return
    if isinstance(first_step, bool) or not isinstance(first_step, int | float | Tensor):
        raise TypeError(f"expected first_step as a number, got {first_step!r}")
    if not 0.0 < first_step < float("inf"):
        raise ValueError(
            f"expected a finite, positive first_step, got {first_step}; the direction comes from the times"
        )
