"""Training of R-CNN: learning, fine-tuning, options, recipes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from detectors import CATEGORY_IDS, NAMES, tiny_config
from small_backbones import one_block_per_stage
from tiny_data import coco_tree, write_coco
from tiny_rcnn import DETAILS, build, total, with_details
from torch import Tensor
from torchvision.ops import box_iou

import fcos
from fcos.checkpoint import save_checkpoint
from fcos.errors import ConfigError, DataError
from fcos.interop.checkpoints import load_checkpoint
from fcos.keypoints import KeypointLayout
from fcos.masks import Masks
from fcos.models import build_model
from fcos.recipes import load_config
from fcos.structures import Objects
from fcos.training.folder import LAST
from fcos.training.loop import train
from fcos.training.start import start_from


def colored_rectangles(count: int) -> tuple[Tensor, list[Objects]]:
    """Return images 96x96 with two rectangles each, whose colour is their class, with masks and two keypoints."""
    images, targets = torch.full((count, 3, 96, 96), 90, dtype=torch.uint8), []
    for image in images:
        boxes, labels = [], []
        for left in (0, 48):
            width, height = torch.randint(20, 40, (2,)).tolist()
            x, y = left + int(torch.randint(0, 49 - width, ())), int(torch.randint(0, 97 - height, ()))
            labels.append(int(torch.randint(0, 2, ())))
            color = torch.tensor([[220, 60, 40], [40, 80, 230]][labels[-1]], dtype=torch.uint8)
            image[:, y : y + height, x : x + width] = color[:, None, None]
            boxes.append([x, y, x + width, y + height])
        objects = Objects(torch.tensor(boxes, dtype=torch.float32), torch.tensor(labels))
        polygons = [[[x1, y1, x2, y1, x2, y2, x1, y2]] for x1, y1, x2, y2 in boxes]
        targets.append(replace(with_details(objects, num_keypoints=2), masks=Masks.from_polygons(polygons)))
    return images, targets


@pytest.mark.slow
def test_training_on_a_few_images_learns_boxes_masks_and_keypoints() -> None:
    heads = {name: {**options, "conv_channels": [16, 16]} for name, options in DETAILS.items()}
    heads["keypoints"]["num_keypoints"] = 2
    backbone = {"name": "own_backbone:Own", "options": {"width": 32}}
    model = build_model(
        tiny_config(name="rcnn", backbone=backbone, fpn={"channels": 32}, **heads).model,
        num_classes=2,
        pretrained=False,
    )
    (images, targets), sizes = colored_rectangles(4), torch.tensor([[96, 96]] * 4)
    optimizer = torch.optim.AdamW(model.parameters())
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 4e-3, total_steps=200)
    for step in range(200):
        optimizer.zero_grad()
        total(model(images, sizes, [replace(image, seed=step) for image in targets]).terms).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 10)
        optimizer.step()
        schedule.step()
    for found, wanted in zip(model.eval().detect(images, sizes), targets, strict=True):
        best = found[found.scores > 0.5]
        assert len(best) == 2
        assert best.masks is not None
        assert best.keypoints is not None
        assert wanted.masks is not None
        assert wanted.keypoints is not None
        overlap, index = box_iou(wanted.boxes, best.boxes).max(dim=1)
        assert overlap.min() > 0.6
        assert torch.equal(best.labels[index], wanted.labels)
        bitmaps = wanted.masks.to_bitmaps((96, 96)).bool()
        shared = (best.masks[index] & bitmaps).sum((1, 2)) / (best.masks[index] | bitmaps).sum((1, 2))
        assert shared.min() > 0.5
        assert (best.keypoints[index, :, :2] - wanted.keypoints[..., :2]).abs().max() < 6


def test_mask_head_is_added_to_trained_weights_without_it(tmp_path: Path) -> None:
    config, model = tiny_config(name="rcnn"), build()
    save_checkpoint(tmp_path / "a.pt", model=model, config=config, class_names=NAMES, category_ids=CATEGORY_IDS)
    checkpoint = load_checkpoint(tmp_path / "a.pt")
    masks = tiny_config(name="rcnn", mask=DETAILS["mask"])
    larger = build_model(masks.model, num_classes=3, pretrained=False)
    start_from(larger, checkpoint, masks.model, NAMES, where="a.pt")
    state = larger.state_dict()
    assert all(torch.equal(state[name], tensor) for name, tensor in model.state_dict().items())


def test_fine_tuning_with_another_number_of_keypoints_keeps_the_initial_last_layer(tmp_path: Path) -> None:
    few, many = (
        tiny_config(name="rcnn", keypoints={**DETAILS["keypoints"], "num_keypoints": number}) for number in (3, 5)
    )
    model, larger = (build_model(config.model, num_classes=3, pretrained=False) for config in (few, many))
    save_checkpoint(tmp_path / "a.pt", model=model, config=few, class_names=NAMES, category_ids=CATEGORY_IDS)
    initial = {name: tensor.clone() for name, tensor in larger.state_dict().items()}
    summary = start_from(larger, load_checkpoint(tmp_path / "a.pt"), many.model, NAMES, where="a.pt")
    layer = ["heads.keypoints.logits.weight", "heads.keypoints.logits.bias"]
    loaded = {name: tensor for name, tensor in larger.state_dict().items() if name not in layer}
    assert all(torch.equal(model.state_dict()[name], tensor) for name, tensor in loaded.items())
    assert all(torch.equal(initial[name], larger.state_dict()[name]) for name in layer)
    assert summary == (
        f"weights: {len(loaded) - 2} tensors from a.pt\n  {', '.join(layer)}: newly initialised, because the numbers of"
        " keypoints differ: the weights have 3, the model has 5"
    )


@pytest.mark.parametrize(
    ("names", "loaded"),
    [
        (("head", "tail", "paw"), "all"),
        (("paw", "head", "tail"), "3 of 3 keypoints by name (paw, head, tail)"),
        (("tail", "ear", "head", "eye"), "2 of 4 keypoints by name (tail, head)"),
        (("a", "b", "c"), "all"),  # other names for the same keypoints
        (("0", "1", "2"), "all"),  # unnamed
    ],
)
def test_fine_tuning_keeps_the_entries_of_keypoints_with_the_same_names(
    tmp_path: Path, names: tuple[str, ...], loaded: str
) -> None:
    old_names = ("head", "tail", "paw")
    old_config, config = (
        tiny_config(name="rcnn", keypoints={**DETAILS["keypoints"], "num_keypoints": number})
        for number in (3, len(names))
    )
    old, model = (build_model(each.model, num_classes=3, pretrained=False) for each in (old_config, config))
    save_checkpoint(
        tmp_path / "a.pt",
        model=old,
        config=old_config,
        class_names=NAMES,
        category_ids=CATEGORY_IDS,
        keypoint_layout=KeypointLayout(old_names),
    )
    initial = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    checkpoint = load_checkpoint(tmp_path / "a.pt")
    summary = start_from(model, checkpoint, config.model, NAMES, keypoint_names=names, where="a.pt")
    by_position = loaded == "all"
    assert (
        ("weights: all " in summary and "keypoints" not in summary)
        if by_position
        else summary.endswith(f"loaded {loaded}")
    )
    for key, dim in (("heads.keypoints.logits.weight", 1), ("heads.keypoints.logits.bias", 0)):
        new, before, first = (
            tensors[key].movedim(dim, 0) for tensors in (model.state_dict(), old.state_dict(), initial)
        )
        for i, name in enumerate(names):
            expected = before[i] if by_position else before[old_names.index(name)] if name in old_names else first[i]
            assert torch.equal(new[i], expected)


def test_fine_tuning_keeps_the_rows_of_classes_with_the_same_names(tmp_path: Path) -> None:
    config, model = tiny_config(name="rcnn"), build()
    save_checkpoint(tmp_path / "a.pt", model=model, config=config, class_names=NAMES, category_ids=CATEGORY_IDS)
    smaller = build_model(config.model, num_classes=2, pretrained=False)
    summary = start_from(smaller, load_checkpoint(tmp_path / "a.pt"), config.model, ("fox", NAMES[1]), where="a.pt")
    assert "(dog); newly initialised: fox" in summary
    for name, rows, kept in (("box.logits.weight", (0, 2), (0, 2)), ("box.offsets.weight", (0, 9), (0, 9))):
        ours, trained = smaller.get_parameter(name), model.get_parameter(name)
        assert all(torch.equal(ours[a], trained[b]) for a, b in zip(rows, kept, strict=True)), name


# ------------------------------------------------------------------------------------------------------------- options


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("anchor_sizes=[8,16]", "strides has 5 levels but anchor_sizes has 2; give one size, or one list of"),
        ("proposals.background_iou=0.8", "proposals.background_iou must be at most proposals.foreground_iou, found"),
        ("box.background_iou=0.6", "box.background_iou must be at most box.foreground_iou, found 0.6 and 0.5"),
        ("fpn.enabled=false", "fpn.enabled=false: expected one stride, found [4, 8, 16, 32, 64]"),
        ("box.layers=backbone", "box.layers=backbone: expected fpn.enabled=false, because these layers expect a map"),
        ("box.linear_norm=gn model.box.linear_channels=33", "box.linear_channels must be even with norm gn, found 33"),
        ("mask.norm=gn model.mask.conv_channels=[32,33]", "mask.conv_channels must be even with norm gn, found 33"),
        ("fpn.enabled=false model.strides=[32] model.anchor_sizes=[32] model.box.layers=backbone", "expected strides="),
        ("mask.layers=box", "mask.layers=box: expected box.layers=backbone"),
        ("proposals.layers=backbone", "proposals.layers=backbone: expected backbone.name=fbnet, found resnet50"),
        ("proposals.positive_fraction=0", "model.proposals.positive_fraction: should be greater than 0, found 0"),
        ("head.num_convs=1", "model.head: no such option"),
        ("fcos.enabled=true model.loss_average=batch", "fcos.enabled: expected loss_average=image"),
        ("fcos.enabled=true model.fcos.size_ranges=[[-1,64]]", "strides has 5 levels but fcos.size_ranges has 1"),
    ],
)  # fmt: skip
def test_invalid_options_have_a_clear_message(options: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_config(None, ["model.name=rcnn", *f"model.{options}".split()])
    assert message in str(caught.value)


def test_backbone_without_head_layers_is_rejected() -> None:
    options = {"strides": [16], "anchor_sizes": [[32, 64]], "fpn": {"enabled": False}, "box": {"layers": "backbone"}}
    with pytest.raises(
        ConfigError, match=r"model\.backbone\.name=mobilenet_v2: defines no layers for heads; set layers="
    ):
        build(**options)


def test_heads_of_details_need_the_annotations() -> None:
    with pytest.raises(ConfigError, match=r"model\.mask\.enabled=true needs data\.masks=true, which reads the masks"):
        load_config("mask_rcnn_mnv2_small", ["data.masks=false"])


@pytest.mark.parametrize("size", ["r50", "mnv2_small"])
@pytest.mark.parametrize("kind", ["faster_rcnn", "mask_rcnn"])
def test_recipes_build_and_train(kind: str, size: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one_block_per_stage(monkeypatch)
    tree = coco_tree()
    for annotation in tree["annotations"]:
        x, y, width, height = annotation["bbox"]
        annotation["segmentation"] = [[x, y, x + width, y, x + width, y + height]]
    for split in ("train", "val"):
        write_coco(tmp_path / "data", tree, split=split)
    options = """
        data.workers=0 data.short_side=64 data.max_side=96 model.backbone.weights=null model.fpn.channels=32
        model.box.linear_channels=32 model.box.samples_per_image=32 model.max_detections=5
        train.batch_size=2 train.iterations=2 device=cpu
    """
    config = load_config(
        f"{kind}_{size}", [f"data={tmp_path / 'data'}", f"output_dir={tmp_path / 'run'}", *options.split()]
    )
    result = train(config)
    assert (result.run / "weights/best.pt").is_file()
    assert ("AP_mask" in result.metrics) == (kind == "mask_rcnn")


def test_number_of_keypoints_of_the_data_must_be_that_of_the_head(tmp_path: Path) -> None:
    tree = coco_tree()
    for annotation in tree["annotations"]:
        annotation["keypoints"] = [3, 4, 2, 5, 6, 2]
    options = [f"output_dir={tmp_path / 'run'}", "data.keypoints=true", "model.keypoints.enabled=true"]
    config = load_config("faster_rcnn_mnv2_small", [f"data={write_coco(tmp_path, tree)}", *options])
    message = r"num_keypoints=17, but the objects of the data have 2 keypoints \(0, 1\); train a detector with .*=2"
    with pytest.raises(ConfigError, match=message):
        train(config)
    assert not (tmp_path / "run").exists()


KEYPOINTS = """
    data.keypoints=true model.keypoints.enabled=true model.keypoints.num_keypoints=2 model.keypoints.conv_channels=[8]
    model.backbone.weights=null model.fpn.channels=16 train.iterations=1 train.batch_size=2 data.workers=0
    data.short_side=64 data.max_side=96 device=cpu
