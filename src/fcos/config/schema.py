"""The config tree: the field is the schema, its docstring the documentation, its default the FCOS paper's recipe.

The options of detectors are in `detectors.py`. `overrides.py` checks plain data against this tree.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    Field,
    PositiveFloat,
    PositiveInt,
    field_validator,
    model_validator,
)

from ..choices import Precision
from ..extensions import FUNCTION
from .detectors import DETECTORS, DetectorConfig, FCOSConfig, choose_detector
from .options import RULES, OneOf


class _Section(BaseModel):
    model_config = RULES


def expand_user(path: str | Path) -> Path:
    """A path with its ~ replaced; one of a user who is not there stays: it may be the name of a file."""
    return Path(os.path.expanduser(path))


OnProblem = Literal["stop", "skip"]
UserPath = Annotated[Path, AfterValidator(expand_user)]
"""Not every shell expands the ~ of `data=~/pictures`."""
UserPaths = Annotated[
    list[UserPath],
    BeforeValidator(lambda value: [] if value is None else value if isinstance(value, list | tuple) else [value]),
]


class SplitConfig(_Section):
    """One split given piece by piece; lists put several data sets of one format together."""

    annotations: UserPaths = []
    """COCO: the JSON file. VOC: the folder of XML files. YOLO: the folder of label files."""
    images: UserPaths = []
    """The folder that file names are relative to; of several data sets the folder of each, or one for all."""
    image_list: UserPaths = []
    """VOC and YOLO: the text file that names the images of the split; absent: all."""

    @model_validator(mode="after")
    def _one_of_each(self) -> SplitConfig:
        annotations, images, lists = (len(paths) for paths in (self.annotations, self.images, self.image_list))
        count = max(annotations, images, lists)
        if annotations not in (0, count) or images not in (0, 1, count) or lists not in (0, count):
            raise ValueError(
                "annotations, images and image_list must be lists of one length, found"
                f" {annotations}, {images} and {lists} paths"
            )
        return self

    @property
    def data_sets(self) -> list[tuple[Path | None, Path | None, Path | None]]:
        """(annotations, images, image_list) of every data set."""
        count = max(len(self.annotations), len(self.images), len(self.image_list))
        images = self.images * count if len(self.images) == 1 else self.images
        columns = (self.annotations, images, self.image_list)
        return list(zip(*(column or [None] * count for column in columns), strict=True))


class DataConfig(_Section):
    """Where images and annotations come from. `data=DIR` is short for `data.root=DIR`."""

    root: UserPath | None = None
    """A folder in COCO, Pascal VOC or YOLO layout, told apart by itself."""
    format: Literal["auto", "coco", "voc", "yolo"] = "auto"
    train: SplitConfig = Field(default_factory=SplitConfig)
    val: SplitConfig = Field(default_factory=SplitConfig)
    test: SplitConfig = Field(default_factory=SplitConfig)
    classes: list[str] | None = None
    """Class names in label order, for annotation formats that do not carry them; null: from the data."""
    on_error: OnProblem = "stop"
    """`skip`: leave out images and annotations that cannot be used, and say which."""
    short_side: list[int] = [800]
    """Training: the shorter side of the image is scaled to one of these (multi-scale training), in pixels."""
    short_side_range: tuple[int, int] | None = None
    """Training: draw the shorter side from this range, both ends included, instead of from `short_side`."""
    max_side: int = Field(default=1333, ge=1)
    """The longer side is at most this after scaling."""
    test_short_side: int | None = Field(default=None, ge=1)
    """Detection: the shorter side; null: the largest of the training sizes."""
    test_max_side: int | None = Field(default=None, ge=1)
    """Detection: the limit of the longer side; null: `max_side`."""
    flip: float = Field(default=0.5, ge=0, le=1)
    """Probability of a horizontal flip in training."""
    zoom: tuple[PositiveFloat, PositiveFloat] = (1.0, 1.0)
    """Training: scale the image by a further factor from this range without making it larger: a random window of what
    exceeds its size is kept. It makes a small data set last longer; [0.5, 2] is a lot."""
    color_jitter: float = Field(default=0.0, ge=0, le=1)
    """Training: multiply brightness, contrast and saturation by random factors of 1 +- this."""
    transforms: Annotated[str, Field(pattern=FUNCTION)] | None = None
    """Training: your own transform, `package.module:function`, called after all others as those of
    torchvision.transforms.v2 are: `image, target = function(image, {"boxes": ..., "labels": ...})`; see
    docs/training.md."""
    size_divisor: int = Field(default=32, ge=1)
    """Batches are padded at the right and the bottom to a multiple of this."""
    group_by_aspect: bool = True
    """Batches hold either landscape or portrait images."""
    workers: int = Field(default=2, ge=0)
    """Loader processes; 0: load in the main process."""

    @model_validator(mode="before")
    @classmethod
    def _shorthand(cls, value: Any) -> Any:
        return {"root": value} if isinstance(value, str | Path | int | float) else value

    @field_validator("short_side", mode="before")
    @classmethod
    def _one_side(cls, value: Any) -> Any:
        return [value] if isinstance(value, int) else value

    @field_validator("classes")
    @classmethod
    def _distinct(cls, classes: list[str] | None) -> list[str] | None:
        if classes is not None and len(set(classes)) != len(classes):
            raise ValueError(f"class names must differ, found {', '.join(classes):.200}")
        return classes

    @model_validator(mode="after")
    def _sides(self) -> DataConfig:
        if not self.short_side or min(self.short_side) < 1:
            raise ValueError(f"short_side must hold positive pixel counts, found {self.short_side}")
        if self.short_side_range is not None and not 1 <= self.short_side_range[0] <= self.short_side_range[1]:
            raise ValueError(f"short_side_range must be (smallest, largest), found {self.short_side_range}")
        if self.zoom[0] > self.zoom[1]:
            raise ValueError(f"zoom must be (smallest, largest), found {self.zoom}")
        return self

    @property
    def largest_short_side(self) -> int:
        """The largest shorter side in training, pixels."""
        return self.short_side_range[1] if self.short_side_range else max(self.short_side)

    @property
    def detection_short_side(self) -> int:
        """The shorter side in detection, pixels."""
        return self.test_short_side or self.largest_short_side

    @property
    def detection_max_side(self) -> int:
        """The limit of the longer side in detection, pixels."""
        return self.test_max_side or self.max_side


class TrainConfig(_Section):
    """Optimisation. The length is `iterations`, `epochs` or `max_minutes` (give one; the defaults yield)."""

    batch_size: int = Field(default=16, ge=1)
    """Images a step, over all processes."""
    devices: int | None = Field(default=None, ge=1)
    """Start so many processes on this machine, each with its GPU or, with `device=cpu`, its share of the cores; null:
    one, or those that torchrun started."""
    micro_batch: PositiveInt | Literal["auto"] | None = None
    """Images that a process has in its network at a time: it adds up the gradients of as many micro-batches as
    `batch_size` takes. `auto`: as many as fit into the memory of the GPU; null: all. Losses and weights are the same,
    only batch norm that learns (`bn`, `sync_bn`) sees the images of a micro-batch alone."""
    iterations: int | None = Field(default=90000, ge=1)
    epochs: float | None = Field(default=None, gt=0)
    max_minutes: float | None = Field(default=None, gt=0)
    """Wall-clock budget of the whole run, evaluation included; the schedule follows the measured speed."""
    optimizer: Literal["sgd", "adamw"] = "sgd"
    lr: float = Field(default=0.01, gt=0)
    momentum: float = Field(default=0.9, ge=0, lt=1)
    weight_decay: float = Field(default=1e-4, ge=0)
    bias_lr_factor: float = Field(default=2.0, ge=0)
    """Learning rate of biases relative to `lr`."""
    offset_lr_factor: float = Field(default=1.0, ge=0)
    """Learning rate of the offsets of deformable convolutions relative to the others."""
    bias_weight_decay: float = Field(default=0.0, ge=0)
    lr_factors: dict[str, Annotated[float, Field(ge=0)]] = {}
    """Learning rate of parts of the model relative to the others: {pattern: factor}, the pattern being one of names of
    tensors: `{backbone.*: 0.1}`. Where several fit, the last one counts."""
    freeze: list[str] = []
    """Parts of the model that do not learn, as patterns of names of tensors: `[backbone.*, fpn.*]`; their batch norm
    keeps its statistics."""
    schedule: Literal["multistep", "cosine"] = "multistep"
    milestones: list[float] = [2 / 3, 8 / 9]
    """`multistep`: where the rate falls by `gamma`: iterations, or fractions of the run where below 1."""
    gamma: float = Field(default=0.1, gt=0, le=1)
    warmup: Literal["none", "constant", "linear"] = "constant"
    warmup_iterations: int = Field(default=500, ge=0)
    warmup_factor: float = Field(default=1 / 3, ge=0, le=1)
    clip_norm: float | None = Field(default=None, gt=0)
    """Clip the total gradient norm to this."""
    ema: float | None = Field(default=None, gt=0, lt=1)
    """Evaluate and save an exponential moving average of the weights with this decay a step; null: none."""
    precision: Precision = "float32"
    """Arithmetic of backbone and head; losses and boxes stay in float32. `float16` scales the loss as it needs."""
    compile: bool = False
    """Compile the network with torch.compile: the first steps take minutes, the others less. Needs a C++ compiler on
    the CPU."""
    on_nonfinite: OnProblem = "stop"
    """When the loss or its gradients are not finite: stop the run, or leave the weights as they are and go on (ten
    times in a row stop it all the same). Either way the batch is kept in RUN/nonfinite."""
    eval_every: float | None = Field(default=None, gt=0)
    """Evaluate on val every so many iterations, or fractions of the run where below 1; null: at the end only."""
    best_metric: str = "AP"
    """The figure of an evaluation that decides which weights are the best, such as AP, AP50 or AR100."""
    patience: int | None = Field(default=None, ge=1)
    """Stop early after so many evaluations in a row without a better `best_metric`; null: never."""
    checkpoint_every: int = Field(default=2500, ge=1)
    """Save weights/last.pt every so many iterations."""
    keep: int = Field(default=2, ge=1)
    """How many of the last checkpoints stay: last.pt, last-1.pt and so on. A run continues from an earlier one where
    the last one is damaged."""
    log_every: int = Field(default=20, ge=1)
    """A row of numbers sums up so many iterations."""
    loggers: Annotated[list[str], BeforeValidator(lambda value: [value] if isinstance(value, str) else value)] = [
        "csv",
        "tensorboard",
    ]
    """Where the numbers go: `csv` (RUN/metrics.csv, which the report reads), `tensorboard`, `wandb` or `mlflow` (each
    needs `pip install "fcos-vision[NAME]"`), or `package.module:function`, your own."""
    weights: str | None = None
    """Weights of a detector to start from: a path or an http(s) address (`#NAME` at its end: the name in the cache) of
    a file of ours or of another project, or `torchvision/fcos_resnet50_fpn`."""
    resume: bool = False
    """Continue the run in `output_dir` from its weights/last.pt, or from the start if nothing had been saved yet."""
    seed: int = 0

    @model_validator(mode="before")
    @classmethod
    def _one_length(cls, value: Any) -> Any:
        if isinstance(value, dict) and value.keys() & {"epochs", "max_minutes"}:  # null, too: then one must be given
            value = {"iterations": None, **value}
        return value

    @model_validator(mode="after")
    def _length(self) -> TrainConfig:
        given = [k for k in ("iterations", "epochs", "max_minutes") if getattr(self, k) is not None]
        if len(given) != 1:
            found = " and ".join(given) or "none"
            raise ValueError(f"give exactly one of iterations, epochs and max_minutes, found {found}")
        if self.patience is not None and self.eval_every is None:
            raise ValueError("patience counts evaluations; give eval_every, too")
        return self


class EvalConfig(_Section):
    """Evaluation and prediction."""

    batch_size: int = Field(default=8, ge=1)
    """Images a step; the result does not depend on it."""
    flip: bool = False
    """Test-time augmentation: detect on the mirrored image, too. Every view costs the time and memory of an image."""
    scales: list[PositiveInt] = []
    """Test-time augmentation: detect at these lengths of the shorter side, too, in pixels."""
    scales_max_side: int = Field(default=4000, ge=1)
    """The longer side is at most this at `scales`."""
    scales_flip: bool = False
    """Detect on the mirrored image at `scales`, too."""


class Config(_Section):
    """A whole run."""

    model: Annotated[DetectorConfig, OneOf(tuple(DETECTORS.values()), choose_detector)] = Field(
        default_factory=FCOSConfig
    )
    """The detector, chosen by `name`; a config without it is one of FCOS."""
    data: DataConfig = Field(default_factory=DataConfig)
    train: TrainConfig = Field(default_factory=TrainConfig)
    eval: EvalConfig = Field(default_factory=EvalConfig)
    output_dir: UserPath | None = None
    """The run's folder; null: runs/NAME, numbered when taken."""
    device: str = "auto"
    """`auto` (CUDA, else MPS, else CPU), or a torch device."""

    def to_dict(self) -> dict[str, Any]:
        """Plain data (str, int, float, bool, None, list, dict) that `Config(**d)` reads back."""
        return self.model_dump(mode="json")

    def to_yaml(self) -> str:
        """The resolved config as YAML."""
        return yaml.safe_dump(self.to_dict(), sort_keys=False)
