"""Hundreds of models measured by many workers, one result file each."""

from liederivative.sweep.backends import BACKENDS, open_executor
from liederivative.sweep.records import read_records, results_table
from liederivative.sweep.runner import Sweep, run_sweep
from liederivative.sweep.selection import families, select_models
from liederivative.sweep.worker import Task, measure_task

__all__ = [
    "BACKENDS",
    "Sweep",
    "Task",
    "families",
    "measure_task",
    "open_executor",
    "read_records",
    "results_table",
    "run_sweep",
    "select_models",
]
