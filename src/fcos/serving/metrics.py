"""Metrics of the service in the format of Prometheus."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram


class Metrics:
    """Counters and histograms of one service, in a registry of their own.

    Attributes:
        registry: registry of all metrics.
        requests: requests by route and status code.
        seconds: durations of requests by route.
        images: images with detections.
        detections: detections in these images.
        in_progress: images that are accepted and not yet answered.
        batch_sizes: numbers of images that the detector processed together.
        batch_seconds: durations of these batches.
    """

    def __init__(self) -> None:
        registry = self.registry = CollectorRegistry()
        self.requests = Counter("fcos_requests", "Requests.", ["route", "status"], registry=registry)
        self.seconds = Histogram("fcos_request_seconds", "Duration of requests.", ["route"], registry=registry)
        self.images = Counter("fcos_images", "Images with detections.", registry=registry)
        self.detections = Counter("fcos_detections", "Detections.", registry=registry)
        self.in_progress = Gauge("fcos_images_in_progress", "Images not yet answered.", registry=registry)
        sizes = (1, 2, 4, 8, 16, 32, 64)
        self.batch_sizes = Histogram("fcos_batch_images", "Images of a batch.", buckets=sizes, registry=registry)
        self.batch_seconds = Histogram("fcos_batch_seconds", "Duration of batches.", registry=registry)

    def observe_batch(self, size: int, seconds: float) -> None:
        """Record a batch of the detector."""
        self.batch_sizes.observe(size)
        self.batch_seconds.observe(seconds)
