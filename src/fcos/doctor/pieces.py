"""Division of large computations into pieces, to limit memory use."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise

import numpy as np


def split_evenly(counts: np.ndarray, limit: int) -> Iterator[slice]:
    """Yield consecutive slices of `counts`, int64 [N], each with a sum of about `limit`."""
    ends = np.cumsum(counts)
    cuts = np.searchsorted(ends, np.arange(limit, ends[-1] if len(ends) else 0, limit)) + 1
    edges = np.unique([0, *cuts.tolist(), len(counts)]).tolist()
    yield from (slice(a, b) for a, b in pairwise(edges))
