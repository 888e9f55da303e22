"""Where a result comes from: versions and platform, written beside every result."""

from __future__ import annotations

import platform
from importlib.metadata import PackageNotFoundError, version


def provenance(*distributions: str) -> dict[str, str]:
    """Versions of Python, torch, numpy, lie-core and ``distributions``, and the platform.

    A distribution that is imported from a source tree without being installed reads ``"not installed"``.
    """
    versions = {"python": platform.python_version(), "platform": platform.platform()}
    for name in ("torch", "numpy", "lie-core", *distributions):
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            versions[name] = "not installed"
    return versions
