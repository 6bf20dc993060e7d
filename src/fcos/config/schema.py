"""Schema of the config. Docstrings of fields are their documentation; defaults follow the recipe of the FCOS paper.

The options of detectors are in `detectors.py`. `overrides.py` validates plain data against this schema.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    Field,
    ValidationError,
    field_validator,
    model_validator,
)

from ..choices import AveragedStatistics, Cache, Decode, Precision, Resize, YoloRows
from ..extensions import FUNCTION
from ..files import MAX_NAME_BYTES, find_long_name
from ..formatting import quote
from .detectors import DETECTORS, DetectorConfig, FCOSConfig, choose_detector
from .messages import config_error
from .options import MAX_COUNT, MAX_LR, MAX_SIDE, RULES, Factor, OneOf, Side, option
from .yaml_text import dump_yaml


class _Section(BaseModel):
    model_config = RULES


def expand_user(path: str | Path) -> Path:
    """Expand `~` in a path. `~NAME` of an unknown user stays as it is, since it may be a file name."""
    return Path(os.path.expanduser(path))


def _check_path(path: Path) -> Path:
    """Expand `~`, and reject paths that no system can open, which would fail in a different way in each place."""
    if "\0" in str(path):
        raise ValueError("contains a NUL character, which no path can contain")
    if find_long_name(path):
        raise ValueError(f"a file or folder name has at most {MAX_NAME_BYTES} bytes, found {quote(str(path))}")
    return expand_user(path)


LENGTHS = ("iterations", "epochs", "max_minutes")
"""Options of `train` of which one gives the length of a run."""
MAX_BATCH_SIZE = 16_384
BatchSize = Annotated[int, Field(ge=1, le=MAX_BATCH_SIZE)]
KeypointIndex = Annotated[int, Field(ge=0, lt=10_000)]
Zoom = Annotated[float, Field(ge=0.01, le=100)]
OnProblem = Literal["stop", "skip"]
UserPath = Annotated[Path, AfterValidator(_check_path)]
"""Path with `~` expanded, since not every shell expands it in `data=~/pictures`."""


def _as_list(value: Any) -> Any:
    return [] if value is None else value if isinstance(value, list | tuple) else [value]


UserPaths = Annotated[list[UserPath], BeforeValidator(_as_list)]


class SplitConfig(_Section):
    """Explicit paths of one split. Lists combine several data sets of the same format."""

    annotations: UserPaths = []
    """Annotations. File: COCO, CVAT, CSV, Hugging Face; folder: VOC, YOLO, LabelMe, Cityscapes."""
    images: UserPaths = []
    """Image folder, to which file names are relative; for several data sets one folder each, or one for all."""
    image_list: Annotated[list[UserPath | None], BeforeValidator(_as_list)] = []
    """Text file that lists the images of the split; empty: all images. In a list for several data sets, null stands for
    all images."""

    @model_validator(mode="after")
    def _check_lengths(self) -> SplitConfig:
        annotations, images, lists = (len(paths) for paths in (self.annotations, self.images, self.image_list))
        count = max(annotations, images, lists)
        if annotations not in (0, count) or images not in (0, 1, count) or lists not in (0, count):
            raise ValueError(
                "annotations, images and image_list must be lists of the same length, found"
                f" {annotations}, {images} and {lists} paths"
            )
        return self

    @property
    def data_sets(self) -> list[tuple[Path | None, Path | None, Path | None]]:
        """Paths (annotations, images, image_list) of each data set."""
        count = max(len(self.annotations), len(self.images), len(self.image_list))
        images = self.images * count if len(self.images) == 1 else self.images
        columns = (self.annotations, images, self.image_list)
        return list(zip(*(column or [None] * count for column in columns), strict=True))


class DataConfig(_Section):
    """Location, loading and augmentation of the data. `data=DIR` is short for `data.root=DIR`."""

    root: UserPath | None = None
    """Folder or file in a layout of an annotation tool, which is recognised (see docs/data.md)."""
    format: Literal["auto", "coco", "voc", "yolo", "labelme", "cvat", "csv", "huggingface", "cityscapes"] = "auto"
    """Format of the annotations; `auto`: recognised from the files."""
    yolo_rows: YoloRows = "auto"
    """YOLO: meaning of rows with more than four numbers after the class. `boxes`: the first four are the box, the
    others keypoints, a confidence or a track id. `polygons`: all are points. `auto`: `boxes` if data.yaml has
    kpt_shape, otherwise derived from the numbers of the whole split."""
    convention: Literal["fcos", "fcos_core"] = "fcos"
    """Rules for reading COCO and VOC annotations; `fcos_core`: those of the original (VOC boxes that start at 1 and
    include their last pixel, no training images without boxes, every category a class), see docs/migrating.md."""
    train: SplitConfig = Field(default_factory=SplitConfig)
    val: SplitConfig = Field(default_factory=SplitConfig)
    test: SplitConfig = Field(default_factory=SplitConfig)
    masks: bool = False
    """Read the masks of the objects (COCO: `segmentation`; VOC: SegmentationObject; YOLO: polygons; LabelMe and CVAT:
    shapes; Cityscapes), for detectors with a mask head."""
    boxes: Literal["file", "masks"] = "file"
    """Boxes of the objects: those of the file, or the smallest ones around the masks."""
    keypoints: bool = False
    """Read the keypoints of the objects (COCO: `keypoints`; YOLO: poses; CVAT: skeletons), for detectors with a
    keypoint head."""
    keypoint_pairs: list[tuple[KeypointIndex, KeypointIndex]] | None = None
    """Pairs of keypoints, counted from 0, that a horizontal flip exchanges, such as [[1,2],[3,4]]; null: those that
    the data lists, or else those whose names differ only in left and right."""
    val_fraction: float | None = Field(default=None, gt=0, lt=1)
    """Fraction of the training images to hold out for validation if the data has no validation split: stratified by
    class, the same in every run. Images whose names differ only in the last number are kept together."""
    classes: list[str] | None = None
    """Class names in label order, for annotations that do not contain them; null: from the data."""
    on_error: OnProblem = "stop"
    """Unusable images and annotations: `stop` with an error, or `skip` them and report which."""
    max_pixels: int = Field(default=178_956_970, ge=1, le=MAX_COUNT)
    """Largest number of pixels of an image. Decoding takes three bytes per pixel, and small malicious files may be
    huge."""
    bit_depth: int = Field(default=16, ge=8, le=16)
    """Number of bits used in images with 16 bits per pixel, for example 12 for cameras and scanners whose largest value
    is 4095; larger values become white."""
    short_side: list[Annotated[int, Field(le=MAX_SIDE)]] = option([800], needs="short_side_range=null")
    """Training: length of the shorter side after resizing, in pixels; drawn from this list (multi-scale training)."""
    short_side_range: tuple[Side, Side] | None = None
    """Training: draw the length of the shorter side from this range, ends included, instead of from `short_side`."""
    max_side: Side = 1333
    """Maximum length of the longer side after resizing, in pixels."""
    test_short_side: Side | None = None
    """Detection: length of the shorter side, in pixels; null: the largest one used in training."""
    test_max_side: Side | None = None
    """Detection: maximum length of the longer side, in pixels; null: `max_side`."""
    resize: Resize = "pillow"
    """Resizing of images: `pillow`, with the pixels of the original, or `torch`, which is faster and whose values
    differ by at most 1. With `torch`, JPEG files are also decoded faster, to the same pixels."""
    decode: Decode = option("exact", needs="cache=null")
    """Training: decoding of JPEG files: `exact`, or `fast`, which interpolates colours more coarsely and decodes large
    photographs at 1/2, 1/4 or 1/8 of their size if their sides are multiples of 2, 4 or 8, but never below the size
    after resizing. Detection decodes exactly."""
    flip: float = Field(default=0.5, ge=0, le=1)
    """Training: probability of a horizontal flip."""
    zoom: tuple[Zoom, Zoom] = (1.0, 1.0)
    """Training: rescale the resized image by a random factor from this range (large-scale jittering). A random crop
    keeps it from becoming larger. Useful for long training on small data sets; [0.5, 2] is strong."""
    color_jitter: float = Field(default=0.0, ge=0, le=1)
    """Training: multiply brightness, contrast and saturation by random factors in 1 +- this value."""
    augmentation_warmup: float = Field(default=0, ge=0, le=1e6)
    """Training: number of images seen per class during which `zoom` and `color_jitter` grow from nothing to their full
    strength; 0: full strength from the start."""
    augmentation_fade: float = Field(default=0, ge=0, le=1e6)
    """Training: lower the strength of `zoom` and `color_jitter` linearly during the run, to nothing at its end. The run
    starts at full strength if it has at least this number of images per class, and at a proportional strength if it has
    fewer; 0: full strength throughout. See docs/training.md."""
    transforms: Annotated[str, Field(pattern=FUNCTION)] | None = None
    """Training: user-defined transform `package.module:function`, called after all others as in torchvision's
    transforms.v2: `image, target = function(image, {"boxes": ..., "labels": ...})`; see docs/training.md."""
    size_divisor: int = Field(default=32, ge=1, le=2048)
    """Batches are padded at the right and the bottom to a multiple of this, in pixels."""
    group_by_aspect: bool = True
    """Training: do not mix landscape and portrait images in a batch."""
    workers: int = Field(default=2, ge=0, le=256)
    """Maximum number of data loader processes; at most one per available CPU core is started. 0: load in the main
    process."""
    cache: Cache | None = None
    """Training: keep the decoded images of train and val, in memory (`ram`) or in a temporary file (`disk`), so that
    each is decoded once per run; null: decode them each time. Batches do not change. See docs/training.md."""

    @model_validator(mode="before")
    @classmethod
    def _expand_shorthand(cls, value: Any) -> Any:
        return {"root": value} if isinstance(value, str | Path | int | float) else value

    @field_validator("short_side", mode="before")
    @classmethod
    def _wrap_short_side(cls, value: Any) -> Any:
        return value if isinstance(value, list | tuple) else [value]

    @field_validator("classes")
    @classmethod
    def _check_classes(cls, classes: list[str] | None) -> list[str] | None:
        if classes is not None and (not classes or not all(map(str.strip, classes))):
            raise ValueError(
                f"expected class names in label order, such as [cat,dog], or null for those in the data, found"
                f" {quote(classes)}"
            )
        if classes is not None and len(set(classes)) != len(classes):
            raise ValueError(f"class names must be unique, found {', '.join(classes):.200}")
        return classes

    @field_validator("val_fraction", mode="before")
    @classmethod
    def _check_val_fraction(cls, value: Any) -> Any:
        if value is not None and (isinstance(value, bool) or value == 0):
            raise ValueError(
                f"expected a fraction between 0 and 1, such as 0.2, or null for none, found {quote(value)}"
            )
        return value

    @model_validator(mode="after")
    def _check_sides(self) -> DataConfig:
        if not self.short_side or min(self.short_side) < 1:
            raise ValueError(f"short_side must contain positive pixel counts, found {quote(self.short_side)}")
        if self.short_side_range is not None and not 1 <= self.short_side_range[0] <= self.short_side_range[1]:
            raise ValueError(f"short_side_range must be (smallest, largest), found {self.short_side_range}")
        if self.zoom[0] > self.zoom[1]:
            raise ValueError(f"zoom must be (smallest, largest), found {self.zoom}")
        return self

    @property
    def largest_short_side(self) -> int:
        """Largest length of the shorter side in training, in pixels."""
        return self.short_side_range[1] if self.short_side_range else max(self.short_side)

    @property
    def detection_short_side(self) -> int:
        """Length of the shorter side in detection, in pixels."""
        return self.test_short_side or self.largest_short_side

    @property
    def detection_max_side(self) -> int:
        """Maximum length of the longer side in detection, in pixels."""
        return self.test_max_side or self.max_side


class TrainConfig(_Section):
    """Optimisation. Give the length as one of `iterations`, `epochs` and `max_minutes`, which replaces the default."""

    batch_size: BatchSize = 16
    """Images per step, over all processes."""
    devices: int | None = Field(default=None, ge=1, le=1024)
    """Number of processes to start on this machine, each with one GPU or, with `device=cpu`, a share of the cores;
    null: one process, or those that torchrun started."""
    micro_batch: BatchSize | Literal["auto"] | None = None
    """Maximum number of images per process in one forward pass (gradient accumulation over micro-batches). `auto`: as
    many as fit into GPU memory; null: no accumulation. Losses and weights do not change, except that batch norm that is
    not frozen (`bn`, `sync_bn`) computes its statistics per micro-batch."""
    iterations: int | None = Field(default=90000, ge=1, le=MAX_COUNT)
    epochs: float | None = Field(default=None, gt=0, le=1e6)
    max_minutes: float | None = Field(default=None, gt=0, le=1e7)
    """Wall-clock budget of the whole run in minutes, evaluation included; the schedule follows the measured speed."""
    optimizer: Literal["sgd", "adamw"] = "sgd"
    lr: float = Field(default=0.01, gt=0, le=MAX_LR)
    momentum: float = option(0.9, needs="optimizer=sgd", ge=0, lt=1)
    weight_decay: Factor = 1e-4
    bias_lr_factor: Factor = 2.0
    """Learning-rate multiplier of biases."""
    offset_lr_factor: Factor = 1.0
    """Learning-rate multiplier of the layers that predict the offsets of deformable convolutions."""
    bias_weight_decay: Factor = 0.0
    lr_factors: dict[str, Factor] = {}
    """Learning-rate multipliers by glob of parameter names: `{backbone.*: 0.1}`. If several globs match, the last one
    applies."""
    freeze: list[str] = []
    """Parameters to freeze, as globs of their names: `[backbone.*, fpn.*]`. Batch norm whose parameters are all frozen
    keeps its running statistics."""
    fold_frozen: bool = False
    """Fold batch norms of frozen stages into their convolutions in training steps: faster, equal up to rounding."""
    schedule: Literal["multistep", "cosine"] = "multistep"
    milestones: list[Annotated[float, Field(ge=0, le=MAX_COUNT)]] = option([2 / 3, 8 / 9], needs="schedule=multistep")
    """`multistep`: iterations at which the learning rate is multiplied by `gamma`; values below 1: fractions of the
    run."""
    gamma: float = option(0.1, needs="schedule=multistep", gt=0, le=1)
    warmup: Literal["none", "constant", "linear"] = "constant"
    warmup_iterations: int = option(500, needs="warmup!=none", ge=0, le=MAX_COUNT)
    """Length of the warm-up; with `max_minutes`, at most a tenth of the run."""
    warmup_factor: float = option(1 / 3, needs="warmup!=none", ge=0, le=1)
    clip_norm: float | None = Field(default=None, gt=0, le=MAX_COUNT)
    """Maximum total gradient norm for gradient clipping; null: no clipping."""
    ema: float | None = Field(default=None, gt=0, lt=1)
    """Decay per step of an exponential moving average of the weights, which is evaluated and saved; null: no EMA."""
    ema_statistics: AveragedStatistics = option("same_decay", needs="ema")
    """EMA of the running statistics of batch norm, which are averages already: with the `same_decay` as that of the
    weights, so that they are older than the averaged weights, or over fewer steps, so that they have the `same_age`,
    which gives a higher AP in short runs."""
    precision: Precision = "float32"
    """Precision of backbone and head (autocast); losses and boxes stay in float32. `float16` uses loss scaling."""
    compile: bool = False
    """Compile the network with torch.compile: the first steps take minutes, later ones are faster. It pays on a GPU; on
    the CPU, where it needs a C++ compiler, steps take as long as without it."""
    on_nonfinite: OnProblem = "stop"
    """If the loss or a gradient is not finite: `stop` the run, or `skip` the update (ten skipped steps in a row stop
    the run). The first ten of these steps are saved in RUN/nonfinite."""
    eval_every: float | None = Field(default=None, gt=0, le=MAX_COUNT)
    """Iterations between evaluations on the validation set; below 1: fraction of the run; null: only at the end."""
    best_metric: str = "AP"
    """Validation metric that selects the best weights, such as AP, AP50, AR100, or AP_mask or AP_keypoints if masks or
    keypoints are read; for RPN also AR100_proposals or AR1000_proposals."""
    patience: int | None = Field(default=None, ge=1, le=MAX_COUNT)
    """Early stopping: number of evaluations in a row without a better `best_metric`; null: no early stopping."""
    checkpoint_every: int = Field(default=2500, ge=1, le=MAX_COUNT)
    """Iterations between checkpoints (weights/last.pt)."""
    keep: int = Field(default=2, ge=1, le=1000)
    """Number of latest checkpoints to keep: last.pt, last-1.pt and so on. If the latest is damaged, the run resumes
    from an earlier one."""
    log_every: int = Field(default=20, ge=1, le=MAX_COUNT)
    """Iterations summarised in one logged row."""
    loggers: Annotated[list[str], BeforeValidator(lambda value: [value] if isinstance(value, str) else value)] = [
        "csv",
        "tensorboard",
    ]
    """Loggers: `csv` (RUN/metrics.csv, which the report reads), `tensorboard`, `wandb` (needs `pip install wandb`),
    `mlflow` (needs `pip install mlflow-skinny sqlalchemy alembic`), or a user-defined `package.module:function`."""
    weights: str | None = None
    """Detector weights to start from (fine-tuning): a run folder, a path or http(s) URL of a file of fcos or another
    project, or a name such as `torchvision/maskrcnn_resnet50_fpn_v2` (COCO). `#NAME` at the end of a URL sets the file
    name in the cache."""
    resume: bool = False
    """Resume the run in `output_dir` from its weights/last.pt, or start it if there is no checkpoint yet."""
    seed: int = Field(default=0, ge=-(2**63), lt=2**63)
    """Seed of all random numbers, a 64-bit integer."""

    @model_validator(mode="before")
    @classmethod
    def _drop_default_length(cls, value: Any) -> Any:
        if isinstance(value, dict) and value.keys() & {"epochs", "max_minutes"}:  # null as well: then one must be given
            value = {"iterations": None, **value}
        return value

    @model_validator(mode="after")
    def _check_length(self) -> TrainConfig:
        given = [k for k in LENGTHS if getattr(self, k) is not None]
        if len(given) != 1:
            found = " and ".join(given) or "none"
            raise ValueError(f"give exactly one of iterations, epochs and max_minutes, found {found}")
        if self.patience is not None and self.eval_every is None:
            raise ValueError("patience counts evaluations; give eval_every as well")
        return self


class EvalConfig(_Section):
    """Evaluation and prediction."""

    batch_size: BatchSize = 8
    """Images per step; the result does not depend on it."""
    precision: Precision | None = None
    """Precision of backbone and head; null: `train.precision`. Where the device has fast arithmetic for it, `bfloat16`
    is faster, and scores and boxes change slightly."""
    compile: bool = False
    """Compile the network with torch.compile for `fcos val`, `predict` and `serve`: the first images take a minute,
    later ones are faster. It pays on a GPU; on the CPU it needs a C++ compiler."""
    flip: bool = False
    """Test-time augmentation: also detect on the mirrored image. Every view costs the time and memory of an image.
    Boxes are detected in all views; the masks and keypoints of these boxes are computed without augmentation."""
    scales: list[Side] = []
    """Test-time augmentation: also detect at these lengths of the shorter side, in pixels."""
    scales_max_side: Side = option(4000, needs="scales")
    """Maximum length of the longer side at `scales`, in pixels."""
    scales_flip: bool = option(False, needs="scales")
    """Also detect on the mirrored image at `scales`."""
    voc_metrics: bool = False
    """Also compute AP at IoU 0.5 as in Pascal VOC: AP50_voc07 (11 points) and AP50_voc10 (area)."""
    keypoint_sigmas: list[Annotated[float, Field(gt=0, le=10)]] | None = None
    """Standard deviation of annotators for every keypoint, as a fraction of the object's size, for AP_keypoints; null:
    COCO's for its 17 keypoints, otherwise 0.067 (the mean of COCO's)."""


class Config(_Section):
    """Complete config of a run."""

    model: Annotated[DetectorConfig, OneOf(tuple(DETECTORS.values()), choose_detector)] = Field(
        default_factory=FCOSConfig
    )
    """Detector, selected by `name`; default: FCOS."""
    data: DataConfig = Field(default_factory=DataConfig)
    train: TrainConfig = Field(default_factory=TrainConfig)
    eval: EvalConfig = Field(default_factory=EvalConfig)
    output_dir: UserPath | None = None
    """Run folder; null: runs/NAME, or runs/NAME-2 and so on if it exists."""
    device: str = "auto"
    """`auto` (CUDA, else MPS, else CPU), or the name of a torch device."""

    @model_validator(mode="after")
    def _check_details(self) -> Config:
        if self.model.predicts_masks and not self.data.masks:
            raise ValueError("model.mask.enabled=true needs data.masks=true, which reads the masks")
        if self.model.num_predicted_keypoints and not self.data.keypoints:
            raise ValueError("model.keypoints.enabled=true needs data.keypoints=true, which reads the keypoints")
        return self

    def __init__(self, **options: Any) -> None:
        """Validate the sections and options.

        Raises:
            ConfigError: an option is wrong; one message lists all errors.
        """
        try:
            super().__init__(**options)
        except ValidationError as error:
            raise config_error(error, type(self), where="Config") from None

    __init__.__pydantic_base_init__ = True  # pyright: ignore[reportFunctionMemberAccess]  # not for `model_validate`

    @property
    def eval_precision(self) -> Precision:
        """Precision of backbone and head in evaluation and prediction."""
        return self.eval.precision or self.train.precision

    def to_dict(self) -> dict[str, Any]:
        """Return the config as plain data (str, int, float, bool, None, list, dict), which `Config(**d)` restores."""
        return self.model_dump(mode="json")

    def to_yaml(self) -> str:
        """Return the resolved config as YAML."""
        return dump_yaml(self.to_dict())
