r"""The push-forward of several tangents through a model, :math:`Df(x)[v_k]`, by forward-mode differentiation.

Not every model can be differentiated in the fastest way: fused attention has no forward-mode rule, fused
recurrent kernels neither, and a user's own operation may have no rule for many tangents at once. So there is
a ladder of rungs; the first one that carries the model is used, and its name stands beside the result.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass

import torch
from lie.autodiff import jvp_along
from lie.run import UserError
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel


@dataclass(frozen=True)
class Rung:
    """One way to differentiate a model in forward mode."""

    name: str
    vectorised: bool = True
    """several tangents in one pass"""
    mkldnn: bool = True
    """oneDNN kernels allowed"""


LADDER = (
    Rung("forward mode"),
    Rung("forward mode, oneDNN off", mkldnn=False),
    Rung("forward mode, one tangent a pass", vectorised=False),
    Rung("forward mode, one tangent a pass, oneDNN off", vectorised=False, mkldnn=False),
)
"""From fast to slow. Attention is computed by its plain formula on all of them: it has forward-mode rules."""


@dataclass(frozen=True)
class PushForward:
    """What `push_forward` found."""

    value: Tensor
    """``f(x)``"""
    derivative: Tensor
    """``Df(x)[v_k]``, of shape (K, ...)"""
    rung: Rung


def push_forward(
    f: Callable[..., Tensor],
    x: Tensor | Sequence[Tensor],
    tangents: Tensor | Sequence[Tensor],
    *,
    tangents_per_pass: int = 7,
    ladder: Sequence[Rung] = LADDER,
) -> PushForward:
    """The value of ``f`` at ``x`` and its derivative along K tangents.

    Args:
        f: map on one or several tensors; no gradient with respect to its parameters is recorded.
        x: point, or the points of several arguments.
        tangents: K tangents at ``x``, (K, *x.shape), or those of each argument.
        tangents_per_pass: how many are pushed in one pass; fewer take less memory and more time.
        ladder: rungs to try, in order.

    Raises:
        UserError: if ``f`` runs but no rung can differentiate it. An error of ``f`` itself comes through.
    """
    points = [x] if isinstance(x, Tensor) else list(x)
    velocities = [tangents] if isinstance(tangents, Tensor) else list(tangents)
    failures: list[RuntimeError] = []
    for rung in ladder:
        with ExitStack() as stack:
            stack.enter_context(warnings.catch_warnings())
            warnings.filterwarnings("ignore", message="TF32 acceleration on top of oneDNN")  # said by the switch
            stack.enter_context(torch.no_grad())
            stack.enter_context(sdpa_kernel(SDPBackend.MATH))
            if not rung.mkldnn:
                stack.enter_context(torch.backends.mkldnn.flags(enabled=False))
            try:
                value, derivative = _push(f, points, velocities, tangents_per_pass if rung.vectorised else 1)
                return PushForward(value, derivative, rung)
            except torch.OutOfMemoryError:
                raise  # another rung would only need more time
            except RuntimeError as error:
                if not failures:
                    f(*points)  # if the model cannot run at all, its own error is the one to show
                failures.append(error)
    reason = str(failures[0]).strip().splitlines()[0]
    raise UserError(
        f"the model runs but cannot be differentiated in forward mode: {reason}; replace that operation by one "
        "with a forward-mode rule"
    ) from failures[0]


def _push(
    f: Callable[..., Tensor], points: list[Tensor], tangents: list[Tensor], tangents_per_pass: int
) -> tuple[Tensor, Tensor]:
    value, derivatives = None, []
    for chunk in zip(*(tangent.split(tangents_per_pass) for tangent in tangents), strict=True):
        single = len(chunk[0]) == 1  # without the overhead of vmap
        velocity = [tangent[0] for tangent in chunk] if single else list(chunk)
        first_value, derivative = jvp_along(lambda parts: f(*parts), points, velocity)
        derivatives.append(derivative[None] if single else derivative)
        value = first_value if value is None else value
    assert value is not None
    return value, torch.cat(derivatives)
