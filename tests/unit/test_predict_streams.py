"""Watched folders and lists on stdin as sources, reading in a thread, and `Detector.predict(stream=True)`."""

from __future__ import annotations

import logging
import os
import sys
import threading
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from threading import Event

import pytest
import torch
from detectors import tiny_detector
from PIL import Image
from processes import SECONDS
from videos import predict

from fcos import ConfigError, DataError, Detector
from fcos.inference.frames import Frame, Source, find_frames, read_frames, read_lines
from fcos.inference.pictures import PictureDetection
from fcos.inference.read_ahead import ReadAhead
from fcos.inference.resized import Resized, Resizer
from fcos.inference.selection import Selected
from fcos.inference.sources import predict_files
from fcos.inference.stream import Detected
from fcos.inference.writers import CopyWriter


def make_folder(folder: Path) -> tuple[Path, bytes]:
    """Create a folder with the picture a.png; return it with the content of the picture."""
    folder.mkdir()
    Image.new("RGB", (64, 48)).save(folder / "a.png")
    return folder, (folder / "a.png").read_bytes()


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

    def test_an_error_while_the_iterator_is_closed_ends_it(self) -> None:
        class Items(Iterator[int]):
            def __next__(self) -> int:
                raise StopIteration

            def close(self) -> None:
                raise DataError("cannot be closed")

        with pytest.raises(DataError, match="cannot be closed"):
            ReadAhead(Items(), 2).take(1)

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

    @pytest.mark.parametrize("line", ["0", "-"])
    def test_a_list_contains_no_cameras_and_lists(self, detector: Detector, line: str) -> None:
        (frame,) = find_frames(iter([line]), detector.config.data)
        assert frame.error == f"{line}: no such file; cameras and lists cannot be part of a list"

    def test_missing_stdin_is_reported(
        self, detector: Detector, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(sys, "stdin", None)
        _, (result,) = predict(detector, ["-"], tmp_path, save=[])
        assert result.error == "-: expected paths on stdin, found no stdin"

    def test_watched_folder_yields_new_files_when_they_are_complete(
        self, detector: Detector, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        folder, content = make_folder(tmp_path / "in")
        names: list[str] = []
        looks = 0

        class Stop(Event):
            def wait(self, timeout: float | None = None) -> bool:
                nonlocal looks
                looks += 1
                if looks == 3:
                    (folder / "b.png").write_bytes(content[:40])
                elif looks == 4:
                    (folder / "b.png").write_bytes(content)
                return super().wait(0.001)

        def stop(result: Detected) -> None:
            assert result.error is None
            names.append(Path(result.source).name)
            if len(names) == 2:
                raise KeyboardInterrupt

        monkeypatch.setattr("fcos.inference.sources.Event", Stop)
        before = {*threading.enumerate()}
        with pytest.raises(KeyboardInterrupt):
            predict_files(detector, [str(folder)], tmp_path / "out", watch=True, report=stop)
        assert names == ["a.png", "b.png"]
        for thread in {*threading.enumerate()} - before:
            thread.join(SECONDS)  # nothing waits for new files any more
            assert not thread.is_alive()
        assert (tmp_path / "out" / "b.png").is_file()

    def test_watched_file_is_read_again_if_its_transfer_paused(self, detector: Detector, tmp_path: Path) -> None:
        folder, content = make_folder(tmp_path / "in")
        looks = 0

        class Stop(Event):
            def wait(self, timeout: float | None = None) -> bool:
                nonlocal looks
                looks += 1
                if looks == 1:
                    (folder / "b.png").write_bytes(content[:40])
                elif looks == 4:
                    (folder / "b.png").write_bytes(content)
                elif looks == 8:
                    Image.new("RGB", (32, 32)).save(folder / "a.png")  # its results are written
                return looks == 12

        frames = read_frames([Source(str(folder), "watched", None)], detector.config.data, stop=Stop())
        results = [(Path(frame.source).name, frame.error is None) for frame in islice(frames, 3)]
        assert results == [("a.png", True), ("b.png", False), ("b.png", True)]
        assert list(frames) == []

    def test_shard_of_pictures_names_the_engine_that_reads_it(self, detector: Detector, tmp_path: Path) -> None:
        (tmp_path / "a.tar").write_bytes(bytes(1024))
        _, (result,) = predict(detector, [tmp_path / "a.tar"], tmp_path / "out", save=[])
        assert result.error == (
            f"{tmp_path / 'a.tar'}: not an image; only fcos predict --engine ray reads tar and Parquet files"
        )

    def test_output_in_the_watched_folder_is_rejected(self, detector: Detector, tmp_path: Path) -> None:
        with pytest.raises(DataError, match="would be overwritten"):
            predict(detector, [tmp_path], tmp_path, watch=True)


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


def test_pictures_are_read_in_another_thread(detector: Detector) -> None:
    threads: set[int] = set()

    def pictures() -> Iterator[Frame]:
        for _ in range(3):
            threads.add(threading.get_ident())
            yield Frame("", Image.new("RGB", (64, 48)))

    assert len(list(filter(None, detector.detect_stream(pictures())))) == 3
    assert threads
    assert threading.get_ident() not in threads


def test_a_picture_is_drawn_while_the_next_one_is_detected(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    detector = tiny_detector()
    one_by_one = detector.config.eval.model_copy(update={"batch_size": 1})
    detector.config = detector.config.model_copy(update={"eval": one_by_one})
    for name in ("a.png", "b.png"):
        Image.new("RGB", (64, 48)).save(tmp_path / name)
    detect, write, second = PictureDetection.__call__, CopyWriter.write, threading.Event()
    count = 0

    def count_and_detect(
        self: PictureDetection, pictures: Sequence[Image.Image], resized: Sequence[Resized] | None
    ) -> list[Selected]:
        nonlocal count
        count += 1
        if count == 2:
            second.set()
        return detect(self, pictures, resized)

    def wait_and_write(self: CopyWriter, detected: Detected) -> Path | None:
        assert second.wait(SECONDS)
        return write(self, detected)

    monkeypatch.setattr(PictureDetection, "__call__", count_and_detect)
    monkeypatch.setattr(CopyWriter, "write", wait_and_write)
    success, results = predict(detector, [tmp_path], tmp_path / "out")
    assert success
    assert [result.picture for result in results] == [tmp_path / "out/a.png", tmp_path / "out/b.png"]


def test_the_pictures_of_a_stream_are_resized_by_the_thread_that_reads_them(monkeypatch: pytest.MonkeyPatch) -> None:
    detector, threads, resize = tiny_detector(), [], Resizer.__call__

    def note_thread(self: Resizer, image: Image.Image) -> Resized:
        threads.append(threading.current_thread().name)
        return resize(self, image)

    monkeypatch.setattr(Resizer, "__call__", note_thread)
    pictures = [Image.effect_noise(size, 80).convert("RGB") for size in ((64, 48), (130, 90), (64, 48))]
    streamed = list(detector.predict(pictures, stream=True, threshold=0.0))
    assert threads == ["fcos read ahead"] * 3
    for found, expected in zip(streamed, detector.predict(pictures, threshold=0.0), strict=True):
        assert len(found)
        torch.testing.assert_close(found.boxes, expected.boxes, atol=1e-3, rtol=0)


def test_a_picture_that_cannot_be_resized_is_left_out(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    resize = Resizer.__call__

    def fail_for_wide(self: Resizer, image: Image.Image) -> Resized:
        if image.width == 130:
            raise MemoryError
        return resize(self, image)

    monkeypatch.setattr(Resizer, "__call__", fail_for_wide)
    pictures = [Image.new("RGB", size) for size in ((64, 48), (130, 90), (64, 48))]
    assert len(list(tiny_detector().predict(pictures, stream=True))) == 2
    assert "picture in memory: cannot be processed (130x90 pixels): out of memory" in caplog.text
