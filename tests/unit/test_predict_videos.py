"""Videos, streams and cameras as sources of `fcos predict`."""

from __future__ import annotations

import gc
import json
import sys
import threading
import weakref
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import av
import pytest
from av.error import InvalidDataError
from PIL import Image
from processes import SECONDS
from raw_server import raw_server, response
from videos import frame_number, predict, write_video

from fcos import ConfigError, DataError, Detector
from fcos.inference import frames as frames_module
from fcos.inference import video as video_module
from fcos.inference.frames import Frame, find_sources
from fcos.inference.read_ahead import ReadAhead
from fcos.inference.sources import predict_files
from fcos.inference.stream import Detected
from fcos.inference.video import VideoFile, count_frames, is_video, read_video


@pytest.fixture(autouse=True)
def direct_connection(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("no_proxy", "127.0.0.1,localhost")


def damaged(clip: Path, path: Path) -> Path:
    """Copy a video with one frame whose data are zeros."""
    with av.open(str(clip)) as container:
        packet = list(container.demux(video=0))[2]
        assert packet.pos is not None
        start, length = packet.pos, packet.size
    data = bytearray(clip.read_bytes())
    data[start : start + length] = bytes(length)
    path.write_bytes(data)
    return path


class TestVideo:
    def test_frames_have_number_time_and_picture(self, clip: Path) -> None:
        decoded = list(read_video(str(clip)))
        assert [frame_number(frame.image) for frame in decoded if frame.image] == [0, 1, 2, 3, 4]
        assert [frame.time for frame in decoded] == pytest.approx([0.0, 0.1, 0.2, 0.3, 0.4])
        assert not any(frame.is_live for frame in decoded)
        assert count_frames(str(clip)) == 5

    def test_json_lines_and_the_annotated_copy_have_every_frame(
        self, detector: Detector, clip: Path, tmp_path: Path
    ) -> None:
        success, results = predict(detector, [clip], tmp_path, save=["images", "frames", "jsonl"])
        assert success
        rows = [json.loads(line) for line in (tmp_path / "predictions.jsonl").read_text().splitlines()]
        assert [(row["file"], row["frame"], row["picture"]) for row in rows] == [
            (str(clip), i, "clip.webm") for i in range(5)
        ]
        assert [row["time"] for row in rows] == pytest.approx([0.0, 0.1, 0.2, 0.3, 0.4])
        assert [len(row["detections"]) for row in rows] == [len(r.instances) for r in results if r.instances]
        with av.open(str(tmp_path / "clip.webm")) as container:
            assert container.streams.video[0].codec_context.name == "vp9"  # not an encoder under the GPL
            copies = list(container.decode(video=0))
        assert [frame.time for frame in copies] == pytest.approx([0.0, 0.1, 0.2, 0.3, 0.4], abs=1e-3)
        assert (copies[0].width, copies[0].height) == (640, 480)  # enlarged as pictures are
        assert sorted(path.name for path in (tmp_path / "frames").iterdir()) == [f"clip_{i:06}.jpg" for i in range(5)]

    def test_a_broken_frame_is_reported_and_the_rest_continues(
        self, detector: Detector, clip: Path, tmp_path: Path
    ) -> None:
        broken = damaged(clip, tmp_path / "broken.mp4")
        success, results = predict(detector, [broken, clip], tmp_path / "out", save=["json"])
        assert not success
        (failed,) = (result for result in results if result.error)
        assert failed.error is not None
        assert failed.error.startswith(f"{broken}, frame ")
        assert len([result for result in results if result.source == str(clip)]) == 5
        assert len([result for result in results if result.source == str(broken) and result.instances]) == 4

    def test_the_time_of_a_broken_frame_counts_from_the_first_one(self) -> None:
        class Packet:
            def __init__(self, time: float | None) -> None:
                self.time = time

            def decode(self) -> list[SimpleNamespace]:
                if self.time is None:
                    raise InvalidDataError(0, "Invalid data")
                return [SimpleNamespace(time=self.time, is_corrupt=True)]

        streams = SimpleNamespace(video=[SimpleNamespace(average_rate=10)])
        packets = [Packet(100.0), Packet(100.1), Packet(None), Packet(100.3)]
        container = SimpleNamespace(streams=streams, demux=lambda _: iter(packets))
        frames = list(video_module._decode(container, is_live=False, name="late.ts"))
        assert [frame.error for frame in frames] == ["is damaged"] * 2 + [
            "cannot be decoded: Invalid data",
            "is damaged",
        ]
        assert [frame.time for frame in frames] == pytest.approx([0.0, 0.1, 0.1, 0.3])

    def test_a_file_that_is_no_video_is_reported(self, detector: Detector, clip: Path, tmp_path: Path) -> None:
        (tmp_path / "text.mp4").write_text("no video")
        success, results = predict(detector, [tmp_path / "text.mp4", clip], tmp_path / "out", save=[])
        assert not success
        assert "text.mp4: cannot be opened as video: Invalid data" in str(results[0].error)
        assert len(results) == 6

    def test_a_file_that_ends_before_its_first_frame_is_reported(self, detector: Detector, tmp_path: Path) -> None:
        path = write_video(tmp_path / "cut.mkv")
        with av.open(str(path)) as container:
            position = next(container.demux(video=0)).pos
        assert position
        path.write_bytes(path.read_bytes()[:position])
        success, results = predict(detector, [path], tmp_path / "out")
        message = f"{path}: ends before its first frame; the file is incomplete"
        assert (success, [result.error for result in results]) == (False, [message])

    def test_videos_in_folders_and_globs_are_sources(self, clip: Path, tmp_path: Path) -> None:
        (tmp_path / "a.MP4").write_bytes(clip.read_bytes())
        Image.new("RGB", (8, 8)).save(tmp_path / "b.png")
        for text in (str(tmp_path), f"{tmp_path}/*"):
            sources, failures = find_sources([text])
            assert failures == []
            assert [(Path(s.text).name, s.kind, s.num_frames) for s in sources] == [
                ("a.MP4", "video", 5),
                ("b.png", "picture", 1),
            ]

    def test_rotated_videos_are_shown_upright(self, tmp_path: Path) -> None:
        image = Image.new("RGB", (64, 48))
        image.paste((255, 255, 255), (0, 0, 64, 12))  # the top is white

        class Fake:
            rotation = -90

            def to_image(self) -> Image.Image:
                return image

        turned = video_module._to_image(Fake())
        assert turned.size == (48, 64)
        assert turned.getpixel((46, 32)) == (255, 255, 255)  # a quarter turn clockwise moves the top to the right
        assert turned.getpixel((2, 32)) == (0, 0, 0)

    def test_a_colon_in_the_name_is_no_protocol(
        self, clip: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        (tmp_path / "rtp:a.mp4").write_bytes(clip.read_bytes())
        monkeypatch.chdir(tmp_path)
        assert len(list(read_video("rtp:a.mp4"))) == 5

    def test_too_large_videos_are_rejected(self, clip: Path) -> None:
        with pytest.raises(DataError, match=r"has 64x48 pixels, more than data\.max_pixels=100"):
            next(read_video(str(clip), max_pixels=100))

    def test_missing_pyav_is_named_with_the_command_to_type(
        self, detector: Detector, clip: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setitem(sys.modules, "av", None)
        _, (result,) = predict(detector, [clip], tmp_path / "out", save=[])
        assert result.error == f'{clip}: videos and cameras need PyAV; type: pip install "fcos-vision[video]"'

    def test_odd_sides_and_changing_sizes_are_written(self, tmp_path: Path) -> None:
        file = VideoFile(tmp_path / "a.webm", (65, 49))
        for seconds, size in ((0.0, (65, 49)), (0.0, (80, 60)), (0.5, (65, 49))):
            file.write(Image.new("RGB", size), seconds)
        assert not (tmp_path / "a.webm").exists()
        file.close()
        with av.open(str(tmp_path / "a.webm")) as container:
            frames = list(container.decode(video=0))
        assert [(frame.width, frame.height) for frame in frames] == [(64, 48)] * 3
        assert [frame.time for frame in frames] == pytest.approx([0.0, 0.001, 0.5])

    def test_a_copy_is_valid_after_an_interruption(self, detector: Detector, clip: Path, tmp_path: Path) -> None:
        def interrupt(_: Detected) -> None:
            raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            predict_files(detector, [str(clip)], tmp_path / "out", report=interrupt)
        assert list(read_video(str(tmp_path / "out/clip.webm")))
        assert not [*(tmp_path / "out").glob("*.tmp")]

    def test_the_number_of_live_pictures_does_not_grow_with_the_video(
        self, detector: Detector, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        long = write_video(tmp_path / "long.mp4", num_frames=60)
        living = weakref.WeakValueDictionary[int, Image.Image]()
        most = 0

        class Watched(Frame):
            def __init__(self, source: str, image: Image.Image | None = None, *rest: Any, **more: Any) -> None:
                nonlocal most
                super().__init__(source, image, *rest, **more)
                if image is not None:
                    living[id(image)] = image
                most = max(most, len(living))

        monkeypatch.setattr(frames_module, "Frame", Watched)
        gc.collect()
        success, results = predict(detector, [long], tmp_path / "out", save=["jsonl"])
        assert success
        assert len(results) == 60
        # A batch that is processed, one that waits, and a few between the threads.
        assert most <= 2 * detector.config.eval.batch_size + 6


class TestStreams:
    def test_an_http_video_is_read_frame_by_frame(self, detector: Detector, clip: Path, tmp_path: Path) -> None:
        with raw_server({"/clip.mp4": response(clip.read_bytes(), header="Content-Type: video/mp4")}) as address:
            success, results = predict(detector, [f"{address}/clip.mp4"], tmp_path, save=["images"])
        assert success
        assert [result.frame.index for result in results] == [0, 1, 2, 3, 4]
        assert (tmp_path / "clip.webm").is_file()

    def test_an_mjpeg_stream_is_recognised_by_its_media_type(self, clip: Path, tmp_path: Path) -> None:
        stream = write_video(tmp_path / "stream.mpjpeg", codec="mjpeg").read_bytes()
        body = b"HTTP/1.1 200 OK\r\nContent-Type: multipart/x-mixed-replace; boundary=ffmpeg\r\n\r\n" + stream
        photo = response(b"x", header="Content-Type: image/jpeg")
        with raw_server({"/camera": body, "/photo": photo}) as address:
            assert is_video(f"{address}/camera")
            assert not is_video(f"{address}/photo")
            assert not is_video(f"{address}/a.jpg")
            decoded = list(read_video(f"{address}/camera"))
        assert [frame_number(frame.image) for frame in decoded if frame.image][:4] == [0, 1, 2, 3]
        assert all(frame.is_live for frame in decoded)

    def test_the_server_of_a_url_is_asked_once_for_its_media_type(self, monkeypatch: pytest.MonkeyPatch) -> None:
        asked: list[str] = []
        monkeypatch.setattr(video_module, "media_type", lambda url, **_: asked.append(url) or "image/jpeg")
        sources, failures = find_sources(["http://127.0.0.1:1/photo"])
        assert [(source.kind, source.num_frames) for source in sources] == [("picture", 1)]
        assert (failures, asked) == ([], ["http://127.0.0.1:1/photo"])

    def test_servers_are_asked_at_the_same_time(self, monkeypatch: pytest.MonkeyPatch) -> None:
        both = threading.Barrier(2, timeout=SECONDS)

        def wait_for_the_other(url: str, **_: object) -> str:
            both.wait()
            return "video/mp4" if url.endswith("clip") else "image/png"

        monkeypatch.setattr(video_module, "media_type", wait_for_the_other)
        sources, _ = find_sources(["http://127.0.0.1:1/photo", "http://127.0.0.1:1/clip"])
        assert [source.kind for source in sources] == ["picture", "video"]

    def test_a_failing_stream_is_reported(self, detector: Detector, tmp_path: Path) -> None:
        success, (result,) = predict(detector, ["rtsp://127.0.0.1:1/x"], tmp_path, save=[])
        assert not success
        assert str(result.error).startswith("rtsp://127.0.0.1:1/x: cannot be opened as video: Connection refused")

    def test_a_number_is_a_camera(
        self, detector: Detector, clip: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(video_module, "camera_input", lambda number: (str(clip), None) if number == 3 else None)
        success, results = predict(detector, ["3"], tmp_path, save=["images"])
        assert success
        assert results
        assert (results[0].source, results[0].frame.is_live) == ("3", True)
        assert (tmp_path / "camera_3.webm").is_file()

    @pytest.mark.parametrize(
        ("platform", "address"),
        [("linux", ("/dev/video2", "v4l2")), ("darwin", ("2", "avfoundation")), ("win32", None)],
    )
    def test_cameras_of_each_system(
        self, platform: str, address: tuple[str, str] | None, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(sys, "platform", platform)
        if address is None:
            with pytest.raises(ConfigError, match="cameras are read on Linux and macOS only"):
                video_module.camera_input(2)
        else:
            assert video_module.camera_input(2) == address

    def test_frames_of_a_camera_are_dropped_if_the_detector_is_slow(self) -> None:
        all_read = threading.Event()

        def camera() -> Iterator[Frame]:
            for index in range(100):
                yield Frame("0", index=index, is_live=True)
            all_read.set()

        ahead = ReadAhead(camera(), 2, may_drop=lambda frame: frame.is_live)
        assert all_read.wait(30)
        assert [frame.index for frame in ahead.take(8)] == [98, 99]
        assert ahead.take(8) == []
