"""Formatting of text for users."""

import math

import pytest

from fcos.formatting import DASH, HYPHEN, format_metric, join_some, percent, plural, printable


@pytest.mark.parametrize(
    ("count", "noun", "text"),
    [(1, "box", "1 box"), (2, "box", "2 boxes"), (0, "image", "0 images"), (3, "more class", "3 more classes")],
)
def test_plural_depends_on_the_count(count: int, noun: str, text: str) -> None:
    assert plural(count, noun) == text


def test_join_some_lists_five_items_and_counts_the_rest() -> None:
    assert join_some([]) == ""
    assert join_some(list("abcde")) == "a, b, c, d, e"
    assert join_some(list("abcdefg"), "; ") == "a; b; c; d; e and 2 more"


def test_metric_has_three_decimals_or_is_a_dash() -> None:
    assert [format_metric(value) for value in (0.12345, 1, None, math.nan)] == ["0.123", "1.000", DASH, DASH]
    assert format_metric(math.nan, HYPHEN) == "-"


def test_percent_has_one_decimal_or_is_a_dash() -> None:
    assert percent(0.1234) == "12.3%"
    assert percent(1, 8) == "12.5%"
    assert [percent(math.nan), percent(0, 0)] == [DASH, DASH]
    assert percent(0, 0, HYPHEN) == "-"


def test_control_characters_are_escaped() -> None:
    assert printable("a\n\x1b\0\u202eb") == r"a\n\x1b\x00\u202eb"
    assert printable("Ä 漢字 👩\u200d🚀") == "Ä 漢字 👩\u200d🚀"
