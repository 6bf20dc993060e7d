"""Trainings with non-finite losses or gradients: their behaviour and messages."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from detectors import MOBILENET, build_fcos
from hooks import after_forward, at_call, before_forward
from torch import Tensor

from fcos.config import Config
from fcos.errors import TrainingError, WeightsError
from fcos.interop.checkpoints import load_checkpoint
from fcos.models.fcos import FCOS, FCOSHead, FCOSOutputs
from fcos.models.fpn import FPN
from fcos.models.rcnn import RCNN
from fcos.recipes import load_config
from fcos.structures import Losses
from fcos.training import diagnosis, step
from fcos.training.diagnosis import replay
from fcos.training.loop import train


@contextmanager
def poison(
    *, when: Callable[[int, Tensor], bool], change: Callable[[Tensor], Tensor] = lambda loss: loss * math.nan
) -> Iterator[None]:
    """Change `loss_box` if `when` returns True for the step number (from 1) and the labels of the objects."""
    number = 0

    def poisoned(arguments: tuple[Any, ...], output: Losses | FCOSOutputs) -> Losses | None:
        nonlocal number
        if not isinstance(output, Losses):
            return None
        number += torch.is_grad_enabled()  # without gradients, a step is only diagnosed again
        labels = torch.cat([objects.labels for objects in arguments[2]])
        if not when(number, labels):
            return None
        return output._replace(terms={**output.terms, "loss_box": change(output.terms["loss_box"])})

    with after_forward(FCOS, poisoned):
        yield


def with_gradient(change: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    """Return a function that keeps a loss but changes its gradient."""

    def changed(loss: Tensor) -> Tensor:
        if loss.requires_grad:
            loss.register_hook(change)
        return loss

    return changed


def error_of(config: Config) -> str:
    with pytest.raises(TrainingError) as caught:
        train(config)
    return str(caught.value)


def fresh_state(config: Config) -> dict[str, Tensor]:
    torch.manual_seed(0)
    return build_fcos(config.model, num_classes=2).state_dict()


# --------------------------------------------------------------------------------------------------------- stop or skip


def test_nonfinite_loss_stops_the_run(configure: Callable[..., Config], tmp_path: Path) -> None:
    with poison(when=lambda number, _: number == 4):
        message = error_of(configure(iterations=9, checkpoint_every=2))
    assert "iteration 4: the loss is not finite (loss_cls=" in message
    assert "loss_box=nan" in message
    assert any(f"images: {name}" in message for name in ("a.png", "b.png", "c.png"))
    assert "last.pt is from an earlier iteration" in message
    last = load_checkpoint(tmp_path / "run/weights/last.pt")
    assert last.iteration == 2
    assert all(t.isfinite().all() for t in last.model.values())


@pytest.mark.parametrize("clip_norm", [None, 1.0])
def test_nonfinite_gradients_stop_the_run(
    configure: Callable[..., Config], tmp_path: Path, clip_norm: float | None
) -> None:
    models: list[FCOS] = []
    infinite = with_gradient(lambda gradient: gradient * math.inf)
    with before_forward(FCOS, models.append), poison(when=lambda number, _: number == 3, change=infinite):
        message = error_of(configure(iterations=9, checkpoint_every=2, clip_norm=clip_norm))
    assert "iteration 3: the gradients are not finite" in message
    last = load_checkpoint(tmp_path / "run/weights/last.pt")
    assert last.iteration == 2
    for name, parameter in models[-1].named_parameters():
        assert torch.equal(parameter, last.model[name]), name


def test_nonfinite_step_can_be_skipped(
    configure: Callable[..., Config],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    with poison(when=lambda number, _: number == 2):
        train(configure(iterations=3, on_nonfinite="skip"))
    out = capsys.readouterr().out
    assert "warning: step skipped: iteration 2: the loss is not finite" in out
    last = load_checkpoint(tmp_path / "run/weights/last.pt")
    assert last.iteration == 3
    assert all(tensor.isfinite().all() for tensor in last.model.values())
    kept = torch.load(tmp_path / "run/nonfinite/iteration_2_process_0.pt", weights_only=True)
    assert kept["images"].shape[0] == len(kept["files"]) == len(kept["objects"]) == 2
    assert kept["class_names"] == ["cat", "dog"]


def test_saved_step_can_be_repeated(
    configure_rcnn: Callable[..., Config],
) -> None:
    """Losses and gradients depend on the sampled anchors and proposals, the masks and the keypoints."""
    recorded: list[dict[str, Tensor]] = []

    def record_and_poison(_: Any, output: Losses) -> Losses | None:
        if not (isinstance(output, Losses) and torch.is_grad_enabled()):
            return None
        recorded.append({name: term.detach() for name, term in output.terms.items()})
        nan = {name: term * math.nan for name, term in output.terms.items()}
        return output._replace(terms=nan) if len(recorded) == 2 else None

    with after_forward(RCNN, record_and_poison):
        run = train(configure_rcnn(batch_size=3, iterations=3, on_nonfinite="skip")).run
    file = run / "nonfinite/iteration_2_process_0.pt"
    model, losses = replay(file, load_config(str(run / "config.yaml")))
    assert {name: term.item() for name, term in losses.terms.items()} == pytest.approx(
        {name: term.item() for name, term in recorded[1].items()},
        rel=1e-6,  # exactly the same draws and weights
    )
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters() if p.requires_grad)
    with pytest.raises(WeightsError, match=r"last\.pt: this is no saved step; expected a file in nonfinite of a run"):
        replay(run / "weights/last.pt", load_config(str(run / "config.yaml")))


def test_other_files_are_no_saved_steps(configure: Callable[..., Config], tmp_path: Path) -> None:
    with poison(when=lambda number, _: number == 2):
        run = train(configure(iterations=3, on_nonfinite="skip")).run
    config = load_config(str(run / "config.yaml"))
    saved = torch.load(run / "nonfinite/iteration_2_process_0.pt", weights_only=True)
    of_tuples = [tuple(columns.values()) for columns in saved["objects"]]
    of_boxes = [{"boxes": columns["boxes"], "masks": []} for columns in saved["objects"]]
    others = [torch.zeros(2), 7, [saved], {"objects": []}, {key: saved[key] for key in saved if key != "model"}]
    changes = [{"objects": of_tuples}, {"objects": of_boxes}, {"objects": []}, {"model": {"a": 1}}, {"images": 1}]
    for content in [*others, *({**saved, **change} for change in changes)]:
        torch.save(content, tmp_path / "other.pt")
        with pytest.raises(WeightsError, match=r"other\.pt: this is no saved step; expected a file in nonfinite of a"):
            replay(tmp_path / "other.pt", config)


def test_number_of_saved_steps_is_limited(
    configure: Callable[..., Config], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(diagnosis, "MAX_SAVED", 2)
    monkeypatch.setattr(step, "MAX_SKIPS", 3)
    with poison(when=lambda *_: True):
        message = error_of(configure(iterations=3, on_nonfinite="skip"))
    assert f"the batch is not saved: {tmp_path / 'run/nonfinite'} has 2 earlier ones" in message
    assert len(list((tmp_path / "run/nonfinite").iterdir())) == 2


def test_ten_consecutive_nonfinite_steps_stop_the_run(configure: Callable[..., Config]) -> None:
    with poison(when=lambda number, _: number > 2):
        message = error_of(configure(iterations=20, on_nonfinite="skip"))
    assert "iteration 12: the loss is not finite" in message


def test_skipped_step_does_not_change_batch_norm_statistics(configure: Callable[..., Config]) -> None:
    """Infinite activations reach the running statistics before the loss is computed."""
    config = configure(iterations=1, on_nonfinite="skip", model={**MOBILENET, "pixel_std": [1e-38, 1.0, 1.0]})
    end, start = load_checkpoint(train(config).run / "weights/last.pt").model, fresh_state(config)
    assert all(torch.equal(end[name], start[name]) for name in end)


def test_float16_loss_scale_adapts_and_is_restored_on_resume(configure: Callable[..., Config]) -> None:
    frozen_bn = {"backbone": {"name": "mobilenet_v2", "weights": None, "norm": "frozen_bn"}}
    config = configure(precision="float16", model=frozen_bn)
    too_large = with_gradient(lambda gradient: gradient.where(gradient < 2**15, math.inf))
    with poison(when=lambda *_: True, change=too_large):
        run = train(config).run  # two steps: the scales 65536 and 32768 are too large, so no update
        last, start = load_checkpoint(run / "weights/last.pt"), fresh_state(config)
        assert last.training is not None
        assert last.training["scaler"]["scale"] == 2**14
        assert all(torch.equal(last.model[name], start[name]) for name in start)

        train(config.model_copy(update={"train": config.train.model_copy(update={"resume": True, "iterations": 6})}))
    assert not torch.equal(
        load_checkpoint(run / "weights/last.pt").model["head.logits.bias"], start["head.logits.bias"]
    )


# ------------------------------------------------------------------------------------------------------- reported cause


def test_message_names_the_box_with_nonfinite_loss(configure: Callable[..., Config]) -> None:
    config = configure(iterations=9)
    with poison(when=lambda _, labels: bool((labels == 0).any())):  # the only object of class cat
        message = error_of(config.model_copy(update={"data": config.data.model_copy(update={"flip": 0.0})}))
    assert "a.png: loss_box of cat [2.1" in message  # 2 pixels, scaled by 32 / 30
    assert "dog" not in message


def test_nonfinite_normalizers_do_not_hide_the_causing_box(
    configure: Callable[..., Config], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(FCOS, "loss_normalizers", lambda *_: torch.tensor([math.nan, 1.0]))
    message = error_of(configure(micro_batch=1))
    assert "the loss is not finite (loss_cls=nan" in message
    assert ".png; gradients of " in message  # no single image is named as the cause
    assert "loss_cls of" not in message
    config = configure(micro_batch=1, batch_size=3)
    with poison(when=lambda _, labels: bool((labels == 0).any())):  # the only object of class cat
        message = error_of(config.model_copy(update={"output_dir": None}))
    assert "a.png: loss_box of cat [" in message
    assert "loss_cls of" not in message


def test_message_names_the_image_with_nonfinite_outputs(configure: Callable[..., Config]) -> None:
    def poisoned(_: Any, outputs: FCOSOutputs) -> FCOSOutputs:
        return outputs._replace(logits=[outputs.logits[0] * math.inf, *outputs.logits[1:]])

    with after_forward(FCOSHead, poisoned):
        assert ".png: the network's outputs are not finite" in error_of(configure())


@pytest.mark.parametrize(
    ("parameter", "loss"),
    [
        ("proposals.head.logits.bias", "loss_objectness"),
        ("proposals.head.offsets.bias", "loss_rpn_box"),
        ("heads.mask.logits.bias", "loss_mask"),
        ("heads.keypoints.logits.bias", "loss_keypoints"),
    ],
)
def test_message_names_image_box_and_loss_of_every_stage(
    configure_rcnn: Callable[..., Config], parameter: str, loss: str
) -> None:
    def poison_weights(model: RCNN) -> None:
        model.get_parameter(parameter).data[1 if "mask" in parameter else slice(None)] = math.nan  # mask: of a cat

    with before_forward(RCNN, poison_weights):
        message = error_of(configure_rcnn(batch_size=3))
    assert f"a.png: {loss} of cat [" in message
    assert ("dog" not in message) == (loss == "loss_mask")


def test_message_names_the_loss_of_an_image_without_objects(configure: Callable[..., Config]) -> None:
    def no_logits(_: Any, output: Losses | FCOSOutputs) -> Losses | None:
        if not isinstance(output, Losses):
            return None
        return output._replace(terms={**output.terms, "loss_cls": output.terms["loss_cls"] * math.nan})

    with after_forward(FCOS, no_logits):
        message = error_of(configure(batch_size=3))
    assert "c.png: loss_cls is not finite, but not because of a single box" in message


def test_float16_overflow_is_diagnosed_in_float16(configure: Callable[..., Config]) -> None:
    def large(_: Any, features: list[Tensor]) -> list[Tensor]:
        return [f * 6e4 * 6e4 / 6e4 / 6e4 for f in features]

    with after_forward(FPN, large):
        message = error_of(configure(precision="float16"))
    assert ".png: the network's outputs are not finite" in message
    assert "try train.precision=bfloat16 or float32, a lower train.lr" in message


def test_message_names_parameters_with_nonfinite_gradients(configure: Callable[..., Config]) -> None:
    def poison_gradient(head: FCOSHead) -> None:
        head.centerness.weight.register_hook(lambda gradient: gradient * math.inf)

    with before_forward(FCOSHead, at_call(1, poison_gradient)):
        message = error_of(configure())
    assert "iteration 1: the gradients are not finite (loss_cls=" in message
    assert "gradient norm=" in message
    assert ".png; gradients of head.centerness.weight; the batch is saved in" in message
    assert "no checkpoint had been saved yet" in message


def test_batch_that_cannot_be_saved_does_not_hide_the_cause(configure: Callable[..., Config], tmp_path: Path) -> None:
    """All gradients are finite, but their squares overflow."""
    (tmp_path / "run").mkdir()
    (tmp_path / "run/nonfinite").touch()  # a file blocks the folder
    with poison(when=lambda *_: True, change=with_gradient(lambda gradient: gradient * 1e30)):
        message = error_of(configure())
    assert "iteration 1: the gradients are not finite" in message
    assert "gradient norm=inf" in message
    unkept = f"the batch is not saved: [Errno 17] File exists: '{tmp_path / 'run/nonfinite'}'"
    assert f".png; no single image reproduces this; {unkept}" in message
