"""What torch.compile needs of a machine beside PyTorch."""

from __future__ import annotations

import os
import shutil
import sys
import sysconfig
from pathlib import Path


def check_compiler() -> None:
    """Raises: FileNotFoundError naming what is not there."""
    name = os.environ.get("CXX", "clang++" if sys.platform == "darwin" else "g++")
    header = Path(sysconfig.get_paths()["include"]) / "Python.h"
    if shutil.which(name) is None:
        lacking = f"the C++ compiler {name} (environment variable CXX)"
    elif not header.is_file():
        lacking = f"Python's headers ({header})"
    else:
        return
    raise FileNotFoundError(f"policy.compile=true needs {lacking}, which is not here; install it, or leave it false")
