"""A training step with all its options: micro-batches, precision, compilation, freezing, learning-rate multipliers."""

from __future__ import annotations

import csv
from collections.abc import Callable
from copy import deepcopy
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from detectors import MOBILENET, build_fcos
from ground_truth import objects_of
from hooks import after_forward, at_call, before_forward
from tiny_data import coco_tree, write_coco
from torch import nn

from fcos.config import Config, TrainConfig
from fcos.config.detectors import DETECTORS
from fcos.errors import ConfigError, TrainingError
from fcos.interop.checkpoints import load_checkpoint
from fcos.models import build_model
from fcos.models.fcos import FCOS, FCOSHead
from fcos.models.folding import fold_frozen_stages
from fcos.structures import Losses, Objects
from fcos.training import step
from fcos.training.loop import train
from fcos.training.optim import build_optimizer, freeze_parameters, parameter_settings

FROZEN_BN = {"backbone": {"name": "mobilenet_v2", "weights": None, "norm": "frozen_bn"}}


def losses_of(run: Path) -> list[float]:
    with (run / "metrics.csv").open(newline="") as file:
        return [float(row["loss"]) for row in csv.DictReader(file) if row["split"] == "train"]


WITHOUT_EFFECT = {
    "ema": 0.9,
    "clip_norm": 1e9,
    "on_nonfinite": "skip",
    "lr_factors": {"backbone.*": 1.0},
    "patience": 3,
    "eval_every": 1,
}


@pytest.mark.parametrize("name", DETECTORS)
def test_training_options_do_not_change_the_losses(configure: Callable[..., Config], tmp_path: Path, name: str) -> None:
    expected = losses_of(train(configure(model={"name": name})).run)
    for options, tolerance in (
        (WITHOUT_EFFECT, 0),
        ({"micro_batch": 1}, 1e-5),  # sums in another order
        ({"precision": "bfloat16"}, 2e-2),  # 8 bits of mantissa
        ({"precision": "float16"}, 3e-3),  # 11 bits
    ):
        config = configure(model={"name": name}, **options).model_copy(update={"output_dir": tmp_path / str(tolerance)})
        run = train(config).run
        found, state = losses_of(run), load_checkpoint(run / "weights/last.pt").model
        assert {tensor.dtype for tensor in state.values() if tensor.is_floating_point()} == {torch.float32}
        # In float16, there is no update until the loss scale is small enough.
        steps = 1 if config.train.precision == "float16" else 2
        assert found[:steps] == pytest.approx(expected[:steps], rel=tolerance, abs=0), options