"""


def test_keypoints_of_all_splits_have_the_same_order(tmp_path: Path) -> None:
    tree = coco_tree()
    for annotation in tree["annotations"]:
        annotation["keypoints"] = [3, 4, 2, 5, 6, 2]
    for split, names in (("train", ["head", "tail"]), ("val", ["tail", "head"]), ("test", ["nose", "tip"])):
        for category in tree["categories"]:
            category["keypoints"] = names
        write_coco(tmp_path, tree, split=split)
    message = r"keypoints are in the order tail, head, but the detector is trained with head, tail; write the"
    config = load_config(
        "faster_rcnn_mnv2_small", [f"data={tmp_path}", f"output_dir={tmp_path / 'run'}", *KEYPOINTS.split()]
    )
    with pytest.raises(DataError, match=message):
        train(config)
    assert not (tmp_path / "run").exists()
    (tmp_path / "val.json").rename(tmp_path / "other.json")
    run = train(config).run
    with pytest.raises(DataError, match=message):
        fcos.evaluate(run / LAST, f"data.val.annotations={tmp_path / 'other.json'}", f"data.val.images={tmp_path}")
    assert "AP_keypoints" in fcos.evaluate(run / LAST, split="test").metrics  # other names, perhaps of the same points
    (tmp_path / "other.json").replace(tmp_path / "train.json")
    with pytest.raises(
        ConfigError, match=r"train\.resume: .* has the keypoints head, tail, but the data has tail, head"
    ):
        fcos.train(config, f"output_dir={run}", "train.resume=true", "train.iterations=2")


def test_data_without_objects_has_any_number_of_keypoints(tmp_path: Path) -> None:
    tree = coco_tree() | {"annotations": []}
    for split in ("train", "val"):
        write_coco(tmp_path, tree, split=split)
    options = [f"data={tmp_path}", f"output_dir={tmp_path / 'run'}", *KEYPOINTS.split()]
    run = train(load_config("faster_rcnn_mnv2_small", options)).run
    assert load_checkpoint(run / LAST).iteration == 1
    assert "AP_keypoints" in fcos.evaluate(run / LAST).metrics


def test_names_and_skeleton_of_keypoints_reach_the_predictions(tmp_path: Path) -> None:
    tree = coco_tree()
    for annotation in tree["annotations"]:
        annotation["keypoints"] = [3, 4, 2, 5, 6, 2]
    for category in tree["categories"]:
        category.update(keypoints=["head", "tail"], skeleton=[[1, 2]], flip_pairs=[])
    root = write_coco(tmp_path, tree)
    fcos.train("faster_rcnn_mnv2_small", f"data={root}", f"output_dir={tmp_path / 'run'}", *KEYPOINTS.split())
    weights = tmp_path / "run/weights/last.pt"
    expected = KeypointLayout(("head", "tail"), ((0, 1),), ())
    assert load_checkpoint(weights).keypoint_layout == expected
    fcos.convert(weights, tmp_path / "converted.pt")
    found = fcos.load(tmp_path / "converted.pt", device="cpu").predict(root / "images/a.png", threshold=0.0)
    assert found.keypoint_layout == expected
    assert found[:1].keypoint_layout == expected


def test_config_of_another_file_selects_the_detections_of_weights(tmp_path: Path) -> None:
    config = tiny_config(name="rcnn")
    path = tmp_path / "own.pt"
    save_checkpoint(path, model=build(), config=config, class_names=NAMES, category_ids=CATEGORY_IDS)
    other = tiny_config(name="rcnn", max_detections=7)
    assert fcos.load(path, config=other, device="cpu").config.model.max_detections == 7  # pyright: ignore[reportAttributeAccessIssue]
