"""Where the output of an operation lies, from where its inputs lie (`liederivative.layerwise.axes`).

`track` returns the axes of each output, or None where they cannot be known, and whether the operation commutes with
every motion without gain: permutations, maps of the channels alone, sums of what moves alike. What it returns as
commuting has no Lie derivative of its own and needs no term.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from torch import Tensor

from liederivative.actions import Axis, Domain
from liederivative.derivative.rules.pointwise import UNARY
from liederivative.layerwise.axes import (
    Atom,
    Axes,
    Factors,
    Line,
    Union,
    completed,
    copies,
    length,
    lies_in_plane,
    plain,
    plain_axes,
    reshaped,
    simplified,
    whole_line,
    with_copy,
)

VIEWS = ("view", "_unsafe_view", "reshape", "_reshape_alias")
KEEP = ("detach", "alias", "clone", "_to_copy", "lift_fresh", "contiguous")
"""The same entries at the same places."""
RESAMPLING = ("pool", "upsample", "convolution")
PADS = ("constant_pad_nd", "reflection_pad2d", "replication_pad2d", "reflection_pad1d", "replication_pad1d")
REDUCTIONS = ("mean", "sum", "amax", "amin", "logsumexp", "linalg_vector_norm", "var", "std", "prod", "any", "all")
CHANNEL_NORMS = (
    "native_batch_norm",
    "cudnn_batch_norm",
    "_native_batch_norm_legit_no_training",
    "_batch_norm_no_update",
    "miopen_batch_norm",
)
POINTWISE = frozenset(
    {
        *UNARY,
        *(
            "relu",
            "add",
            "sub",
            "rsub",
            "mul",
            "div",
            "neg",
            "maximum",
            "minimum",
            "addcmul",
            "addcdiv",
            "lerp",
            "atan2",
        ),
        *(
            "_prelu_kernel",
            "where",
            "masked_fill",
            "_softmax",
            "_log_softmax",
            "_safe_softmax",
            "log_sigmoid_forward",
            "logaddexp",
        ),
        *("native_layer_norm", "native_group_norm", "_fused_rms_norm", "hypot", "copy", "floor", "round", "ceil"),
    }
)
"""Operations after which every entry lies where it did. (A softmax, a norm: not pointwise, but in place.)"""
ATTENTION = (
    "_scaled_dot_product_flash_attention_for_cpu",
    "_scaled_dot_product_flash_attention",
    "_scaled_dot_product_efficient_attention",
    "_scaled_dot_product_cudnn_attention",
)


def axes_of(raw: Any) -> Axes | None:
    """Where an argument lies: plain for what does not move."""
    if not isinstance(raw, Tensor):
        return None
    if getattr(raw, "moves", False):
        return getattr(raw, "layout_axes", None)
    return plain_axes(raw.shape)


def track(name: str, args: Sequence[Any], kwargs: dict[str, Any], out: Any, index: int | None, domain: Domain) -> Any:
    """The axes of (the index-th part of) ``out``, and whether the operation commutes with the motion."""
    value = out if index is None else out[index]
    if not _any_in_plane((*args, *kwargs.values())):  # nothing moves ideally, and nothing that is made of it
        return plain_axes(value.shape), True
    first = args[0] if args else None
    if isinstance(first, list | tuple):
        return _joined(name, first, args, kwargs, value)
    axes = axes_of(first)
    if name in ATTENTION:
        q, v = axes_of(args[0]), axes_of(args[2])
        return (None if q is None or v is None else (*q[:-1], v[-1])), False
    if name in ("mm", "bmm"):
        return _product(axes, axes_of(args[1]), args[:2])
    if name in ("addmm", "baddbmm", "_sparse_addmm"):
        found, commutes = _product(axes_of(args[1]), axes_of(args[2]), args[1:3])
        bias = args[0]
        return found, commutes and not _spans_plane(bias, found)
    if name in _MOVEMENTS:
        found = None if axes is None else _MOVEMENTS[name](axes, list(args), kwargs, value, index)
        return found, found is not None and axes is not None and _moves_only(name, axes, found, args, kwargs, index)
    if name == "index":
        return (None if axes is None else _indexed(axes, args[1], value)), False
    if name in PADS:
        return (None, False) if axes is None else _padded(name, axes, args[1], value)
    if name == "convolution":
        return _convolved(axes, args, value, domain)
    if "pool" in name or name.startswith(("upsample", "_upsample")):
        return (None if axes is None else _resampled(axes, value, len(domain.size), domain, name, args)), False
    if name in REDUCTIONS or name in ("max", "min"):
        return (None if axes is None else _reduced(axes, args, kwargs, name, value)), False
    if name in CHANNEL_NORMS:
        return axes, axes is not None and not lies_in_plane(axes[1])
    if name in ("pixel_shuffle", "pixel_unshuffle"):
        exact = None if axes is None else _shuffled(axes, args[1], value, name == "pixel_shuffle")
        if exact is not None:
            return exact, True
        found = None if axes is None else _resampled(axes, value, 2, domain, name, args)
        return (None if found is None else (*found[:-3], plain(value.shape[-3]), *found[-2:])), False
    if name == "im2col":
        return (None, False) if axes is None else _unfolded(axes, args, value)
    if name == "col2im":
        return (None, False) if axes is None else _folded(axes, args, domain)
    if name == "repeat":
        return (None if axes is None else _repeated(axes, args[1])), False
    return _pointwise(name, args, value) if name in POINTWISE else (None, False)


def _any_in_plane(raws: Sequence[Any]) -> bool:
    """Whether a moving argument lies in the plane, or may."""
    for raw in raws:
        if isinstance(raw, list | tuple):
            if _any_in_plane(raw):
                return True
        elif getattr(raw, "moves", False):
            axes = getattr(raw, "layout_axes", None)
            if axes is None or any(lies_in_plane(factors) for factors in axes):
                return True
    return False


def _indexed(axes: Axes, indices: Sequence[Any], value: Tensor) -> Axes | None:
    """One tensor of indices along an axis that does not lie in the plane, such as channels in another order."""
    advanced = [i for i, index in enumerate(indices) if index is not None]
    if len(advanced) != 1 or lies_in_plane(axes[advanced[0]]):
        return None
    at = advanced[0]
    new = value.ndim - len(axes) + 1
    return (*axes[:at], *plain_axes(value.shape[at : at + new]), *axes[at + 1 :])


def _repeated(axes: Axes, repeats: Sequence[int]) -> Axes | None:
    wide = (*[plain(1)] * (len(repeats) - len(axes)), *axes)
    if any(n > 1 and lies_in_plane(factors) for n, factors in zip(repeats, wide, strict=True)):
        return None
    return tuple(f if n == 1 else plain(n * length(f)) for n, f in zip(repeats, wide, strict=True))


def _moves_only(
    name: str, axes: Axes, found: Axes, args: Sequence[Any], kwargs: dict[str, Any], index: int | None
) -> bool:
    """Whether a movement keeps each line whole: a crop or a choice of places has another border or another grid."""
    if name in ("select", "unbind"):
        factors = axes[(args[1] if len(args) > 1 else kwargs.get("dim", 0)) % len(axes)]
        if not lies_in_plane(factors):
            return True
        at = index if index is not None else args[2]
        at = at + length(factors) if at < 0 else at
        part = _sliced(factors, at, at + 1, 1)
        return part is not None and not lies_in_plane(part)
    if name in ("slice", "unfold") or "split" in name:
        return {line for f in found for line in lines_of(f)} <= {line for f in axes for line in lines_of(f)}
    return True


def lines_of(factors: Factors) -> set[Line]:
    """The lines that an axis has places of."""
    found: set[Line] = set()
    for factor in factors:
        if isinstance(factor, Atom):
            found |= set() if factor.line is None else {factor.line}
        else:
            found |= {line for part in factor.parts for line in lines_of(part)}
    return found


def _spans_plane(raw: Any, axes: Axes | None) -> bool:
    """Whether a constant has entries along axes that lie in the plane: it does not move with them."""
    if not isinstance(raw, Tensor) or axes is None:
        return False
    if getattr(raw, "moves", False):
        return True
    offset = len(axes) - raw.ndim
    return any(size > 1 and lies_in_plane(axes[offset + i]) for i, size in enumerate(raw.shape) if offset + i >= 0)


def _pointwise(name: str, args: Sequence[Any], value: Tensor) -> tuple[Axes | None, bool]:
    """What broadcasts: each axis as the first argument has it that is as long and lies in the plane."""
    tensors = [raw for raw in args if isinstance(raw, Tensor)]
    known = [(raw, axes_of(raw)) for raw in tensors]
    if not any(axes is not None and getattr(raw, "moves", False) for raw, axes in known):
        return None, False
    result = [plain(size) for size in value.shape]
    agree = True
    for raw, axes in known:
        if axes is None or raw.ndim > value.ndim:
            agree = False
            continue
        for i, factors in enumerate(axes):
            dim = value.ndim - raw.ndim + i
            if length(factors) != value.shape[dim] or not lies_in_plane(factors):
                continue
            if not lies_in_plane(result[dim]):
                result[dim] = factors
            elif result[dim] != factors:
                agree = False
    found = tuple(result)
    if len(copies(found)) > 1 or not agree:
        return found, False
    moving = [(raw, axes) for raw, axes in known if getattr(raw, "moves", False)]
    same = all(axes is not None and raw.shape == value.shape and axes == found for raw, axes in moving)
    if name in ("add", "sub", "rsub"):
        still = [raw for raw in args[:2] if not getattr(raw, "moves", False)]
        constant = any(_spans_plane(raw, found) if isinstance(raw, Tensor) else False for raw in still)
        return found, same and not constant
    if name in ("mul", "div") and len(moving) == 1 and getattr(args[0], "moves", False):
        return found, same and not _spans_plane(args[1], found)
    if name == "neg":
        return found, same
    return found, False


def _product(a: Axes | None, b: Axes | None, raw: Sequence[Any]) -> tuple[Axes | None, bool]:
    """(..., n, m) @ (..., m, l)."""
    if a is None or b is None:
        return None, False
    batch = tuple(x if lies_in_plane(x) else y for x, y in zip(a[:-2], b[:-2], strict=True))
    rows, columns = a[-2], b[-1]
    seen = copies([*batch, rows])
    if lies_in_plane(columns) and seen & copies([columns]):
        columns = with_copy(columns, max(seen | copies([columns])) + 1)
    contracted = lies_in_plane(a[-1]) or lies_in_plane(b[-2])
    # Without a sum over places each factor moves by itself, and so does the product; a constant must not lie there.
    clash = any(lies_in_plane(x) and lies_in_plane(y) for x, y in zip(a[:-2], b[:-2], strict=True))
    still = [r for r in raw if not getattr(r, "moves", False)]
    spans = any(r.ndim > 2 and any(lies_in_plane(x) and r.shape[i] > 1 for i, x in enumerate(batch)) for r in still)
    return completed((*batch, rows, columns)), not contracted and not clash and not spans


def _new_line(old: Factors, size: int, kind: int, domain: Domain) -> Factors:
    """The line of another number of samples over the whole input; the same one if there are as many."""
    line = whole_line(old)
    if line is not None and line.size == size:
        return (Atom(size, line.extended()),)
    if size == 1 or not lies_in_plane(old):
        return plain(size)
    kind = line.kind if line is not None else kind
    return (Atom(size, Line(kind, Axis.over(size, domain.size[kind]))),)


def _shuffled(axes: Axes, r: int, value: Tensor, back: bool) -> Axes | None:
    """Blocks of r x r pixels as channels, and back; None where the channels are not such blocks.

    Blocks that lie partly in a margin are followed pixel by pixel.
    """
    if len(axes) != 4 or any(whole_line(factors) is None for factors in axes[2:]) is not back:
        return None
    B, C, H, W = (length(factors) for factors in axes)  # noqa: N806
    if not back:
        if not any(any(line.margins) for factors in axes[2:] for line in lines_of(factors)):
            return None
        split = reshaped(axes, (B, C, H // r, r, W // r, r))
        order = (0, 1, 3, 5, 2, 4)
    else:
        split = reshaped(axes, (B, C // r**2, r, r, H, W))
        order = (0, 1, 4, 2, 5, 3)
    return None if split is None else reshaped(tuple(split[i] for i in order), value.shape)


Reads = Callable[[int], tuple[int, int]]
"""The first and the last place along an axis of its input that place i of a local operation depends on."""


def _reads(
    name: str, args: Sequence[Any], kind: int, n: int, size: int, new_size: int
) -> tuple[Reads, float, float] | None:
    """What the operation reads along spatial axis ``kind`` of n, and where place i lies: ``scale i + offset``.

    None for an operation of which this is not known.
    """

    def option(index: int, default: int) -> int:
        values = args[index] if len(args) > index else default
        values = [values] if isinstance(values, int) else list(values) or [default]
        return int(values[kind] if len(values) == n else values[0])

    ratio = size / new_size
    middle = (ratio - 1) / 2
    if name == "convolution" or name.startswith(("max_pool", "avg_pool")):
        if name == "convolution":
            reach, stride, pad = (args[1].shape[2 + kind] - 1) * option(5, 1), option(3, 1), option(4, 0)
            if args[6]:  # place o is reached by those i with o = i stride - pad + t, 0 <= t <= reach
                reached = lambda o: (-((reach - o - pad) // stride), (o + pad) // stride)  # noqa: E731
                return reached, 1 / stride, (pad - reach / 2) / stride
        else:
            kernel = option(1, 1)
            stride, pad = option(2, kernel), option(3, 0)
            reach = (kernel - 1) * (option(4, 1) if name.startswith("max_pool") else 1)
        return (lambda i: (i * stride - pad, i * stride - pad + reach)), stride, reach / 2 - pad
    if "adaptive" in name:
        return (lambda i: (i * size // new_size, -(-(i + 1) * size // new_size) - 1)), ratio, middle
    if name == "pixel_unshuffle":
        block = size // new_size
        return (lambda i: (i * block, (i + 1) * block - 1)), ratio, middle
    if new_size % size:
        return None  # torch may take the scale as given, which is not that of the sizes
    if name == "pixel_shuffle" or name.startswith("upsample_nearest"):
        return (lambda i: (i * size // new_size,) * 2), ratio, middle
    if (
        name.startswith(("upsample_linear", "upsample_bilinear", "upsample_trilinear", "upsample_bicubic"))
        and not args[2]
    ):
        beyond = 1 if "bicubic" in name else 0

        def neighbours(i: int) -> tuple[int, int]:
            low = math.floor((i + 0.5) * ratio - 0.5)
            return max(low - beyond, 0), min(low + 1 + beyond, size - 1)

        return neighbours, ratio, middle
    return None


def _with_margins(name: str, args: Sequence[Any], line: Line, kind: int, n: int, new_size: int) -> Factors | None:
    """The axis of a local operation's output where some of its places read nothing but a margin; None if none do."""
    found = _reads(name, args, kind, n, line.size, new_size)
    if found is None or line.shift or not any(line.margins):
        return None
    reads, scale, offset = found
    first, last = line.margins[0], line.size - line.margins[1]
    constant = [reads(i)[1] < first or reads(i)[0] >= last for i in range(new_size)]
    if all(constant):
        return plain(new_size)
    before, after = constant.index(False), constant[::-1].index(False)
    if not before and not after:
        return None
    a = line.extended().axis
    axis = Axis(new_size - before - after, a.start + (offset + scale * before) * a.step, scale * a.step)
    return (Atom(new_size, replace(line, axis=axis, margins=(before, after))),)


