"""The copy of a detector that inference runs: compiled, with half-precision weights. Folding is in test_folding.py."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import pytest
import torch
from detectors import NAMES, tiny_config, tiny_model
from PIL import Image
from torch import nn

from fcos import Detector, cli
from fcos.checkpoint import save_checkpoint
from fcos.models import build_model
from fcos.models.inference_copy import InferenceCopy, can_run, with_weights_in


def detector_with(**options: object) -> Detector:
    """Build the same detector in every call, with options of `eval`."""
    torch.manual_seed(0)
    config = tiny_config()
    config = config.model_copy(update={"eval": config.eval.model_copy(update=options)})
    return Detector(tiny_model(config), config, class_names=NAMES)


def test_compiled_detector_detects_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    compiled = []

    def backend(graph: torch.fx.GraphModule, _: object) -> object:
        compiled.append(graph)
        return graph.forward

    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend=backend))
    detector = detector_with(compile=True)
    image = torch.randint(0, 256, (3, 90, 130), dtype=torch.uint8)
    found = detector.predict(image, threshold=0.0)
    expected = detector_with().predict(image, threshold=0.0)
    assert len(found) == len(expected) > 5
    torch.testing.assert_close(found.scores, expected.scores, rtol=0, atol=1e-5)
    torch.testing.assert_close(found.boxes, expected.boxes, rtol=0, atol=1e-2)
    assert compiled
    assert all(module._compiled_call_impl is None for module in detector.model.modules())
    number = len(compiled)
    detector.predict(image, threshold=0.0)
    assert len(compiled) == number  # the compiled copy is kept


def test_missing_compiler_is_one_message(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    detector = detector_with()
    save_checkpoint(
        tmp_path / "best.pt", model=detector.model, config=detector.config, class_names=NAMES, category_ids=(0, 1, 2)
    )
    image = tmp_path / "image.png"
    picture = torch.randint(0, 256, (90, 130, 3), dtype=torch.uint8).numpy()
    Image.fromarray(picture).save(image)
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(SystemExit) as stopped:
        cli.main(
            ["predict", str(tmp_path / "best.pt"), str(image), "--out", str(tmp_path / "out"), "eval.compile=true"]
        )
    assert stopped.value.code == 2
    assert "eval.compile: torch.compile needs a C++ compiler on the CPU" in capsys.readouterr().err


@pytest.mark.parametrize("part", ["backbone", "head"])
def test_convolutions_have_half_precision_weights(part: str) -> None:
    head = {"num_convs": 2, "deformable": True}
    model = build_model(tiny_config(head=head).model, num_classes=3, pretrained=False)
    original = model.get_submodule(part)
    before = {name: value.clone() for name, value in original.state_dict().items()}
    changed = with_weights_in(original, torch.bfloat16)
    types = {name: value.dtype for name, value in changed.state_dict().items()}
    convolutions = {name for name, module in changed.named_modules() if isinstance(module, nn.Conv2d)}
    for name, dtype in types.items():
        # The operator of modulated convolutions is called with float32.
        is_half = name.rpartition(".")[0] in convolutions and not name.endswith((".conv.weight", ".conv.bias"))
        assert dtype == (torch.bfloat16 if is_half else before[name].dtype), name
    assert torch.bfloat16 in types.values()
    assert all(value.equal(original.state_dict()[name]) for name, value in before.items())


class Float32Stem(nn.Module):
    """Backbone with a convolution that is computed in float32 under autocast."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.conv = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 3)

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        with torch.autocast("cpu", enabled=False):
            x = self.stem(x.float())
        return {"C3": self.conv(x)}


def test_backbone_that_leaves_autocast_cannot_run_with_half_precision_weights() -> None:
    backbone, like = Float32Stem().eval(), torch.zeros(1)
    ours = tiny_model(tiny_config()).get_submodule("backbone").eval()
    with torch.autocast("cpu", torch.bfloat16):
        assert can_run(backbone, like=like)
        assert not can_run(with_weights_in(backbone, torch.bfloat16), like=like)
        assert can_run(with_weights_in(ours, torch.bfloat16), like=like)


def test_replaced_pixel_statistics_are_noticed() -> None:
    """A CUDA graph reads the previous ones."""
    detector, copies = detector_with(), InferenceCopy()
    first = copies(detector.model).backbone
    assert copies(detector.model).backbone is first
    detector.model.pixel_mean = detector.model.pixel_mean + 1
    assert copies(detector.model).backbone is not first


def test_replaced_modules_are_made_for_the_precision_of_the_call() -> None:
    detector, copies = detector_with(), InferenceCopy()
    first = copies(detector.model)
    with torch.autocast("cpu", torch.bfloat16):
        second = copies(detector.model)
    assert second.backbone is not first.backbone
    assert copies(detector.model).backbone is not second.backbone
