"""Detector for pictures in any form, with results in pixels of the original pictures."""

from __future__ import annotations

import logging
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Self, overload

import torch
from PIL import Image
from torch import Tensor

from ..config import Config
from ..data.loader import pad_views
from ..data.opening import MAX_PIXELS
from ..distributed import resolve_device
from ..downloads import is_url
from ..errors import ConfigError, WeightsError
from ..formatting import join_some, plural, printable
from ..keypoints import UNNAMED, KeypointLayout
from ..models.inference_copy import InferenceCopy
from ..precision import autocast
from ..recipes import recipes_with
from ..structures import Instances
from .detect import detect_on_originals
from .frames import Frame, find_frames, list_pictures
from .inputs import Picture, to_picture
from .pictures import PictureDetection
from .prediction import Prediction
from .resized import Resized, Resizer
from .selection import Selected, Selection, find_labels, require_count
from .stream import Detected, detect_stream
from .tiling import Tiling
from .tracking import track as track_objects

if TYPE_CHECKING:
    from ..choices import ExportFormat, ExportNMS, ExportPrecision
    from ..export.quantization import Quantization
    from ..export.write import Exported
    from ..models import DetectionModel

log = logging.getLogger(__name__)


class Detector:
    """Trained model with its config, class names, category ids and score thresholds.

    Attributes:
        model: model in evaluation mode.
        config: config that the model was trained with.
        class_names: [K] names of the classes; empty if unknown.
        category_ids: [K] ids of the classes in the training data.
        keypoint_layout: names, skeleton and flip pairs of the keypoints; empty if unknown, or without keypoints.
        is_trained: False if the head has random weights; `predict` then refuses to run.
        licence: licence of the weights if it may restrict their use; empty: no restriction is known.
        resize: function that resizes a picture for `detect_resized`, from any thread.
    """

    def __init__(
        self,
        model: DetectionModel,
        config: Config,
        *,
        class_names: Sequence[str] = (),
        category_ids: Sequence[int] = (),
        thresholds: Mapping[str, float] | None = None,
        keypoint_layout: KeypointLayout = UNNAMED,
        is_trained: bool = True,
        licence: str = "",
    ):
        self.model = model.eval()
        self.config = config
        self.class_names = tuple(class_names)
        self.category_ids = tuple(category_ids) or tuple(range(model.num_classes))
        self.keypoint_layout = keypoint_layout
        self.is_trained = is_trained
        self.licence = licence
        self._stored_thresholds = dict(thresholds or {})
        self.resize = Resizer.of(config)
        self._inference_copy = InferenceCopy(compiled=config.eval.compile)

    @property
    def device(self) -> torch.device:
        """Device of the model."""
        return self.model.device

    @property
    def label_names(self) -> tuple[str, ...]:
        """[K] names of the classes; those of unnamed classes are their labels, as in `Instances.names`."""
        return self.class_names or tuple(str(label) for label in range(self.model.num_classes))

    @property
    def thresholds(self) -> Tensor:
        """Per-class score thresholds, [K] float64; `predict` leaves out detections with lower scores.

        They have the highest F1 on the validation set (closer to the default for classes with few objects) and are
        stored in best.pt by `fcos train`. Classes without a stored threshold use the model's `default_threshold`.
        """
        default = self.model.default_threshold
        names = self.class_names or [""] * self.model.num_classes
        return torch.tensor([self._stored_thresholds.get(name, default) for name in names], dtype=torch.float64)

    def __repr__(self) -> str:
        """Return a summary with the classes, the recipe and the device."""
        names = printable(join_some(self.class_names)) or "without names"
        model = self.config.model
        kind = " or ".join(recipes_with(model)[:2]) or f"{model.name}, {model.backbone.name}"
        untrained = "" if self.is_trained else ", untrained"
        return f"Detector({plural(self.model.num_classes, 'class')}: {names}; {kind}; {self.device}{untrained})"

    def to(self, device: torch.device | str) -> Self:
        """Move the model to a device.

        Args:
            device: torch device, or `auto` (CUDA, else MPS, else CPU).

        Returns:
            This detector.

        Raises:
            ConfigError: the device does not exist.
        """
        self.model.to(resolve_device(device))
        return self

    @overload
    def predict(
        self,
        images: Picture,
        *,
        threshold: float | Mapping[str, float] | None = None,
        classes: Sequence[str] | None = None,
        max_detections: int | None = None,
        nms_threshold: float | None = None,
        batch_size: int | None = None,
        tile: int | None = None,
        overlap: float = 0.2,
        stream: Literal[False] = False,
    ) -> Prediction | Any: ...  # Any: the list for a folder or a glob
    @overload
    def predict(
        self,
        images: Iterable[Picture],
        *,
        threshold: float | Mapping[str, float] | None = None,
        classes: Sequence[str] | None = None,
        max_detections: int | None = None,
        nms_threshold: float | None = None,
        batch_size: int | None = None,
        tile: int | None = None,
        overlap: float = 0.2,
        stream: Literal[False] = False,
    ) -> list[Prediction]: ...
    @overload
    def predict(
        self,
        images: Picture | Iterable[Picture],
        *,
        threshold: float | Mapping[str, float] | None = None,
        classes: Sequence[str] | None = None,
        max_detections: int | None = None,
        nms_threshold: float | None = None,
        batch_size: int | None = None,
        tile: int | None = None,
        overlap: float = 0.2,
        stream: Literal[True],
        track: bool = False,
    ) -> Iterator[Prediction]: ...

    def predict(
        self,
        images: Picture | Iterable[Picture],
        *,
        threshold: float | Mapping[str, float] | None = None,
        classes: Sequence[str] | None = None,
        max_detections: int | None = None,
        nms_threshold: float | None = None,
        batch_size: int | None = None,
        tile: int | None = None,
        overlap: float = 0.2,
        stream: bool = False,
        track: bool = False,
    ) -> Prediction | list[Prediction] | Iterator[Prediction]:
        """Detect objects in one or several pictures of any size.

        The config sets test-time augmentation (`eval.flip` and `eval.scales`).

        Args:
            images: a picture or an iterable of pictures. A picture is a path, http(s) URL, PIL image, array ([H, W, 3]
                RGB, [H, W, 4] RGBA or [H, W] grey) or tensor ([3, H, W], [4, H, W] or [1, H, W]); arrays and tensors
                are uint8 or float in 0..1. A folder or a glob such as `photos/**/*.jpg` stands for the pictures in it,
                sorted by path.
            threshold: score threshold for all classes, in 0..1, or a dict of thresholds by class name; the other
                classes, and None, use the per-class `thresholds`. The score threshold in the model's config also
                applies (for FCOS: `model.score_threshold`).
            classes: names of the classes to detect; None: all.
            max_detections: largest number of detections per picture: the best of `classes` that reach their thresholds.
                0: no limit. None: the limit in the model's config (for FCOS: `model.max_detections`).
            nms_threshold: IoU in 0..1 above which the lower-scoring of two boxes of a class is suppressed, 0: no
                suppression; None uses the model's config.
            batch_size: number of pictures processed at a time; None uses `config.eval.batch_size`. The result does not
                depend on it, because only pictures of the same padded shape form a batch.
            tile: side of the tiles in pixels, for small objects in large pictures. A larger picture is detected tile by
                tile, and once as a whole for objects that are larger than the overlap. Boxes of the same object in
                several tiles are suppressed, also with `nms_threshold=0`. A limit on the number of detections in the
                model's config applies to each tile. None: no tiles.
            overlap: overlap of two tiles as a fraction of their side, 0 to 0.9.
            stream: return an iterator, which needs the same memory for any number of pictures and reads the next ones
                in a thread. Then the images may also be videos: files, folders of them, RTSP and http(s) streams, and
                numbers of cameras such as `"0"` (extra `video`). Pictures and frames that cannot be read are left out,
                with a warning in the log.
            track: with `stream`, number the objects in the frames of videos, see `Instances.track_ids` (extra `track`).

        Returns:
            The detections of every picture, best first, with continuous XYXY boxes inside the original picture, on the
            CPU. A list for an iterable, a folder or a glob; a single result for a single picture; an iterator with
            `stream`.

        Raises:
            WeightsError: the detector is untrained.
            DataError: a file is missing or not a picture, or an array has a wrong shape, type or range.
            ConfigError: an option is out of range, a class is unknown, or the detector has no `nms_threshold`.
        """
        self._require_trained()
        selection = self._selection(threshold, classes, max_detections, nms_threshold)
        require_count("batch_size", batch_size, at_least=1)
        detect = self._detection(selection, None if tile is None else Tiling(tile, overlap))
        step = int(batch_size or self.config.eval.batch_size)
        if stream:
            return self._stream(find_frames(images, self.config.data), detect, step, track=track)
        if track:
            raise ConfigError("track: expected stream=True, as only the frames of videos are tracked")
        pictures, is_single = list_pictures(images)
        results: list[Prediction] = []
        for start in range(0, len(pictures), step):
            chunk = pictures[start : start + step]
            decoded = self._read(chunk, start)
            results += [self._to_prediction(*each) for each in zip(detect(decoded), chunk, decoded, strict=True)]
        return results[0] if is_single else results

    def detect_stream(
        self,
        frames: Iterator[Frame],
        *,
        threshold: float | Mapping[str, float] | None = None,
        tiling: Tiling | None = None,
        track: bool = False,
    ) -> Generator[Detected | None]:
        """Detect objects in the pictures of a stream, in order, for `fcos predict`.

        Args:
            frames: pictures, see `read_frames`.
            threshold: see `predict`.
            tiling: tiles of large pictures; None: no tiles.
            track: number the objects in the frames of videos.

        Returns:
            Iterator of the results, whose detections contain no pictures; None: the next picture has not been read.

        Raises:
            WeightsError: the detector is untrained.
            ConfigError: the threshold is out of range, a class is unknown, or a package is not installed.
        """
        self._require_trained()
        detect = self._detection(self._selection(threshold), tiling)

        def detect_without_pictures(batch: Sequence[Frame]) -> list[Prediction]:
            return [replace(found, image=None) for found in self._detect_frames(batch, detect)]

        results = detect_stream(
            detect_without_pictures,
            frames,
            batch_size=self.config.eval.batch_size,
            resize=self.resize if tiling is None else None,
        )
        return track_objects(results) if track else results

    def _stream(
        self, frames: Iterator[Frame], detect: PictureDetection, batch_size: int, *, track: bool
    ) -> Iterator[Prediction]:
        resize = self.resize if detect.tiling is None else None
        results = detect_stream(
            partial(self._detect_frames, detect=detect), frames, batch_size=batch_size, resize=resize
        )
        for detected in track_objects(results) if track else results:
            if detected is None:
                continue
            if detected.instances is None:
                log.warning("%s", printable(detected.error or ""))
            else:
                yield detected.instances

    def _detect_frames(self, frames: Sequence[Frame], detect: PictureDetection) -> list[Prediction]:
        """Return the detections of pictures, each with its picture."""
        images = [frame.image for frame in frames if frame.image is not None]
        assert len(images) == len(frames)
        predictions: list[Prediction] = []
        resized = [frame.resized for frame in frames if frame.resized is not None]
        selections = detect(images, resized if len(resized) == len(images) else None)
        for frame, image, selected in zip(frames, images, selections, strict=True):
            found = self._to_prediction(selected, frame.path or image, image)
            predictions.append(replace(found, source=frame.source, frame=frame.index, time=frame.time))
        return predictions

    def _detection(self, selection: Selection, tiling: Tiling | None) -> PictureDetection:
        options = self.model.postprocess
        nms_threshold = 0.0 if options is None else options.nms_threshold
        return PictureDetection(self.detect_resized, self.resize, self.config, nms_threshold, selection, tiling)

    def _selection(
        self,
        threshold: float | Mapping[str, float] | None = None,
        classes: Sequence[str] | None = None,
        max_detections: int | None = None,
        nms_threshold: float | None = None,
    ) -> Selection:
        names = self.label_names
        labels = None if classes is None else find_labels(classes, names)
        if not isinstance(threshold, Mapping):
            return Selection(threshold, labels, max_detections, nms_threshold)
        of_labels = find_labels(list(threshold), names, option="threshold")
        by_label = dict(zip(of_labels, threshold.values(), strict=True))
        return Selection(by_label, labels, max_detections, nms_threshold)

    def export(
        self,
        out: str | Path,
        *,
        form: ExportFormat = "onnx",
        size: tuple[int, int] | None = None,
        batch: int | None = None,
        nms: ExportNMS = "graph",
        raw: bool = False,
        opset: int | None = None,
        precision: ExportPrecision = "float32",
        triton: str | Path | None = None,
        images: Sequence[Picture] | None = None,
        quantization: Quantization | None = None,
    ) -> Exported:
        """Write the detector to a file for another runtime, and prove that the file detects what PyTorch detects.

        The file contains everything from the normalisation of pixels to the limit of detections. `fcos.load` reads it
        again. The extra `export` installs the packages that the formats need.

        Args:
            out: path of the new file: `.onnx`, `.xml` (with a `.bin`) or `.pt2`. The figures of the proof are written
                to a file with `.proof.json` added to this name.
            form: `onnx`, `openvino`, `torch_export`, or `aoti`, which needs a C++ compiler.
            size: (height, width) of the padded images that the file accepts, multiples of `data.size_divisor`; None:
                any.
            batch: number of images that the file accepts at a time; None: any.
            nms: non-maximum suppression: `graph`: the operator of the runtime; `matrix`: plain tensor operations, for
                runtimes without this operator; `none`: the file returns the candidates before it.
            raw: whether the file returns the raw outputs of the head, level by level.
            opset: version of the operators of ONNX, 20 to 25; None: 20.
            precision: precision of the network; boxes are decoded and selected in float32. `int8` needs OpenVINO and
                `quantization`.
            triton: folder of a Triton model repository, to which an ONNX file is added.
            images: pictures for the proof, see `predict`; None: generated images.
            quantization: data for int8, which `fcos.export_detector` makes of a data set.

        Returns:
            The path of the file, and the figures of the proof.

        Raises:
            WeightsError: the detector is untrained, or `out` exists or has another suffix.
            ConfigError: the detector cannot be exported, an option is wrong, or a package is not installed.
            ExportError: the proof failed, or int8 costs too much AP; the file is not written.
            WriteError: the disk is full or not writable.
        """
        from ..export.graph import check_sizes
        from ..export.metadata import FixedSizes, Metadata
        from ..export.write import content_of, write_detector

        self._require_trained()
        if len(self.resize.transforms) > 1:
            raise ConfigError(
                "eval.flip, eval.scales: exported files detect without test-time augmentation; add eval.flip=false"
                " eval.scales=[]"
            )
        require_count("batch", batch, at_least=1)
        fixed = FixedSizes(batch, size)
        check_sizes(fixed, divisor=self.config.data.size_divisor)
        tensors = None if images is None else [self.resize(picture).views[0] for picture in self._read(images)]
        metadata = Metadata(
            self.config,
            self.class_names,
            self.category_ids,
            self._stored_thresholds,
            keypoint_layout=self.keypoint_layout,
            content=content_of(nms, raw=raw),
            precision=precision,
            fixed=fixed,
            licence=self.licence,
        )
        repository = None if triton is None else Path(triton)
        return write_detector(
            self.model,
            metadata,
            Path(out),
            form=form,
            matrix_nms=nms != "graph",
            opset=opset,
            images=tensors,
            quantization=quantization,
            triton=repository,
        )

    def to_input(self, image: Picture) -> Tensor:
        """Return a picture as the detector receives it, before padding and normalisation: uint8 [3, h, w].

        Args:
            image: a picture, see `predict`.

        Raises:
            DataError: it cannot be read.
        """
        return self.resize(self._read([image])[0]).views[0]

    def _require_trained(self) -> None:
        if not self.is_trained:
            raise WeightsError(
                "the detector is untrained: its head has random weights; load trained weights, such as"
                " runs/NAME/weights/best.pt"
            )

    def _read(self, images: Sequence[Picture], start: int = 0) -> list[Image.Image]:
        """Convert pictures in any form to RGB images; `start` is the number of the first one, for messages."""
        data = self.config.data
        return [
            to_picture(image, where=f"images[{i}]", bit_depth=data.bit_depth, max_pixels=data.max_pixels)
            for i, image in enumerate(images, start)
        ]

    def _to_prediction(self, selected: Selected, image: Picture, pixels: Image.Image) -> Prediction:
        """Add the picture to its detections: its path if reading it again gives the same pixels, otherwise a copy."""
        source = str(image) if isinstance(image, str | Path) else ""
        has_defaults = (self.config.data.bit_depth, self.config.data.max_pixels) == (16, MAX_PIXELS)
        is_read_again = source and has_defaults and not is_url(source)
        return Prediction(
            **vars(selected.detections),
            image=image if is_read_again else pixels.copy(),
            source=source,
            num_below=selected.num_below,
            best_below=selected.best_below,
        )

    def detect_resized(self, pictures: Sequence[Resized], selections: Sequence[Selection]) -> list[Selected]:
        """Detect objects in resized pictures of the same padded shape, as a batch.

        Args:
            pictures: N results of `resize`.
            selections: options of the N pictures; `Selection.configure` must have the same result for all of them.

        Returns:
            N selections of detections in pixels of the pictures before resizing.
        """
        images = [picture.views for picture in pictures]
        padded = pad_views(images, self.resize.transforms, size_divisor=self.resize.size_divisor)
        limit = self.model.postprocess.max_detections if self.model.postprocess else 0
        selected: list[Selected] = []

        def select(detections: list[Instances]) -> list[Instances]:
            thresholds = self.thresholds
            selected.extend(
                selection.select(image, thresholds, limit=limit)
                for selection, image in zip(selections, detections, strict=True)
            )
            return [image.detections for image in selected]

        views = [view.to(self.device) for view in padded]
        with autocast(self.device, self.config.eval_precision):
            model = selections[0].configure(self._inference_copy(self.model))
            found = detect_on_originals(model, views, [picture.size for picture in pictures], select=select)
        named = [replace(image, class_names=self.class_names, keypoint_layout=self.keypoint_layout) for image in found]
        return [image._replace(detections=detections) for image, detections in zip(selected, named, strict=True)]
