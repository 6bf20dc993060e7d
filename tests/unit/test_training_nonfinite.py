"""What a training does, and what is said, when its numbers are not finite."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from fcos.config import Config
from fcos.errors import TrainingError
from fcos.interop.checkpoints import load_checkpoint
from fcos.models import build_model
from fcos.models import fcos as fcos_module
from fcos.training import diagnosis, step
from fcos.training.loop import train


def poison(
    monkeypatch: pytest.MonkeyPatch,
    *,
    when: Callable[[int, Tensor], bool],
    change: Callable[[Tensor], Tensor] = lambda loss: loss * math.nan,
) -> None:
    """Change `loss_box` by the number of the training step, from 1, and the labels that the locations learn."""
    original, number = fcos_module.fcos_loss, 0

    def poisoned(*args: Any, **kwargs: Any) -> dict[str, Tensor]:
        nonlocal number
        number += torch.is_grad_enabled()  # else a step is looked at again
        losses = original(*args, **kwargs)
        if when(number, args[3].labels):
            losses["loss_box"] = change(losses["loss_box"])
        return losses

    monkeypatch.setattr(fcos_module, "fcos_loss", poisoned)


def with_gradient(change: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    """The same loss, but another gradient."""

    def changed(loss: Tensor) -> Tensor:
        loss.register_hook(change)
        return loss

    return changed


def refused(config: Config) -> str:
    with pytest.raises(TrainingError) as caught:
        train(config)
    return str(caught.value)


def fresh_state(config: Config) -> dict[str, Tensor]:
    torch.manual_seed(0)
    return build_model(config.model, num_classes=2).state_dict()


# --------------------------------------------------------------------------------------------------------- stop or skip


def test_a_loss_that_is_not_finite_stops_the_run(
    configure: Callable[..., Config], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    poison(monkeypatch, when=lambda number, _: number == 4)
    message = refused(configure(iterations=9, checkpoint_every=2))
    assert "iteration 4: the loss is not finite (loss_cls=" in message
    assert "loss_box=nan" in message
    assert any(f"images: {name}" in message for name in ("a.png", "b.png", "c.png"))
    assert "last.pt is from before" in message
    last = load_checkpoint(tmp_path / "run/weights/last.pt")
    assert last.iteration == 2
    assert all(t.isfinite().all() for t in last.model.values())


@pytest.mark.parametrize("clip_norm", [None, 1.0])
def test_gradients_that_are_not_finite_stop_the_run(
    configure: Callable[..., Config], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, clip_norm: float | None
) -> None:
    poison(monkeypatch, when=lambda number, _: number == 3, change=with_gradient(lambda gradient: gradient * math.inf))
    seen: list[dict[str, Tensor]] = []
    monkeypatch.setattr(step, "explain_non_finite", lambda run, *_: seen.append(run.model.state_dict()) or "why")
    assert refused(configure(iterations=9, checkpoint_every=2, clip_norm=clip_norm)) == "why"
    last = load_checkpoint(tmp_path / "run/weights/last.pt")
    assert last.iteration == 2
    learned = {name for name, _ in build_model(configure().model, num_classes=2).named_parameters()}
    assert all(torch.equal(seen[0][name], last.model[name]) for name in learned)


def test_a_bad_step_can_be_skipped(
    configure: Callable[..., Config],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    poison(monkeypatch, when=lambda number, _: number == 2)
    train(configure(iterations=3, on_nonfinite="skip"))
    out = capsys.readouterr().out
    assert "warning: step skipped: iteration 2: the loss is not finite" in out
    last = load_checkpoint(tmp_path / "run/weights/last.pt")
    assert last.iteration == 3
    assert all(tensor.isfinite().all() for tensor in last.model.values())
    kept = torch.load(tmp_path / "run/nonfinite/iteration_2_process_0.pt", weights_only=True)
    assert kept["images"].shape[0] == len(kept["files"]) == len(kept["boxes"]) == 2
    assert kept["class_names"] == ["cat", "dog"]


def test_ten_bad_steps_in_a_row_stop_all_the_same(
    configure: Callable[..., Config], monkeypatch: pytest.MonkeyPatch
) -> None:
    poison(monkeypatch, when=lambda number, _: number > 2)
    assert "iteration 12: the loss is not finite" in refused(configure(iterations=20, on_nonfinite="skip"))


def test_batch_norm_forgets_a_skipped_step(configure: Callable[..., Config]) -> None:
    """Pixels that the backbone turns into infinities reach the running statistics before the loss."""
    config = configure(iterations=1, on_nonfinite="skip", model={"pixel_std": [1e-38, 1.0, 1.0]})
    end, start = load_checkpoint(train(config).run / "weights/last.pt").model, fresh_state(config)
    assert all(torch.equal(end[name], start[name]) for name in end)


def test_float16_looks_for_a_scale_that_fits_and_remembers_it(
    configure: Callable[..., Config], monkeypatch: pytest.MonkeyPatch
) -> None:
    frozen_bn = {"backbone": {"name": "mobilenet_v2", "weights": None, "norm": "frozen_bn"}}
    config = configure(precision="float16", model=frozen_bn)
    too_large = with_gradient(lambda gradient: gradient.where(gradient < 2**15, math.inf))
    poison(monkeypatch, when=lambda *_: True, change=too_large)
    run = train(config).run  # two steps: 65536 is too much, 32768, too; nothing is learned yet
    last, start = load_checkpoint(run / "weights/last.pt"), fresh_state(config)
    assert last.training is not None
    assert last.training["scaler"]["scale"] == 2**14
    assert all(torch.equal(last.model[name], start[name]) for name in start)

    train(config.model_copy(update={"train": config.train.model_copy(update={"resume": True, "iterations": 6})}))
    assert not torch.equal(
        load_checkpoint(run / "weights/last.pt").model["head.logits.bias"], start["head.logits.bias"]
    )


# ----------------------------------------------------------------------------------------------------- what is to blame


def test_the_box_whose_loss_is_not_finite_is_named(
    configure: Callable[..., Config], monkeypatch: pytest.MonkeyPatch
) -> None:
    poison(monkeypatch, when=lambda _, labels: bool((labels == 0).any()))  # the only cat
    config = configure(iterations=9)
    message = refused(config.model_copy(update={"data": config.data.model_copy(update={"flip": 0.0})}))
    assert "a.png: loss_box of cat [2.1" in message  # 2 pixels, scaled by 32 / 30
    assert "dog" not in message


def test_outputs_that_are_not_finite_are_blamed_on_the_image(
    configure: Callable[..., Config], monkeypatch: pytest.MonkeyPatch
) -> None:
    original = fcos_module.FCOSHead.forward

    def poisoned(*args: Any) -> Any:
        outputs = original(*args)
        outputs.logits[0] = outputs.logits[0] * math.inf
        return outputs

    monkeypatch.setattr(fcos_module.FCOSHead, "forward", poisoned)
    assert ".png: the network's outputs are not finite" in refused(configure())


def test_what_only_half_precision_cannot_hold_is_found_in_it(
    configure: Callable[..., Config], monkeypatch: pytest.MonkeyPatch
) -> None:
    original = fcos_module.FCOSHead.forward

    def large(head: fcos_module.FCOSHead, features: list[Tensor]) -> Any:
        return original(head, [f * 6e4 * 6e4 / 6e4 / 6e4 for f in features])

    monkeypatch.setattr(fcos_module.FCOSHead, "forward", large)
    message = refused(configure(precision="float16"))
    assert ".png: the network's outputs are not finite" in message
    assert "try train.precision=bfloat16 or float32, a lower train.lr" in message


def test_gradients_that_are_not_finite_are_named(
    configure: Callable[..., Config], monkeypatch: pytest.MonkeyPatch
) -> None:
    original = fcos_module.FCOSHead.forward

    def poisoned(head: fcos_module.FCOSHead, features: Any) -> Any:
        if torch.is_grad_enabled() and not head.centerness.weight._backward_hooks:
            head.centerness.weight.register_hook(lambda gradient: gradient * math.inf)
        return original(head, features)

    monkeypatch.setattr(fcos_module.FCOSHead, "forward", poisoned)
    message = refused(configure())
    assert "iteration 1: the gradients are not finite (loss_cls=" in message
    assert "norm of the gradients=" in message
    assert ".png; gradients of head.centerness.weight; the batch is kept in" in message
    assert "nothing had been saved yet" in message


def test_a_batch_that_cannot_be_kept_does_not_hide_the_reason(
    configure: Callable[..., Config], monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(diagnosis, "write", full)
    monkeypatch.setattr(step, "get_total_norm", lambda _: torch.tensor(math.inf))
    message = refused(configure())
    assert "iteration 1: the gradients are not finite" in message
    assert "norm of the gradients=inf" in message
    unkept = "the batch could not be kept: [Errno 28] No space left on device"
    assert f".png; no image gives that alone; {unkept}" in message
