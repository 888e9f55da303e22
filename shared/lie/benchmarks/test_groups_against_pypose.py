"""exp, log and pairwise relative elements against pypose, eager and compiled, forward and with backward.

Run with ``pytest benchmarks -s`` on a quiet machine, by ``nox -s "bench(lie)"``, which installs pypose. Both take the
same 262,144 elements (512 x 512 pairs) in one process. The floor is the time in which this machine copies a tensor of
the size of the result.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from lie.groups import SE3, SO3
from torch import Tensor

pypose = pytest.importorskip("pypose", reason="the peer; pip install 'lie-core[bench]'")
N, SIDE = 262_144, 512


def random(*shape: int, dtype: torch.dtype) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0), dtype=dtype)


def plain(x: object) -> Tensor:
    return x.tensor() if hasattr(x, "tensor") else x  # type: ignore[union-attr,return-value]


def with_backward(f: Callable[[Tensor], object], x: Tensor) -> Callable[[], object]:
    leaf = x.clone().requires_grad_()
    return lambda: torch.autograd.grad(plain(f(leaf)).sum(), leaf)


def our_pairs(a: Tensor) -> Tensor:
    return SE3().pairwise(SE3().exp(a))


def their_pairs(a: Tensor) -> object:
    g = pypose.se3(a).Exp()
    return (g.unsqueeze(0).Inv() @ g.unsqueeze(1)).Log()


def maps(dtype: torch.dtype) -> dict[str, tuple[Callable, Tensor, Callable, Tensor]]:
    """Ours and theirs, each with its own input: quaternions are what pypose stores."""
    a = random(N, 6, dtype=dtype)
    w = a[:, :3].contiguous()
    twist = a[:, [3, 4, 5, 0, 1, 2]].contiguous()  # pypose has translations first
    return {
        "SO3 exp": (SO3().exp, w, lambda x: pypose.so3(x).Exp(), w),
        "SO3 log": (SO3().log, SO3().exp(w), lambda x: pypose.SO3(x).Log(), plain(pypose.so3(w).Exp())),
        "SE3 exp": (SE3().exp, a, lambda x: pypose.se3(x).Exp(), twist),
        "SE3 log": (SE3().log, SE3().exp(a), lambda x: pypose.SE3(x).Log(), plain(pypose.se3(twist).Exp())),
        "SE3 pairs": (our_pairs, random(SIDE, 6, dtype=dtype), their_pairs, random(SIDE, 6, dtype=dtype)),
    }


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
@pytest.mark.parametrize("name", ["SO3 exp", "SO3 log", "SE3 exp", "SE3 log", "SE3 pairs"])
def test_against_pypose(name: str, dtype: torch.dtype, compare) -> None:
    ours, x, theirs, y = maps(dtype)[name]
    compiled = torch.compile(ours, fullgraph=True, dynamic=False)
    torch.testing.assert_close(compiled(x), ours(x), rtol=1e-4, atol=1e-5)
    result = ours(x)
    target = torch.empty_like(result)

    def forward(f: Callable, x: Tensor) -> Callable[[], object]:
        def run() -> object:
            with torch.no_grad():
                return f(x)

        return run

    for kind, make in (("forward", forward), ("with backward", with_backward)):
        ways: dict[str, Callable[[], object]] = {}
        if kind == "forward":
            ways["copy of the result (the floor)"] = lambda: target.copy_(result)
        ways |= {"compiled": make(compiled, x), "eager": make(ours, x), "pypose": make(theirs, y)}
        best = compare(f"{name}, {str(dtype)[6:]}, {kind}, a thing", ways, unit="ns", scale=1e-9 * N)
        assert best["pypose"] > best["compiled"]
        if kind == "forward":
            floor = best["copy of the result (the floor)"]
            print(f"  compiled is {best['compiled'] / floor:.1f} times the floor")


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