def _resampled(
    axes: Axes, value: Tensor, n: int, domain: Domain, name: str = "", args: Sequence[Any] = ()
) -> Axes | None:
    """Channels first, then n spatial axes that are lines, blocks of lines, or neither."""
    n = min(n, len(axes) - 1)
    for i, size in enumerate(value.shape[-n:]):
        dim = len(axes) - n + i
        old = axes[dim]
        line = whole_line(old)
        margins = None if line is None else _with_margins(name, args, line, i, n, size)
        if margins is not None:
            axes = (*axes[:dim], margins, *axes[dim + 1 :])
            continue
        if not lies_in_plane(old) or whole_line(old) is not None:
            axes = (*axes[:dim], _new_line(old, size, i, domain), *axes[dim + 1 :])
            continue
        within = _block_resampled(axes, dim, size, domain)
        if within is None:
            return None
        axes = within
    return axes


def _block_resampled(axes: Axes, dim: int, size: int, domain: Domain) -> Axes | None:
    """Another number of places within each block, such as a window, of the line that axis ``dim`` has blocks of."""
    block = axes[dim][0]
    if len(axes[dim]) > 1 or not isinstance(block, Atom) or block.line is None or block.stride != 1:
        return None
    if size == block.size:
        return axes
    line, count = block.line, block.line.size // block.size
    others = [atom for factors in axes for atom in factors if isinstance(atom, Atom) and atom.line == line]
    if line.size % block.size or line.shift % block.size or any(a.stride % block.size for a in others if a != block):
        return None
    fine = Axis.over(count * size, domain.size[line.kind])
    if any(line.margins):  # the blocks cover more than the input; their middles stay where they are
        coarse = line.extended().axis
        step = coarse.step * block.size / size
        fine = Axis(count * size, coarse.start + ((block.size - 1) * coarse.step - (size - 1) * step) / 2, step)
    new = replace(line, axis=fine, shift=line.shift // block.size * size, margins=(0, 0))

    def renewed(factor: Atom | Union) -> Atom | Union:
        if not isinstance(factor, Atom) or factor.line != line:
            return factor
        if factor == block:
            return Atom(size, new if size > 1 else None)
        return Atom(factor.size, new, factor.stride // block.size * size)

    return tuple(tuple(renewed(factor) for factor in factors) for factors in axes)


def _blocks(factors: Factors, size: int, step: int, count: int) -> tuple[Factors, Factors] | None:
    """A line as ``count`` blocks of ``size`` places, ``step`` apart: the axis of blocks, and that within a block.

    Blocks that overlap or leave gaps lie at their middles, as the output of a convolution does.
    """
    line = whole_line(factors)
    if line is None or line.shift:
        return (plain(count), plain(size)) if not lies_in_plane(factors) else None
    if size == step and count * size == line.size:
        return (Atom(count, line, size),), (Atom(size, line),)
    line = line.extended()
    a = line.axis
    axis = Axis(count, a.start + (size - 1) / 2 * a.step, step * a.step)
    return ((Atom(count, replace(line, axis=axis)),) if count > 1 else plain(1)), plain(size)


def _unfolded(axes: Axes, args: Sequence[Any], value: Tensor) -> tuple[Axes | None, bool]:
    """im2col: (B, C, H, W) -> (B, C kh kw, oh ow)."""
    kernel, dilation, padding, stride = args[1:5]
    if len(axes) != 4 or any(d != 1 for d in dilation) or lies_in_plane(axes[1]):
        return None, False
    found = []
    for factors, k, pad, s in zip(axes[2:], kernel, padding, stride, strict=True):
        line = whole_line(factors)
        if line is None or line.shift:
            return None, False
        wide = replace(line, margins=(line.margins[0] + pad, line.margins[1] + pad))
        count = (wide.size - k) // s + 1
        blocks = _blocks((Atom(wide.size, wide),), k, s, count)
        if blocks is None:
            return None, False
        found.append(blocks)
    (rows, high), (columns, wide) = found
    whole = all(lies_in_plane(inner) for inner in (high, wide))
    return (axes[0], simplified((*axes[1], *high, *wide)), simplified((*rows, *columns))), whole


def _folded(axes: Axes, args: Sequence[Any], domain: Domain) -> tuple[Axes | None, bool]:
    """col2im: (B, C kh kw, oh ow) -> (B, C, H, W)."""
    size, kernel, _, padding, stride = map(list, args[1:6])
    if len(axes) != 3:
        return None, False
    count = [(n + 2 * p - k) // s + 1 for n, k, p, s in zip(size, kernel, padding, stride, strict=True)]
    apart = (
        kernel == stride and not any(padding) and all(c * k == n for c, k, n in zip(count, kernel, size, strict=True))
    )
    channels = length(axes[1]) // (kernel[0] * kernel[1])
    if not lies_in_plane(axes[1]):  # summed up by a kernel, as by a transposed convolution
        grid = reshaped(axes[2:], count)
        if grid is None or any(whole_line(factors) is None for factors in grid):
            return None, False
        lines = [_new_line(old, n, i, domain) for i, (old, n) in enumerate(zip(grid, size, strict=True))]
        return (axes[0], plain(channels), *lines), False
    split = reshaped(axes[1:], (channels, *kernel, *count)) if apart else None
    if split is None:
        return None, False
    c, high, wide, rows, columns = split
    found = reshaped((axes[0], c, rows, high, columns, wide), (length(axes[0]), channels, *size))
    return found, found is not None


def _unfold(axes: Axes, args: list[Any], kwargs: dict[str, Any], value: Tensor, index: int | None) -> Axes | None:
    dim, size, step = args[1] % len(axes), args[2], args[3]
    blocks = _blocks(axes[dim], size, step, value.shape[dim])
    return None if blocks is None else (*axes[:dim], blocks[0], *axes[dim + 1 :], blocks[1])


def _convolved(axes: Axes | None, args: Sequence[Any], value: Tensor, domain: Domain) -> tuple[Axes | None, bool]:
    weight, stride, padding = args[1], args[3], args[4]
    if axes is None or not isinstance(weight, Tensor) or getattr(weight, "moves", False):
        return None, False
    n = weight.ndim - 2
    if len(axes) != n + 2:
        return None, False
    point = all(size == 1 for size in weight.shape[2:]) and all(s == 1 for s in stride) and not any(padding)
    channels = plain(value.shape[1])
    if point:
        if lies_in_plane(axes[1]) and weight.shape[1] == 1:
            return (axes[0], axes[1], *axes[2:]), False
        return completed((axes[0], channels, *axes[2:])), not lies_in_plane(axes[1])
    if lies_in_plane(axes[1]):  # places within a block as channels: summed over, unless channels stay apart
        if args[8] != 1:
            return None, False
        axes = completed((axes[0], plain(length(axes[1])), *axes[2:]))
    found = _resampled(axes, value, n, domain, "convolution", args)
    return (None if found is None else (axes[0], channels, *found[2:])), False


def _reduced(axes: Axes, args: Sequence[Any], kwargs: dict[str, Any], name: str, value: Tensor) -> Axes | None:
    place = 2 if name in ("linalg_vector_norm",) else 1
    dims = args[place] if len(args) > place else kwargs.get("dim")
    if dims is None or dims == []:
        return plain_axes(value.shape)
    gone = {d % len(axes) for d in ([dims] if isinstance(dims, int) else dims)}
    if value.ndim == len(axes):
        return completed(tuple(plain(1) if i in gone else factors for i, factors in enumerate(axes)))
    return completed(tuple(factors for i, factors in enumerate(axes) if i not in gone))


def _padded(name: str, axes: Axes, pads: Sequence[int], value: Tensor) -> tuple[Axes | None, bool]:
    """Padding by a constant lies nowhere, so it has no motion; other padding lies where the axis goes on."""
    result = list(axes)
    constant = name == "constant_pad_nd"
    for i in range(len(pads) // 2):
        before, after = pads[2 * i], pads[2 * i + 1]
        dim = len(axes) - 1 - i
        factors = axes[dim]
        if constant and min(before, after) < 0:  # a crop
            size = length(factors)
            cut = _sliced(factors, max(0, -before), size - max(0, -after), 1)
            if cut is None:
                return None, False
            before, after, factors = max(0, before), max(0, after), cut
        line = whole_line(factors)
        if not before and not after:
            result[dim] = factors
        elif line is not None and not line.shift and constant:
            wide = replace(line, margins=(line.margins[0] + before, line.margins[1] + after))
            result[dim] = (Atom(wide.size, wide),)
        elif line is not None and not line.shift:
            wide = replace(line.extended(), margins=(before, after)).extended()
            result[dim] = (Atom(wide.size, wide),)
        elif not lies_in_plane(factors):
            result[dim] = plain(value.shape[dim])
        else:  # tokens with room before or behind them
            parts = (plain(before), factors, plain(after))
            result[dim] = (Union(tuple(part for part in parts if length(part))),)
    return tuple(result), constant and min(pads, default=0) >= 0


def _sliced(factors: Factors, start: int, stop: int, step: int) -> Factors | None:
    """Entries start, start + step, ... below stop."""
    size = max(0, -(-(stop - start) // step))
    if start == 0 and step == 1 and stop == length(factors):
        return factors
    if not lies_in_plane(factors):
        return plain(size)
    line = whole_line(factors)
    if line is not None and not line.shift:
        # Of the entries taken, those from ``first`` up to ``last`` are samples, the others lie in the margins.
        begin = line.margins[0]
        first, last = (min(max(0, -(-(place - start) // step)), size) for place in (begin, begin + line.axis.size))
        if size < 2 or first >= last:
            return plain(size)
        a = line.axis
        axis = Axis(last - first, a.start + (start + first * step - begin) * a.step, a.step * step)
        return (Atom(size, replace(line, axis=axis, margins=(first, size - last))),)
    if len(factors) == 1 and isinstance(factors[0], Union) and step == 1:
        kept, at = [], 0
        for part in factors[0].parts:
            end = at + length(part)
            low, high = max(start, at), min(stop, end)
            if low < high:
                piece = _sliced(part, low - at, high - at, 1)
                if piece is None:
                    return None
                kept.append(piece)
            at = end
        return kept[0] if len(kept) == 1 else (Union(tuple(kept)),)
    if len(factors) > 1 and step == 1:  # whole runs of the slowest factor
        inner = length(factors[1:])
        if start % inner == 0 and stop % inner == 0:
            outer = _sliced(factors[:1], start // inner, stop // inner, 1)
            return None if outer is None else (*outer, *factors[1:])
    return None


def _joined(
    name: str, raws: Sequence[Any], args: Sequence[Any], kwargs: dict[str, Any], value: Tensor
) -> tuple[Axes | None, bool]:
    """cat and stack."""
    if name not in ("cat", "stack"):
        return None, False
    dim = args[1] if len(args) > 1 else kwargs.get("dim", 0)
    dim %= value.ndim
    parts = [(raw, axes_of(raw)) for raw in raws if raw.ndim > 1 or raw.shape[0] > 0 or raw.ndim == 0]
    if any(axes is None for _, axes in parts):
        return None, False
    if name == "stack":
        parts = [(raw, (*axes[:dim], plain(1), *axes[dim:])) for raw, axes in parts if axes is not None]
    found = [axes for _, axes in parts if axes is not None]
    result: list[Factors] = []
    agree = True
    for i in range(value.ndim):
        if i == dim:
            if any(lies_in_plane(axes[i]) for axes in found):
                result.append((Union(tuple(axes[i] for axes in found)),))
            else:
                result.append(plain(value.shape[i]))
            continue
        spatial = [axes[i] for axes in found if lies_in_plane(axes[i])]
        agree = agree and len({*spatial}) <= 1 and (not spatial or len(spatial) == len(found))
        result.append(spatial[0] if spatial else plain(value.shape[i]))
    return tuple(result), agree


def _view(axes: Axes, args: list[Any], kwargs: dict[str, Any], value: Tensor, index: int | None) -> Axes | None:
    del args, kwargs, index
    return reshaped(axes, value.shape)


def _kept(axes: Axes, args: list[Any], kwargs: dict[str, Any], value: Tensor, index: int | None) -> Axes | None:
    return axes


def _permute(axes: Axes, args: list[Any], kwargs: dict[str, Any], value: Tensor, index: int | None) -> Axes | None:
    return tuple(axes[d % len(axes)] for d in args[1])


def _transpose(axes: Axes, args: list[Any], kwargs: dict[str, Any], value: Tensor, index: int | None) -> Axes | None:
    if len(axes) < 2:
        return axes
    one, two = (args[1], args[2]) if len(args) > 2 else (0, 1)
    order = list(range(len(axes)))
    order[one % len(axes)], order[two % len(axes)] = order[two % len(axes)], order[one % len(axes)]
    return tuple(axes[i] for i in order)


def _unsqueeze(axes: Axes, args: list[Any], kwargs: dict[str, Any], value: Tensor, index: int | None) -> Axes | None:
    dim = args[1] % (len(axes) + 1)
    return (*axes[:dim], plain(1), *axes[dim:])


def _squeeze(axes: Axes, args: list[Any], kwargs: dict[str, Any], value: Tensor, index: int | None) -> Axes | None:
    chosen = args[1] if len(args) > 1 else list(range(len(axes)))
    dims = {d % max(len(axes), 1) for d in ([chosen] if isinstance(chosen, int) else chosen)}
    return tuple(factors for i, factors in enumerate(axes) if not (i in dims and length(factors) == 1))


def _expand(axes: Axes, args: list[Any], kwargs: dict[str, Any], value: Tensor, index: int | None) -> Axes | None:
    missing = value.ndim - len(axes)
    wide = (*plain_axes(value.shape[:missing]), *axes)
    return tuple(f if length(f) == size else plain(size) for f, size in zip(wide, value.shape, strict=True))


def _select(axes: Axes, args: list[Any], kwargs: dict[str, Any], value: Tensor, index: int | None) -> Axes | None:
    dim = (args[1] if len(args) > 1 else kwargs.get("dim", 0)) % len(axes)
    return (*axes[:dim], *axes[dim + 1 :])


def _slice(axes: Axes, args: list[Any], kwargs: dict[str, Any], value: Tensor, index: int | None) -> Axes | None:
    dim = (args[1] if len(args) > 1 else kwargs.get("dim", 0)) % len(axes)
    size = length(axes[dim])
    start = args[2] if len(args) > 2 and args[2] is not None else kwargs.get("start") or 0
    stop = args[3] if len(args) > 3 and args[3] is not None else kwargs.get("end")
    step = args[4] if len(args) > 4 else kwargs.get("step", 1)
    stop = size if stop is None else stop
    start, stop = (min(max(v + size if v < 0 else v, 0), size) for v in (start, stop))
    found = _sliced(axes[dim], start, stop, step)
    return None if found is None else (*axes[:dim], found, *axes[dim + 1 :])


def _split(axes: Axes, args: list[Any], kwargs: dict[str, Any], value: Tensor, index: int | None) -> Axes | None:
    dim = (args[2] if len(args) > 2 else kwargs.get("dim", 0)) % len(axes)
    size, sections = length(axes[dim]), args[1]
    assert index is not None
    start = index * sections if isinstance(sections, int) else sum(sections[:index])
    found = _sliced(axes[dim], start, min(size, start + value.shape[dim]), 1)
    return None if found is None else (*axes[:dim], found, *axes[dim + 1 :])


def _roll(axes: Axes, args: list[Any], kwargs: dict[str, Any], value: Tensor, index: int | None) -> Axes | None:
    shifts = [args[1]] if isinstance(args[1], int) else list(args[1])
    dims = args[2] if len(args) > 2 else kwargs.get("dims", [])
    dims = [dims] if isinstance(dims, int) else list(dims)
    if not dims:
        return None
    result = list(axes)
    for shift, dim in zip(shifts, dims, strict=True):
        line = whole_line(result[dim])
        if line is not None:
            moved = replace(line, shift=(line.shift + shift) % line.size)
            result[dim] = (Atom(line.size, moved),)
        elif lies_in_plane(result[dim]):
            return None
    return tuple(result)


def _flip(axes: Axes, args: list[Any], kwargs: dict[str, Any], value: Tensor, index: int | None) -> Axes | None:
    result = list(axes)
    for dim in args[1]:
        line = whole_line(result[dim])
        if line is not None and not line.shift:
            a = line.axis
            axis = Axis(a.size, a.start + (a.size - 1) * a.step, -a.step)
            result[dim] = (Atom(line.size, replace(line, axis=axis, margins=line.margins[::-1])),)
        elif lies_in_plane(result[dim]):
            return None
    return tuple(result)


def _index_select(axes: Axes, args: list[Any], kwargs: dict[str, Any], value: Tensor, index: int | None) -> Axes | None:
    dim = args[1] % len(axes)
    if lies_in_plane(axes[dim]):
        return None
    return (*axes[:dim], plain(value.shape[dim]), *axes[dim + 1 :])


_MOVEMENTS = {
    **dict.fromkeys(VIEWS, _view),
    **dict.fromkeys(KEEP, _kept),
    "permute": _permute,
    "transpose": _transpose,
    "t": _transpose,
    "unsqueeze": _unsqueeze,
    "squeeze": _squeeze,
    "expand": _expand,
    "select": _select,
    "unbind": _select,
    "slice": _slice,
    "split": _split,
    "split_with_sizes": _split,
    "unsafe_split": _split,
    "unsafe_split_with_sizes": _split,
    "roll": _roll,
    "flip": _flip,
    "index_select": _index_select,
    "unfold": _unfold,
}
