"""Simulations as folders on disk: written shard by shard, resumed, read back."""

from chnn.storage.read import Run, load_run
from chnn.storage.settings import Settings
from chnn.storage.shards import Drifts
from chnn.storage.write import simulate_run

__all__ = ["Drifts", "Run", "Settings", "load_run", "simulate_run"]
