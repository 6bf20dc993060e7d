"""Wrong configs: broken YAML, absurd values, names of other projects. Each gives one short message."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from fcos.config import Config
from fcos.config.overrides import validate
from fcos.config.yaml_text import parse_yaml
from fcos.errors import ConfigError
from fcos.recipes import load_config

BOMB = "a: &a [1,1,1,1,1,1,1,1,1,1]\n" + "".join(
    f"{name}: &{name} [{','.join([f'*{chr(ord(name) - 1)}'] * 10)}]\n" for name in "bcdefghijk"
)
"""Ten lines that aliases expand to 10^11 values."""
BROKEN_YAML = {
    "impossible date with a tag": "train: {seed: !!timestamp 2024-02-30}",
    "text as integer": "train: {seed: !!int abc}",
    "empty integer": "train: {seed: !!int ''}",
    "text as boolean": "train: {resume: !!bool abc}",
    "text as float": "train: {lr: !!float abc}",
    "list as integer": "train: {seed: !!int [1]}",
    "unknown tag": "train: !x 3",
    "Python object": "train: !!python/object/apply:os.system ['true']",
    "long tag": f"train: !{'x' * 10_000} 3",
    "binary": "train: !!binary gA==",
    "set": "train: !!set {a, b}",
    "many digits": f"train: {{seed: {'9' * 5000}}}",
    "many hexadecimal digits": f"train: {{seed: 0x{'f' * 5000}}}",
    "many sexagesimal digits": f"train: {{seed: 1{':59' * 5000}}}",
    "sexagesimal overflow": f"train: {{lr: 1{':59' * 400}.5}}",
    "deep list": "train: " + "[" * 5000,
    "deep mapping": "train: " + "{a: " * 100 + "1" + "}" * 100,
    "deep blocks": "".join(" " * depth + "a:\n" for depth in range(200)),
    "list that contains itself": "train: &a [*a]",
    "mapping that contains itself": "train: &a {b: *a}",
    "merge with itself": "train: &a {<<: *a}",
    "aliases": BOMB,
    "undefined alias": "train: *a",
    "two documents": "train: {}\n---\ntrain: {}",
    "control character": "train: \x07",
    "tab": "train:\n\tseed: 1",
    "list as key": "? [a]\n: 1",
    "mapping as key": "? {a: b}\n: 1",
    "repeated key": "train: {seed: 1}\ndata: a\ntrain: {lr: 1}",
    "bare merge": "<<: 3",
    "unclosed quote": "train: 'a",
    "directive": "%FOO\n",
}


@pytest.mark.parametrize("text", BROKEN_YAML.values(), ids=BROKEN_YAML)
def test_broken_yaml_gives_one_short_message(text: str, tmp_path: Path) -> None:
    path = tmp_path / "a.yaml"
    path.write_text(text)
    for source in (path, None):
        with pytest.raises(ConfigError, match="not valid YAML: ") as caught:
            load_config(source) if source else parse_yaml(text, where="here")
        assert len(str(caught.value)) < 500 + len(str(path))


def test_yaml_error_names_the_line() -> None:
    with pytest.raises(ConfigError) as caught:
        parse_yaml("a: 1\nb: 2\na: 3\n", where="x.yaml")
    assert str(caught.value) == "x.yaml: not valid YAML: line 3, column 1: the key 'a' appears twice"


def test_aliases_and_merges_are_supported() -> None:
    text = "base: &base {a: 1, b: 2}\nother: {<<: *base, b: 3}\nlist: [*base, *base]\n"
    assert parse_yaml(text, where="x")["other"] == {"a": 1, "b": 3}


@pytest.mark.parametrize(
    "value",
    ["x" * 10**6, [1] * 10**6, [[[[1] * 100] * 100] * 100], {str(n): n for n in range(10**5)}, 10**5000],
    ids=["text", "list", "nested", "mapping", "integer"],
)  # fmt: skip
@pytest.mark.parametrize("key", ["data", "train", "model", "output_dir"])
def test_quoted_values_are_short(key: str, value: Any) -> None:
    with pytest.raises(ConfigError) as caught:
        validate({key: value}, where="x")
    assert all(len(line) < 1500 for line in str(caught.value).splitlines())
    assert str(caught.value).count("\n") <= 21


def test_many_errors_are_shortened() -> None:
    with pytest.raises(ConfigError, match=r"\.\.\. and \d+ more errors$") as caught:
        validate({"data": {"classes": [1] * 1000}}, where="x")
    assert str(caught.value).count("\n") < 25


def test_unknown_key_with_terminal_escapes_is_printed_escaped() -> None:
    with pytest.raises(ConfigError) as caught:
        validate({"\x1b[31mred": 1}, where="x")
    assert "\x1b" not in str(caught.value)


# ------------------------------------------------------------------------------------------------------ absurd values


def numbers(schema: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """Yield (position, JSON schema) of every number in a JSON schema."""
    if isinstance(schema, dict):
        if schema.get("type") in ("integer", "number"):
            yield path, schema
        for key, value in schema.items():
            yield from numbers(value, f"{path}/{key}")
    elif isinstance(schema, list):
        for index, value in enumerate(schema):
            yield from numbers(value, f"{path}/{index}")


def test_every_number_has_limits() -> None:
    unlimited = [
        path
        for path, schema in numbers(Config.model_json_schema())
        if not schema.keys() & {"maximum", "exclusiveMaximum"} or not schema.keys() & {"minimum", "exclusiveMinimum"}
    ]
    # Their validators give the limits: strides double and are at most 4096; a short side is positive.
    assert {path.split("properties/")[-1] for path in unlimited} == {"strides/items", "short_side/items"}


@pytest.mark.parametrize(
    "override",
    [
        "train.seed=123456789012345678901234567890", "train.seed=-123456789012345678901234567890", "train.epochs=1e308",
        "train.iterations=1e308", "train.iterations=10000000000000", "train.batch_size=100000000", "train.lr=1e308",
        "data.size_divisor=100000", "model.fpn.channels=1000000", "model.head.num_convs=100000",
        "model.head.num_shared_convs=100000", "model.num_classes=1000000000", "data.workers=100000",
        "data.short_side=10000000", "data.short_side_range=[1,10000000]", "data.max_side=10000000",
        "data.zoom=[1,1e300]", "model.pre_nms_top_k=1e30", "model.max_detections=-1e30", "model.focal_gamma=1e308",
        "model.size_ranges=[[-1,1e308],[64,128],[128,256],[256,512],[512,null]]", "model.pixel_mean=[1e308,0,0]",
        "model.strides=[1048576,2097152,4194304,8388608,16777216]", "model.nms_threshold=-1e308",
        "train.milestones=[1e308]", "train.milestones=[-1]", "train.lr_factors={a: 1e308}", "eval.scales=[10000000]",
    ],
)  # fmt: skip
def test_absurd_value_is_rejected(override: str) -> None:
    with pytest.raises(ConfigError, match=override.partition("=")[0].rpartition(".")[2]) as caught:
        load_config(None, [override])
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("seed", [-(2**63), -1, 2**63 - 1])
def test_seed_is_a_64_bit_integer(seed: int) -> None:
    assert load_config(None, [f"train.seed={seed}"]).train.seed == seed


@pytest.mark.parametrize("option", ["data.root", "output_dir", "data.val.images"])
def test_nul_character_in_a_path_is_rejected(option: str) -> None:
    with pytest.raises(ConfigError, match=f"{option}.*: contains a NUL character"):
        load_config(None, [f"{option}=a\0b"])


def test_file_name_that_is_too_long_is_rejected() -> None:
    with pytest.raises(ConfigError, match=r"data.root: a file or folder name has at most 255 bytes"):
        load_config(None, [f"data={'ü' * 128}"])
    assert load_config(None, [f"data={'ü' * 127}/{'x' * 255}"])


# ----------------------------------------------------------------------------------------------------------- messages


@pytest.mark.parametrize(
    ("override", "told"),
    [
        ("train.micro_batch=abc", "train.micro_batch: should be an integer, found 'abc'"),
        ("train.micro_batch=0", "train.micro_batch: should be at least 1, found 0"),
        ("model.pixel_mean=[1,2]", "model.pixel_mean: has too few values, found [1, 2]"),
        ("model.pixel_mean=[1,2,3,4]", "model.pixel_mean: should have at most 3 values, found [1, 2, 3, 4]"),
        ("model.pixel_mean=3", "model.pixel_mean: should be a list, such as [a,b], found 3"),
        ("train.lr=abc", "train.lr: should be a number, found 'abc'"),
        ("train.seed=2.5", "train.seed: should be an integer, found 2.5"),
        ("train.resume=maybe", "train.resume: should be true or false, found 'maybe'"),
        ("train.lr_factors=[1]", "train.lr_factors: should be a mapping, such as {name: value}, found [1]"),
        ("train.lr_factors={a:1}", "should be a number, found None; YAML needs a space after the colon"),
        ("data.classes=cat", "data.classes: should be a list, such as [a,b], found 'cat'"),
        ("data.short_side=640x", "data.short_side.0: should be an integer, found '640x'"),
        ("train.iterations=1e308", "train.iterations: should be an integer with fewer digits, found 1e+308"),
        ("data.classes=[a,a]", "data.classes: class names must be unique, found a, a"),
        ("data.classes=[]", "data.classes: expected class names in label order, such as [cat,dog], or null for those"),
        ("data.classes=[a,' ']", "data.classes: expected class names in label order, such as [cat,dog], or null"),
        ("data.val_fraction=no", "expected a fraction between 0 and 1, such as 0.2, or null for none, found False"),
        ("data.val_fraction=0", "expected a fraction between 0 and 1, such as 0.2, or null for none, found 0"),
        ("train.lr=no", "train.lr: should be a number, found False"),
        ("device=null", "device: should be text, found None"),
        ("model.backbone.name=a b:c", "model.backbone.name: expected package.module:function, found 'a b:c'"),
    ],
)
def test_message_has_no_phrases_of_pydantic(override: str, told: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_config(None, [override])
    assert told in str(caught.value)
    for phrase in ("Value error", "Input", "valid dictionary", "parse", "constrained", "literal[", "pathlib", "[key]"):
        assert phrase not in str(caught.value)


def test_missing_value_of_a_name_with_a_colon_has_no_hint() -> None:
    with pytest.raises(ConfigError, match=r"train\.lr_factors\.a:b: should be a number, found None$"):
        load_config(None, ["train.lr_factors={'a:b': null}"])


def test_config_from_python_raises_the_same_error() -> None:
    for wrong in ({"lr": -1}, 3, None):
        with pytest.raises(ConfigError, match=r"Config: train(\.lr)?: should be"):
            Config(train=wrong)
    with pytest.raises(ConfigError, match=r"Config: trian: no such option, did you mean 'train'\?"):
        Config(trian={})
    assert Config(train={"lr": 1}).train.lr == 1
    assert Config.model_validate({"train": {"lr": 1}}) == Config(train={"lr": 1})
    assert json.loads(Config().model_dump_json()) == Config().to_dict()


@pytest.mark.parametrize(
    ("typed", "expected"),
    [
        ("epochs=5", "train.epochs=5"),
        ("epoch=5", "train.epochs=5"),
        ("lr=0.01", "train.lr=0.01"),
        ("lr0=0.01", "train.lr=0.01"),
        ("learning-rate=0.01", "train.lr=0.01"),
        ("batch=8", "train.batch_size=8"),
        ("batch_size=8", "train.batch_size=8 or eval.batch_size=8"),
        ("imgsz=640", "data.short_side=640 or data.max_side=640"),
        ("workers=4", "data.workers=4"),
        ("train.workers=4", "data.workers=4"),
        ("iterations=100", "train.iterations=100"),
        ("classes=[a,b]", "data.classes"),
        ("seed=1", "train.seed=1"),
        ("EPOCHS=3", "train.epochs=3"),
        ("conf=0.3", "model.score_threshold=0.3"),
        ("threshold=0.3", "model.score_threshold=0.3"),
        ("resume=true", "train.resume=true"),
    ],
)
def test_option_without_its_section_gets_a_suggestion_to_type(typed: str, expected: str) -> None:
    with pytest.raises(ConfigError, match=r"no such option, did you mean ") as caught:
        load_config(None, [typed])
    assert f"did you mean {expected}?" in str(caught.value)


def test_word_without_a_value_gets_a_suggestion_to_type() -> None:
    with pytest.raises(ConfigError, match=r"option 'epochs': expected key=value, did you mean train.epochs=VALUE"):
        load_config(None, ["epochs"])


@pytest.mark.parametrize(
    "overrides", [["train.epochs=3", "train.iterations=9"], ["train.max_minutes=1", "train.epochs=3", "train.lr=1"]]
)
def test_two_lengths_of_a_run_are_rejected(overrides: list[str]) -> None:
    with pytest.raises(ConfigError, match=f"{overrides[0]} and {overrides[1]}: give one length of the run"):
        load_config("fcos_mnv2_small", overrides)


def test_repeated_or_cleared_length_is_accepted() -> None:
    train = load_config("fcos_mnv2_small", ["train.epochs=3", "train.epochs=4"]).train
    assert train.epochs == 4
    train = load_config("fcos_mnv2_small", ["train.epochs=null", "train.iterations=9"]).train
    assert (train.epochs, train.iterations) == (None, 9)


@pytest.mark.parametrize(
    ("override", "example"),
    [
        ("eval={precision: bfloat16}", "eval.precision=VALUE"),
        ("model={backbone: {name: resnet101}}", "model.backbone.name=VALUE"),
        ("model.backbone={null: 2}", "model.backbone.name=VALUE"),
        ("data={root: cells}", "data.root=VALUE"),
        ("data.val={}", "data.val.annotations=VALUE"),
    ],
)
def test_whole_section_is_not_an_option(override: str, example: str) -> None:
    section = override.partition("=")[0]
    text = f"option {override!r}: {section} is a section; give its options one by one, for example {example}"
    with pytest.raises(ConfigError) as caught:
        load_config(None, [override])
    assert str(caught.value) == text
