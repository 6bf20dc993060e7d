"""`fcos doctor` finds the known defects of BCCD and raccoon, as far as geometry and pixels show them."""

from __future__ import annotations

from pathlib import Path

import pytest

from fcos.doctor.check import check
from fcos.doctor.findings import Report
from fcos.recipes import load_config

pytestmark = pytest.mark.data


def check_dataset(root: Path, form: str) -> Report:
    return check(load_config("fcos_mnv2_small", [f"data={root}", f"data.format={form}"]))


def images_per_case(report: Report, kind: str) -> list[set[str]]:
    """Return, for every case of a finding, the set of its images as "SPLIT NUMBER"."""
    found = [finding for finding in report.findings if finding.kind == kind]
    return [
        {
            f"{p.split} {Path(report.splits[p.split].file_name(p.image)).stem.replace('-', '_').split('_')[1]}"
            for p in case
        }
        for finding in found
        for case in finding.cases
    ]


@pytest.mark.parametrize("form", ["coco", "voc"])
def test_doctor_finds_known_defects_of_bccd(form: str, data_sets: Path) -> None:
    report = check_dataset(data_sets / "bccd", form)
    empty = {Path(p.file).stem for problems in report.problems.values() for p in problems if p.kind == "empty box"}
    assert empty == ({"BloodImage_00343", "BloodImage_00338"} if form == "voc" else set())
    assert report.failed == (form == "voc")
    assert images_per_case(report, "image in two splits") == [{"train 00038", "val 00037"}]
    odd = [["test 00135"], ["train 00113"], ["train 00133"]]
    assert sorted(map(sorted, images_per_case(report, "unusual size for its class"))) == odd
    doubles = {"train 00020", "train 00100", "train 00251", "train 00403", "val 00104", "val 00331", "test 00284"}
    found = images_per_case(report, "duplicate box")
    assert set().union(*found) == doubles
    assert len(found) == len(doubles)
    assert images_per_case(report, "duplicate image") == images_per_case(report, "near-duplicate image") == []
    # Red cells are labelled incompletely. If only the white cell has a box, the number of boxes shows it.
    assert {"train 00250", "val 00152", "test 00303"} <= set().union(*images_per_case(report, "image with few boxes"))


@pytest.mark.parametrize("form", ["coco", "voc"])
def test_doctor_finds_duplicate_images_of_raccoon(form: str, data_sets: Path) -> None:
    report = check_dataset(data_sets / "raccoon", form)
    assert not report.failed
    exact = [{"train 11", "train 116"}, {"train 52", "train 74"}, {"train 65", "train 98"}, {"val 83", "val 120"}]
    near = [{"train 21", "train 45"}, {"train 50", "train 52"}, {"train 51", "train 85"}]
    assert sorted(map(sorted, images_per_case(report, "duplicate image"))) == sorted(map(sorted, exact))
    assert sorted(map(sorted, images_per_case(report, "near-duplicate image"))) == sorted(map(sorted, near))
    assert images_per_case(report, "image in two splits") == []
