"""Videos, streams, cameras, watched folders and lists on stdin as sources, and `Detector.predict(stream=True)`."""

from __future__ import annotations

import gc
import json
import logging
import os
import sys
import threading
import weakref
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import av
import pytest
from detectors import CATEGORY_IDS, NAMES
from PIL import Image
from raw_server import raw_server, response
from videos import frame_number, write_video

from fcos import ConfigError, DataError, Detector, cli
from fcos.checkpoint import save_checkpoint
from fcos.inference import frames as frames_module
from fcos.inference import video as video_module
from fcos.inference.frames import Frame, find_sources, read_lines
from fcos.inference.read_ahead import ReadAhead
from fcos.inference.sources import predict_files
from fcos.inference.stream import Detected
from fcos.inference.video import VideoFile, count_frames, is_video, read_video


@pytest.fixture(autouse=True)
def direct_connection(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("no_proxy", "127.0.0.1,localhost")


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a video of five frames."""
    return write_video(tmp_path_factory.mktemp("clip") / "clip.mp4")


def run(detector: Detector, sources: Sequence[str | Path], out: Path, **options: Any) -> tuple[bool, list[Detected]]:
    results: list[Detected] = []
    success = predict_files(detector, [str(s) for s in sources], out, report=results.append, **options)
    return success, results


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
        success, results = run(detector, [clip], tmp_path, save=["images", "frames", "jsonl"])
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
        success, results = run(detector, [broken, clip], tmp_path / "out", save=["json"])
        assert not success
        (failed,) = (result for result in results if result.error)
        assert failed.error is not None
        assert failed.error.startswith(f"{broken}, frame ")
        assert len([result for result in results if result.source == str(clip)]) == 5
        assert len([result for result in results if result.source == str(broken) and result.instances]) == 4

    def test_a_file_that_is_no_video_is_reported(self, detector: Detector, clip: Path, tmp_path: Path) -> None:
        (tmp_path / "text.mp4").write_text("no video")
        success, results = run(detector, [tmp_path / "text.mp4", clip], tmp_path / "out", save=[])
        assert not success
        assert "text.mp4: cannot be opened as video: Invalid data" in str(results[0].error)
        assert len(results) == 6

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
        _, (result,) = run(detector, [clip], tmp_path / "out", save=[])
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

    def test_the_number_of_live_pictures_does_not_grow_with_the_video(
        self, detector: Detector, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        long = write_video(tmp_path / "long.mp4", num_frames=60)
        living: list[weakref.ref[Image.Image]] = []
        most = 0

        class Watched(Frame):
            def __init__(self, source: str, image: Image.Image | None = None, *rest: Any, **more: Any) -> None:
                nonlocal most
                super().__init__(source, image, *rest, **more)
                living[:] = [reference for reference in living if reference() is not None]
                if image is not None:
                    living.append(weakref.ref(image))
                most = max(most, len(living))

        monkeypatch.setattr(frames_module, "Frame", Watched)
        gc.collect()
        success, results = run(detector, [long], tmp_path / "out", save=["jsonl"])
        assert success
        assert len(results) == 60
        # A batch that is processed, one that waits, and a few between the threads.
        assert most <= 2 * detector.config.eval.batch_size + 6


class TestStreams:
    def test_an_http_video_is_read_frame_by_frame(self, detector: Detector, clip: Path, tmp_path: Path) -> None:
        with raw_server({"/clip.mp4": response(clip.read_bytes(), header="Content-Type: video/mp4")}) as address:
            success, results = run(detector, [f"{address}/clip.mp4"], tmp_path, save=["images"])
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

    def test_a_failing_stream_is_reported(self, detector: Detector, tmp_path: Path) -> None:
        success, (result,) = run(detector, ["rtsp://127.0.0.1:1/x"], tmp_path, save=[])
        assert not success
        assert str(result.error).startswith("rtsp://127.0.0.1:1/x: cannot be opened as video: Connection refused")

    def test_a_number_is_a_camera(
        self, detector: Detector, clip: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(video_module, "camera_input", lambda number: (str(clip), None) if number == 3 else None)
        success, results = run(detector, ["3"], tmp_path, save=["images"])
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


class TestReadAhead:
    def test_order_and_number_of_waiting_items_are_kept(self) -> None:
        produced: list[int] = []

        def numbers() -> Iterator[int]:
            for number in range(20):
                produced.append(number)
                yield number

        ahead = ReadAhead(numbers(), 3)
        taken: list[int] = []
        while items := ahead.take(2):
            taken += items
            assert len(produced) <= len(taken) + 4
        assert taken == list(range(20))

    def test_an_error_comes_after_the_items_before_it(self) -> None:
        def fail() -> Iterator[int]:
            yield 1
            raise DataError("broken")

        ahead = ReadAhead(fail(), 3)
        assert ahead.take(1) == [1]
        with pytest.raises(DataError, match="broken"):
            ahead.take(1)

    def test_closing_closes_the_iterator(self) -> None:
        closed = threading.Event()

        def endless() -> Iterator[int]:
            try:
                while True:
                    yield 0
            finally:
                closed.set()

        ahead = ReadAhead(endless(), 2)
        assert ahead.take(1) == [0]
        ahead.close()
        assert closed.wait(30)


class TestLists:
    def test_lines_arrive_one_by_one(self) -> None:
        reading, writing = os.pipe()
        lines = read_lines(reading)
        os.write(writing, b"a.png\n\nb c.p")
        assert next(lines) == "a.png"
        os.write(writing, b"ng\r\nlast")
        assert next(lines) == "b c.png"
        os.close(writing)
        assert list(lines) == ["last"]
        os.close(reading)

    def test_sources_on_stdin_are_read_before_the_list_ends(
        self, detector: Detector, clip: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        Image.new("RGB", (64, 48)).save(tmp_path / "a.png")
        reading, writing = os.pipe()
        os.write(writing, f"{tmp_path}/a.png\n".encode())
        results: list[Detected] = []

        def go_on(result: Detected) -> None:
            results.append(result)
            if len(results) == 1:
                os.write(writing, f"{tmp_path}/none.png\n{clip}\n".encode())
                os.close(writing)

        with open(reading) as stdin, monkeypatch.context() as patch:
            patch.setattr(sys, "stdin", stdin)
            success = predict_files(detector, ["-"], tmp_path / "out", save=["json"], report=go_on)
        assert not success
        assert [Path(result.source).name for result in results] == ["a.png", "none.png", *["clip.mp4"] * 5]
        assert "no such file" in str(results[1].error)

    def test_missing_stdin_is_reported(
        self, detector: Detector, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(sys, "stdin", None)
        _, (result,) = run(detector, ["-"], tmp_path, save=[])
        assert result.error == "-: expected paths on stdin, found no stdin"

    def test_watched_folder_yields_new_files_when_they_are_complete(
        self, detector: Detector, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        folder = tmp_path / "in"
        folder.mkdir()
        Image.new("RGB", (64, 48)).save(folder / "a.png")
        content = (folder / "a.png").read_bytes()
        names: list[str] = []
        looks = 0

        def pause(_: float) -> None:
            nonlocal looks
            looks += 1
            if looks == 3:
                (folder / "b.png").write_bytes(content[:40])
            elif looks == 4:
                (folder / "b.png").write_bytes(content)

        def stop(result: Detected) -> None:
            assert result.error is None
            names.append(Path(result.source).name)
            if len(names) == 2:
                raise KeyboardInterrupt

        monkeypatch.setattr(frames_module.time, "sleep", pause)
        with pytest.raises(KeyboardInterrupt):
            predict_files(detector, [str(folder)], tmp_path / "out", watch=True, report=stop)
        assert names == ["a.png", "b.png"]
        assert (tmp_path / "out" / "b.png").is_file()

    def test_output_in_the_watched_folder_is_rejected(self, detector: Detector, tmp_path: Path) -> None:
        with pytest.raises(DataError, match="would be overwritten"):
            run(detector, [tmp_path], tmp_path, watch=True)


class TestPython:
    def test_a_stream_equals_single_pictures(self, detector: Detector, tmp_path: Path) -> None:
        for i in range(3):
            Image.radial_gradient("L").convert("RGB").resize((120 - 20 * i, 80)).save(tmp_path / f"{i}.png")
        expected = detector.predict(str(tmp_path))
        pictures = [Image.open(tmp_path / f"{i}.png") for i in range(3)]
        for images in (str(tmp_path), [tmp_path / f"{i}.png" for i in range(3)], iter(pictures)):
            found = list(detector.predict(images, stream=True))
            assert [len(one) for one in found] == [len(one) for one in expected]
            for one, other in zip(found, expected, strict=True):
                assert (one.boxes - other.boxes).abs().max() < 1e-3  # rounding of other batches
                assert one.plot().size == other.plot().size

    def test_a_video_yields_its_frames(self, detector: Detector, clip: Path) -> None:
        found = list(detector.predict(str(clip), stream=True, threshold={"cat": 0.0}, max_detections=2))
        assert [(one.source, one.frame) for one in found] == [(str(clip), i) for i in range(5)]
        assert [one.time for one in found] == pytest.approx([0.0, 0.1, 0.2, 0.3, 0.4])
        assert found[0].plot().size == (640, 480)

    def test_a_video_without_stream_is_rejected(self, detector: Detector, clip: Path) -> None:
        with pytest.raises(DataError, match=r"is a video; use predict\(\.\.\., stream=True\)"):
            detector.predict(clip)

    def test_unreadable_pictures_are_left_out_with_a_warning(
        self, detector: Detector, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        (tmp_path / "a.png").write_text("no picture")
        Image.new("RGB", (64, 48)).save(tmp_path / "b.png")
        with caplog.at_level(logging.WARNING, logger="fcos"):
            (found,) = detector.predict(tmp_path, stream=True)
        assert found.source.endswith("b.png")
        assert "a.png: not an image" in caplog.text

    def test_mistakes_are_raised_at_once(self, detector: Detector, tmp_path: Path) -> None:
        with pytest.raises(DataError, match="no such file"):
            detector.predict(tmp_path / "none.mp4", stream=True)
        with pytest.raises(ConfigError, match="threshold: no class 'cot', did you mean 'cat'"):
            detector.predict(tmp_path, stream=True, threshold={"cot": 0.5})

    def test_pictures_are_read_only_as_needed(self, detector: Detector) -> None:
        read = 0

        def pictures() -> Iterator[Image.Image]:
            nonlocal read
            while True:
                read += 1
                yield Image.new("RGB", (64, 48))

        stream = detector.predict(pictures(), stream=True)
        for _ in range(3):
            next(stream)
        assert read <= 3 + 2 * detector.config.eval.batch_size + 2
        stream.close()  # pyright: ignore[reportAttributeAccessIssue] (a generator)


class TestCommand:
    @pytest.fixture
    def weights(self, detector: Detector, tmp_path: Path) -> Path:
        model, names, ids = detector.model, NAMES, CATEGORY_IDS
        save_checkpoint(tmp_path / "w.pt", model=model, config=detector.config, class_names=names, category_ids=ids)
        return tmp_path / "w.pt"

    def run(self, *words: object) -> int:
        with pytest.raises(SystemExit) as stop:
            cli.main([str(word) for word in words])
        return int(stop.value.code or 0)

    def test_a_video_is_one_line(
        self, weights: Path, clip: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        out = tmp_path / "out"
        assert self.run("predict", weights, clip, "--out", out, "device=cpu", "--threshold", "0") == 0
        (line,) = capsys.readouterr().out.splitlines()
        assert line.startswith(f"{clip}: 5 frames: ")
        assert line.endswith(f" -> {out / 'clip.webm'}")

    def test_thresholds_of_single_classes(self, weights: Path, tmp_path: Path) -> None:
        Image.radial_gradient("L").convert("RGB").resize((120, 80)).save(tmp_path / "a.png")
        words = ["predict", weights, tmp_path / "a.png", "--out", tmp_path / "out", "device=cpu", "--save", "json"]

        def names(*thresholds: str) -> set[str]:
            more = [word for text in thresholds for word in ("--threshold", text)]
            assert self.run(*words, *more) == 0
            (row,) = json.loads((tmp_path / "out/predictions.json").read_text())
            return {detection["name"] for detection in row["detections"]}

        everything = names("0")
        assert len(everything) > 1
        first = min(everything)
        assert names("1", f"{first}=0") == {first}
        assert names("0", f"{first}=1") == everything - {first}

    @pytest.mark.parametrize(
        ("words", "message"),
        [
            (["--threshold", "2"], "--threshold: expected a number from 0 to 1, found '2'"),
            (["--threshold", "cat=x"], "--threshold: expected a number from 0 to 1, found 'x'"),
            (["--threshold", "cot=0.5"], "threshold: no class 'cot', did you mean 'cat'?"),
            (["--save", "jsn"], "--save: expected one of images, "),
            (["--save", "none,json"], "--save: expected none, or other outputs, found none,json"),
            (["--watch"], "--watch: expected a folder"),
            (["--tile", "8"], "tile: expected an integer of at least 32, found 8"),
            (["--tile", "x"], "--tile: expected an integer, found 'x'"),
            (["--tile", "64", "--overlap", "1"], "--overlap: expected a number from 0 to 0.9, found '1'"),
        ],
    )
    def test_wrong_arguments_are_explained(
        self, weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], words: list[str], message: str
    ) -> None:
        Image.new("RGB", (64, 48)).save(tmp_path / "a.png")
        assert self.run("predict", weights, tmp_path / "a.png", "--out", tmp_path / "out", *words, "device=cpu") == 2
        assert message in capsys.readouterr().err


def test_pictures_are_read_in_another_thread(detector: Detector) -> None:
    threads: set[int] = set()

    def pictures() -> Iterator[Frame]:
        for _ in range(3):
            threads.add(threading.get_ident())
            yield Frame("", Image.new("RGB", (64, 48)))

    assert len(list(filter(None, detector.detect_stream(pictures())))) == 3
    assert threads
    assert threading.get_ident() not in threads
