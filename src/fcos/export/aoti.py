"""Compilation of captured detectors to machine code with AOTInductor of PyTorch.

`class_wise_nms` and `decode_keypoints` are operators in Python. The compiled code calls them, so that a file with them
runs where this project is imported.
"""

from __future__ import annotations

import json
import platform
import warnings
from collections.abc import Mapping
from pathlib import Path
from zipfile import ZipFile, is_zipfile

import torch
from torch.export import ExportedProgram

from ..errors import ConfigError

_OPTIONS = {
    "always_keep_tensor_constants": True,  # otherwise the score threshold could not change for the proof
    "cpp.dynamic_threads": True,  # as many threads as the process has, not as at the export
}


def require_compiler() -> None:
    """Check that a C++ compiler is installed.

    Raises:
        ConfigError: there is none.
    """
    from torch._inductor.cpp_builder import get_cpp_compiler

    try:
        get_cpp_compiler()
    except Exception:  # of several kinds
        raise ConfigError(
            "--format aoti: no C++ compiler was found; install g++ or set CXX to the name of another, or use --format"
            " torch_export, which needs none"
        ) from None


def compile_package(program: ExportedProgram, path: Path) -> None:
    """Compile a program for the CPU of this machine and write it to a .pt2 file, without metadata."""
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")  # of the compiler about its own code
        torch._inductor.aoti_compile_and_package(program, package_path=str(path), inductor_configs=dict(_OPTIONS))


def describe_machine() -> str:
    """Return what machine code depends on, as JSON: the version of PyTorch, and the vector instructions of the CPU."""
    capability = torch.backends.cpu.get_cpu_capability()
    return json.dumps({"torch": torch.__version__, "machine": platform.machine(), "cpu": capability})


def require_same_machine(metadata: Mapping[str, str]) -> None:
    """Check the metadata of a package before its code is loaded, which may end the process on another machine.

    Raises:
        ValueError: the package was compiled for another machine, or by another program.
    """
    compiled_for = metadata.get("compiled_for")
    if compiled_for is None:
        raise ValueError("not a file of fcos export")
    if compiled_for != describe_machine():
        raise ValueError(f"compiled for {compiled_for}, and this machine has {describe_machine()}")


def is_package(path: Path) -> bool:
    """Return whether a .pt2 file contains machine code, rather than a program of `torch.export`."""
    if not is_zipfile(path):
        return False
    with ZipFile(path) as archive:
        return any("/data/aotinductor/" in name for name in archive.namelist())


def add_entry(path: Path, name: str, text: str) -> None:
    """Add a text to a .pt2 file, as `torch.export.save` does with its `extra_files`."""
    with ZipFile(path, "a") as archive:
        archive.writestr(_entry(archive, name), text)


def read_entry(path: Path, name: str) -> str:
    """Return a text of `add_entry`; empty if there is none."""
    with ZipFile(path) as archive:
        entry = _entry(archive, name)
        return archive.read(entry).decode() if entry in archive.namelist() else ""


def _entry(archive: ZipFile, name: str) -> str:
    root = archive.namelist()[0].partition("/")[0]
    return f"{root}/extra/{name}"
