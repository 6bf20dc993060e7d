"""Dynamic batching: one thread owns the detector and processes images of the same padded shape together."""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Hashable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from ..errors import FCOSError
from ..inference.resized import Resized
from ..inference.selection import Selection
from ..structures import Instances

if TYPE_CHECKING:
    from ..inference.predictor import Detector

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Item:
    picture: Resized
    selection: Selection
    future: Future[Instances] = field(default_factory=Future)
    arrival: float = field(default_factory=time.monotonic)


class Batcher:
    """Queue of pictures, and the thread that runs the detector on them.

    Only pictures with the same padded shape and the same options of suppression form a batch, so the detections of a
    picture do not depend on the others. A batch starts when it is complete or when its first picture has waited for
    `max_wait` seconds.

    Args:
        detector: trained detector. Nothing else may use it at the same time.
        max_batch: largest number of pictures in a batch.
        max_wait: longest time in seconds that a picture waits for others.
        on_batch: callback with the number of pictures of a batch and its duration in seconds.
    """

    def __init__(
        self,
        detector: Detector,
        *,
        max_batch: int = 8,
        max_wait: float = 0.005,
        on_batch: Callable[[int, float], object] = lambda size, seconds: None,
    ):
        self._detector = detector
        self._max_batch, self._max_wait, self._on_batch = max_batch, max_wait, on_batch
        self._groups: dict[Hashable, deque[_Item]] = {}
        self._changed = threading.Condition()
        self._is_closed = False
        self._thread = threading.Thread(target=self._run, name="fcos-detector", daemon=True)

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def detect_at_once(self, picture: Resized) -> Instances:
        """Detect objects in a first picture, in this thread, before `start`."""
        return self._detect([_Item(picture, Selection())])[0]

    def stop_waiting(self) -> None:
        """Process the pictures in the queue, and all later ones, without waiting for others."""
        with self._changed:
            self._max_wait = 0.0
            self._changed.notify()

    def close(self) -> None:
        """Process the pictures in the queue, and end the thread."""
        self.stop_waiting()
        with self._changed:
            self._is_closed = True
            self._changed.notify()
        self._thread.join()

    def submit(self, picture: Resized, selection: Selection) -> Future[Instances]:
        """Add a picture to the queue; a cancelled future is not processed.

        Args:
            picture: a picture that the detector has resized.
            selection: options of the detections to return.

        Raises:
            ConfigError: the detector does not have an option.
            RuntimeError: the batcher is closed.
        """
        item = _Item(picture, selection)
        key = picture.shapes, selection.configure(self._detector.model).postprocess
        with self._changed:
            if self._is_closed:
                raise RuntimeError("the batcher is closed")
            self._groups.setdefault(key, deque()).append(item)
            self._changed.notify()
        return item.future

    def _run(self) -> None:
        while batch := self._next_batch():
            items = [item for item in batch if item.future.set_running_or_notify_cancel()]
            if items:
                self._process(items)

    def _next_batch(self) -> list[_Item]:
        """Wait for a batch; an empty list means that the batcher is closed and the queue is empty."""
        with self._changed:
            while True:
                key, remaining = self._choose()
                if key is not None and remaining <= 0:
                    group = self._groups[key]
                    batch = [group.popleft() for _ in range(min(len(group), self._max_batch))]
                    if not group:
                        del self._groups[key]
                    return batch
                if key is None and self._is_closed:
                    return []
                self._changed.wait(None if key is None else remaining)

    def _choose(self) -> tuple[Hashable | None, float]:
        """Return the group to process next, None if there is none, and the time in seconds until then."""
        if not self._groups:
            return None, 0.0
        key, oldest = min(self._groups.items(), key=lambda group: group[1][0].arrival)
        remaining = oldest[0].arrival + self._max_wait - time.monotonic()
        if remaining > 0:
            key = next((other for other, group in self._groups.items() if len(group) >= self._max_batch), None) or key
            remaining = 0.0 if len(self._groups[key]) >= self._max_batch else remaining
        return key, remaining

    def _process(self, items: Sequence[_Item]) -> None:
        start = time.perf_counter()
        try:
            detections = self._detect(items)
        except Exception as error:
            if len(items) > 1:  # a picture must not fail because of another one, or because all need too much memory
                for item in items:
                    self._process([item])
                return
            if not isinstance(error, FCOSError):
                log.exception("detection failed")
            items[0].future.set_exception(error)
            return
        self._on_batch(len(items), time.perf_counter() - start)
        for item, found in zip(items, detections, strict=True):
            item.future.set_result(found)

    def _detect(self, items: Sequence[_Item]) -> list[Instances]:
        selected = self._detector.detect_resized([item.picture for item in items], [item.selection for item in items])
        return [image.detections for image in selected]
