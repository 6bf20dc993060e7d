"""Advice of `fcos doctor` has the stated effect and is the cheapest that it considers."""

from __future__ import annotations

import math
import re

import numpy as np
import pytest
from detectors import fcos_section
from flat_annotations import annotations_of, setting_of

from fcos.config import Config
from fcos.data.dataset import Annotations
from fcos.doctor.advice import ENOUGH_RECALL, advise
from fcos.doctor.coverage import cover
from fcos.doctor.findings import Advice
from fcos.doctor.setting import Setting
from fcos.recipes import load_config, recipe_names

USUAL = ((-1, 64), (64, 128), (128, None))


def squares(side: float, count: int = 60) -> Annotations:
    """Return images with one square box each, at random positions."""
    places = np.random.default_rng(0).uniform(0, 64 - side, (count, 2)).tolist()
    return annotations_of([[(x, y, x + side, y + side, 0)] for x, y in places], [(64, 64)] * count)


def advice_for(annotations: Annotations, setting: Setting) -> list[Advice]:
    return advise(annotations, cover(annotations, setting))


def setting_for(config: Config) -> Setting:
    return Setting.of(fcos_section(config), config.data)


def with_options(setting: Setting, options: tuple[str, ...]) -> Setting:
    """Return the setting of a training with the advised options added."""
    return setting_for(load_config(None, [*setting.options, *options]))


def test_no_advice_if_all_boxes_are_learned() -> None:
    assert advice_for(squares(20), setting_of(strides=(8, 16, 32), size_ranges=USUAL, short_side=64)) == []


def test_no_advice_without_boxes() -> None:
    assert advice_for(annotations_of([[]], [(64, 64)]), setting_of()) == []


@pytest.mark.parametrize("side", [3.0, 5.0, 7.0])
def test_advised_options_have_the_stated_effect(side: float) -> None:
    setting = setting_of(strides=(8, 16, 32), size_ranges=USUAL, short_side=64, max_side=2000)
    annotations = squares(side)
    before = cover(annotations, setting).recall
    assert before < ENOUGH_RECALL
    (advice,) = advice_for(annotations, setting)
    after = cover(annotations, with_options(setting, advice.options)).recall
    assert after >= ENOUGH_RECALL
    assert f"{before:.1%} -> {after:.1%} on 60 images" in advice.effect


def test_slightly_too_small_boxes_get_a_larger_input() -> None:
    setting = setting_of(strides=(8, 16, 32), size_ranges=USUAL, short_side=64, max_side=2000)
    (advice,) = advice_for(squares(6.5), setting)
    assert advice.options == ("data.short_side=96",)
    assert "2.2 times the locations, 2.2 times the pixels" in advice.effect


def test_max_side_is_raised_if_it_limits_the_input() -> None:
    setting = setting_of(strides=(8, 16, 32), size_ranges=USUAL, short_side=64, max_side=64)
    (advice,) = advice_for(squares(6.5), setting)
    assert advice.options == ("data.short_side=96", "data.max_side=96")


@pytest.mark.parametrize("recipe", [name for name in recipe_names() if name.startswith("fcos_")])
def test_advised_options_have_the_stated_effect_with_every_recipe(recipe: str) -> None:
    setting = setting_for(load_config(recipe))
    side = 0.9 * setting.strides[0] * 360 / setting.middle_side  # a larger input helps
    places = np.random.default_rng(0).uniform(0, 350, (3, 10, 2)).tolist()
    boxes = [[(x, y, x + side, y + side, 0) for x, y in image] for image in places]
    annotations = annotations_of(boxes, [(360, 480)] * 3)
    (advice,) = advice_for(annotations, setting)
    assert advice.options[0].startswith("data.short_side")
    recall = cover(annotations, setting_for(load_config(recipe, advice.options))).recall
    assert f"-> {recall:.1%} on 3 images" in advice.effect
    assert recall >= ENOUGH_RECALL


def test_far_too_small_boxes_get_a_finer_level() -> None:
    setting = setting_of(strides=(8, 16, 32), size_ranges=USUAL, short_side=64, max_side=2000)
    (advice,) = advice_for(squares(4.1), setting)
    assert advice.options[0] == "model.strides=[4,8,16]"
    assert "1.0 times the pixels" in advice.effect


def test_gap_in_size_ranges_is_closed_without_extra_locations() -> None:
    setting = setting_of(strides=(8, 16, 32), size_ranges=((-1, 16), (32, 64), (64, 128)), short_side=64)
    (advice,) = advice_for(squares(40), setting)
    assert len(advice.options) == 1
    assert advice.options[0].startswith("model.size_ranges=[[-1,")
    assert advice.options[0].endswith(",null]]")
    assert "1.0 times the locations" in advice.effect


def test_advice_makes_nested_boxes_learnable() -> None:
    """One box encloses the other and both belong to the first level: its locations are assigned to the smaller one."""
    pairs = [[(20, 20, 40, 40, 0), (19, 19, 45, 45, 0)]] * 30
    setting = setting_of(strides=(8, 16), size_ranges=((-1, 64), (64, None)), short_side=64, center_sampling_radius=0.6)
    annotations = annotations_of(pairs, [(64, 64)] * 30)
    assert cover(annotations, setting).recall < ENOUGH_RECALL
    (advice,) = advice_for(annotations, setting)
    assert cover(annotations, with_options(setting, advice.options)).recall >= ENOUGH_RECALL


