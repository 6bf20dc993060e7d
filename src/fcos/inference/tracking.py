"""Tracking of objects through the frames of videos, with the library `trackers` (extra `track`)."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import closing
from dataclasses import replace

import numpy as np
import torch

from ..errors import ConfigError
from .prediction import Prediction
from .stream import Detected


class VideoTracker:
    """Tracker of the objects in one video.

    Raises:
        ConfigError: the package `trackers` is not installed.

    Source: ByteTrack (Zhang et al., ECCV 2022, arXiv:2110.06864). Detections below their score threshold are not known
    here, so all detections may start a track, and there is no second association of uncertain ones.
    """

    def __init__(self) -> None:
        try:
            from supervision import Detections
            from trackers import ByteTrackTracker
        except ImportError:
            raise ConfigError('tracking needs the package trackers; type: pip install "fcos-vision[track]"') from None
        self._detections = Detections
        self._tracker = ByteTrackTracker(track_activation_threshold=0.0, high_conf_det_threshold=0.0)

    def update(self, found: Prediction) -> Prediction:
        """Return the detections of the next frame with `track_ids`.

        An object gets its number, from 1, when it is found for the second time; until then it is -1.
        """
        numbers = torch.full((len(found),), -1, dtype=torch.int64)
        tracked = self._tracker.update(
            self._detections(
                xyxy=found.boxes.numpy().astype(np.float64),
                confidence=found.scores.numpy(),
                class_id=found.labels.numpy(),
                data={"position": np.arange(len(found))},
            ),
            timestamp=found.time,
        )
        if len(tracked) and tracked.tracker_id is not None:
            ids = torch.from_numpy(np.asarray(tracked.tracker_id, dtype=np.int64))
            numbers[torch.from_numpy(np.asarray(tracked.data["position"]))] = torch.where(ids >= 0, ids + 1, -1)
        return replace(found, track_ids=numbers)


def track(results: Generator[Detected | None]) -> Generator[Detected | None]:
    """Number the objects in the frames of videos. The numbers start anew with every video; pictures have none.

    Raises:
        ConfigError: the package `trackers` is not installed.
    """
    return _track(results, VideoTracker())


def _track(results: Generator[Detected | None], tracker: VideoTracker) -> Generator[Detected | None]:
    video = None
    with closing(results):
        for detected in results:
            if detected is not None and detected.frame.index is not None and detected.instances is not None:
                if detected.frame.video is not video:
                    tracker, video = VideoTracker(), detected.frame.video
                detected.instances = tracker.update(detected.instances)
            yield detected
