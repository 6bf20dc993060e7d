"""Folding of batch norms into convolutions for inference."""

import copy
import pickle
import threading

import pytest
import torch
from detectors import tiny_config, tiny_detector
from small_backbones import one_block_per_stage
from torch import nn

from fcos.config.overrides import validate
from fcos.models import build_model
from fcos.models.backbones import build_backbone
from fcos.models.folding import fold_batch_norms, fold_frozen_stages
from fcos.models.inference_copy import InferenceCopy

CASES = {
    "mobilenet_v2": {},
    "resnet50": {"norm": "frozen_bn"},
    "resnext50_32x4d": {"norm": "sync_bn"},
    "resnet101": {"norm": "bn", "deformable_stages": ["C4", "C5"]},
    "dla34": {"norm": "sync_bn"},
    "timm/tf_efficientnet_lite0": {"norm": "frozen_bn"},
    "fbnet": {},
}
"""Options by name of the backbone."""


def randomize_norms(module):
    for each in module.modules():
        if getattr(each, "running_var", None) is not None:
            each.running_var.copy_(torch.rand_like(each.running_var) + 0.5)
            each.running_mean.copy_(0.1 * torch.randn_like(each.running_mean))
            each.weight.data.copy_(torch.rand_like(each.weight) + 0.5)
            each.bias.data.copy_(0.1 * torch.randn_like(each.bias))
    return module.eval()


def load_backbone(name, options):
    tree = {"backbone": {"name": name, "weights": None, **options}}
    backbone = build_backbone(validate({"model": tree}, where="test").model.backbone)
    return randomize_norms(backbone)


def norms_of(module):
    return [name for name, each in module.named_modules() if getattr(each, "running_var", None) is not None]


@pytest.mark.parametrize("name", CASES)
def test_backbones_have_the_same_maps_without_batch_norms(name, monkeypatch):
    one_block_per_stage(monkeypatch)
    torch.manual_seed(0)
    backbone = load_backbone(name, CASES[name])
    before = {key: value.clone() for key, value in backbone.state_dict().items()}
    images = torch.randn(2, 3, 96, 128)

    folded = fold_batch_norms(backbone, like=images)

    assert norms_of(backbone)
    assert folded is not None
    assert norms_of(folded) == []
    with torch.no_grad():
        expected, found = backbone(images), folded(images)
    assert found.keys() == expected.keys()
    for level, maps in expected.items():
        torch.testing.assert_close(found[level], maps, rtol=0, atol=2e-5 * float(maps.abs().max()))
    after = backbone.state_dict()
    assert all(after[key].equal(value) for key, value in before.items())


class Maps(nn.Module):
    """Backbone of two convolutions."""

    def __init__(self, *, uses_conv_twice=False, norms=1):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, padding=1)
        self.norms = nn.ModuleList(nn.BatchNorm2d(4) for _ in range(norms))
        self.last = nn.Conv2d(4, 4, 1, bias=False)
        self.uses_conv_twice = uses_conv_twice
        randomize_norms(self)

    def forward(self, images):
        x = self.conv(images)
        y = sum(norm(x) for norm in self.norms) if self.norms else x
        return {"C3": self.last(y + x if self.uses_conv_twice else y)}


def test_batch_norm_without_affine_parameters_is_folded():
    backbone = Maps(norms=0)
    backbone.norms.append(nn.BatchNorm2d(4, affine=False))
    backbone.get_buffer("norms.0.running_mean").fill_(0.5)
    images = torch.randn(1, 3, 8, 8)
    folded = fold_batch_norms(backbone.eval(), like=images)
    assert folded is not None
    assert norms_of(folded) == []
    torch.testing.assert_close(folded(images)["C3"], backbone(images)["C3"])


@pytest.mark.parametrize("options", [{"uses_conv_twice": True}, {"norms": 2}, {"norms": 0}])
def test_backbone_is_unchanged_if_folding_would_change_its_maps(options):
    assert fold_batch_norms(Maps(**options), like=torch.zeros(())) is None


def test_batch_norms_in_training_mode_are_not_folded():
    assert fold_batch_norms(Maps().train(), like=torch.zeros(())) is None


def test_convolution_that_runs_twice_is_folded_only_with_its_own_norm():
    class Twice(Maps):
        def forward(self, images):
            return {"C3": self.norms[0](self.conv(images)) + self.norms[1](self.conv(-images))}

    assert fold_batch_norms(Twice(norms=2), like=torch.zeros(())) is None


class OtherNorm(nn.Module):
    """Norm with stored statistics, but without weight and bias."""

    def __init__(self):
        super().__init__()
        self.register_buffer("running_var", torch.full((4,), 2.0))
        self.eps = 0.0

    def forward(self, x):
        return x / self.get_buffer("running_var").sqrt()[:, None, None]


