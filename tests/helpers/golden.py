"""Loading of the recorded reference values (formats: goldens/README.md)."""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Mapping
from dataclasses import fields
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from detectors import build_fcos, fcos_section
from fill import fill_array
from torch import Tensor

from fcos.config import Config, FCOSConfig, RCNNConfig
from fcos.config.overrides import validate
from fcos.interop.fcos_core.config import config_from_yaml, given_keys
from fcos.interop.fcos_core.weights import convert_state_dict, rename
from fcos.masks import Masks
from fcos.models import DetectionModel, build_model
from fcos.models.fcos import FCOS
from fcos.models.postprocess import FCOSPostprocess
from fcos.structures import Objects


def folder(config: pytest.Config) -> Path:
    """Return the folder with the recordings that this test run compares with."""
    return Path(str(config.getoption("--goldens"))).resolve()


def cases(file: Path, *, skip: tuple[str, ...] = ()) -> list[str]:
    """Return the case names in a file of `units`: the first parts of its keys."""
    with np.load(file) as numbers:
        return sorted({key.split("/")[0] for key in numbers.files if "/" in key} - set(skip))


def numbered(numbers: dict[str, np.ndarray], name: str) -> list[Tensor]:
    """Return the recorded tensors NAME0, NAME1, ..."""
    count = sum(re.fullmatch(rf"{name}\d+", key) is not None for key in numbers)
    return [tensor(numbers[f"{name}{i}"]) for i in range(count)]


@cache
def load(file: Path) -> dict[str, np.ndarray]:
    with np.load(file) as numbers:
        return dict(numbers)


def postprocess_of(section: FCOSConfig) -> FCOSPostprocess:
    """Return the post-processing options of a `model` config section."""
    return FCOSPostprocess(**{field.name: getattr(section, field.name) for field in fields(FCOSPostprocess)})


def tensor(array: np.ndarray) -> Tensor:
    return torch.from_numpy(np.asarray(array))


def sample(values: Tensor, count: int = 5) -> np.ndarray:
    """Return the entries of a tensor that the recordings contain, padded with NaN."""
    flat = values.detach().reshape(-1).double().numpy()
    index = np.unique(np.linspace(0, flat.size - 1, count).astype(np.int64)) if flat.size >= count else slice(None)
    row = np.full(count, np.nan)
    picked = flat[index]
    row[: len(picked)] = picked
    return row


class Recording:
    """Recorded model of the original: its outputs, its config converted to ours, and its synthetic weights.

    Args:
        goldens: folder of the recordings.
        entry: entry of an index file.
        folder: folder of the index file below `goldens`.
    """

    def __init__(self, goldens: Path, entry: dict[str, Any], *, folder: str):
        self.name = Path(entry["file"]).stem
        self.numbers = load(goldens / folder / entry["file"])
        self.inputs = load(goldens / folder / "inputs.npz")
        self.index: dict[str, Any] = json.loads((goldens / folder / "index.json").read_text())
        self.manifest = manifest_of(goldens, entry)
        self.config: Config = validate(config_from_yaml(self.manifest["merged_config"], pairs_of(entry)), where="x")
        self.names: list[str] = [row[0] for row in self.manifest["tensors"]]
        self.state = {
            row[0]: torch.from_numpy(fill_array(row[0], row[1], entry["seed"]))
            for row in self.manifest["tensors"]
            if "cell_anchors" not in row[0]
        }

    def load_into(self, model: DetectionModel, *, normalise: bool = False, dtype: torch.dtype = torch.float32) -> None:
        """Load the synthetic weights. Without `normalise` the model then expects normalised images."""
        missing, unexpected = model.load_state_dict(convert_state_dict(self.state), strict=False)
        assert not unexpected
        assert set(missing) == {"pixel_mean", "pixel_std"}
        if not normalise:
            model.pixel_mean.zero_()
            model.pixel_std.fill_(1.0)
            model.channel_order = "rgb"
        model.to(dtype)

    def parameters(self, model: DetectionModel) -> list[torch.nn.Parameter]:
        """Return the parameters of the model in the recorded order."""
        named = dict(model.named_parameters())
        return [named[name] for name in self._our_names("param_names")]

    def buffers(self, model: DetectionModel) -> list[Tensor]:
        named = dict(model.named_buffers())
        return [named[name] for name in self._our_names("buffer_names")]

    def _our_names(self, key: str) -> list[str]:
        return [rename(name, self.config.model.name) for name in self.numbers[key].tolist()]


class Model(Recording):
    """Recorded FCOS model."""

    def __init__(self, goldens: Path, entry: dict[str, Any]):
        super().__init__(goldens, entry, folder="models")
        self.head_outputs_full = entry["head_outputs_full"]
        self.feature_stride, self.head_stride = self.index["feature_stride"], self.index["head_stride"]
        self.section = fcos_section(self.config)

    def build(self, *, normalise: bool = False, dtype: torch.dtype = torch.float32) -> FCOS:
        """Build the model, see `load_into`."""
        model = build_fcos(self.section, num_classes=self.section.num_classes or 0)
        self.load_into(model, normalise=normalise, dtype=dtype)
        return model


