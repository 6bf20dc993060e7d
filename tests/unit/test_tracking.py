"""Tracking of objects through the frames of a video."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from videos import frame_number, write_video

from fcos import ConfigError, Detector, Instances, draw
from fcos.inference.pictures import PictureDetection
from fcos.inference.resized import Resized
from fcos.inference.selection import Selected
from fcos.inference.sources import predict_files


@pytest.fixture
def moving(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Return a function that replaces detection by boxes that depend on the number of the frame."""

    def install(boxes: Callable[[int], Sequence[tuple[float, float, float, float]]]) -> None:
        def detect(
            self: PictureDetection, pictures: Sequence[Image.Image], resized: Sequence[Resized] | None
        ) -> list[Selected]:
            found: list[Selected] = []
            for picture in pictures:
                shown = torch.tensor(boxes(frame_number(picture))).reshape(-1, 4)
                scores = torch.linspace(0.6, 0.3, max(len(shown), 1))[: len(shown)]
                labels = torch.zeros(len(shown), dtype=torch.int64)
                instances = Instances(shown, labels, scores, (picture.height, picture.width))
                found.append(Selected(instances, 0, 0.0))
            return found

        monkeypatch.setattr(PictureDetection, "__call__", detect)

    return install


def left_and_right(number: int) -> list[tuple[float, float, float, float]]:
    """Return two objects that move, in an order that changes from frame to frame."""
    boxes = [(2.0 + 2 * number, 5.0, 22.0 + 2 * number, 25.0), (40.0 - number, 20.0, 60.0 - number, 40.0)]
    return boxes if number % 2 else boxes[::-1]


def run(detector: Detector, video: Path, out: Path) -> list[list[dict[str, Any]]]:
    assert predict_files(detector, [str(video)], out, save=["images", "json"], track=True, report=lambda _: None)
    return [row["detections"] for row in json.loads((out / "predictions.json").read_text())]


def test_objects_keep_their_numbers(detector: Detector, moving: Callable[..., None], tmp_path: Path) -> None:
    moving(left_and_right)
    frames = run(detector, write_video(tmp_path / "a.mp4", num_frames=8), tmp_path / "out")
    numbers = [{detection["box"][1]: detection["track_id"] for detection in frame} for frame in frames]
    assert numbers[0] == {5.0: None, 20.0: None}  # found once
    assert sorted(numbers[1].values()) == [1, 2]
    assert all(number == numbers[1] for number in numbers[1:])


def test_a_lost_object_gets_its_number_back(detector: Detector, moving: Callable[..., None], tmp_path: Path) -> None:
    moving(lambda number: [] if number in (3, 4) else [(5.0 + number, 5.0, 45.0 + number, 45.0)])
    frames = run(detector, write_video(tmp_path / "a.mp4", num_frames=8), tmp_path / "out")
    assert [[detection["track_id"] for detection in frame] for frame in frames] == [
        [None],
        [1],
        [1],
        [],
        [],
        [1],
        [1],
        [1],
    ]


def test_numbers_start_anew_with_every_video_and_pictures_have_none(
    detector: Detector, moving: Callable[..., None], tmp_path: Path
) -> None:
    moving(left_and_right)
    for name in ("a.mp4", "b.mp4"):
        write_video(tmp_path / name, num_frames=3)
    Image.new("RGB", (64, 48)).save(tmp_path / "c.png")
    found = list(detector.predict(tmp_path, stream=True, track=True))
    ids = [None if one.track_ids is None else sorted(one.track_ids.tolist()) for one in found]
    assert ids == [[-1, -1], [1, 2], [1, 2]] * 2 + [None]


def test_numbers_are_drawn() -> None:
    instances = Instances(torch.tensor([[100.0, 200, 300, 400]]), torch.tensor([0]), torch.tensor([0.5]), (480, 640))
    picture = Image.new("RGB", (640, 480))
    numbered = replace(instances, track_ids=torch.tensor([7]))
    pending = replace(instances, track_ids=torch.tensor([-1]))
    assert draw(picture, numbered).tobytes() != draw(picture, instances).tobytes()
    assert draw(picture, pending).tobytes() == draw(picture, instances).tobytes()


def test_numbers_are_passed_to_supervision() -> None:
    instances = Instances(torch.tensor([[1.0, 2, 3, 4]]), torch.tensor([0]), torch.tensor([0.5]), (480, 640))
    tracked = replace(instances, track_ids=torch.tensor([7])).to_supervision()
    assert tracked.tracker_id is not None
    assert tracked.tracker_id.tolist() == [7]
    assert instances.to_supervision().tracker_id is None


def test_track_needs_a_stream(detector: Detector) -> None:
    with pytest.raises(ConfigError, match="track: expected stream=True"):
        detector.predict(Image.new("RGB", (64, 48)), track=True)  # pyright: ignore[reportCallIssue]


def test_missing_package_is_named_with_the_command_to_type(
    detector: Detector, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "trackers", None)
    Image.new("RGB", (64, 48)).save(tmp_path / "a.png")
    with pytest.raises(
        ConfigError, match=r'tracking needs the package trackers; type: pip install "fcos-vision\[track'
    ):
        predict_files(detector, [str(tmp_path)], tmp_path / "out", track=True, report=lambda _: None)
    assert not (tmp_path / "out").exists()
