"""Random damage to valid files, and the limits within which every damaged file must be handled."""

from __future__ import annotations

import copy
import resource
import signal
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple, TypeVar

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from fcos import FCOSError

T = TypeVar("T")

SECONDS = 30
"""Time limit for one input. It is hundreds of times what a valid input takes, so a busy machine does not exceed it."""
MEGABYTES = 2000
"""Limit of the memory that may be allocated for one input, in addition to the memory of the process."""
MAX_MESSAGE = 8000
"""Maximum length of a message in characters: lists of up to 20 problems with quoted values."""

ODD_NUMBERS: Sequence[Any] = (
    *(0, 1, -1, 7, 0.5, -0.0, 1e-320, 1e300, 1e308, -1e308, float("nan"), float("inf"), float("-inf")),
    *(2**31, 2**32, 2**53 + 1, 2**63 - 1, 2**63, -(2**63), 10**400),
)
ODD_TEXTS = (
    *("", " ", "x", "0", "1.5", "-1", "nan", "1e5", "null", "no", "007", "12.0", "true", "2024-02-30"),
    *(
        "\x00",
        "\x1b[31mred",
        "\n",
        "é",
        "e\u0301",
        "\u202e",
        "🐟",
        "a/b",
        "../x",
        "C:\\x",
        "/",
        "[1,",
        "{",
        "#",
        "&a *a",
    ),
    *("n" * 300, "9" * 5000),
)
ODD_VALUES = (*ODD_NUMBERS, *ODD_TEXTS, None, True, False, [], {}, [[]], [1, 2], [None], {"a": 1}, {"id": {}})


def fuzz(check: Callable[[T], None], inputs: st.SearchStrategy[T], examples: int) -> None:
    """Call `check` with `examples` random inputs, the same ones in every run, and show the smallest that fails."""
    options = settings(
        max_examples=examples,
        derandomize=True,
        database=None,
        deadline=None,
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.function_scoped_fixture],
        phases=[Phase.generate, Phase.shrink],
    )
    options(given(inputs)(check))()


def examples(default: int, *, slow: int = 20) -> pytest.MarkDecorator:
    """Parametrize a test with `count` inputs; `make test-slow` uses `slow` times as many."""
    return pytest.mark.parametrize("count", [default, pytest.param(default * slow, marks=pytest.mark.slow)])


class TimeLimitExceededError(AssertionError):
    """An input took longer than `SECONDS`."""


@contextmanager
def limits() -> Iterator[None]:
    """Bound the time and the memory of a block; exceeding them raises an error and does not end the process."""

    def stop(*_: object) -> None:
        raise TimeLimitExceededError(f"not finished after {SECONDS} s")

    with open("/proc/self/statm") as file:
        used = int(file.read().split()[0]) * resource.getpagesize()
    previous_limit = resource.getrlimit(resource.RLIMIT_AS)
    previous_handler = signal.signal(signal.SIGALRM, stop)
    resource.setrlimit(resource.RLIMIT_AS, (used + MEGABYTES * 2**20, previous_limit[1]))
    signal.setitimer(signal.ITIMER_REAL, SECONDS)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        resource.setrlimit(resource.RLIMIT_AS, previous_limit)
        signal.signal(signal.SIGALRM, previous_handler)


def result_or_message(function: Callable[[], T]) -> T | None:
    """Return the result of a function within the limits, or None after a `FCOSError` with a clean message."""
    with limits():
        try:
            return function()
        except FCOSError as error:
            check_message(str(error))
            return None


def check_message(text: str) -> None:
    """Check that a message has text, a bounded length and no traceback. The commands escape control characters."""
    assert text.strip()
    assert len(text) <= MAX_MESSAGE, f"{len(text)} characters: {text[:500]}"
    assert "Traceback" not in text


# ---------------------------------------------------------------------------------------------------------- damage


@st.composite
def damaged_bytes(draw: st.DrawFn, contents: Sequence[bytes]) -> bytes:
    """Draw one of the files and truncate, change, insert, remove or repeat bytes in it."""
    data = bytearray(draw(st.sampled_from(contents)))
    for _ in range(draw(st.integers(1, 4))):
        start = draw(st.integers(0, len(data)))
        stop = min(len(data), start + draw(st.sampled_from([1, 2, 4, 16, 256])))
        match draw(st.sampled_from(["truncate", "change", "insert", "remove", "repeat"])):
            case "truncate":
                del data[start:]
            case "change":
                data[start:stop] = draw(st.binary(min_size=stop - start, max_size=stop - start))
            case "insert":
                data[start:start] = draw(st.binary(max_size=16))
            case "remove":
                del data[start:stop]
            case "repeat":
                data[start:start] = data[start:stop] * draw(st.integers(1, 3))
    return bytes(data)


class Damaged(NamedTuple):
    """Tree with random edits. Only the edits are shown if a test fails with it."""

    tree: Any
    edits: list[str]

    def __repr__(self) -> str:
        return f"Damaged({'; '.join(self.edits)})"


@st.composite
def damaged_tree(draw: st.DrawFn, tree: Any, values: Sequence[Any] = ODD_VALUES) -> Damaged:
    """Draw a copy of nested dictionaries and lists in which one to three entries are replaced, removed or repeated."""
    tree, edits = copy.deepcopy(tree), []
    for _ in range(draw(st.integers(1, 3))):
        entries = list(_entries(tree))
        if not entries:
            break
        # By position, because Hypothesis formats the elements of `sampled_from`, which may be large tensors.
        parent, key, path = entries[draw(st.integers(0, len(entries) - 1))]
        value = copy.deepcopy(values[draw(st.integers(0, len(values) - 1))])
        edit = draw(st.sampled_from(["replace", "replace", "replace", "remove", "repeat"]))
        edits.append(f"{edit} {path}: {value!r:.60}")
        match edit:
            case "replace":
                parent[key] = value
            case "remove":
                del parent[key]
            case "repeat" if isinstance(parent, list):
                parent.append(copy.deepcopy(parent[key]))
            case "repeat":
                parent[draw(st.sampled_from(ODD_TEXTS))] = value
    return Damaged(tree, edits)


def _entries(node: Any, path: str = "") -> Iterator[tuple[Any, Any, str]]:
    """Yield all entries of nested dictionaries and lists as (container, key, path)."""
    items = list(node.items()) if isinstance(node, dict) else list(enumerate(node)) if isinstance(node, list) else []
    for key, child in items:
        yield node, key, f"{path}/{key}"
        yield from _entries(child, f"{path}/{key}")