def test_folded_frozen_stages_give_the_same_losses_and_weights(
    configure: Callable[..., Config], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = {"backbone": {**FROZEN_BN["backbone"], "frozen_stages": 2}}
    calls = []
    monkeypatch.setattr(step, "fold_frozen_stages", lambda each: calls.append(each) or fold_frozen_stages(each))
    runs = [
        train(configure(model=model, fold_frozen=fold).model_copy(update={"output_dir": tmp_path / str(fold)})).run
        for fold in (False, True)
    ]
    assert len(calls) == 1
    assert losses_of(runs[1]) == pytest.approx(losses_of(runs[0]), rel=1e-5, abs=0)
    states = [load_checkpoint(run / "weights/last.pt").model for run in runs]
    assert states[0].keys() == states[1].keys()
    frozen = [name for name in states[0] if name.startswith(("backbone.features.0.", "backbone.features.3."))]
    assert all(states[0][name].equal(states[1][name]) for name in frozen)


def images_and_targets(count: int) -> tuple[torch.Tensor, torch.Tensor, list[Objects]]:
    images = torch.randint(0, 256, (count, 3, 64, 96), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    boxes = [torch.tensor([[4.0, 6, 40 + 3 * i, 50], [30, 10, 90, 20 + 4 * i]])[: i % 3] for i in range(count)]
    return images, torch.tensor([[64, 96]] * count), objects_of(boxes, [torch.arange(len(b)) for b in boxes])


def total(losses: Losses) -> torch.Tensor:
    return torch.stack(list(losses.terms.values())).sum()


def gradients(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("sizes", [(5,), (2, 2, 1), (1, 1, 1, 1, 1)])
def test_micro_batch_losses_and_gradients_sum_to_the_batch(
    configure: Callable[..., Config], sizes: tuple[int, ...]
) -> None:
    model = build_fcos(configure(model=FROZEN_BN).model, num_classes=2).double()
    images, shapes, targets = images_and_targets(5)
    whole = model(images, shapes, targets)
    total(whole).backward()
    expected = gradients(model)
    model.zero_grad()
    terms, unassigned, start = dict.fromkeys(whole.terms, 0.0), 0, 0
    normalizers = model.loss_normalizers(targets, (64, 96))
    for size in sizes:
        part = slice(start, start + size)
        losses = model(images[part], shapes[part], targets[part], normalizers)
        total(losses).backward()
        terms = {name: terms[name] + term.item() for name, term in losses.terms.items()}
        unassigned += int(losses.stats["unassigned"])
        start += size
    assert terms == pytest.approx({name: term.item() for name, term in whole.terms.items()}, rel=1e-10)
    assert unassigned == whole.stats["unassigned"]
    torch.testing.assert_close(gradients(model), expected, rtol=1e-8, atol=1e-12)


def test_micro_batches_without_normalizers_are_weighted_by_size(
    configure: Callable[..., Config], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Three images in micro-batches of one and two, whose losses are means over their own objects."""
    monkeypatch.setattr(FCOS, "loss_normalizers", lambda *_: None)
    config = configure(model=FROZEN_BN, micro_batch=2, batch_size=3, iterations=1, lr=0.01, weight_decay=0.0)
    start: dict[str, torch.Tensor] = {}
    parts: list[tuple[int, Losses, dict[str, torch.Tensor]]] = []

    def record_part(arguments: tuple[Any, ...], output: Any) -> None:
        if isinstance(output, Losses):
            assert arguments[3] is None
            model.load_state_dict(start)
            model.zero_grad()
            losses = model.losses(model.head(model.features(*arguments[:2])), arguments[2])
            total(losses).backward()
            parts.append((len(arguments[0]), losses, gradients(model)))

    model = build_fcos(config.model, num_classes=2).to(memory_format=torch.channels_last)  # as in training
    with (
        before_forward(FCOS, at_call(1, lambda module: start.update(deepcopy(module.state_dict())))),
        after_forward(FCOS, record_part),
    ):
        run = train(config).run
    assert [count for count, *_ in parts] == [1, 2]
    assert losses_of(run) == pytest.approx(
        [sum(count * total(losses).item() for count, losses, _ in parts) / 3], rel=1e-5
    )
    learned = load_checkpoint(run / "weights/last.pt").model
    changes, expected = [], []
    for name in parts[0][2]:
        lr = config.train.lr * (config.train.bias_lr_factor if name.endswith("bias") else 1)
        changes.append((start[name] - learned[name]).flatten())
        expected.append(torch.stack([lr * count / 3 * part[name].flatten() for count, _, part in parts]).sum(0))
    change, wanted = torch.cat(changes), torch.cat(expected)
    assert (change - wanted).norm() < 1e-4 * wanted.norm()  # differences of weights near 1 have few digits


def test_channels_last_does_not_change_the_losses(configure: Callable[..., Config]) -> None:
    model = build_model(configure(model=FROZEN_BN).model, num_classes=2)
    images, shapes, targets = images_and_targets(2)
    expected = model(images, shapes, targets).terms
    found = model.to(memory_format=torch.channels_last)(images, shapes, targets).terms
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)  # other convolution kernels


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")  # caused inside torch
@pytest.mark.parametrize("name", DETECTORS)
@pytest.mark.parametrize("backend", ["aot_eager", pytest.param("inductor", marks=pytest.mark.slow)])
def test_compiled_model_has_the_same_losses_and_gradients(
    configure: Callable[..., Config], monkeypatch: pytest.MonkeyPatch, backend: str, name: str
) -> None:
    section = {"name": name, "backbone": {"name": "own_backbone:Own"}}
    model = build_model(configure(model=section).model, num_classes=2)
    images, shapes, targets = images_and_targets(2)
    expected = model(images, shapes, targets)
    total(expected).backward()
    before, names = gradients(model), list(model.state_dict())
    model.zero_grad()
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend=backend))
    step.compile_modules(model)
    compiled = {path for path, module in model.named_modules() if module._compiled_call_impl is not None}
    assert compiled == set(model.compiled_parts)
    found = model(images, shapes, targets)
    total(found).backward()
    torch.testing.assert_close(found.terms, expected.terms, rtol=1e-5, atol=1e-6)  # fused kernels
    torch.testing.assert_close(gradients(model), before, rtol=1e-3, atol=1e-5)
    assert list(model.state_dict()) == names


def test_frozen_parameters_keep_weights_and_statistics(configure: Callable[..., Config], tmp_path: Path) -> None:
    config = configure(model=MOBILENET, freeze=["backbone.*", "fpn.*"], lr=0.1, ema=None)
    torch.manual_seed(0)
    start = build_model(config.model, num_classes=2).state_dict()
    end = load_checkpoint(train(config).run / "weights/last.pt").model
    kept = {name for name in end if torch.equal(end[name], start[name])}
    assert {name for name in end if name.startswith(("backbone.", "fpn."))} <= kept
    assert not kept & {name for name in end if name.startswith("head.") and name.endswith("weight")}


def test_freeze_pattern_freezes_only_fully_covered_batch_norms() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4))
    freeze_parameters(model, ["1.*", "3.weight"])
    assert [type(layer).__name__ for layer in model] == ["Conv2d", "FrozenBatchNorm2d", "Conv2d", "BatchNorm2d"]
    assert [name for name, p in model.named_parameters() if not p.requires_grad] == ["3.weight"]


@pytest.mark.parametrize("option", ["freeze", "lr_factors"])
def test_pattern_without_matching_parameter_is_rejected(
    configure: Callable[..., Config], tmp_path: Path, option: str
) -> None:
    value = {"freeze": ["bakbone.*"], "lr_factors": {"bakbone.*": 0.1}}[option]
    message = rf"train.{option}: 'bakbone.\*' matches no parameter; examples of names: backbone\."
    with pytest.raises(ConfigError, match=message):
        train(configure(**{option: value}))


def test_last_matching_pattern_sets_the_learning_rate() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    config = TrainConfig.model_validate({"lr": 1.0, "lr_factors": {"*": 0.5, "1.*": 0.1, "0.weight": 0.0}})
    rates = {s.name: s.lr for s in parameter_settings(model, config)}
    assert rates == pytest.approx({"0.weight": 0.0, "0.bias": 1.0, "1.weight": 0.1, "1.bias": 0.2})
    assert len(build_optimizer(model, config).param_groups) == 4


def test_run_without_improvement_stops_early(
    configure: Callable[..., Config], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = configure(iterations=9, eval_every=1, patience=2, lr=1e-9, model={"score_threshold": 0.9})
    train(config)  # the AP stays 0, so the first evaluation is the best one
    last = load_checkpoint(tmp_path / "run/weights/last.pt")
    assert last.iteration == 3
    assert "stopped early: no better AP in the last 2 evaluations" in capsys.readouterr().out
    train(config.model_copy(update={"train": config.train.model_copy(update={"resume": True})}))
    assert load_checkpoint(tmp_path / "run/weights/last.pt").iteration == 3


def test_patience_requires_eval_every(configure: Callable[..., Config]) -> None:
    with pytest.raises(ValueError, match="patience counts evaluations; give eval_every as well"):
        configure(patience=2)


def micro_batches_of(config: Config) -> int:
    return step.count_micro_batches(build_model(config.model, num_classes=2), config, most_boxes=2)


@pytest.mark.parametrize(
    ("processes", "options", "micro_batches"),
    [
        (1, {"batch_size": 8}, 1),
        (1, {"batch_size": 8, "micro_batch": 3}, 3),
        (1, {"batch_size": 8, "micro_batch": 99}, 1),
        (3, {"batch_size": 8}, 1),
        (3, {"batch_size": 8, "micro_batch": 2}, 2),
        (3, {"batch_size": 7, "micro_batch": 1}, 3),
        (2, {"batch_size": 8, "micro_batch": "auto"}, 1),
    ],
)
def test_micro_batch_option_sets_the_number_of_micro_batches(
    configure: Callable[..., Config],
    monkeypatch: pytest.MonkeyPatch,
    processes: int,
    options: dict[str, Any],
    micro_batches: int,
) -> None:
    monkeypatch.setattr(step, "world_size", lambda: processes)
    assert micro_batches_of(configure(**options)) == micro_batches


def test_auto_micro_batch_fits_the_rank_with_the_least_memory(
    configure: Callable[..., Config], monkeypatch: pytest.MonkeyPatch
) -> None:
    others = iter([False, False, True])
    monkeypatch.setattr(step, "all_gather", lambda fits: [fits, next(others)])
    assert micro_batches_of(configure(micro_batch="auto", batch_size=11)) == 4  # 11, 6, then 3 images at a time


def test_batch_size_below_the_process_count_is_rejected(
    configure: Callable[..., Config], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(step, "world_size", lambda: 5)
    with pytest.raises(ConfigError, match=r"train\.batch_size=4: .* each of the 5 processes"):
        micro_batches_of(configure(batch_size=4))


def test_sync_bn_with_single_images_requires_equal_shards(
    configure: Callable[..., Config], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(step, "world_size", lambda: 2)
    model = {"backbone": {"name": "mobilenet_v2", "weights": None, "norm": "sync_bn"}}
    with pytest.raises(ConfigError, match=r"micro_batch=1: sync_bn needs .* set train\.batch_size to a multiple of 2"):
        micro_batches_of(configure(batch_size=3, micro_batch=1, model=model))
    assert micro_batches_of(configure(batch_size=5, micro_batch=2, model=model)) == 2


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"freeze": ["*"]}, "no trainable parameter is left; freeze fewer parameters with train.freeze"),
        ({"lr_factors": {"nope": 1.0}}, "'nope' matches no parameter"),
        ({"compile": True}, "C\\+\\+ compiler"),
    ],
)
def test_untrainable_config_leaves_no_run_folder(
    configure: Callable[..., Config],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    options: dict[str, Any],
    message: str,
) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(ConfigError, match=message):
        train(configure(**options))
    assert not (tmp_path / "run").exists()


def test_freeze_pattern_skips_batch_norm_without_parameters() -> None:
    model = nn.Sequential(nn.BatchNorm2d(2, affine=False), nn.BatchNorm2d(2))
    freeze_parameters(model, ["1.*"])
    assert [type(layer).__name__ for layer in model] == ["BatchNorm2d", "FrozenBatchNorm2d"]


def test_out_of_memory_error_suggests_micro_batch(configure: Callable[..., Config]) -> None:
    def fill(_: FCOSHead) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.\nMore.")

    told = r"GPU out of memory \(CUDA out of .* GiB\.\); try train\.micro_batch"
    with before_forward(FCOSHead, fill), pytest.raises(TrainingError, match=told):
        train(configure())


def test_val_split_without_objects_does_not_use_up_patience(
    configure: Callable[..., Config], data: Path, tmp_path: Path
) -> None:
    tree = coco_tree()
    tree["annotations"] = []
    write_coco(data, tree, split="val")
    train(configure(iterations=4, eval_every=1, patience=2))
    assert load_checkpoint(tmp_path / "run/weights/last.pt").iteration == 4
