"""Models that write when they run come back untouched, and are measured as the function with their state before."""

from __future__ import annotations

import collections
import copy
import random
import warnings

import numpy as np
import pytest
import torch
from liederivative import GENERATORS, Images, decompose, lee, lie_derivative, lie_derivatives
from liederivative.derivative import LADDER, evaluation_mode
from liederivative.layerwise import probe_terms
from liederivative.metrics import sample_invariance
from liederivative.training import LEETracker
from torch import nn


class Writing(nn.Module):
    """Counters, running means of activations, lists, caches, draws, flags, gradients and hooks: all at every run."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.head = nn.Conv2d(2, 4, 3, padding=1), nn.Linear(4, 3)
        self.register_buffer("steps", torch.zeros((), dtype=torch.long))
        self.register_buffer("in_place", torch.rand(4))
        self.register_buffer("assigned", torch.rand(4))
        self.maps, self.count, self.cache, self.recent = [], 0, {"nested": [[]]}, collections.deque(maxlen=2)
        self.attribute = torch.ones(4)
        self.error: BaseException | None = None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.steps.add_(1)
        self.count += 1
        h = torch.tanh(self.conv(x))
        mean = h.mean((0, 2, 3))
        self.in_place.mul_(0.9).add_(mean, alpha=0.1)
        self.assigned = 0.9 * self.assigned + 0.1 * mean
        self.maps.append(h)
        self.cache["nested"][0].append(h)
        self.recent.append(h)
        self.attribute += 1
        self.last = h
        self.conv.register_forward_hook(lambda *_: None)
        self.head.weight.requires_grad_(False)
        self.head.weight.grad = torch.ones_like(self.head.weight)
        self.train()
        if self.error is not None:
            raise self.error
        draws = torch.rand(4).to(x) + np.random.rand()
        return self.head(h.mean((2, 3)) * self.in_place * self.assigned * draws + self.attribute)


def draws():
    numpy_state = np.random.get_state()
    return torch.get_rng_state().tolist(), str(numpy_state[1].tolist()), numpy_state[2]


def snapshot(model):
    return {
        "values": {name: value.tolist() for name, value in model.state_dict().items()},
        "identities": {name: id(value) for part in model.modules() for name, value in part.__dict__.items()
                       if name != "training"},
        "buffers": [id(b) for b in model.buffers()],
        "lists": (list(model.maps), model.count, str(model.cache), list(model.recent), model.attribute.tolist()),
        "flags": [part.training for part in model.modules()],
        "hooks": [len(part._forward_hooks) for part in model.modules()],
        "parameters": [(p.requires_grad, id(p.grad), id(p)) for p in model.parameters()],
        "attributes": [sorted(part.__dict__) for part in model.modules()],
        "draws": draws(),
    }  # fmt: skip


def quotient(model, x, generator):
    """Fourth-order differences in float64 of a fresh copy of the model for each point, from the same random state."""
    x = x.double()
    coefficients = torch.tensor([GENERATORS[generator].coefficients], dtype=torch.float64)
    velocity = Images().tangents(x, coefficients)[0]

    def at(t):
        states = torch.get_rng_state(), np.random.get_state()
        y = copy.deepcopy(model).double()(x + t * velocity).detach()
        torch.set_rng_state(states[0])
        np.random.set_state(states[1])
        return y

    step = 1e-3
    return (8 * (at(step) - at(-step)) - (at(2 * step) - at(-2 * step))) / (12 * step)


@pytest.fixture
def model():
    torch.manual_seed(0)
    return Writing()


X = torch.rand(2, 2, 8, 8, generator=torch.Generator().manual_seed(1))


def test_the_derivative_is_that_of_the_function_with_the_state_before(model):
    right = quotient(model, X, "rotate")
    before = snapshot(model)
    differences = LADDER[-1]
    for options in ({}, {"tangents_per_pass": 1}, {"ladder": [differences]}):  # several runs each
        L = lie_derivatives(model, X, ["translate_x", "scale", "rotate"], **options)
        # Float32 rounding of numbers near 1; the derivative itself is near 1e-2.
        torch.testing.assert_close(L.derivatives[2].double(), right, rtol=1e-4, atol=1e-7)
        assert snapshot(model) == before
    terms = decompose(model, X, "rotate")
    torch.testing.assert_close(terms.total.double(), right, rtol=1e-4, atol=1e-7)
    torch.testing.assert_close(sum(terms.all_terms().values()), terms.total, rtol=1e-4, atol=1e-7)
    assert snapshot(model) == before


@pytest.mark.parametrize("error", [None, RuntimeError("no such luck"), KeyboardInterrupt()])
def test_every_measure_leaves_the_model_untouched(error, model):
    measures = {
        "lie_derivative": lambda: lie_derivative(model, X, "rotate"),
        "lie_derivatives": lambda: lie_derivatives(model, X, ["rotate", "scale"], tangents_per_pass=1),
        "lee": lambda: lee(model, X, ["rotate"]),
        "bound method": lambda: lee(model.forward, X, ["rotate"], batch_size=1),
        "decompose": lambda: decompose(model, X, "rotate"),
        "probes": lambda: probe_terms(model, X, ["rotate"], probes=2, generator=torch.Generator().manual_seed(0)),
        "sample_invariance": lambda: sample_invariance(model, X, "rotate"),
        "tracker": lambda: LEETracker(model, X, ["rotate"])(0),
    }
    model.error = error
    before = snapshot(model)
    for name, measure in measures.items():
        if error is None:
            measure()
        else:
            with pytest.raises(type(error)):
                measure()
        assert snapshot(model) == before, name


def test_pythons_random_numbers_come_back(model):
    before = random.getstate()  # not tested above: beartype draws from them between the calls, in this suite
    with evaluation_mode(model) as begin:
        begin()
        first = random.random()
        begin()
        assert random.random() == first
    assert random.getstate() == before


def test_a_parameter_written_in_place_is_reported():
    class Normalising(nn.Linear):
        def forward(self, x):
            with torch.no_grad():
                self.weight.div_(self.weight.norm())
            return super().forward(x.flatten(1))

    with pytest.warns(UserWarning, match="writes into its parameter weight in place"):
        lie_derivative(Normalising(64, 3), torch.rand(1, 1, 8, 8), "rotate")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        lie_derivative(nn.Sequential(nn.Flatten(), nn.Linear(64, 3)), torch.rand(1, 1, 8, 8), "rotate")


def test_buffers_of_a_scripted_model_come_back():
    class Counting(nn.Module):
        def __init__(self):
            super().__init__()
            self.register_buffer("steps", torch.zeros(1))

        def forward(self, x):
            self.steps.add_(1)
            return x.mean((2, 3)) * self.steps

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # torch.jit.script is deprecated
        model = torch.jit.script(Counting())
    x = torch.rand(2, 3, 8, 8)
    L = lie_derivatives(model, x, ["saturate", "scale"], tangents_per_pass=1)
    assert float(model.steps) == 0
    (velocity,) = Images().tangents(x, torch.tensor([GENERATORS["saturate"].coefficients]))
    torch.testing.assert_close(L.derivatives[0], velocity.mean((2, 3)))  # of a linear function, at its first step


def test_under_inference_mode(model):
    outside = lie_derivative(model, X, "rotate"), decompose(model, X, "rotate")
    with torch.inference_mode():
        x, twin = X.clone(), copy.deepcopy(model)  # of inference tensors
        for one in (model, twin):
            assert torch.equal(lie_derivative(one, x, "rotate"), outside[0])
            terms = decompose(one, x, "rotate").all_terms()
            assert all(torch.equal(terms[name], term) for name, term in outside[1].all_terms().items())
            lee(one, x, ["rotate"])
        probe_terms(model, x, ["rotate"], probes=2)


class Product(nn.Module):
    def __init__(self, matrix, way):
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.way = nn.Conv2d(1, 1, 3, padding=1), way
        self.register_buffer("matrix", matrix)

    def forward(self, x):
        h = torch.tanh(self.conv(x)).flatten(1)
        if self.way == "torch.sparse.mm" and self.matrix.layout is not torch.strided:
            return torch.sparse.mm(self.matrix, h.T).T
        if self.way == "addmm":
            return torch.addmm(torch.ones(6, 2), self.matrix, h.T, alpha=2.0).T
        if self.way == "right":
            return h @ self.matrix.t()
        return (self.matrix @ h.T).T


@pytest.mark.filterwarnings("ignore:Sparse CSR tensor support")
@pytest.mark.parametrize("way", ["torch.sparse.mm", "matmul", "addmm", "right"])
@pytest.mark.parametrize("layout", ["coo", "csr", "csc", "bsr"])
def test_sparse_products_are_those_of_the_dense_matrix(layout, way):
    dense = torch.rand(6, 64, generator=torch.Generator().manual_seed(0))
    dense = dense * (dense < 0.3)
    make = {"coo": dense.to_sparse, "csr": dense.to_sparse_csr, "csc": dense.to_sparse_csc}
    sparse = dense.to_sparse_bsr((2, 2)) if layout == "bsr" else make[layout]()
    x = X[:, :1]
    one, other = Product(sparse, way), Product(dense, way)
    assert lie_derivatives(one, x, ["rotate"]).rung.name == "fused rules"
    right = decompose(other, x, "rotate")
    for value, name in ((lie_derivative(one, x, "rotate"), "derivative"), (decompose(one, x, "rotate").total, "total")):
        # The order of sums of 64 products differs.
        torch.testing.assert_close(value, right.total, rtol=1e-5, atol=1e-6, msg=name)
    terms = decompose(one, x, "rotate").all_terms()
    for (name, term), same in zip(right.all_terms().items(), terms.values(), strict=True):
        torch.testing.assert_close(same, term, rtol=1e-5, atol=1e-6, msg=name)
