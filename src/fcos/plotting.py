"""Import of matplotlib, which provides fonts and SVG charts here, neither of which needs a backend."""

from __future__ import annotations

import os
import sys
from contextlib import suppress
from types import ModuleType


def import_matplotlib() -> ModuleType:
    """Import matplotlib, whatever MPLBACKEND is.

    Child processes of a notebook inherit its MPLBACKEND, which names a backend of a package that they may lack.
    matplotlib then cannot be imported. A valid backend stays selected, for the charts of the user.
    """
    backend = None if "matplotlib" in sys.modules else os.environ.pop("MPLBACKEND", None)
    try:
        import matplotlib as mpl
    finally:
        if backend is not None:
            os.environ["MPLBACKEND"] = backend
    if backend:
        with suppress(ValueError):  # not installed
            mpl.rcParams["backend"] = backend
    return mpl
