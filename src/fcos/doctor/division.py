"""Division of a data set without validation split into lists of images, for `fcos split`."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
from PIL import Image

from ..config import DataConfig
from ..data.dataset import Annotations
from ..data.holdout import describe_cuts, hold_out
from ..data.layouts import SPLITS, locate
from ..data.source import Split
from ..data.splits import load_annotations
from ..errors import DataError
from ..files import explain_write_errors, write_text
from ..formatting import join_some, plural, printable
from .duplicates import find_duplicates, fingerprint


def divide(config: DataConfig, *, val: float, test: float = 0.0) -> tuple[Annotations, dict[Split, np.ndarray]]:
    """Divide the training split of a data set.

    Frames of a sequence, and duplicates and near duplicates, stay in one part; every class is divided in the same
    proportion.

    Args:
        config: data options, including the location of the data.
        val: fraction of the images for validation, between 0 and 1.
        test: fraction of the images for testing, at least 0.

    Returns:
        The usable images, and a mask of the images of each part, bool [I].

    Raises:
        DataError: the data cannot be used, is already divided, or consists of several data sets.
    """
    if not (val > 0 and test >= 0 and val + test < 1):
        raise DataError(f"expected fractions with 0 < val and val + test < 1, found val {val:g} and test {test:g}")
    names = [split for split in ("val", "test") if locate(config, split) is not None]
    if config.val_fraction is not None or "val" in names or (test and names):
        found = "data.val_fraction is set" if config.val_fraction is not None else f"a split {names[0]}"
        expected = "data without the splits val and test" if test else "data without a val split"
        raise DataError(f"data: expected {expected}, found {found}")
    located = locate(config, "train")
    if located is None or len(located) > 1:
        found = f"{len(located)} data sets" if located else "no train split"
        raise DataError(f"data: expected one data set to divide, found {found}")
    fingerprints: dict[Path, np.ndarray] = {}

    def on_image(path: Path, image: Image.Image) -> None:
        fingerprints[path] = fingerprint(image)

    annotations = load_annotations(config, "train", on_image=on_image)
    assert annotations is not None
    linked = _find_linked(annotations, fingerprints)
    masks: dict[Split, np.ndarray] = {"train": np.ones(len(annotations), dtype=bool)}
    fractions: dict[Split, float] = {"test": test, "val": val / (1 - test)}
    for split, fraction in fractions.items():
        if fraction:
            masks[split] = _hold_out(annotations, masks["train"], linked, fraction)
            masks["train"] = masks["train"] & ~masks[split]
    return annotations, {split: masks[split] for split in SPLITS if split in masks}


def _find_linked(annotations: Annotations, fingerprints: dict[Path, np.ndarray]) -> list[list[int]]:
    """Return positions of identical images, and of pairs of images that look the same."""
    exact, near = find_duplicates(np.stack([fingerprints[annotations.path(i)] for i in range(len(annotations))]))
    return [*exact, *(list(pair[:2]) for pair in near)]


def _hold_out(annotations: Annotations, available: np.ndarray, linked: list[list[int]], fraction: float) -> np.ndarray:
    """Hold out a fraction of the available images, bool [I]; return the mask of these, bool [I]."""
    positions = np.flatnonzero(available)
    new_position = {old: new for new, old in enumerate(positions.tolist())}
    groups = [[new_position[i] for i in group if i in new_position] for group in linked]
    image_of = annotations.image_of
    boxes = np.flatnonzero(available[image_of])
    mask = hold_out(
        [annotations.file_name(i) for i in positions.tolist()],
        np.searchsorted(positions, image_of[boxes]),
        annotations.labels[boxes],
        annotations.class_names,
        fraction=fraction,
        linked=[group for group in groups if group],
    )
    part = np.zeros(len(annotations), dtype=bool)
    part[positions[mask]] = True
    return part


def describe_part(annotations: Annotations, mask: np.ndarray) -> str:
    """Return the numbers of images and of boxes per class of a part as text.

    Args:
        annotations: all images.
        mask: images of the part, bool [I].
    """
    labels = annotations.labels[mask[annotations.image_of] & ~annotations.crowd]
    counts = np.bincount(labels, minlength=len(annotations.class_names)).tolist()
    boxes = [f"{count} {printable(name)}" for count, name in zip(counts, annotations.class_names, strict=True)]
    return f"{plural(int(mask.sum()), 'image')}; boxes: {join_some(boxes)}"


def describe_divided_sequences(annotations: Annotations, parts: dict[Split, np.ndarray]) -> str:
    """Return a note on sequences of which a part is not in train, empty if there are none."""
    return describe_cuts([annotations.file_name(i) for i in range(len(annotations))], ~parts["train"])


def write_lists(annotations: Annotations, parts: dict[Split, np.ndarray], folder: Path) -> dict[Split, Path]:
    """Write the file names of each part to FOLDER/SPLIT.txt, and return these files.

    Raises:
        DataError: a file exists.
        WriteError: the disk is full or not writable.
    """
    files: dict[Split, Path] = {split: folder / f"{split}.txt" for split in parts}
    existing = [str(file) for file in files.values() if os.path.lexists(file)]
    if existing:
        raise DataError(f"{', '.join(existing)}: exists already; remove it, or choose another folder with --out")
    with explain_write_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
    for split, file in files.items():
        names = [annotations.file_name(i) for i in np.flatnonzero(parts[split]).tolist()]
        write_text(file, "".join(f"{name}\n" for name in names), errors="surrogateescape")
    return files
