"""R-CNN and its proposal network: sizes and batches, losses, heads, memory, training, options."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from detectors import CATEGORY_IDS, NAMES, tiny_config
from fcos_inputs import noise, sizes_of
from tiny_data import coco_tree, write_coco
from torch import Tensor
from torchvision.ops import box_iou

import fcos
from fcos.checkpoint import save_checkpoint
from fcos.errors import ConfigError
from fcos.interop.checkpoints import load_checkpoint
from fcos.masks import Masks
from fcos.models import build_model
from fcos.models.anchors import AnchorMatcher, BoxCoder, Sampler
from fcos.models.keypoint_head import decode_keypoints, keypoint_cells
from fcos.models.mask_head import MaskHead
from fcos.models.points import BACKGROUND
from fcos.models.postprocess import RoIPostprocess, roi_candidates
from fcos.models.proposals import ProposalLimits, ProposalSelection, select_proposals
from fcos.models.rcnn import RCNN, RCNNOutputs
from fcos.models.roi_heads import Pooler, sample_proposals
from fcos.recipes import load_config
from fcos.structures import Instances, Objects
from fcos.training.loop import train
from fcos.training.start import start_from
from fcos.training.step import _whole_images

DETAILS: dict[str, Any] = {
    "mask": {"enabled": True, "conv_channels": [16]},
    "keypoints": {"enabled": True, "conv_channels": [16], "num_keypoints": 5},
}
FROZEN: dict[str, Any] = {"backbone": {"name": "mobilenet_v2", "weights": None, "norm": "frozen_bn"}}


def build(*, num_classes: int = 3, **options: Any) -> RCNN:
    config = tiny_config(name="rcnn", score_threshold=0.001, **options)
    model = build_model(config.model, num_classes=num_classes, pretrained=False)
    assert isinstance(model, RCNN)
    return model


def with_details(objects: Objects, *, num_keypoints: int = 5) -> Objects:
    """Add triangles as masks, and visible keypoints on the diagonals of the boxes."""
    polygons = [[[x1, y1, x2, y1, x2, y2]] for x1, y1, x2, y2 in objects.boxes.tolist()]
    steps = torch.linspace(0.1, 0.9, num_keypoints)[:, None]
    corner, other = objects.boxes[:, None, :2], objects.boxes[:, None, 2:]
    points = corner + steps * (other - corner)
    keypoints = torch.cat([points, torch.full_like(points[..., :1], 2)], dim=2)
    return replace(objects, masks=Masks.from_polygons(polygons), keypoints=keypoints)


def some_objects() -> list[Objects]:
    """Return the objects of two images, the second without any."""
    boxes = torch.tensor([[4.0, 6, 50, 50], [20, 10, 60, 62]])
    full = Objects(boxes, torch.tensor([0, 2]), seed=3)
    return [with_details(full), with_details(full[:0])]


def total(terms: Any) -> Tensor:
    return torch.stack(list(terms.values())).sum()


# ---------------------------------------------------------------------------------------------------- sizes and batches


@pytest.mark.parametrize("size", [(97, 131), (1, 1), (33, 160), (64, 64)])
def test_detector_accepts_any_height_and_width(size: tuple[int, int]) -> None:
    model = build(**DETAILS).eval()
    (instances,) = model.detect(noise(1, 3, *size), sizes_of(size))
    assert instances.size == size
    assert instances.mask_grids is not None
    assert instances.keypoints is not None
    assert instances.mask_grids.shape == (len(instances), 28, 28)
    assert instances.keypoints.shape == (len(instances), 5, 3)
    assert (instances.boxes >= 0).all()
    assert (instances.boxes <= torch.tensor(size).flip(0).repeat(2)).all()


def test_batches_of_any_length_give_the_detections_of_single_images() -> None:
    model = build(**DETAILS).eval()
    images, sizes = noise(3, 3, 64, 96), sizes_of((64, 96), (64, 96), (50, 40))
    assert model.detect(images[:0], sizes[:0]) == []
    for i, instances in enumerate(model.detect(images, sizes)):
        (alone,) = model.detect(images[i : i + 1], sizes[i : i + 1])
        assert len(instances) > 0
        torch.testing.assert_close(instances.scores, alone.scores)
        torch.testing.assert_close(instances.boxes, alone.boxes, rtol=1e-5, atol=1e-3)
        torch.testing.assert_close(instances.mask_grids, alone.mask_grids, rtol=0, atol=1e-4)


def test_losses_and_details_are_float32_under_autocast() -> None:
    model = build(**DETAILS, **FROZEN)
    images, sizes = noise(2, 3, 64, 64), sizes_of((64, 64), (64, 64))
    exact = model(images, sizes, some_objects()).terms
    with torch.autocast("cpu", dtype=torch.bfloat16):
        losses = model(images, sizes, some_objects()).terms
        detections = model.eval().detect(images, sizes)
    details = [x for image in detections for x in (image.boxes, image.mask_grids, image.keypoints)]
    assert {x.dtype for x in details if x is not None} == {torch.float32}
    assert {loss.dtype for loss in losses.values()} == {torch.float32}
    for name in ("loss_objectness", "loss_cls"):  # the others also depend on the proposals, which change
        assert losses[name].item() == pytest.approx(exact[name].item(), rel=0.1), name


# -------------------------------------------------------------------------------------------------------------- losses


def test_training_step_updates_every_parameter_of_every_head() -> None:
    model = build(**DETAILS).train()
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    losses = model(noise(2, 3, 64, 64), sizes_of((64, 64), (64, 64)), some_objects())
    assert tuple(losses.terms) == model.loss_names
    assert all(loss.isfinite() and loss > 0 for loss in losses.terms.values())
    total(losses.terms).backward()
    torch.optim.SGD(model.parameters(), lr=0.1).step()
    assert [name for name, p in model.named_parameters() if p.requires_grad and p.grad is None] == []
    moved = {name for name, p in model.named_parameters() if not torch.equal(p, before[name])}
    assert {name for name in before if name.startswith(("proposals.", "box.", "heads."))} <= moved


@pytest.mark.parametrize("average", ["image", "batch"])
def test_images_without_objects_have_finite_losses_and_gradients_of_all_parameters(average: str) -> None:
    model = build(**DETAILS, **FROZEN, loss_average=average)
    targets = [some_objects()[1]] * 2
    losses = model(noise(2, 3, 64, 64), sizes_of((64, 64), (64, 64)), targets)
    zero = ("loss_rpn_box", "loss_box", "loss_mask", "loss_keypoints")
    assert [losses.terms[name].item() for name in zero] == [0.0] * 4
    assert all(term.isfinite() for term in losses.terms.values())
    total(losses.terms).backward()
    assert [name for name, p in model.named_parameters() if p.requires_grad and p.grad is None] == []
    assert total(model(noise(0, 3, 64, 64), sizes_of(), []).terms) == 0


def test_objects_without_visible_keypoint_are_not_used_for_the_keypoint_loss() -> None:
    model = build(**DETAILS, **FROZEN)
    targets = some_objects()
    invisible = torch.tensor([1.0, 1.0, 0.0])
    hidden = [replace(o, keypoints=None if o.keypoints is None else o.keypoints * invisible) for o in targets]
    images, sizes = noise(2, 3, 64, 64), sizes_of((64, 64), (64, 64))
    assert model(images, sizes, targets).terms["loss_keypoints"] > 0
    assert model(images, sizes, hidden).terms["loss_keypoints"] == 0


def test_crowd_boxes_are_neither_proposals_nor_background() -> None:
    crowd = Objects(torch.tensor([[0.0, 0, 32, 32]]), torch.tensor([0]), torch.tensor([True]))
    proposals = torch.tensor([[2.0, 2, 20, 20], [40, 40, 60, 60]])
    samples = sample_proposals(proposals, crowd, matcher=AnchorMatcher(0.5, 0.5, False), sampler=Sampler())
    assert samples.boxes.tolist() == [[40, 40, 60, 60]]
    assert samples.matched.tolist() == [BACKGROUND]


def test_samples_follow_the_seed_of_the_image() -> None:
    model = build(**FROZEN, proposals={"samples_per_image": 4})
    images, sizes, targets = noise(1, 3, 64, 64), sizes_of((64, 64)), some_objects()[:1]
    first, again, other = (
        model(images, sizes, [replace(targets[0], seed=seed)]).terms["loss_objectness"] for seed in (1, 1, 2)
    )
    assert first == again
    assert first != other


@pytest.mark.parametrize("sizes", [(4,), (1, 3), (2, 1, 1)])
def test_micro_batches_sum_to_the_batch(sizes: tuple[int, ...]) -> None:
    model = build(**DETAILS, **FROZEN, box={"samples_per_image": 16, "linear_channels": 16}).double()
    images, shapes, targets = noise(4, 3, 64, 64), sizes_of(*[(64, 64)] * 4), [*some_objects(), *some_objects()]
    whole = model(images, shapes, targets)
    total(whole.terms).backward()
    expected = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    normalizers, start, terms = model.loss_normalizers(targets, (64, 64)), 0, dict.fromkeys(whole.terms, 0.0)
    for size in sizes:
        part = slice(start, start + size)
        losses = model(images[part], shapes[part], targets[part], normalizers)
        total(losses.terms).backward()
        terms = {name: terms[name] + term.item() for name, term in losses.terms.items()}
        start += size
    assert terms == pytest.approx({name: term.item() for name, term in whole.terms.items()}, rel=1e-9)
    found = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    torch.testing.assert_close(found, expected, rtol=1e-7, atol=1e-11)


# ------------------------------------------------------------------------------------------------- classes and memory


@pytest.mark.parametrize("num_classes", [1, 1200])
@pytest.mark.parametrize("class_agnostic", [False, True])
def test_one_and_many_classes_train_and_detect(num_classes: int, class_agnostic: bool) -> None:
    box = {"class_agnostic": class_agnostic, "linear_channels": 16}
    model = build(num_classes=num_classes, box=box, **DETAILS, **FROZEN, max_detections=7)
    images, sizes = noise(2, 3, 64, 64), sizes_of((64, 64), (64, 64))
    targets = [replace(image, labels=image.labels.clamp(max=num_classes - 1)) for image in some_objects()]
    total(model(images, sizes, targets).terms).backward()
    for image in model.eval().detect(images, sizes):
        assert len(image) <= 7
        assert (image.labels < num_classes).all()


def test_candidates_of_many_proposals_and_classes_are_limited() -> None:
    logits, offsets = torch.randn(2000, 1201), torch.zeros(2000, 4 * 1201)
    corners = torch.rand(2000, 2) * 500
    proposals = torch.cat([corners, corners + 50], dim=1)
    options = RoIPostprocess(score_threshold=0.0, pre_nms_top_k=300)
    candidates = roi_candidates(logits, offsets, proposals, (600, 600), coder=BoxCoder(), options=options)
    scores = logits.softmax(dim=1)[:, 1:]
    best, index = scores.flatten().topk(300)
    assert torch.equal(candidates.scores.sort(descending=True).values, best)
    torch.testing.assert_close(candidates.boxes, proposals[index // 1200], rtol=0, atol=1e-4)
    assert torch.equal(candidates.labels, index % 1200)


@pytest.mark.parametrize(
    ("rule", "num_candidates", "num_detections"), [("remove", 1, 1), ("remove_last", 2, 1), ("keep", 2, 2)]
)
def test_boxes_without_area_in_the_image(rule: str, num_candidates: int, num_detections: int) -> None:
    model = build(empty_boxes=rule).eval()
    proposals = torch.tensor([[0.0, 0, 40, 40], [70, 0, 90, 40]])
    logits = torch.tensor([[0.0, 20, 0, 0]] * 2)
    (candidates,) = model.decode(RCNNOutputs([], [proposals], logits, torch.zeros(2, 16)), sizes_of((64, 64)))
    assert (len(candidates), len(model.suppress(candidates))) == (num_candidates, num_detections)


def test_masks_of_all_classes_are_not_computed() -> None:
    model = build(num_classes=1200, **DETAILS).eval()
    shapes: list[tuple[int, ...]] = []

    class Recorder(torch.overrides.TorchFunctionMode):
        def __torch_function__(self, func, types, args=(), kwargs=None):
            result = func(*args, **(kwargs or {}))
            if isinstance(result, Tensor):
                shapes.append(tuple(result.shape))
            return result

    head = model.heads["mask"]
    assert isinstance(head, MaskHead)
    boxes = [torch.tensor([[0.0, 0, 40, 40], [10, 10, 60, 60]])]
    features = model.features(noise(1, 3, 64, 64), sizes_of((64, 64)))
    with Recorder():
        grids = head(features, boxes, torch.tensor([0, 1199]))
    assert grids.shape == (2, 28, 28)
    assert (2, 1201, 28, 28) not in shapes
    every = head.logits(head.upsample(head.body(head.pooler(features, boxes))))
    torch.testing.assert_close(grids, every[[0, 1], [1, 1200]], rtol=1e-5, atol=1e-5)


# ------------------------------------------------------------------------------------------------- FCOS as first stage


def test_fcos_proposes_boxes_in_place_of_the_rpn() -> None:
    fcos = {"enabled": True, "head": {"num_convs": 1}, "train_max_proposals": 30, "max_proposals": 20}
    model = build(fcos=fcos, **FROZEN)
    images, sizes, targets = noise(2, 3, 64, 64), sizes_of((64, 64), (64, 64)), some_objects()
    losses = model(images, sizes, targets)
    first = ("loss_proposal_cls", "loss_proposal_box", "loss_proposal_centerness")
    assert tuple(losses.terms) == model.loss_names == (*first, "loss_cls", "loss_box")
    total(losses.terms).backward()
    assert [name for name, p in model.named_parameters() if p.requires_grad and p.grad is None] == []
    unused = ("proposals.detector.backbone.", "proposals.detector.fpn.")
    assert not [name for name in model.state_dict() if name.startswith(unused)]
    outputs = model.eval()(images, sizes)
    assert [len(boxes) for boxes in outputs.proposals] == [20, 20]
    assert len(model.detect(images, sizes)[0]) > 0
    normalizers = model.loss_normalizers(targets, (64, 64))
    parts = [model(images[i : i + 1], sizes[i : i + 1], targets[i : i + 1], normalizers).terms for i in range(2)]
    for name, term in losses.terms.items():
        assert sum(part[name].item() for part in parts) == pytest.approx(term.item(), rel=1e-4), name


# ----------------------------------------------------------------------------------------------------------- components


def test_boxes_are_pooled_from_the_level_of_their_size() -> None:
    features = [torch.full((1, 1, 128 // 2**i, 128 // 2**i), float(i)) for i in range(5)]
    boxes = torch.tensor([[0.0, 0, 16, 16], [0, 0, 112, 112], [0, 0, 224, 224], [0, 0, 448, 448], [0, 0, 2000, 2000]])
    pooled = Pooler()(features, [boxes])
    assert pooled.amax(dim=(1, 2, 3)).tolist() == [0, 1, 2, 3, 3]
    assert Pooler()(features, [boxes[:0]]).shape == (0, 1, 7, 7)


def test_limits_on_proposals_apply_per_level_and_per_image() -> None:
    corners = torch.arange(12.0)[:, None] * 20
    boxes = torch.cat([corners, torch.zeros(12, 1), corners + 10, torch.full((12, 1), 10.0)], dim=1)
    candidates = Instances(boxes, torch.tensor([0, 1] * 6), torch.linspace(0.9, 0.1, 12), (300, 300))
    per_level = select_proposals(candidates, ProposalLimits(9, 2, 9), ProposalSelection())
    assert per_level.boxes[:, 0].tolist() == [0, 20, 40, 60]
    per_image = select_proposals(candidates, ProposalLimits(9, 2, 3), ProposalSelection())
    assert per_image.boxes[:, 0].tolist() == [0, 20, 40]


def test_keypoints_are_decoded_where_heat_maps_were_encoded() -> None:
    boxes = torch.tensor([[10.0, 20, 66, 76], [0, 0, 28, 112]])
    keypoints = torch.tensor([[[12.5, 30.5, 2], [60.5, 70.5, 2]], [[14.25, 3, 2], [20.25, 100, 2]]])
    cells, valid = keypoint_cells(keypoints, boxes, 56)
    assert valid.all()
    heat_maps = torch.nn.functional.one_hot(cells, 56 * 56).float().unflatten(2, (56, 56)) * 10
    decoded = decode_keypoints(heat_maps, boxes)
    size_of_cell = (boxes[:, 2:] - boxes[:, :2])[:, None] / 56
    assert ((decoded[..., :2] - keypoints[..., :2]).abs() <= size_of_cell.clamp(min=1)).all()
    assert (decoded[..., 2] > 5).all()


# ------------------------------------------------------------------------------------------------------------ training


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
def test_recipes_build_and_train(kind: str, size: str, tmp_path: Path) -> None:
    tree = coco_tree()
    for annotation in tree["annotations"]:
        x, y, width, height = annotation["bbox"]
        annotation["segmentation"] = [[x, y, x + width, y, x + width, y + height]]
    for split in ("train", "val"):
        write_coco(tmp_path / "data", tree, split=split)
    options = """
        data.workers=0 data.short_side=64 data.max_side=96 model.backbone.weights=null model.fpn.channels=32
        model.box.linear_channels=32 train.batch_size=2 train.iterations=2 device=cpu
    """
    config = load_config(
        f"{kind}_{size}", [f"data={tmp_path / 'data'}", f"output_dir={tmp_path / 'run'}", *options.split()]
    )
    result = train(config)
    assert (result.run / "weights/best.pt").is_file()
    assert ("AP_mask" in result.metrics) == (kind == "mask_rcnn")


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_does_not_round_the_boxes_that_features_are_pooled_from(dtype: torch.dtype) -> None:
    pooler = Pooler(strides=[4], resolution=4)
    feature = torch.zeros(1, 1, 4, 400)
    feature[..., 322] = 1.0
    boxes = [torch.tensor([[1285.0, 2.0, 1291.0, 10.0]])]
    expected = pooler([feature], boxes)
    assert expected.max() > 0.5
    torch.testing.assert_close(pooler([feature.to(dtype)], boxes).float(), expected, rtol=0, atol=4e-3)


def test_objects_for_the_measurement_of_memory_have_all_details() -> None:
    model = build(**DETAILS)
    box, label = torch.tensor([[0.0, 0.0, 64.0, 48.0]]), torch.tensor([0])
    objects = _whole_images(box, label, 3, num_keypoints=5)
    losses = model(noise(2, 3, 48, 64), sizes_of((48, 64), (48, 64)), [objects] * 2)
    assert {"loss_mask", "loss_keypoints"} <= losses.terms.keys()
    assert all(term.isfinite() for term in losses.terms.values())


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


def test_config_of_another_file_selects_the_detections_of_weights(tmp_path: Path) -> None:
    config = tiny_config(name="rcnn")
    path = tmp_path / "own.pt"
    save_checkpoint(path, model=build(), config=config, class_names=NAMES, category_ids=CATEGORY_IDS)
    other = tiny_config(name="rcnn", max_detections=7)
    assert fcos.load(path, config=other, device="cpu").config.model.max_detections == 7  # pyright: ignore[reportAttributeAccessIssue]
