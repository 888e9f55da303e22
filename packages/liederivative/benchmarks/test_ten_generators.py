"""What the ten generators cost, in forwards: seven tangents in one pass against ten one at a time.

Run with ``pytest benchmarks -s``; one thread, so that the ratios do not depend on the machine's cores.
"""

from __future__ import annotations

import warnings

import pytest
import torch
from liederivative import GENERATORS, lee

warnings.filterwarnings("ignore", message="`torch.jit.script` is deprecated")
BATCH = {"resnet18": 4, "vit_tiny_patch16_224": 4}
_SECONDS: dict[tuple[str, str], float] = {}


@pytest.fixture(scope="module", params=BATCH)
def case(request):
    import timm

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    model = timm.create_model(request.param).eval()
    images = torch.rand(BATCH[request.param], 3, 224, 224, generator=torch.Generator().manual_seed(0))
    yield request.param, model, images
    torch.set_num_threads(threads)


@pytest.mark.parametrize("way", ["one forward", "seven tangents, one pass", "ten tangents, one by one"])
def test_cost_of_ten_generators(case, way, benchmark):
    name, model, images = case

    def forward():
        with torch.no_grad():
            return model(images)

    def one_by_one():
        return [lee(model, images, [generator], probabilities=True) for generator in GENERATORS]

    work = {
        "one forward": forward,
        "seven tangents, one pass": lambda: lee(model, images, probabilities=True),
        "ten tangents, one by one": one_by_one,
    }[way]
    benchmark.pedantic(work, rounds=5 if way == "one forward" else 2, warmup_rounds=1)
    _SECONDS[name, way] = benchmark.stats.stats.min
    ratio = _SECONDS[name, way] / _SECONDS[name, "one forward"]
    print(f"\n{name}, batch {len(images)}: {way}: {_SECONDS[name, way]:.2f} s = {ratio:.1f} forwards")
    if way.startswith("ten"):
        saved = _SECONDS[name, way] / _SECONDS[name, "seven tangents, one pass"]
        print(f"{name}: one pass is {saved:.1f} times faster")
        assert saved > 1.2  # the fewest passes must pay, even on a loaded machine
