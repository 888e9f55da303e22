"""The examples run, and find what they say they find."""

from __future__ import annotations

import importlib.util
from pathlib import Path

EXAMPLES = Path(__file__).parents[1] / "examples"


def load(name):
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_own_group():
    assert load("own_group").main() > 0.9


def test_dipoles():
    upright, turned, change = load("dipoles").main(100)
    assert upright < 0.3  # 0.02 after 300 steps
    assert abs(turned - upright) < 1e-4 and change < 1e-5
