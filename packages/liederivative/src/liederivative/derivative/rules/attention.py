r"""Scaled dot-product attention, :math:`O = P V, P = \mathrm{softmax}(S), S = s Q K^T + m`, whose fused kernels know no
forward mode:

.. math:: dO = dP\, V + P\, dV, \qquad dP = P \odot (dS - \mathrm{rowsum}(P \odot dS)),
          \qquad dS = s\, dQ K^T + s\, Q dK^T + dm ,

four matrix products a tangent. They are taken for a few samples and one tangent at a time, so that the attention maps
at hand stay in the cache, and those of all tangents never exist at once.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from liederivative.derivative.rules.call import Call

aten = torch.ops.aten


def _attention(call: Call) -> Any:
    name = call.func._schema.name[6:]
    q, k, v = call.args[:3]
    if name.endswith("for_cpu"):
        bias, causal = call.kwargs.get("attn_mask"), call.get(4, False, "is_causal")
        dropout = call.get(3, 0.0, "dropout_p")
    elif "flash" in name:
        bias, dropout, causal = None, call.get(3, 0.0, "dropout_p"), call.get(4, False, "is_causal")
    else:  # efficient, cudnn
        bias, dropout = call.get(3, None, "attn_bias"), call.get(5, 0.0, "dropout_p")
        causal = call.get(6, False, "is_causal")
    if dropout:
        return NotImplemented
    along_bias = call.t(99, "attn_mask") if name.endswith("for_cpu") else call.t(3) if "flash" not in name else None
    out = call.out[0]
    scale = call.kwargs.get("scale")
    scale = 1 / math.sqrt(q.shape[-1]) if scale is None else scale
    moving = (call.t(0), call.t(1), call.t(2), along_bias)
    tangents = call.empty_like(out)
    attention_tangents(tangents, q, k, v, moving, bias, bool(causal), scale)
    return tangents, *[None] * (len(call.out) - 1)


def attention_tangents(
    total: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    moving: tuple[Tensor | None, Tensor | None, Tensor | None, Tensor | None],
    bias: Tensor | None,
    causal: bool,
    scale: float,
) -> None:
    """Write into ``total`` the tangents (T, B, H, L, E) of the attention of q, k and v (B, H, ...).

    ``moving`` are the tangents of queries, keys, values and bias.

    Fewer heads of keys and values than of queries are repeated, as torch's ``enable_gqa`` does.
    """
    dq, dk, dv, db = moving
    heads = q.shape[-3]
    if k.shape[-3] != heads:
        times = heads // k.shape[-3]
        k, v = k.repeat_interleave(times, -3), v.repeat_interleave(times, -3)
        dk = None if dk is None else dk.repeat_interleave(times, -3)
        dv = None if dv is None else dv.repeat_interleave(times, -3)

    L, S = q.shape[-2], k.shape[-2]  # noqa: N806
    bias = None if bias is None else bias.expand(*q.shape[:-1], S)
    db = None if db is None else db.expand(-1, *q.shape[:-1], S)
    step = max(1, (CACHED if q.device.type == "cpu" else HELD) // max(1, heads * L * S))
    for start in range(0, len(q), step):
        chunk = slice(start, start + step)

        def part(x: Tensor, chunk: slice = chunk) -> Tensor:  # (B, H, ...) -> (n H, ...), a view if n = 1
            return x[chunk].flatten(0, 1)

        keys, values = part(k) * scale, part(v).contiguous()
        queries = part(q) * scale
        logits = torch.bmm(queries, part(k).mT)
        if bias is not None:
            mask = part(bias)
            logits = logits.masked_fill_(~mask, -math.inf) if mask.dtype == torch.bool else logits.add_(mask)
        if causal:
            logits = logits.masked_fill_(torch.ones(L, S, dtype=torch.bool, device=q.device).triu(1), -math.inf)
        P = logits.softmax(-1)  # noqa: N806
        keys = keys.mT.contiguous()
        dS = torch.empty_like(P)  # noqa: N806
        for t, moved in enumerate(total):
            target = moved[chunk]
            out = target[0] if len(target) == 1 else torch.empty_like(target, memory_format=torch.contiguous_format)
            out = out if len(target) == 1 else out.flatten(0, 1)
            beta = 1
            if dq is not None:
                torch.bmm(part(dq[t]), keys, out=dS)
                if dk is not None:
                    dS.baddbmm_(queries, part(dk[t]).mT)
            elif dk is not None:
                torch.bmm(queries, part(dk[t]).mT, out=dS)
            elif db is not None:
                dS.zero_()
            else:
                beta = 0
            if db is not None:
                dS.add_(part(db[t]))
            if beta:
                torch.bmm(aten._softmax_backward_data(dS, P, -1, dS.dtype), values, out=out)
            if dv is not None:
                torch.baddbmm(out, P, part(dv[t]), beta=beta, out=out)
            if len(target) > 1:
                target.copy_(out.view(target.shape))


CACHED = 200_000
"""Entries of attention maps that are worked on at once: with their tangents less than two megabytes in single
precision, about a core's cache."""
HELD = 2**26
"""The same on an accelerator, where many small products cost more than memory: a quarter of a gigabyte a map."""


RULES = dict.fromkeys(
    (
        "_scaled_dot_product_flash_attention_for_cpu",
        "_scaled_dot_product_flash_attention",
        "_scaled_dot_product_efficient_attention",
        "_scaled_dot_product_cudnn_attention",
    ),
    _attention,
)