def test_too_small_center_sampling_radius_is_increased() -> None:
    setting = setting_of(strides=(8, 16, 32), size_ranges=USUAL, short_side=64, center_sampling_radius=0.2)
    assert cover(squares(20), setting).recall < ENOUGH_RECALL
    (advice,) = advice_for(squares(20), setting)
    assert advice.options == ("model.center_sampling_radius=1.5",)
    assert "1.0 times the locations, 1.0 times the pixels" in advice.effect


def test_larger_radius_is_combined_with_a_larger_input() -> None:
    setting = setting_of(
        strides=(8, 16, 32), size_ranges=USUAL, short_side=64, max_side=2000, center_sampling_radius=0.2
    )
    (advice,) = advice_for(squares(6.5), setting)
    assert advice.options == ("data.short_side=96", "model.center_sampling_radius=1.5")


def test_insufficient_advice_is_marked_or_omitted() -> None:
    setting = setting_of(strides=(8, 16, 32), size_ranges=USUAL, short_side=64, max_side=2000)
    (advice,) = advice_for(squares(0.8), setting)
    assert "no setting tried reaches 98%" in advice.effect
    nowhere = annotations_of([[(8.5, 8.5, 8.6, 8.6, 0)]], [(64, 64)])
    assert advice_for(nowhere, setting) == []


def test_duplicate_boxes_cause_no_advice() -> None:
    """In every setting one of the two boxes gets no location."""
    pairs = [[(10, 10, 40, 40, 0), (10, 10, 40, 40, 0)]] * 5
    setting = setting_of(strides=(8, 16, 32), size_ranges=USUAL, short_side=64)
    assert advice_for(annotations_of(pairs, [(64, 64)] * 5), setting) == []


def test_advice_states_that_duplicates_count_once() -> None:
    setting = setting_of(strides=(8, 16, 32), size_ranges=USUAL, short_side=64)
    pairs = [[(10, 10, 40, 40, 0), (10, 10, 40, 40, 0), (50.1, 50.1, 51, 51, 0), (9, 50, 20, 60, 0)]] * 5
    annotations = annotations_of(pairs, [(64, 64)] * 5)
    assert cover(annotations, setting).recall == 0.5
    (advice,) = advice_for(annotations, setting)
    assert advice.effect.startswith("best possible recall 66.7% -> ")
    assert " on 5 images, duplicate boxes counted once; " in advice.effect


def test_duplicates_of_two_classes_cause_no_advice() -> None:
    pairs = [[(10, 10, 40, 40, 0), (10, 10, 40, 40, 1)]] * 5
    annotations, setting = annotations_of(pairs, [(64, 64)] * 5), setting_of(size_ranges=USUAL, short_side=64)
    assert cover(annotations, setting).ambiguous_classes.sum() > 0
    assert advice_for(annotations, setting) == []


def test_class_ambiguity_leads_to_center_sampling_advice() -> None:
    pairs = [[(0, 0, 60, 60, 0), (24, 24, 64, 64, 1)]] * 10
    annotations = annotations_of(pairs, [(64, 64)] * 10)
    setting = setting_of(strides=(8, 16, 32), size_ranges=USUAL, short_side=64)
    (advice,) = advice_for(annotations, setting)
    assert advice.options == ("model.center_sampling_radius=1.5",)
    before, after = (float(text) for text in re.findall(r"([\d.]+)%", advice.effect)[:2])
    now, then = (cover(annotations, s) for s in (setting, with_options(setting, advice.options)))
    assert math.isclose(before, 100 * now.ambiguous_classes.sum() / now.positives.sum(), abs_tol=0.05)
    assert math.isclose(after, 100 * then.ambiguous_classes.sum() / then.positives.sum(), abs_tol=0.05)
    assert advice_for(annotations, setting_of(strides=(8, 16, 32), size_ranges=USUAL, center_sampling_radius=2.0)) == []


def test_progress_is_reported_for_every_setting_tried() -> None:
    told: list[tuple[int, int]] = []
    annotations = squares(3.0)
    coverage = cover(annotations, setting_of(strides=(8, 16, 32), size_ranges=USUAL, short_side=64))
    advise(annotations, coverage, progress=lambda done, total: told.append((done, total)))
    assert [done for done, _ in told] == list(range(len(told)))
    assert len({total for _, total in told}) == 1


def test_images_of_thousands_of_boxes_are_left_out() -> None:
    """The time grows with the number of boxes times that of the locations of the finest setting."""
    tiny = [(0.2 + i / 1e4, 0.2, 1.2 + i / 1e4, 1.2, 0) for i in range(2001)]
    crowded = annotations_of([tiny], [(48, 60)])
    assert advise(crowded, cover(crowded, setting_of())) == []
    mixed = annotations_of([tiny, tiny[:1]], [(48, 60)] * 2)
    (advice,) = advise(mixed, cover(mixed, setting_of()))
    assert " on 1 image" in advice.effect
