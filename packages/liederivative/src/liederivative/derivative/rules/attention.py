r"""Scaled dot-product attention, :math:`O = P V, P = \mathrm{softmax}(s Q K^T + m)`, whose fused kernels know no
forward mode.

With :math:`M = P \odot (s\, dQ K^T + s\, Q dK^T)` and its row sums r,

.. math:: dO = M V - r \odot O + P\, dV ,

so that a tangent costs four matrix products and one pass over the attention map, and the maps of all tangents never
exist at once.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from liederivative.derivative.rules.call import Call


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
    tangents = call.empty(out.shape)
    attention_tangents(tangents, q, k, v, out, moving, bias, bool(causal), scale)
    return tangents, *[None] * (len(call.out) - 1)


def attention_tangents(
    total: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    moving: tuple[Tensor | None, Tensor | None, Tensor | None, Tensor | None],
    bias: Tensor | None,
    causal: bool,
    scale: float,
) -> None:
    """Write into ``total`` the tangents (T, ..., L, E) of attention ``out`` (..., L, E).

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

    def flat(x: Tensor) -> Tensor:  # (..., L, E) -> (B, L, E)
        return x.reshape(-1, *x.shape[-2:])

    q_, k_, v_ = flat(q) * scale, flat(k), flat(v)
    logits = torch.bmm(q_, k_.mT)
    shape = (*q.shape[:-1], k.shape[-2])
    if bias is not None:
        if bias.dtype == torch.bool:
            logits = logits.masked_fill_(~flat(bias.expand(shape)), -math.inf)
        else:
            logits = logits.add_(flat(bias.expand(shape)))
    if causal:
        L, S = logits.shape[-2:]  # noqa: N806
        logits = logits.masked_fill_(torch.ones(L, S, dtype=torch.bool, device=q.device).triu(1), -math.inf)
    P = logits.softmax(-1)  # noqa: N806
    wide = torch.cat([v_, torch.ones_like(v_[..., :1])], -1)  # its last column gives the row sums
    o, keys = flat(out), flat(k) * scale
    # A few tangents at once, as long as their attention maps stay in the cache.
    chunk = max(1, min(len(total), CACHED // max(1, P.numel())))
    q_, keys, wide, P, o = (x.repeat(chunk, 1, 1) for x in (q_, keys, wide, P, o))  # noqa: N806
    M = torch.empty_like(P)  # noqa: N806
    for start in range(0, len(total), chunk):
        here = slice(start, start + chunk)
        moved = flat(total[here])
        n = len(moved)
        m, p = M[:n], P[:n]
        if dq is not None or dk is not None or db is not None:
            if dq is not None:
                torch.bmm(flat(dq[here]), keys[:n].mT, out=m)
                if dk is not None:
                    m.baddbmm_(q_[:n], flat(dk[here]).mT)
            elif dk is not None:
                torch.bmm(q_[:n], flat(dk[here]).mT, out=m)
            else:
                m.zero_()
            if db is not None:
                m.add_(flat(db[here].expand(-1, *shape)))
            both = torch.bmm(m.mul_(p), wide[:n])
            torch.addcmul(both[..., :-1], both[..., -1:], o[:n], value=-1, out=moved)
        else:
            moved.zero_()
        if dv is not None:
            moved.baddbmm_(p, flat(dv[here]))


CACHED = 500_000
"""Entries of attention maps that are worked on at once: two megabytes in single precision, about a core's cache."""


RULES = dict.fromkeys(
    (
        "_scaled_dot_product_flash_attention_for_cpu",
        "_scaled_dot_product_flash_attention",
        "_scaled_dot_product_efficient_attention",
        "_scaled_dot_product_cudnn_attention",
    ),
    _attention,
)
