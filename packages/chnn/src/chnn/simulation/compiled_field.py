"""A field evaluated by machine code made for its system: two to three dozen operations of torch become one call.

Torch's field of a hundred states costs the dispatch of its operations and the factors of a hundred small matrices, one
after the other. The same arithmetic as one function on rows of states (`chnn.simulation.row_code`), eight or sixteen
side by side, took 9 to 15 us for pendulums and the gyroscope on a core, shared with others, on which one addition by
torch took 2 us and the torch fields 166 to 492 us; ``nox -s "bench(chnn)" -- -k field`` measures it.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from dataclasses import fields
from typing import Any

import torch
from jaxtyping import Float
from lie.run import UserError
from torch import Tensor
from torch._C._functorch import peek_interpreter_stack
from torch.autograd import forward_ad
from torch.utils._python_dispatch import _get_current_dispatch_mode

from chnn.simulation.errors import Untraceable
from chnn.simulation.kernels import kernel_of
from chnn.simulation.run import is_learnt

_ROWS = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64)


class CompiledField:
    """``system.field`` or ``system.momentum_field`` by machine code; made by the `System`'s ``compiled_field`` and
    ``compiled_momentum_field``, where its use is described.

    A call is machine code for plain states: dense float32 or float64 tensors on the CPU, contiguous or not, of which no
    derivative is wanted. For all others it is the torch field: under gradients, the transforms of `torch.func`,
    forward-mode differentiation, `torch.compile` and other tracing, autocast, on other devices, with a force from
    outside; and for wrong shapes and dtypes, of which the torch field tells.

    The two agree to the rounding of a solve, and a state for which one is not finite is so for the other. The system is
    taken as it is when the field is made; one with parts that are learnt is evaluated by machine code under
    ``torch.no_grad`` only. A field can be copied and pickled; whoever unpickles it makes it again.
    """  # fmt: skip

    def __init__(self, system: Any, kind: str) -> None:
        self.system, self.kind = system, kind
        try:
            self._code = kernel_of(system, kind)  # kept as long as its functions may be called
        except Untraceable as error:
            raise UserError(
                f"the field of {system.name} cannot be compiled: {error}; use system.field or system.momentum_field"
            ) from None
        self._functions = {
            getattr(torch, name): _ROWS(address) for name, address in self._code.addresses.items()
        }  # by dtype
        self._shape = (2, system.num_points, system.spatial_dim)
        self._size = 2 * system.num_points * system.spatial_dim
        # What a potential's function uses is not in the description: the field itself tells.
        z = torch.stack([(x := system.description.reference), torch.zeros_like(x)])[None]
        self._learnt = any(tensor.requires_grad for tensor in _tensors(system.description)) or is_learnt(system, z)

    def __call__(
        self,
        z: Float[Tensor, "*batch 2 n d"],
        t: Tensor | None = None,
        external: Callable[[Tensor, Tensor, Tensor], Tensor] | None = None,
    ) -> Float[Tensor, "*batch 2 n d"]:
        """The time derivative of the states z; arguments and errors are those of the torch field."""
        if torch.compiler.is_compiling() or external is not None or not _is_plain(z) or (
            self._learnt and torch.is_grad_enabled()
        ):  # fmt: skip
            return self._by_torch(z, t, external)
        function, count = self._functions.get(z.dtype), z.numel()
        if function is None or count == 0 or z.shape[-3:] != self._shape:
            return self._by_torch(z, t, external)
        rows = z.contiguous()
        rate = torch.empty_like(rows, memory_format=torch.contiguous_format)
        function(rows.data_ptr(), rate.data_ptr(), count // self._size)
        return rate

    def _by_torch(self, z: Tensor, t: Tensor | None, external: Any) -> Tensor:
        if self.kind == "field":
            return self.system.field(z, t, external)
        if external is not None:
            raise UserError("a field of momenta takes no external force; use compiled_field, of velocities")
        return self.system.momentum_field(z)

    def __reduce__(self) -> tuple[Any, ...]:
        return CompiledField, (self.system, self.kind)


def _is_plain(z: Any) -> bool:
    """Whether nobody but the caller looks at what is done with a tensor, and its numbers lie in memory."""
    return (
        type(z) is Tensor
        and z.is_cpu
        and z.layout is torch.strided
        and not z.is_neg()
        and not (z.requires_grad and torch.is_grad_enabled())
        and peek_interpreter_stack() is None
        and _get_current_dispatch_mode() is None
        and torch._C._len_torch_function_stack() == 0
        and forward_ad.unpack_dual(z).tangent is None
        and not torch.is_autocast_enabled("cpu")
        and torch._C._get_tracing_state() is None
    )


def _tensors(part: Any) -> list[Tensor]:
    """The tensors that a description is made of."""
    if isinstance(part, Tensor):
        return [part]
    if isinstance(part, (tuple, list)):
        return [tensor for each in part for tensor in _tensors(each)]
    if isinstance(part, torch.nn.Module):
        return list(part.parameters())
    if hasattr(type(part), "__dataclass_fields__"):
        return [tensor for f in fields(part) for tensor in _tensors(getattr(part, f.name))]
    return []
