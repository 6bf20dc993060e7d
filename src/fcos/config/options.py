"""Fields of a config with declared roles and conditions, and sections selected by name.

All other lists of model options (those that a checkpoint determines, those that a conversion may leave out, those in
messages) are derived from these roles.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal, NamedTuple

from pydantic import BaseModel, ConfigDict, Field, GetCoreSchemaHandler
from pydantic.fields import FieldInfo
from pydantic_core import CoreSchema, core_schema

from ..choices import OtherProject

RULES = ConfigDict(extra="forbid", use_attribute_docstrings=True, validate_default=True, allow_inf_nan=False)
"""Pydantic settings of all config sections."""
MAX_COUNT = 10**9
"""Largest number of iterations, and of anything counted in iterations."""
MAX_LR = 1e30
MAX_FACTOR = 1e4
"""Largest learning rate and factor; the product of a rate and two factors is below the largest float32."""
MAX_VALUE = 1e6
"""Largest pixel value or length in pixels."""
MAX_SIDE = 65_535
"""Largest side of an image in pixels, as in JPEG files."""
Factor = Annotated[float, Field(ge=0, le=MAX_FACTOR)]
Side = Annotated[int, Field(ge=1, le=MAX_SIDE)]
Role = Literal["classes", "shape", "meaning", "training", "detection", "convention"]
"""Influence of an option on weights, training or detection.

