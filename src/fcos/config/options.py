"""Fields of a detector's config that state what they influence, and sections chosen by their name.

Every list of model options elsewhere (what a checkpoint determines, what a conversion may leave out, which options a
message names) is derived from these roles.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

from pydantic import BaseModel, ConfigDict, Field, GetCoreSchemaHandler
from pydantic.fields import FieldInfo
from pydantic_core import CoreSchema, core_schema

from ..choices import OtherProject

RULES = ConfigDict(extra="forbid", use_attribute_docstrings=True, validate_default=True, allow_inf_nan=False)
"""Settings of all sections of a config."""
Role = Literal["classes", "shape", "meaning", "training", "detection", "convention"]
"""The influence of an option.

- `classes`: the rows of the class head.
- `shape`: names or shapes of tensors.
- `meaning`: what the tensors mean, but not their shapes.
- `training`: training only.
- `detection`: detection only.
- `convention`: detection, fixed by the project that trained the weights (for example, how scores are computed).
"""


class OptionInfo(NamedTuple):
    """The roles of an option of a detector.

    Attributes:
        roles: see `Role`.
        needs: another option of the section, without which this one has no effect; empty: it always has.
        free_for: projects for which weights may be written whatever the option says, each with the reason.
    """

    roles: frozenset[Role]
    needs: str = ""
    free_for: Mapping[OtherProject, str] = {}


def option(
    default: Any,
    *roles: Role,
    needs: str = "",
    free_for: Mapping[OtherProject, str] | None = None,
    **limits: Any,
) -> Any:
    """A field of a detector's config.

    Args:
        default: its value when nothing is given.
        *roles: what it influences, at least one.
        needs: see `OptionInfo`.
        free_for: see `OptionInfo`.
        **limits: constraints of `pydantic.Field`, such as `ge=1`.
    """
    extra = {"roles": list(roles), "needs": needs, "free_for": dict(free_for or {})}
    return Field(default=default, json_schema_extra=extra, **limits)


def options_of(section: type[BaseModel]) -> dict[str, OptionInfo]:
    """The options of a detector's config by their dotted keys; of a section with variants, those of all variants.

    Fields that only name a variant (`name` of the detector itself) have no role and are left out.
    """
    found: dict[str, OptionInfo] = {}
    for key, field in section.model_fields.items():
        for child in _sections_of(field):
            for name, info in options_of(child).items():
                assert found.setdefault(f"{key}.{name}", info) == info, f"{key}.{name}: variants differ in its roles"
        extra = field.json_schema_extra
        if isinstance(extra, dict) and "roles" in extra:
            found[key] = OptionInfo(frozenset(extra["roles"]), extra["needs"], extra["free_for"])  # pyright: ignore[reportArgumentType]
    return found


def info_of(options: Mapping[str, OptionInfo], key: str) -> OptionInfo | None:
    """The roles of an option; an entry of a dictionary (`backbone.options.width`) has those of the dictionary."""
    while key not in options and "." in key:
        key = key.rpartition(".")[0]
    return options.get(key)


def with_role(options: Mapping[str, OptionInfo], role: Role, *, only: bool = False) -> list[str]:
    """The dotted keys of the options that have a role.

    Args:
        options: see `options_of`.
        role: the role.
        only: leave out options that have other roles, too.
    """
    return [key for key, info in options.items() if role in info.roles and (not only or len(info.roles) == 1)]


def in_effect(values: Mapping[str, Any], options: Mapping[str, OptionInfo]) -> dict[str, Any]:
    """The values without those of options that have no effect beside the others.

    Args:
        values: options by their dotted keys.
        options: see `options_of`.
    """

    def has_effect(key: str) -> bool:
        info = info_of(options, key)
        if info is None or not info.needs:
            return True
        section, dot, _ = key.rpartition(".")
        return bool(values.get(f"{section}{dot}{info.needs}"))

    return {key: value for key, value in values.items() if has_effect(key)}


def free_options(options: Mapping[str, OptionInfo], project: OtherProject) -> list[str]:
    """The options that may differ from another project's in weights for it.

    The class head has a row for every class, and what only training or only the choice of detections depends on is set
    anew there. The fields name the exceptions with their reasons.
    """
    free = [*with_role(options, "classes"), *with_role(options, "training")]
    free += with_role(options, "detection", only=True)
    return [key for key, info in options.items() if key in free or project in info.free_for]


@dataclass(frozen=True)
class OneOf:
    """Annotates a field that is one of several sections, told apart by a function of the raw value.

    Unlike `pydantic.Discriminator` it takes the sections as a table, of one row or of many.

    Attributes:
        sections: the classes.
        choose: the class name of the section that a value is meant for, or any other text when there is none.
    """

    sections: Sequence[type[BaseModel]]
    choose: Callable[[Any], str]

    def __get_pydantic_core_schema__(self, _source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        """A tagged union over the class names."""
        choices = {section.__name__: handler.generate_schema(section) for section in self.sections}
        return core_schema.tagged_union_schema(choices, self.choose)


def _sections_of(field: FieldInfo) -> Iterator[type[BaseModel]]:
    """The classes of the section that a field holds, if it holds one."""
    variants = [mark for mark in field.metadata if isinstance(mark, OneOf)]
    if variants:
        yield from variants[0].sections
    elif isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
        yield field.annotation
