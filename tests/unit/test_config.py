"""The config tree: recipes, overrides, and error messages."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from detectors import fcos_section

from fcos.config import Config
from fcos.config.backbones import MobileNetV2Config, ResNetConfig
from fcos.config.overrides import validate
from fcos.config.rcnn import RPNConfig
from fcos.config.yaml_text import parse_yaml
from fcos.errors import ConfigError
from fcos.recipes import load_config, recipe_names


def message(*overrides: str, source: str | Path | None = None) -> str:
    with pytest.raises(ConfigError) as caught:
        load_config(source, overrides)
    return str(caught.value)


def write(folder: Path, text: str, name: str = "own.yaml") -> Path:
    path = folder / name
    path.write_text(text)
    return path


# ------------------------------------------------------------------------------------------------ recipes and files


@pytest.mark.parametrize("name", recipe_names())
def test_every_recipe_is_valid(name: str) -> None:
    assert isinstance(load_config(name), Config)


def test_documented_recipes_exist() -> None:
    assert {"fcos_r50_fpn_1x", "fcos_imprv_r50_fpn_1x", "fcos_bn_bs16_mnv2_fpn_1x", "fcos_mnv2_small"} <= set(
        recipe_names()
    )


def test_defaults_match_the_recipe_of_the_paper() -> None:
    recipe, default = load_config("fcos_r50_fpn_1x"), load_config()
    assert recipe.model == default.model
    assert recipe.train.model_copy(update={"milestones": []}) == default.train.model_copy(update={"milestones": []})


@pytest.mark.parametrize("name", recipe_names())
def test_config_survives_yaml_round_trip(name: str, tmp_path: Path) -> None:
    config = load_config(name, ["data=some/folder", "model.num_classes=3"])
    assert load_config(write(tmp_path, config.to_yaml())) == config


def test_config_survives_dict_round_trip() -> None:
    config = load_config("fcos_mnv2_small", ["data.train.annotations=a.json", "output_dir=runs/a"])
    assert Config(**config.to_dict()) == config
    assert type(config.to_dict()["output_dir"]) is str


def test_empty_file_gives_the_defaults(tmp_path: Path) -> None:
    assert load_config(write(tmp_path, "# nothing\n")) == Config()


def test_unknown_recipe_gets_a_suggestion_and_the_list() -> None:
    text = message(source="fcos_mnv2_smal")
    assert "did you mean 'fcos_mnv2_small'?" in text
    assert "fcos_r50_fpn_1x" in text


def test_missing_file_is_named_in_the_error(tmp_path: Path) -> None:
    assert message(source=tmp_path / "none.yaml") == f"{tmp_path / 'none.yaml'}: no such file"


@pytest.mark.parametrize("path", sorted((Path(__file__).parents[2] / "configs/fcos").glob("*.yaml")))
def test_missing_config_file_of_the_original_suggests_its_recipe(path: Path, tmp_path: Path) -> None:
    recipe = path.stem.lower().replace("_r_", "_r").replace("_x_", "_x")
    assert message(source=tmp_path / path.name).endswith(f"no such file, did you mean {recipe!r}?")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("model: [", "not valid YAML"),
        ("- a\n- b\n", "expected a mapping"),
        ("MODEL: {}\n1: 2\n", "1: no such key in the config of the original FCOS"),
    ],
)
def test_file_that_is_not_a_config_is_rejected(text: str, expected: str, tmp_path: Path) -> None:
    path = write(tmp_path, text)
    found = message(source=path)
    assert str(path) in found
    assert expected in found


def test_binary_file_is_rejected(tmp_path: Path) -> None:
    path = tmp_path / "a.yaml"
    path.write_bytes(b"\xff\xfe\x00\x80")
    assert "cannot read the config" in message(source=path)


def test_yaml_cannot_run_code() -> None:
    with pytest.raises(ConfigError, match="not valid YAML"):
        parse_yaml("!!python/object/apply:os.system ['true']", where="x")


# -------------------------------------------------------------------------------------------------------- overrides


@pytest.mark.parametrize("text", ["1e-4", "1E-4", "0.0001", "1.0e-4", ".1e-3", "+1e-4"])
def test_scientific_notation_in_overrides_is_parsed_as_float(text: str) -> None:
    assert load_config(None, [f"train.lr={text}"]).train.lr == 1e-4


def test_scientific_notation_in_files_is_parsed_as_float(tmp_path: Path) -> None:
    assert parse_yaml("a: 1e-4\nb: [2e3, -3e+2]\nc: e5\nd: 1e-4x", where="x") == {
        "a": 1e-4, "b": [2e3, -3e2], "c": "e5", "d": "1e-4x",
    }  # fmt: skip


def test_later_overrides_win() -> None:
    assert load_config(None, ["train.lr=1", "train.lr=2"]).train.lr == 2


def test_override_value_may_contain_an_equals_sign() -> None:
    assert load_config(None, ["data=a=b"]).data.root == Path("a=b")


def test_null_clears_an_option() -> None:
    config = load_config(None, ["train.clip_norm=10", "train.clip_norm=null", "model.backbone.weights=null"])
    assert config.train.clip_norm is None
    assert config.model.backbone.weights is None


def test_overrides_accept_nested_lists() -> None:
    config = load_config(
        None, ["data.short_side=[640,800]", "model.strides=[8,16]", "model.size_ranges=[[-1,64],[64,null]]"]
    )
    assert config.data.short_side == [640, 800]
    assert fcos_section(config).size_ranges == [(-1, 64), (64, None)]


@pytest.mark.parametrize("override", ["train.lr", "=3", "train..lr=3", ".lr=3", ""])
def test_malformed_override_is_rejected(override: str) -> None:
    assert "expected key=value" in message(override)


def test_all_malformed_overrides_are_reported_together() -> None:
    text = message("a", "train.lr=[", "output_dir=x", "output_dir.x=1")
    assert "'a'" in text
    assert "'train.lr=['" in text
    assert "no such option, because output_dir has a single value" in text


# ------------------------------------------------------------------------------------------------------------- data


def test_data_is_shorthand_for_data_root() -> None:
    assert load_config(None, ["data=cells"]).data.root == Path("cells")


@pytest.mark.parametrize("order", [1, -1])
def test_data_folder_and_data_options_combine_in_any_order(order: int) -> None:
    data = load_config(None, ["data=cells", "data.train.annotations=a.json"][::order]).data
    assert data.root == Path("cells")
    assert data.train.annotations == [Path("a.json")]


def test_data_folder_in_a_file_combines_with_data_overrides(tmp_path: Path) -> None:
    data = load_config(write(tmp_path, "data: cells\n"), ["data.short_side=100"]).data
    assert (data.root, data.short_side) == (Path("cells"), [100])


def test_duplicate_class_names_are_rejected() -> None:
    assert message("data.classes=[a,b,a]") == "defaults: data.classes: class names must be unique, found a, b, a"


def test_short_side_accepts_a_single_number() -> None:
    assert load_config(None, ["data.short_side=320"]).data.short_side == [320]


def test_detection_sizes_default_to_the_largest_training_size() -> None:
    data = load_config(None, ["data.short_side=[320,640]", "data.max_side=900"]).data
    assert (data.detection_short_side, data.detection_max_side) == (640, 900)
    data = load_config(None, ["data.short_side_range=[300,500]"]).data
    assert data.detection_short_side == 500
    data = load_config(None, ["data.short_side=[320,640]", "data.test_short_side=320", "data.test_max_side=400"]).data
    assert (data.detection_short_side, data.detection_max_side) == (320, 400)


@pytest.mark.parametrize(
    ("idle", "condition", "used"),
    [
        ("data.short_side=600", "data.short_side_range=null", "data.short_side_range=[600,800]"),
        ("train.momentum=0.8", "train.optimizer=sgd", "train.optimizer=adamw"),
        ("train.gamma=0.5", "train.schedule=multistep", "train.schedule=cosine"),
        ("train.milestones=[0.5]", "train.schedule=multistep", "train.schedule=cosine"),
        ("train.warmup_iterations=9", "train.warmup!=none", "train.warmup=none"),
        ("train.warmup_factor=0.5", "train.warmup!=none", "train.warmup=none"),
        ("eval.scales_max_side=800", "eval.scales", "eval.flip=true"),
        ("eval.scales_flip=true", "eval.scales", "eval.flip=true"),
    ],
)
def test_options_without_effect_are_named(
    idle: str, condition: str, used: str, caplog: pytest.LogCaptureFixture
) -> None:
    load_config(None, [used, idle])
    assert caplog.messages == [f"{idle}: no effect, because it needs {condition}"]


def test_options_with_effect_cause_no_warning(caplog: pytest.LogCaptureFixture) -> None:
    options = "data.short_side=600 train.momentum=0.8 train.gamma=0.5 train.warmup_iterations=9"
    load_config(None, [*options.split(), "eval.scales=[600]", "eval.scales_flip=true", "data.flip=0"])
    assert not caplog.messages


# ---------------------------------------------------------------------------------------------------------- backbone


def test_backbone_options_without_a_name_apply_to_the_default() -> None:
    backbone = load_config(None, ["model.backbone.norm=gn", "model.backbone.weights=null"]).model.backbone
    assert backbone == ResNetConfig(norm="gn", weights=None)


def test_changing_the_backbone_resets_its_options() -> None:
    backbone = load_config("fcos_r50_fpn_1x", ["model.backbone.name=mobilenet_v2"]).model.backbone
    assert backbone == MobileNetV2Config()


def test_changing_the_detector_keeps_the_options_that_both_have(caplog: pytest.LogCaptureFixture) -> None:
    first = load_config("fcos_mnv2_small").model
    model = load_config("fcos_mnv2_small", ["model.name=rpn"]).model
    assert isinstance(model, RPNConfig)
    assert (model.backbone, model.fpn.channels, model.strides) == (first.backbone, 96, [4, 8, 16, 32, 64])
    assert caplog.messages == [
        "model.name=rpn: dropped options of fcos, which this detector lacks or does not accept: model.head.num_convs,"
        " model.head.centerness_on, model.head.regression, model.center_sampling_radius, model.box_loss"
    ]
    small = load_config("faster_rcnn_mnv2_small", ["model.name=rpn"]).model
    assert isinstance(small, RPNConfig)
    assert (small.strides, small.anchor_sizes) == ([8, 16, 32, 64], [[24], [48], [96], [192]])
    assert small.proposals.samples_per_image == 128


def test_changing_the_detector_drops_options_that_the_new_one_does_not_accept() -> None:
    three_levels = load_config("fcos_rt_dla34_fpn_4x", ["model.name=rpn"]).model
    assert isinstance(three_levels, RPNConfig)
    assert (three_levels.backbone.name, three_levels.strides) == ("dla34", [4, 8, 16, 32, 64])


def test_changing_the_detector_of_a_complete_config_keeps_no_defaults(tmp_path: Path) -> None:
    path = write(tmp_path, load_config("fcos_mnv2_small").to_yaml())
    options = ["model.backbone.frozen_stages=1", "model.name=rcnn"]
    assert load_config(path, options).model == load_config("fcos_mnv2_small", options).model
    assert load_config(path, options).model.backbone.frozen_stages == 1


@pytest.mark.parametrize("order", [1, -1])
def test_backbone_name_and_options_combine_in_any_order(order: int) -> None:
    overrides = ["model.backbone.name=mobilenet_v2", "model.backbone.frozen_stages=3"][::order]
    assert load_config("fcos_r50_fpn_1x", overrides).model.backbone == MobileNetV2Config(frozen_stages=3)


def test_naming_the_current_backbone_keeps_its_options(tmp_path: Path) -> None:
    path = write(tmp_path, "model: {backbone: {frozen_stages: 4}}\n")
    config = load_config(path, ["model.backbone.name=resnet50"])
    assert config.model.backbone == ResNetConfig(frozen_stages=4)


def test_unknown_backbone_gets_a_suggestion_and_the_list() -> None:
    text = message("model.backbone.name=resnt50")
    assert "model.backbone.name: no backbone 'resnt50', did you mean 'resnet50'?" in text
    assert "known: resnet50, resnet101, " in text


@pytest.mark.parametrize("value", ["3", "[1]", "null"])
def test_backbone_name_must_be_text(value: str) -> None:
    assert "known: resnet50, resnet101, " in message(f"model.backbone.name={value}")


def test_incomplete_name_of_a_user_backbone_is_rejected() -> None:
    text = message("model.backbone.name=mybb:")
    assert text == "defaults: model.backbone.name: expected package.module:function, found 'mybb:'"


def test_option_of_another_backbone_is_rejected() -> None:
    text = message("model.backbone.name=mobilenet_v2", "model.backbone.stride_in_1x1=true")
    assert "model.backbone.stride_in_1x1: no such option; known options: name, weights, norm, frozen_stages" in text


# ------------------------------------------------------------------------------------------------- the run's length


@pytest.mark.parametrize("recipe", recipe_names())
@pytest.mark.parametrize("key", ["iterations", "epochs", "max_minutes"])
def test_training_length_override_replaces_the_recipe_length(recipe: str, key: str) -> None:
    train = load_config(recipe, [f"train.{key}=7"]).train
    lengths = {name: getattr(train, name) for name in ("iterations", "epochs", "max_minutes")}
    assert lengths.pop(key) == 7
    assert list(lengths.values()) == [None, None]


def test_removing_the_recipe_length_is_rejected() -> None:
    assert "give exactly one of iterations, epochs and max_minutes, found none" in message(
        "train.epochs=null", source="fcos_mnv2_small"
    )


def test_epochs_in_a_file_replace_the_default_iterations(tmp_path: Path) -> None:
    train = load_config(write(tmp_path, "train: {epochs: 3}\n")).train
    assert (train.iterations, train.epochs) == (None, 3)


def test_two_training_lengths_in_a_file_are_rejected(tmp_path: Path) -> None:
    text = message(source=write(tmp_path, "train: {epochs: 3, iterations: 5}\n"))
    assert "give exactly one of iterations, epochs and max_minutes, found iterations and epochs" in text


def test_missing_training_length_is_rejected() -> None:
    assert "found none" in message("train.iterations=null")


@pytest.mark.parametrize("value", ["0", "-1", "abc"])
def test_invalid_training_length_gives_a_single_error(value: str) -> None:
    assert message(f"train.epochs={value}").startswith("defaults: train.epochs: should be")


# --------------------------------------------------------------------------------------------------------- messages


def test_unknown_key_gets_a_suggestion_and_the_known_options() -> None:
    text = message("train.lrr=3")
    assert text.startswith("defaults: train.lrr: no such option, did you mean 'lr'?; known options: batch_size, ")


@pytest.mark.parametrize(
    ("override", "known"),
    [
        ("modle.head.norm=gn", "known options: model, data, train, eval"),
        ("model.head.num_conv=1", "did you mean 'num_convs'?"),
        ("data.train.annotation=x", "did you mean 'annotations'?"),
        ("model.fpn.chanels=3", "did you mean 'channels'?"),
    ],
)
def test_unknown_key_error_refers_to_the_options_of_its_section(override: str, known: str) -> None:
    assert known in message(override)


def test_config_errors_are_listed_one_per_line() -> None:
    lines = message("train.lr=-1", "model.fpn.chanels=3", "model.box_loss=IOU", "model.backbone.name=vgg").split("\n")
    assert lines[0] == "defaults:"
    assert len(lines) == 5
    assert "  train.lr: should be greater than 0, found -1" in lines
    assert "  model.box_loss: should be 'iou', 'linear_iou' or 'giou', found 'IOU'" in lines


@pytest.mark.parametrize("section", ["model", "train", "data.train", "model.backbone", "model.head"])
def test_value_instead_of_a_section_error_mentions_the_options(section: str) -> None:
    text = message(f"{section}=x")
    assert f"{section}: should be a section with options (" in text
    assert "found 'x'" in text


@pytest.mark.parametrize(
    "override",
    [
        "train.lr=abc", "train.lr=", "train.lr=.nan", "train.lr=.inf", "train.resume=maybe", "train.batch_size=2.5",
        "train.batch_size=0", "data.flip=1.5", "data.workers=-1", "model.num_classes=0", "model.score_threshold=1",
        "model.nms_threshold=1.5", "model.pixel_std=[1,0,1]", "model.pixel_mean=[1,2]", "model.name=yolo",
        "data.short_side=0", "data.short_side=[]", "data.short_side_range=[800,640]", "train.eval_every=0",
        "model.backbone.frozen_stages=6", "model.head.prior_probability=0", "data=null",
        "model.strides=[8,16]", "model.strides=8", "model.fpn.channels=100", "model.head.norm=frozen_bn",
        "model.size_ranges=[[64,-1],[64,128],[128,256],[256,512],[512,null]]",
        "model.size_ranges=[[1],[2],[3],[4],[5]]", "eval.batch_size=all", "device=null",
    ],
)  # fmt: skip
def test_invalid_value_error_names_its_section_without_jargon(override: str) -> None:
    text = message(override)
    section = override.partition("=")[0].split(".")[0]
    assert text.startswith(f"defaults: {section}") or f"\n  {section}" in text
    for jargon in ("Input", "pydantic", "discriminator", "<class", "expected tags"):
        assert jargon not in text


@pytest.mark.parametrize("strides", [[], [8, 17], [-8, -16], [0, 0], [16, 8], [8, 32]])
def test_strides_must_double_from_level_to_level(strides: list[int]) -> None:
    ranges = [[0, None]] * len(strides)
    with pytest.raises(ConfigError, match="strides must double from level to level"):
        validate({"model": {"strides": strides, "size_ranges": ranges}}, where="x")


def test_group_norm_requires_channels_divisible_by_32() -> None:
    assert "fpn.channels must be a multiple of 32 with norm gn, found 100" in message("model.fpn.channels=100")
    config = load_config(None, ["model.fpn.channels=100", "model.head.norm=none"])
    assert fcos_section(config).fpn.channels == 100


def test_offset_groups_must_divide_the_channels_of_deformable_stages() -> None:
    overrides = ["model.backbone.offset_groups=128", "model.backbone.deformable_stages=[C3,C4,C5]"]
    assert load_config(None, overrides)
    text = message(overrides[0], "model.backbone.deformable_stages=[C2]")
    told = "must divide the 64 channels of the 3x3 convolutions of C2, found 128"
    assert text == f"defaults: model.backbone.offset_groups: {told}"


def test_level_and_channel_errors_are_reported_together() -> None:
    text = message("model.strides=[8,17]", "model.fpn.channels=100")
    assert "2 levels but size_ranges has 5" in text
    assert "must double" in text
    assert "multiple of 32" in text


def test_to_yaml_writes_plain_yaml() -> None:
    tree = yaml.safe_load(load_config("fcos_mnv2_small").to_yaml())
    assert tree["train"]["lr"] == 2e-3
    assert tree["model"]["size_ranges"][0] == [-1.0, 64.0]
    assert tree["model"]["size_ranges"][-1][1] is None