class FixedSize(nn.Module):
    """Module that accepts maps of one size only."""

    def forward(self, x):
        return x + torch.zeros(1, 4, 224, 224)


@pytest.mark.parametrize(
    "attributes", [{"norms": nn.ModuleList([OtherNorm()])}, {"last": FixedSize()}, {"lock": threading.Lock()}]
)
def test_backbone_that_folding_cannot_handle_is_unchanged(attributes):
    backbone = Maps()
    assert fold_batch_norms(backbone, like=torch.zeros(())) is not None
    for name, value in attributes.items():
        setattr(backbone, name, value)
    assert fold_batch_norms(backbone, like=torch.zeros(())) is None


def test_compiled_networks_stay_compiled(model):
    fold, graphs = InferenceCopy(), []

    def backend(graph, _):
        graphs.append(graph)
        return graph.forward

    for path in ("", "backbone", "backbone.features.0"):
        compiled = copy.deepcopy(model)
        compiled.get_submodule(path).compile(backend=backend)
        assert fold(compiled) is compiled
    model.backbone = torch.compile(model.backbone, backend=backend)
    assert fold(model) is model
    assert not graphs


@pytest.fixture
def detector():
    detector = tiny_detector()
    randomize_norms(detector.model)
    return detector


@pytest.fixture
def model(detector):
    return detector.model


def test_modules_except_the_backbone_and_options_are_shared(model):
    folded = InferenceCopy()(model)
    assert folded is not model
    assert folded.head is model.head
    assert folded.postprocess is model.postprocess
    assert norms_of(folded.backbone) == []
    assert norms_of(model.backbone)
    originals = {id(parameter) for parameter in model.parameters()}
    own = [name for name, parameter in folded.named_parameters() if id(parameter) not in originals]
    assert own
    assert all(name.startswith("backbone.") for name in own)


NANO = {
    "fpn": {"channels": 64, "norm": "bn", "relu": True, "separable": True},
    "head": {"num_convs": 1, "num_shared_convs": 2, "norm": "bn", "separable": True},
}


