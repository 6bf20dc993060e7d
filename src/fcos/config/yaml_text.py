"""Reading and writing of YAML. Any broken, deeply nested or self-referencing text is one clear ConfigError."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any, ClassVar

import yaml
from yaml import MappingNode, Node, ScalarNode, SequenceNode

from ..errors import ConfigError
from ..formatting import quote

Path = tuple[str, ...]
"""Keys from the root of a document to a value; items of a sequence have the key `*`."""
ITEM = "*"
IsText = Callable[[Path, bool], bool]
"""Function (path, is null) -> True if the value is a name or path, which keeps its source text: `007`, `on`, `1e5`."""

_MAX_DEPTH = 50
_MAX_BITS = 1000
"""Maximum size of an integer."""
_MAX_EXPANSION = 100_000
"""Maximum number of values that aliases add to a document."""
_TAG = "tag:yaml.org,2002:"
_EXPONENT = re.compile(r"^[-+]?(\d[\d_]*\.?[\d_]*|\.\d+)([eE][-+]?\d+)$")
_DIGITS = list("-+.0123456789")


_CORE_TYPES = ("null", "bool", "int", "float", "str", "seq", "map")


class _Loader(yaml.SafeLoader):
    """Loader for the core types of YAML 1.1. It reads `1e-4` as a number and dates as text."""

    yaml_constructors: ClassVar[dict[Any, Any]] = {
        tag: constructor
        for tag, constructor in yaml.SafeLoader.yaml_constructors.items()
        if tag is None or tag.removeprefix(_TAG) in _CORE_TYPES
    }
    yaml_implicit_resolvers: ClassVar[dict[str, Any]] = {
        first: [(tag, pattern) for tag, pattern in resolvers if tag.removeprefix(_TAG) in (*_CORE_TYPES, "merge")]
        for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }

    def construct_object(self, node: Node, deep: bool = False) -> Any:
        """Construct a value; errors of all types become one that names the position."""
        try:
            value = super().construct_object(node, deep)
            if isinstance(value, int) and value.bit_length() > _MAX_BITS:
                raise ValueError("too many digits")
        except (
            ArithmeticError,
            AttributeError,
            LookupError,
            TypeError,
            ValueError,
        ) as error:  # `!!int abc`, `!!bool x`
            problem = f"{quote(node.value)} is not a valid {node.tag.removeprefix(_TAG)}"
            raise yaml.MarkedYAMLError(problem=problem, problem_mark=node.start_mark) from error
        return value


class _Dumper(yaml.SafeDumper):
    """Dumper that quotes all text which `_Loader` would read as a number."""


for _class in (_Loader, _Dumper):
    _class.add_implicit_resolver(f"{_TAG}float", _EXPONENT, _DIGITS)


def parse_yaml(text: str, *, where: str, is_text: IsText = lambda path, is_null: False) -> Any:
    """Parse YAML text safely. Numbers in scientific notation are floats; keys and dates are text.

    Args:
        text: YAML text.
        where: source of the text, for messages.
        is_text: function that selects the values to keep as text.

    Raises:
        ConfigError: the text is not YAML, is nested too deeply, contains itself, or repeats a key.
    """
    try:
        loader = _Loader(text)
        root = loader.get_single_node()
        if root is None:
            return None
        _check_expansion(root)
        _mark_text(root, (), is_text)
        return loader.construct_document(root)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        position = f"line {mark.line + 1}, column {mark.column + 1}: " if mark else ""
        raise ConfigError(f"{where}: not valid YAML: {position}{error.problem or error.context:.200}") from None
    except yaml.YAMLError as error:
        raise ConfigError(f"{where}: not valid YAML: {' '.join(str(error).split()):.200}") from None
    except RecursionError:
        raise ConfigError(f"{where}: not valid YAML: nested deeper than {_MAX_DEPTH} levels") from None


def dump_yaml(value: Any) -> str:
    """Return plain data as YAML text, one option per line, which `parse_yaml` reads back."""
    return yaml.dump(value, Dumper=_Dumper, sort_keys=False)


def dump_inline(value: Any) -> str:
    """Return plain data as YAML text on one line."""
    text = yaml.dump(value, Dumper=_Dumper, default_flow_style=True, width=1_000_000)
    return text.removesuffix("\n").removesuffix("\n...")


def _check_expansion(root: Node) -> None:
    """Reject documents that are nested too deeply, or that aliases make infinite or very large.

    Raises:
        yaml.YAMLError: with the position in the document.
    """
    sizes: dict[int, int] = {}  # number of values by node; 0 while the node is being visited

    def measure(node: Node, depth: int) -> int:
        if depth > _MAX_DEPTH:
            raise yaml.MarkedYAMLError(problem=f"nested deeper than {_MAX_DEPTH} levels", problem_mark=node.start_mark)
        size = sizes.get(id(node))
        if size == 0:
            raise yaml.MarkedYAMLError(problem="this value contains itself", problem_mark=node.start_mark)
        if size is None:
            sizes[id(node)] = 0
            sizes[id(node)] = size = 1 + sum(measure(child, depth + 1) for child in _children(node))
        return size

    if measure(root, 0) > len(sizes) + _MAX_EXPANSION:
        raise yaml.YAMLError(f"its aliases expand to more than {_MAX_EXPANSION} values")


def _children(node: Node) -> list[Node]:
    if isinstance(node, MappingNode):
        return [child for pair in node.value for child in pair]
    return node.value if isinstance(node, SequenceNode) else []


def _mark_text(node: Node, path: Path, is_text: IsText) -> None:
    """Tag keys, and the values that `is_text` selects, as text.

    Raises:
        yaml.YAMLError: a key appears twice.
    """
    if isinstance(node, SequenceNode):
        for item in node.value:
            _mark_text(item, (*path, ITEM), is_text)
    elif isinstance(node, MappingNode):
        keys = set()
        for key, value in node.value:
            if not isinstance(key, ScalarNode):  # the constructor rejects it
                continue
            if key.tag == f"{_TAG}merge":  # `<<: *base`
                _mark_text(value, path, is_text)
                continue
            key.tag = f"{_TAG}str"
            if key.value in keys:
                problem = f"the key {quote(key.value)} appears twice"
                raise yaml.MarkedYAMLError(problem=problem, problem_mark=key.start_mark)
            keys.add(key.value)
            _mark_text(value, (*path, key.value), is_text)
    elif isinstance(node, ScalarNode) and node.style is None and is_text(path, node.tag == f"{_TAG}null"):  # not quoted
        node.tag = f"{_TAG}str"
