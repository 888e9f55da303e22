"""Kernels of the tests are kept in one folder for all processes and runs, apart from the user's."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

os.environ.setdefault("CHNN_CACHE", str(Path(tempfile.gettempdir()) / f"chnn-test-kernels-{os.getuid()}"))
