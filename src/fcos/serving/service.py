"""The steps from the images of a request to their detections: admission, decoding, resizing, batching."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, NamedTuple, TypeVar

from PIL import Image

from ..errors import ConfigError, FCOSError
from ..export.exported import ExportedModel
from ..inference.draw_shapes import skeleton_of
from ..inference.resized import Resized
from ..inference.selection import Selection, find_labels
from ..structures import Instances
from .batcher import Batcher
from .bodies import image_name
from .images import decode
from .metrics import Metrics
from .problems import Problem
from .settings import Settings

if TYPE_CHECKING:
    from ..inference.predictor import Detector

T = TypeVar("T")
_MAX_THREADS = 4  # that decode, resize and encode; each may hold an image of `max_pixels`


class Detected(NamedTuple):
    """Image of a request with its detections; `picture` is None unless it is needed for drawing."""

    instances: Instances
    picture: Image.Image | None


class Ticket:
    """Place of a request among the images that are accepted and not yet answered."""

    def __init__(self, service: Service):
        self._service = service
        self._count = 0
        self._deadline = asyncio.get_running_loop().time() + service.settings.timeout
        self._late = Problem(504, f"no result within {service.settings.timeout:g} s")
        self.extend(1)

    def extend(self, count: int) -> None:
        """Reserve places until the request has `count` of them.

        Raises:
            Problem: there are not enough places now (429), or never (413).
        """
        limit = self._service.settings.max_queue
        if count > limit:
            raise Problem(413, f"{count} images; this server accepts at most {limit} per request")
        if self._service.in_progress + count - self._count > limit:
            raise Problem(429, "too many images are waiting; try again later", {"Retry-After": "1"})
        self._service.count(count - self._count)
        self._count = count

    def release(self) -> None:
        """Free the places."""
        self._service.count(-self._count)

    @asynccontextmanager
    async def time_limit(self, problem: Problem | None = None) -> AsyncIterator[None]:
        """Raise a problem when the time of the request is over, by default that there is no result (504)."""
        try:
            async with asyncio.timeout_at(self._deadline):
                yield
        except TimeoutError:
            raise problem or self._late from None

    async def run(self, function: Callable[..., T], *arguments: object) -> T:
        """Call a function that takes long in a thread for images.

        Raises:
            Problem: the time of the request is over (504). The thread is not interrupted.
        """
        async with self.time_limit():
            return await self._service.run(function, *arguments)


class Service:
    """Detector with its queue, limits and metrics.

    Attributes:
        detector: the detector; only the thread of the batcher runs it.
        settings: options of the service.
        metrics: metrics of the service.
        in_progress: number of images that are accepted and not yet answered.
        is_ready: whether requests are accepted.
        has_masks: whether the detector predicts masks; known when it is ready.
        has_keypoints: whether the detector predicts keypoints; known when it is ready.
        skeleton: pairs of connected keypoints, counted from 0; known when the service is ready.
    """

    def __init__(self, detector: Detector, settings: Settings):
        self.detector, self.settings, self.metrics = detector, settings, Metrics()
        self.in_progress = 0
        self.is_ready = self.has_masks = self.has_keypoints = False
        self.skeleton: Sequence[tuple[int, int]] = ()
        self._batcher = Batcher(
            detector,
            max_batch=settings.max_batch,
            max_wait=settings.max_wait_ms / 1000,
            on_batch=self.metrics.observe_batch,
        )
        self._pool = ThreadPoolExecutor(min(_MAX_THREADS, os.cpu_count() or 1), thread_name_prefix="fcos-images")

    async def start(self) -> None:
        """Start the thread of the detector, and run it once, so that the first request is not slow.

        Raises:
            Exception: the detector fails, for example because a GPU has not enough memory.
        """
        model = self.detector.model
        fixed_size = model.metadata.fixed.size if isinstance(model, ExportedModel) else None
        height, width = fixed_size or (64, 64)
        picture = await self.run(self.detector.resize, Image.new("RGB", (width, height)))
        found = await asyncio.to_thread(self._batcher.detect_at_once, picture)
        self._batcher.start()
        self.has_masks, self.has_keypoints = found.mask_grids is not None, found.keypoints is not None
        self.skeleton = skeleton_of(found)
        self.is_ready = True

    def stop_waiting(self) -> None:
        """Finish the accepted images, and all later ones, without waiting for others to form batches."""
        self._batcher.stop_waiting()

    async def stop(self) -> None:
        """Finish the accepted images and end all threads."""
        self.is_ready = False
        await asyncio.to_thread(self._batcher.close)
        self._pool.shutdown()

    def count(self, change: int) -> None:
        """Change the number of images in progress."""
        self.in_progress += change
        self.metrics.in_progress.set(self.in_progress)

    async def run(self, function: Callable[..., T], *arguments: object) -> T:
        """Call a function that takes long in a thread for images."""
        return await asyncio.get_running_loop().run_in_executor(self._pool, function, *arguments)

    @asynccontextmanager
    async def admit(self) -> AsyncIterator[Ticket]:
        """Admit a request before its body is read.

        Raises:
            Problem: the queue is full (429), or the server is starting or stopping (503).
        """
        not_ready = Problem(503, "the server is starting or stopping", {"Retry-After": "5"})
        if not self.is_ready:
            raise not_ready
        ticket = Ticket(self)
        try:
            yield ticket
        except RuntimeError:
            if self.is_ready:
                raise
            raise not_ready from None  # the threads have ended before the request
        finally:
            ticket.release()

    def selection(
        self,
        *,
        threshold: float | None = None,
        classes: Sequence[str] | None = None,
        max_detections: int | None = None,
        nms_threshold: float | None = None,
    ) -> Selection:
        """Return the options of a request, which are those of `Detector.predict`.

        Raises:
            Problem: an option is wrong (422).
        """
        try:
            labels = None if classes is None else find_labels(classes, self.detector.label_names)
            selection = Selection(threshold, labels, max_detections, nms_threshold)
            selection.configure(self.detector.model)
        except ConfigError as error:
            raise Problem(422, str(error)) from None
        return selection

    async def detect(
        self, files: Sequence[bytes], selection: Selection, ticket: Ticket, *, keep_pictures: bool = False
    ) -> list[Detected]:
        """Return the detections of image files.

        Args:
            files: content of the files.
            selection: options of the detections.
            ticket: place of the request.
            keep_pictures: also return the decoded images.

        Raises:
            Problem: an image cannot be decoded, has too many pixels, or does not fit into an exported file of fixed
                size; the detector fails; or the time is over.
        """
        ticket.extend(len(files))
        async with ticket.time_limit():
            # Image by image, so that a request with many images does not delay those of others.
            decoded = [
                await self.run(self._decode, data, image_name(files, i), keep_pictures) for i, data in enumerate(files)
            ]
            futures: list[asyncio.Future[Instances]] = []
            try:
                for prepared, _ in decoded:
                    futures.append(asyncio.wrap_future(self._batcher.submit(prepared, selection)))
                found = await asyncio.gather(*futures)
            except FCOSError as error:  # an exported file of fixed size may be too small
                raise Problem(422, str(error)) from None
            except (MemoryError, RuntimeError) as error:  # torch raises RuntimeError if it is out of memory
                if "memory" not in str(error).lower() and not isinstance(error, MemoryError):
                    raise
                raise Problem(503, "not enough memory at the moment", {"Retry-After": "5"}) from error
            finally:
                for future in futures:
                    future.cancel()
        self.metrics.images.inc(len(found))
        self.metrics.detections.inc(sum(map(len, found)))
        return [Detected(instances, picture) for instances, (_, picture) in zip(found, decoded, strict=True)]

    def _decode(self, data: bytes, where: str, keep_picture: bool) -> tuple[Resized, Image.Image | None]:
        options, limit = self.detector.config.data, self.settings.max_pixels
        limit = limit if options.max_pixels is None else min(limit, options.max_pixels)
        picture = decode(data, where=where, bit_depth=options.bit_depth, max_pixels=limit)
        return self.detector.resize(picture), picture if keep_picture else None
