"""Prove that an environment holds some packages and not others, by importing them.

    python -I check_alone.py lie,lieconv liederivative,chnn

Run with ``-I``, so that neither the working directory nor ``PYTHONPATH`` can lend a package. Exits with 1
if one of the first cannot be imported, or one of the second can.
"""

from __future__ import annotations

import importlib
import sys


def main(present: str, absent: str) -> int:
    """Import every name of ``present``; 1 if a name of ``absent`` can be imported too."""
    for name in present.split(","):
        importlib.import_module(name)
    for name in absent.split(","):
        try:
            importlib.import_module(name)
        except ModuleNotFoundError as error:
            if error.name != name:  # it is there, and something that it needs is not
                raise
        else:
            print(f"{name} can be imported beside {present}: the environment is not clean", file=sys.stderr)
            return 1
    print(f"alone: {present} can be imported, {absent} cannot")
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