class RegionModel(Recording):
    """Recorded model of `rcnn/`: RetinaNet, RPN or R-CNN."""

    def __init__(self, goldens: Path, entry: dict[str, Any]):
        super().__init__(goldens, entry, folder="rcnn")
        self.tensor = network_input(self.inputs, given_keys(self.manifest["merged_config"], pairs_of(entry)))
        self.num_images = len(self.tensor)
        sizes = [self.inputs[f"image{i}"].shape[:2] for i in range(self.num_images)]
        self.sizes = torch.tensor(sizes)
        self.polygons = json.loads((goldens / "rcnn" / "polygons.json").read_text())

    def targets(self, case: str = "") -> list[Objects]:
        """Return the ground truth of the images; `case` is the beginning of its keys."""
        return [self._objects(i, case) for i in range(self.num_images)]

    def _objects(self, image: int, case: str) -> Objects:
        boxes = tensor(self.inputs[f"{case}boxes{image}"]).reshape(-1, 4)
        labels = tensor(self.inputs[f"{case}labels{image}"]).reshape(-1).long() - 1
        section = self.config.model
        if not isinstance(section, RCNNConfig):
            return Objects(boxes, labels)
        masks = Masks.from_polygons(self.polygons[image]) if section.mask.enabled else None
        keypoints = None
        if section.keypoints.enabled:
            keypoints, labels = tensor(self.inputs[f"{case}keypoints{image}"]), torch.zeros_like(labels)
        return Objects(boxes, labels, masks=masks, keypoints=keypoints)

    def build(self, *, normalise: bool = False, dtype: torch.dtype = torch.float32) -> DetectionModel:
        """Build the model, see `load_into`."""
        section = self.config.model
        model = build_model(section, num_classes=section.num_classes or 0, pretrained=False)
        self.load_into(model, normalise=normalise, dtype=dtype)
        return model


def network_input(inputs: dict[str, np.ndarray], keys: dict[str, Any]) -> Tensor:
    """Return the recorded input [N, 3, H, W] of a network: padded and normalised as its config says.

    Args:
        inputs: recorded images, `tensor_div<k>`, the input with the size divisor k, and `tensor_div<k>_<name>`, the
            same with another normalisation.
        keys: keys of the original's config.
    """
    name = f"tensor_div{keys['DATALOADER.SIZE_DIVISIBILITY']}"
    pixel = inputs["image0"][0, 0].astype(np.float64)  # RGB
    pixel = pixel[::-1] if keys["INPUT.TO_BGR255"] else pixel / 255
    normalised = (pixel - keys["INPUT.PIXEL_MEAN"]) / keys["INPUT.PIXEL_STD"]
    named = [array for key, array in inputs.items() if key == name or key.startswith(f"{name}_")]
    return tensor(min(named, key=lambda array: np.abs(array[0, :, 0, 0] - normalised).max()))


def parametrize_models(
    metafunc: pytest.Metafunc, models: Mapping[str, Any], slow: Mapping[str, Collection[str]]
) -> None:
    """Parametrize the fixture `model` of a module.

    Args:
        metafunc: the test.
        models: parameter of each model, by its file name.
        slow: names of the models that only `make test-slow` runs, by the name of the test.
    """
    names = slow.get(metafunc.function.__name__, ())
    cases = [
        pytest.param(model, id=file, marks=[pytest.mark.slow] if Path(file).stem in names else [])
        for file, model in models.items()
    ]
    metafunc.parametrize("model", cases, indirect=True, scope="module")


def manifest_of(goldens: Path, entry: dict[str, Any]) -> dict[str, Any]:
    """Return the manifest of an entry: the one that it names or contains, or that of its config."""
    manifest = entry.get("manifest") or Path(entry["config"]).relative_to("configs").with_suffix("").as_posix()
    if isinstance(manifest, dict):
        return manifest
    name = manifest.removesuffix(".json") + ".json"
    paths = [goldens / folder / name for folder in ("manifests", "rcnn", "models", ".")]
    return json.loads(next(path for path in paths if path.is_file()).read_text())


def pairs_of(entry: dict[str, Any]) -> list[str]:
    """Return the `KEY VALUE` pairs of an entry."""
    return [str(item) for item in entry.get("opts", [])]


def manifest_files(config: pytest.Config) -> list[Path]:
    """Return the manifests of all detectors."""
    files = sorted((folder(config) / "manifests").rglob("*.json"))
    return [file for file in files if "merged_config" in json.loads(file.read_text())]


def model_entries(config: pytest.Config) -> list[dict[str, Any]]:
    """Return the models listed in the index of the recordings."""
    return json.loads((folder(config) / "models" / "index.json").read_text())["models"]


def region_entries(config: pytest.Config) -> list[dict[str, Any]]:
    """Return the models listed in the index of `rcnn`."""
    return json.loads((folder(config) / "rcnn" / "index.json").read_text())["models"]
