"""exp, log and pairwise relative elements against pypose, kornia and torchlie: eager, compiled, with backward.

Run with ``pytest benchmarks -s`` on a quiet machine, by ``nox -s "bench(lie)"``, which installs the peers and tells
the allocator to keep its memory: fresh pages would cost more than the arithmetic, for all alike. All take the same
262,144 elements (512 x 512 pairs) in one process. The floor is the time in which this machine copies a tensor of the
size of the result.
"""

from __future__ import annotations

import os
from collections.abc import Callable

import pytest
import torch
from lie.groups import SE3, SO3
from torch import Tensor

pypose = pytest.importorskip("pypose", reason="a peer; pip install 'lie-core[bench]'")
torchlie = pytest.importorskip("torchlie.functional", reason="a peer; pip install 'lie-core[bench]'")
kornia = pytest.importorskip("kornia.geometry.liegroup", reason="a peer; pip install 'lie-core[bench]'")
N, SIDE = 262_144, 512
KEEPS_MEMORY = "MALLOC_TRIM_THRESHOLD_" in os.environ


def random(*shape: int, dtype: torch.dtype) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0), dtype=dtype)


def plain(x: object) -> Tensor:
    """The numbers of a result: a tensor, a pypose element, or a kornia rotation or motion."""
    if isinstance(x, kornia.Se3):
        return torch.cat([x.r.q.data, plain(x.t)], -1)
    if isinstance(x, kornia.So3):
        return x.q.data
    if isinstance(x, pypose.LieTensor):
        return x.tensor()
    return x if isinstance(x, Tensor) else x.unwrap()  # type: ignore[attr-defined]  (a vector of kornia)


def with_backward(f: Callable[[Tensor], object], x: Tensor) -> Callable[[], object]:
    leaf = x.clone().requires_grad_()
    return lambda: torch.autograd.grad(plain(f(leaf)).sum(), leaf)


def our_pairs(a: Tensor) -> Tensor:
    return SE3().pairwise(SE3().exp(a))


def their_pairs(a: Tensor) -> object:
    g = pypose.se3(a).Exp()
    return (g.unsqueeze(0).Inv() @ g.unsqueeze(1)).Log()


Way = tuple[Callable, Tensor]


def maps(dtype: torch.dtype) -> dict[str, dict[str, Way]]:
    """Each map by each library, with an input of its own: pypose and kornia store quaternions."""
    a = random(N, 6, dtype=dtype)
    w = a[:, :3].contiguous()
    twist = a[:, [3, 4, 5, 0, 1, 2]].contiguous()  # all but ours have translations first
    R, g = SO3().exp(w), SE3().exp(a)
    q, p = (plain(x) for x in (pypose.so3(w).Exp(), pypose.se3(twist).Exp()))
    wxyz = q[:, [3, 0, 1, 2]].contiguous()

    def kornia_log(x: Tensor) -> Tensor:
        return kornia.Se3(kornia.So3(kornia_quaternion(x[:, :4])), x[:, 4:]).log()

    return {
        "SO3 exp": {
            "ours": (SO3().exp, w),
            "torchlie": (torchlie.SO3.exp, w),
            "kornia": (lambda x: plain(kornia.So3.exp(x)), w),
            "pypose": (lambda x: pypose.so3(x).Exp(), w),
        },
        "SO3 log": {
            "ours": (SO3().log, R),
            "torchlie": (torchlie.SO3.log, R),
            "kornia": (lambda x: kornia.So3(kornia_quaternion(x)).log(), wxyz),
            "pypose": (lambda x: pypose.SO3(x).Log(), q),
        },
        "SE3 exp": {
            "ours": (SE3().exp, a),
            "torchlie": (torchlie.SE3.exp, twist),
            "kornia": (lambda x: plain(kornia.Se3.exp(x)), twist),
            "pypose": (lambda x: pypose.se3(x).Exp(), twist),
        },
        "SE3 log": {
            "ours": (SE3().log, g),
            "torchlie": (torchlie.SE3.log, g[:, :3].contiguous()),
            "kornia": (kornia_log, torch.cat([wxyz, p[:, :3]], -1)),
            "pypose": (lambda x: pypose.SE3(x).Log(), p),
        },
        "SE3 pairs": {
            "ours": (our_pairs, random(SIDE, 6, dtype=dtype)),
            "pypose": (their_pairs, random(SIDE, 6, dtype=dtype)),
        },
    }


def kornia_quaternion(x: Tensor) -> object:
    from kornia.geometry.quaternion import Quaternion

    return Quaternion(x)


def forward(f: Callable, x: Tensor) -> Callable[[], object]:
    def run() -> object:
        with torch.no_grad():
            return f(x)

    return run


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
@pytest.mark.parametrize("name", ["SO3 exp", "SO3 log", "SE3 exp", "SE3 log", "SE3 pairs"])
def test_against_peers(name: str, dtype: torch.dtype, compare) -> None:
    peers = maps(dtype)[name]
    ours, x = peers.pop("ours")
    compiled = torch.compile(ours, fullgraph=True, dynamic=False)
    result = ours(x)
    torch.testing.assert_close(compiled(x), result, rtol=1e-4, atol=1e-5)
    target = torch.empty_like(result)
    print(f"\nmemory {'kept' if KEEPS_MEMORY else 'NOT kept by the allocator: set MALLOC_TRIM_THRESHOLD_'}", end="")
    for kind, make in (("forward", forward), ("with backward", with_backward)):
        ways: dict[str, Callable[[], object]] = {}
        if kind == "forward":
            ways["copy of the result (the floor)"] = lambda: target.copy_(result)
        ways |= {"compiled": make(compiled, x), "eager": make(ours, x)}
        ways |= {peer: make(f, y) for peer, (f, y) in peers.items()}
        best = compare(f"{name}, {str(dtype)[6:]}, {kind}, a thing", ways, unit="ns", scale=1e-9 * N)
        peer = min(peers, key=best.__getitem__)
        print(f"  compiled is {best[peer] / best['compiled']:.1f} times as fast as the best peer, {peer}")
        if kind == "forward":
            print(f"  and takes {best['compiled'] / best['copy of the result (the floor)']:.1f} times the floor")
        assert best["pypose"] > best["compiled"]


@pytest.mark.parametrize("way", ["eager", "compiled"])
def test_bytes_saved_a_pair(way: str) -> None:
    """What backward keeps for each pair; what it keeps for each element is 512 times less and not counted."""
    sizes: dict[int, int] = {}

    def pack(saved: Tensor) -> Tensor:
        if saved.numel() >= SIDE * SIDE:
            sizes[saved.untyped_storage().data_ptr()] = saved.untyped_storage().nbytes()
        return saved

    f = our_pairs if way == "eager" else torch.compile(our_pairs, fullgraph=True, dynamic=False)
    a = random(SIDE, 6, dtype=torch.float32).requires_grad_()
    f(a)
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda saved: saved):
        f(a)
    print(f"\nSE3 pairs, float32, {way}: {sum(sizes.values()) / SIDE**2:.1f} bytes saved a pair (aim: at most 56)")
    if way == "compiled":
        assert sum(sizes.values()) <= 56 * SIDE**2
