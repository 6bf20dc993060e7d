"""Search of an image in a data set."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from ..data.dataset import Annotations
from ..errors import DataError
from ..formatting import join_some, printable


def find_image(image: str | Path, splits: Sequence[Annotations]) -> tuple[Annotations, int]:
    """Find an image by its path, or by its file name if that is unique, in the splits of a data set.

    Args:
        image: path of the image, or its file name as annotated, with or without folders.
        splits: annotations of the splits.

    Returns:
        The split, and the position of the image in it.

    Raises:
        DataError: the image is not in the data set, or several images have this name.
    """
    positions = [(split, i) for split in splits for i in range(len(split))]
    path, text = os.path.realpath(image), str(image)
    for matches in (
        lambda split, i: os.path.realpath(split.path(i)) == path,
        lambda split, i: split.file_name(i) == text,
        lambda split, i: os.path.basename(split.file_name(i)) == text,
    ):
        found = [(split, i) for split, i in positions if matches(split, i)]
        files = list(dict.fromkeys(str(split.path(i)) for split, i in found))
        if len(files) > 1:
            raise DataError(f"{text}: {len(files)} images of the data set have this name: {join_some(files)}")
        if found:
            return found[0]
    example = f", such as {printable(positions[0][0].file_name(positions[0][1]))}" if positions else ""
    roots = ", ".join(dict.fromkeys(str(split.root) for split in splits))
    raise DataError(
        f"{text}: not an image of the data set in {roots}; give the path or the file name of one of its"
        f" images{example}, or remove data=DIR to explain the detections without annotations"
    )
