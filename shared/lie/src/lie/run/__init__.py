"""What every run of a command shares: one-line errors, atomic files, checkpoints, logs, seeds.

Imported by the packages' commands and trainers; ``import lie`` does not import it.
"""

from lie.run.checkpoints import load_checkpoint, load_weights, save_checkpoint, save_weights
from lie.run.cli import run_command
from lie.run.errors import UserError, check_finite, unknown_name
from lie.run.files import atomic_path, output_directory, read_json, regular_file, write_json, write_text
from lie.run.log import RunLog, print_table
from lie.run.npz import read_npz
from lie.run.provenance import provenance
from lie.run.seeds import resolve_device, seeded_generator

__all__ = [
    "RunLog",
    "UserError",
    "atomic_path",
    "check_finite",
    "load_checkpoint",
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
    "write_json",
    "write_text",
]
