"""Checks of the arguments of Python calls, where a path or options may be of any type."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from ..errors import ConfigError
from ..files import MAX_NAME_BYTES, find_long_name, require_creatable
from ..formatting import quote


def check_source(source: Any, *, name: str) -> str | Path:
    """Return a path, URL or name given as text or as a path.

    Args:
        source: argument of a call.
        name: its name, for messages.

    Raises:
        ConfigError: it has another type, contains a NUL character, or contains a name that no file system stores.
    """
    if isinstance(source, os.PathLike):
        source = os.fspath(source)
        source = Path(source) if isinstance(source, str) else source
    if not isinstance(source, str | Path):
        raise ConfigError(f"{name}: expected a path or name, found {quote(source)} ({type(source).__name__})")
    if "\0" in str(source):
        raise ConfigError(f"{name}: no path contains a NUL character, found {quote(str(source))}")
    if "://" not in str(source) and find_long_name(source):
        raise ConfigError(
            f"{name}: a file or folder name has at most {MAX_NAME_BYTES} bytes, found {quote(str(source))}"
        )
    return source


def check_new_file(file: Any, *, name: str, suffix: str) -> Path:
    """Return the path of a file to write. The suffix protects images and weights from being replaced by mistake.

    Args:
        file: argument of a call.
        name: its name, for messages.
        suffix: suffix that the name of the file must have.

    Raises:
        ConfigError: it is not a path, has another suffix, is a folder, or is in a folder that does not exist.
        WriteError: no file can be created in its folder.
    """
    path = Path(check_source(file, name=name))
    if path.is_dir():
        raise ConfigError(f"{name}: {path} is a folder; expected the path of a new file that ends in {suffix}")
    if path.suffix.lower() != suffix:
        raise ConfigError(f"{name}: expected the path of a new file that ends in {suffix}, found {quote(str(path))}")
    if not path.parent.is_dir():
        raise ConfigError(f"{name}: {path} cannot be written, because there is no folder {path.parent}; create it")
    require_creatable(path)
    return path


def check_overrides(overrides: Any) -> list[str]:
    """Return `key=value` options as a list.

    Raises:
        ConfigError: they are not a sequence of strings.
    """
    if isinstance(overrides, str | bytes | Mapping) or not isinstance(overrides, Iterable):
        raise ConfigError(f"options: expected a list of key=value strings, found {quote(overrides)}")
    texts = list(overrides)
    for text in texts:
        if not isinstance(text, str):
            raise ConfigError(f"options: expected key=value strings such as 'data=cells', found {quote(text)}")
    return texts
