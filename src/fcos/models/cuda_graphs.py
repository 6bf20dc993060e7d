"""Replay of the network and the selection of candidates as CUDA graphs.

On a GPU, a detector runs hundreds of kernels. For small batches, launching them takes longer than running them. A CUDA
graph contains all of them and is launched once.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from threading import Lock

import torch
from torch import Tensor

from ..structures import Instances
from .padded import Padded

log = logging.getLogger(__name__)

MAX_PIXELS = 1 << 21
"""Largest number of pixels of a batch; larger ones keep a GPU busy for longer than their launch takes."""
_MAX_GRAPHS = 16
"""Largest number of graphs. All share the memory of the largest."""


@dataclass(frozen=True)
class _Graph:
    """Captured graph with the tensors that it reads and writes."""

    graph: torch.cuda.CUDAGraph
    images: Tensor
    sizes: Tensor
    candidates: Padded


class CudaGraphs:
    """CUDA graphs of a function from images to candidates, one for each shape and set of options.

    A graph is captured at the second batch of a shape, and replayed for it and all later ones, until there are enough
    graphs. The function must not depend on anything else than its arguments and tensors that stay where they are. All
    images are on one device.
    """

    def __init__(self):
        self._lock = Lock()  # a graph has one set of input and output tensors
        self._graphs: dict[Hashable, _Graph] = {}
        self._seen: set[Hashable] = set()
        self._stream: torch.cuda.Stream | None = None  # of all captures, which share memory only on the same one
        self._works = True

    def run(
        self, function: Callable[[Tensor, Tensor], Padded], images: Tensor, sizes: Tensor, *, options: Hashable
    ) -> list[Instances] | None:
        """Return the candidates of every image, or None if there is no graph for this call.

        Args:
            function: function from `images` and `sizes` to the candidates.
            images: [N, 3, H, W] on the GPU.
            sizes: [N, 2], see `DetectionModel.forward`.
            options: everything else that the graph depends on.
        """
        num_pixels = images.numel() // images.shape[1]
        if not self._works or num_pixels > MAX_PIXELS:
            return None
        key = (options, images.shape, images.dtype, torch.is_autocast_enabled("cuda"), torch.get_autocast_dtype("cuda"))
        with self._lock, torch.cuda.device(images.device):
            graph = self._graphs.get(key)
            if graph is None:
                if key not in self._seen or len(self._graphs) == _MAX_GRAPHS:
                    self._seen.add(key)
                    return None
                stream = torch.cuda.current_stream()
                try:
                    graph = self._graphs[key] = self._capture(function, images, sizes)
                except RuntimeError as error:  # a user's module waits for the GPU, or there is too little memory
                    torch.cuda.set_stream(stream)  # a failed capture leaves another one
                    self._works = False
                    self._graphs.clear()
                    log.debug("no CUDA graphs: %s", error)
                    return None
            graph.images.copy_(images)
            graph.sizes.copy_(sizes)
            graph.graph.replay()
            return graph.candidates.to_instances(graph.sizes)

    def _capture(self, function: Callable[[Tensor, Tensor], Padded], images: Tensor, sizes: Tensor) -> _Graph:
        images, sizes = images.clone(), sizes.clone()
        first = next(iter(self._graphs.values()), None)
        pool = None if first is None else first.graph.pool()
        graph = torch.cuda.CUDAGraph()
        if self._stream is None:  # the default one of torch belongs to the device of the first capture in the process
            self._stream = torch.cuda.Stream(images.device)
        # Other threads, which copy the next images, may use the GPU meanwhile.
        with torch.cuda.graph(graph, pool=pool, stream=self._stream, capture_error_mode="thread_local"):
            candidates = function(images, sizes)
        return _Graph(graph, images, sizes, candidates)