- `classes`: number of rows of the class head.
- `shape`: names or shapes of tensors.
- `meaning`: interpretation of the tensors, but not their shapes.
- `training`: training only.
- `detection`: detection only.
- `convention`: detection, fixed by the project that trained the weights (for example, how scores are computed).
"""

DATA_SET_OPTIONS = ("root", "format", "train", "val", "test", "val_fraction", "yolo_rows", "classes")
"""Options of `data` that hold for one data set, as opposed to how images are loaded. New data replaces all of them."""
ANNOTATION_OPTIONS = (
    *(f"data.{name}" for name in DATA_SET_OPTIONS),
    "data.convention",
    "data.on_error",
    "data.masks",
    "data.boxes",
    "data.keypoints",
)
"""Options that determine which annotations are read, and how."""
EVALUATION_OPTIONS = ("eval.voc_metrics", "eval.keypoint_sigmas")
"""Options that only affect the metrics of an evaluation."""
TRAINING_OPTIONS = (
    *("output_dir", "train"),
    *("data.flip", "data.zoom", "data.color_jitter", "data.augmentation_warmup", "data.augmentation_fade"),
    *("data.transforms", "data.group_by_aspect", "data.keypoint_pairs", "data.cache", "data.decode"),
)
"""Options and sections, except `model`, that only affect training."""
SPEED_OPTIONS = ("device", "data.workers", "eval.batch_size", "eval.compile")
"""Options that affect the speed of a detector, but not its results."""


class OptionInfo(NamedTuple):
    """Roles of an option of a detector.

    Attributes:
        roles: influences of the option, see `Role`.
        needs: conditions without which the option has no effect: `KEY`, another option is set; `KEY=VALUE` or
            `KEY!=VALUE`, it has this value or another one. Options that the detector lacks are null.
        free_for: projects to whose format weights can be converted for any value of the option, each with the reason.
    """

    roles: frozenset[Role]
    needs: tuple[str, ...] = ()
    free_for: Mapping[OtherProject, str] = {}


def option(
    default: Any,
    *roles: Role,
    needs: str = "",
    free_for: Mapping[OtherProject, str] | None = None,
    **limits: Any,
) -> Any:
    """Define a field of a config.

    Args:
        default: default value.
        *roles: roles of the option, at least one in the config of a detector.
        needs: conditions, separated by commas, see `OptionInfo`; their keys are relative to the section of the option.
        free_for: projects that accept any value, see `OptionInfo`.
        **limits: constraints of `pydantic.Field`, such as `ge=1`.
    """
    extra = {"roles": list(roles), "needs": needs, "free_for": dict(free_for or {})}
    return Field(default=default, json_schema_extra=extra, **limits)


def section(options: type[BaseModel], *, needs: str) -> Any:
    """Define a field that holds a section whose options have no effect without a condition, see `option`.

    The option that the condition names may be one of them.
    """
    return Field(default_factory=options, json_schema_extra={"needs": needs})


def options_of(section: type[BaseModel]) -> dict[str, OptionInfo]:
    """Return the options of a detector's config by dotted key, including those of all variants of a section.

    Fields without a role are skipped: they only select a variant (`name` of the detector).
    """
    options: dict[str, OptionInfo] = {}
    for key, field in section.model_fields.items():
        extra: Any = field.json_schema_extra if isinstance(field.json_schema_extra, dict) else {}
        needs = tuple(filter(None, extra.get("needs", "").split(",")))
        for child in sections_of(field):
            for name, info in options_of(child).items():
                inner = tuple(f"{key}.{condition}" for condition in info.needs)
                outer = tuple(condition for condition in needs if _split(condition)[0] != f"{key}.{name}")
                combined = info._replace(needs=outer + inner)
                assert options.setdefault(f"{key}.{name}", combined) == combined, (
                    f"{key}.{name}: its roles differ between the variants of this section"
                )
        if "roles" in extra:
            options[key] = OptionInfo(frozenset(extra["roles"]), needs, extra["free_for"])
    return options


def all_options(config: BaseModel) -> dict[str, OptionInfo]:
    """Return the options of all sections of a config by dotted key, see `options_of`; their conditions have such keys.

    Fields of the other sections that neither have a role nor a condition are skipped.
    """
    return {
        f"{name}.{key}": info._replace(needs=tuple(f"{name}.{condition}" for condition in info.needs))
        for name, values in config
        if isinstance(values, BaseModel)
        for key, info in options_of(type(values)).items()
    }


def info_of(options: Mapping[str, OptionInfo], key: str) -> OptionInfo | None:
    """Return the roles of an option, or None if unknown.

    An entry of a dictionary (`backbone.options.width`) has the roles of the dictionary.
    """
    while key not in options and "." in key:
        key = key.rpartition(".")[0]
    return options.get(key)


def is_among(key: str, options: Iterable[str]) -> bool:
    """Return whether an option, by dotted key, is one of `options` or belongs to a section among them."""
    return any(key == option or key.startswith(f"{option}.") for option in options)


def with_role(options: Mapping[str, OptionInfo], role: Role, *, only: bool = False) -> list[str]:
    """Return the dotted keys of the options with a role.

    Args:
        options: options by dotted key, see `options_of`.
        role: role to select.
        only: skip options that also have other roles.
    """
    return [key for key, info in options.items() if role in info.roles and (not only or len(info.roles) == 1)]


def in_effect(values: Mapping[str, Any], options: Mapping[str, OptionInfo]) -> dict[str, Any]:
    """Return the values without those of options that have no effect, given the other values.

    Args:
        values: values of options by dotted key.
        options: options by dotted key, see `options_of`.
    """

    return {key: value for key, value in values.items() if not idle_because(key, values, options)}


def idle_because(key: str, values: Mapping[str, Any], options: Mapping[str, OptionInfo]) -> str:
    """Return the first condition that does not hold for an option, which then has no effect; empty if all hold.

    Args:
        key: dotted key of the option.
        values: values of all options by dotted key.
        options: options by dotted key, see `options_of`.
    """
    info = info_of(options, key)
    return next((condition for condition in info.needs if not _holds(condition, values)), "") if info else ""


def _holds(condition: str, values: Mapping[str, Any]) -> bool:
    key, operator, operand = _split(condition)
    value = values.get(key)
    text = "null" if value is None else str(value).lower() if isinstance(value, bool) else value
    return bool(value) if not operator else (text == operand) == (operator == "=")


def _split(condition: str) -> tuple[str, str, str]:
    """Return the key, `=` or `!=`, and the value of a condition; a condition that is only a key has neither."""
    key, operator, operand = re.fullmatch(r"([\w.]+)(!?=)?(.*)", condition).groups(default="")  # pyright: ignore[reportOptionalMemberAccess]
    return key, operator, operand


def free_options(options: Mapping[str, OptionInfo], project: OtherProject) -> list[str]:
    """Return the options that may have any value when weights are converted to another project's format.

    The number of classes follows from the class head. Options that only affect training or the selection of detections
    are set again in the other project. All other options must match, unless `free_for` gives a reason.
    """
    free = [*with_role(options, "classes"), *with_role(options, "training")]
    free += with_role(options, "detection", only=True)
    return [key for key, info in options.items() if key in free or project in info.free_for]


@dataclass(frozen=True)
class OneOf:
    """Annotation of a field that holds one of several sections, selected by a function of the raw value.

    Unlike `pydantic.Discriminator`, it takes the sections as a sequence, which may have a single item.

    Attributes:
        sections: classes of the sections.
        choose: function from the raw value to the class name of its section, or to any other text if there is none.
    """

    sections: Sequence[type[BaseModel]]
    choose: Callable[[Any], str]

    def __get_pydantic_core_schema__(self, _source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        """Build a tagged union of the sections with their class names as tags."""
        choices = {section.__name__: handler.generate_schema(section) for section in self.sections}
        return core_schema.tagged_union_schema(choices, self.choose)


def sections_of(field: FieldInfo) -> Iterator[type[BaseModel]]:
    """Yield the possible section classes of a field; none if it does not hold a section."""
    variants = [item for item in field.metadata if isinstance(item, OneOf)]
    if variants:
        yield from variants[0].sections
    elif isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
        yield field.annotation
