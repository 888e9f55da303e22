"""What every run of a command shares: one-line errors, atomic files, folders of runs, checkpoints, logs, seeds.

Imported by the packages' commands and trainers; ``import lie`` does not import it.
"""

from lie.run.checkpoints import load_checkpoint, load_weights, save_checkpoint, save_weights
from lie.run.cli import run_command
from lie.run.errors import UserError, WriteError, check_finite, unknown_name
from lie.run.files import atomic_path, output_directory, read_json, regular_file, write_json, write_text
from lie.run.folder import (
    RunFlags,
    RunFolder,
    check_free,
    check_resumable,
    load_config,
    load_model,
    load_run,
)
from lie.run.log import RunLog, print_table
from lie.run.npz import read_npz
from lie.run.provenance import provenance
from lie.run.schema import (
    Count,
    LearningRate,
    NonNegative,
    Positive,
    Seed,
    WeightDecay,
    check_flags,
    check_value,
    validate,
)
from lie.run.seeds import resolve_device, seeded_generator

__all__ = [
    "Count",
    "LearningRate",
    "NonNegative",
    "Positive",
    "RunFlags",
    "RunFolder",
    "RunLog",
    "Seed",
    "UserError",
    "WeightDecay",
    "WriteError",
    "atomic_path",
    "check_finite",
    "check_flags",
    "check_free",
    "check_resumable",
    "check_value",
    "load_checkpoint",
    "load_config",
    "load_model",
    "load_run",
    "load_weights",
    "output_directory",
    "print_table",
    "provenance",
    "read_json",
    "read_npz",
    "regular_file",
    "resolve_device",
    "run_command",
    "save_checkpoint",
    "save_weights",
    "seeded_generator",
    "unknown_name",
    "validate",
    "write_json",
    "write_text",
]
