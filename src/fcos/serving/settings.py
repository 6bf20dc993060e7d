"""Options of the service: batching and limits."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from ..errors import ConfigError
from ..export.runtimes import is_exported
from ..formatting import quote

_NAME = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9_.-]{0,99}")


@dataclass(frozen=True)
class Settings:
    """Options of the service.

    Attributes:
        name: name of the model in URLs and results.
        max_batch: largest number of images that the detector processes at a time.
        max_wait_ms: longest time in milliseconds that an image waits for others of the same padded shape.
        max_queue: largest number of images that are accepted and not yet answered. A request counts as one image until
            its body is read.
        max_body: largest size of a request body in bytes.
        max_pixels: largest number of pixels of an image. The limit `data.max_pixels` in the detector's config applies,
            too.
        timeout: longest time in seconds from the start of a request to its result; its body must arrive in the same
            time.
        token: bearer token that requests must contain; None: requests need none.
    """

    name: str = "detector"
    max_batch: int = 8
    max_wait_ms: float = 5.0
    max_queue: int = 128
    max_body: int = 32_000_000
    max_pixels: int = 65_000_000
    timeout: float = 30.0
    token: str | None = None


def model_name(weights: str) -> str:
    """Return the name of a model for URLs: that of its run folder or file, such as `cells` for runs/cells.

    Args:
        weights: run folder, weights file or name, as in `fcos.load`.
    """
    path = Path(weights)
    if path.parent.name == "weights" and path.parent.parent.name:  # runs/cells/weights/best.pt
        path = path.parent.parent
    is_file = path.suffix in (".pt", ".pth", ".pkl") or is_exported(path)
    stem = path.stem if is_file else path.name
    return re.sub(r"[^A-Za-z0-9_.-]+", "_", stem).strip("._")[:100] or "detector"


def require_name(name: str) -> str:
    """Return the name of a model that the user gave.

    Raises:
        ConfigError: it is not a name for a URL.
    """
    if not _NAME.fullmatch(name):
        raise ConfigError(f"--name: expected letters, digits, and - _ . only, found {quote(name)}")
    return name


def require_token(token: str) -> str:
    """Return a token that the user gave.

    Raises:
        ConfigError: a header cannot contain it.
    """
    if not re.fullmatch(r"[!-~]{1,1000}", token):
        raise ConfigError("--token: expected ASCII characters without spaces, at least one")
    return token