@pytest.mark.parametrize(
    "options",
    [
        NANO,
        {"head": {"num_convs": 1, "norm": "bn", "conv_bias": False}},
        {"head": {"num_convs": 2, "norm": "bn", "deformable": True}},
        {"name": "retinanet", "head": {"num_convs": 1, "norm": "bn"}, "fpn": {"channels": 32, "norm": "bn"}},
        {"name": "rcnn", "fpn": {"channels": 32, "norm": "bn"}},
    ],
    ids=["separable", "towers", "deformable", "retinanet", "rcnn"],
)
def test_batch_norms_of_pyramid_and_towers_are_folded(options):
    torch.manual_seed(0)
    model = randomize_norms(build_model(tiny_config(**options).model, num_classes=3, pretrained=False))
    before = {key: value.clone() for key, value in model.state_dict().items()}
    folded = InferenceCopy()(model)
    assert norms_of(folded) == []
    features = [torch.randn(1, channels, 64 // 2**i, 96 // 2**i) for i, channels in enumerate((32, 96, 320))]
    with torch.no_grad():
        levels, found = (each.get_submodule("fpn")(features) for each in (model, folded))
        outputs = [(levels, found)]
        if hasattr(model, "head"):
            outputs += zip(*(each.get_submodule("head")(levels) for each in (model, folded)), strict=True)
    for expected, maps in outputs:
        for a, b in zip(maps, expected, strict=True):
            torch.testing.assert_close(a, b, rtol=0, atol=1e-5 * float(b.abs().max()) + 1e-7)
    assert all(model.state_dict()[key].equal(value) for key, value in before.items())


def test_towers_are_folded_again_after_changes():
    model = randomize_norms(build_model(tiny_config(**NANO).model, num_classes=3, pretrained=False))
    fold = InferenceCopy()
    first = fold(model).head
    assert fold(model).head is first
    with torch.no_grad():
        model.get_buffer("head.cls_tower.1.2.running_mean").add_(1)
    second = fold(model).head
    assert second is not first
    assert fold(model).head is second
    norm = model.get_submodule("head.cls_tower.1.0")
    handle = norm.register_forward_hook(lambda *_: None)
    assert fold(model).head is model.head
    handle.remove()
    norm.train()  # the norm of one level: none of this layer can be folded
    assert norms_of(fold(model).head) == [f"cls_tower.1.{level}" for level in range(5)]


def test_folding_is_repeated_only_after_changes(model):
    fold = InferenceCopy()
    first = fold(model).backbone
    assert fold(model).backbone is first

    with torch.no_grad():
        next(model.backbone.parameters()).mul_(2)
    second = fold(model).backbone
    assert second is not first

    model.load_state_dict({key: value.clone() for key, value in model.state_dict().items()})
    assert fold(model).backbone is not second

    third = fold(model).backbone

    norms = [each for each in model.backbone.modules() if hasattr(each, "eps")]
    norms[0].eps = 0.1
    assert fold(model).backbone is not third

    model.train()
    assert fold(model) is model


def test_activation_that_replaces_another_is_used(model):
    fold = InferenceCopy()
    first = fold(model).backbone
    activations = [
        (parent, name)
        for parent in model.backbone.modules()
        for name, each in parent.named_children()
        if isinstance(each, nn.ReLU6)
    ]
    for parent, name in activations:
        setattr(parent, name, nn.GELU())
    second = fold(model).backbone
    assert second is not first
    assert not any(isinstance(each, nn.ReLU6) for each in second.modules())


def test_copies_and_pickles_do_not_contain_the_folded_backbone(detector):
    size = len(pickle.dumps(detector))
    image = torch.randint(0, 256, (3, 96, 130), dtype=torch.uint8)
    expected = detector.predict(image, threshold=0.0)
    data = pickle.dumps(detector)
    assert len(data) == size
    for copied in (pickle.loads(data), copy.deepcopy(detector)):
        assert copied.predict(image, threshold=0.0).scores.equal(expected.scores)


def test_hooks_in_the_backbone_see_every_module(model):
    fold, seen = InferenceCopy(), []
    assert fold(model) is not model
    handle = model.backbone.register_forward_hook(lambda *_: seen.append(1))
    assert fold(model) is model
    handle.remove()
    assert fold(model) is not model
    assert not seen


def test_predictions_equal_those_of_the_model_itself(detector):
    image = torch.randint(0, 256, (3, 96, 130), dtype=torch.uint8)
    found = detector.predict(image, threshold=0.0)
    detector.model.backbone.register_forward_hook(lambda *_: None)  # prevents folding
    expected = detector.predict(image, threshold=0.0)
    assert len(found) == len(expected) > 10
    torch.testing.assert_close(found.scores, expected.scores, rtol=0, atol=1e-5)
    torch.testing.assert_close(found.boxes, expected.boxes, rtol=0, atol=1e-2)


def frozen_detector(**backbone):
    torch.manual_seed(0)
    backbone = {"name": "mobilenet_v2", "weights": None, "frozen_stages": 2, **backbone}
    return randomize_norms(build_model(tiny_config(backbone=backbone).model, num_classes=3, pretrained=False)).train()


@pytest.mark.parametrize(
    ("backbone", "frozen"),
    [
        ({}, ("features.0.", "features.1.", "features.2.", "features.3.")),
        ({"frozen_stages": 5}, ("features.",)),
        ({"name": "resnet50", "norm": "frozen_bn"}, ("bn1", "layer1")),  # frozen norms of trainable convolutions stay
    ],
)
def test_frozen_stages_are_folded_for_training(backbone, frozen, monkeypatch):
    one_block_per_stage(monkeypatch)
    model = frozen_detector(**backbone)
    folded = fold_frozen_stages(model)
    assert norms_of(folded.backbone) == [name for name in norms_of(model.backbone) if not name.startswith(frozen)]
    trainable = [id(p) for p in model.parameters() if p.requires_grad]
    assert [id(p) for p in folded.parameters() if p.requires_grad] == trainable
    assert all(each.training for each in folded.get_submodule("backbone").modules())
    statistics = {key: value for key, value in model.state_dict().items() if key.endswith("running_mean")}
    shared = {key: value for key, value in folded.state_dict().items() if key in statistics}
    assert all(value.data_ptr() == statistics[key].data_ptr() for key, value in shared.items())

    images, sizes = torch.randint(0, 256, (2, 3, 64, 96), dtype=torch.uint8), torch.tensor([[64, 96]] * 2)
    state = {key: value.clone() for key, value in model.state_dict().items()}
    with torch.no_grad():
        expected = model(images, sizes)
        after = {key: value.clone() for key, value in model.state_dict().items()}
        model.load_state_dict(state)
        found = folded(images, sizes)
    for a, b in zip(found.logits, expected.logits, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-4 * float(b.abs().max()))
    torch.testing.assert_close(model.state_dict(), after, rtol=1e-3, atol=1e-4)  # batch-norm statistics of both


def test_detector_without_frozen_stages_is_unchanged_for_training():
    model = frozen_detector(frozen_stages=0)
    assert fold_frozen_stages(model) is model
