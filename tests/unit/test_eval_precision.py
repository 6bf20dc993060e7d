"""Option `eval.precision`: precision of the network in prediction."""

import pytest
import torch
from detectors import NAMES, tiny_config, tiny_detector

from fcos import Detector
from fcos.config.overrides import validate
from fcos.precision import _warn_if_slow, autocast


def with_precision(eval_precision, train_precision):
    tree = tiny_config().to_dict()
    tree["eval"]["precision"], tree["train"]["precision"] = eval_precision, train_precision
    return validate(tree, where="test")


@pytest.fixture
def detector():
    return tiny_detector()


@pytest.fixture
def dtypes(detector):
    """Data types of the levels that the head receives."""
    found = set()
    detector.model.head.register_forward_pre_hook(lambda _, inputs: found.update(level.dtype for level in inputs[0]))
    return found


@pytest.mark.parametrize(
    ("eval_precision", "train_precision", "expected"),
    [
        (None, "float32", torch.float32),
        (None, "bfloat16", torch.bfloat16),
        ("float32", "bfloat16", torch.float32),
        ("bfloat16", "float32", torch.bfloat16),
    ],
)
def test_prediction_uses_the_precision(detector, dtypes, eval_precision, train_precision, expected):
    image = torch.randint(0, 256, (3, 96, 130), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    exact = detector.predict(image, threshold=0.0)
    dtypes.clear()

    detector = Detector(detector.model, with_precision(eval_precision, train_precision), class_names=NAMES)
    found = detector.predict(image, threshold=0.0)

    # The coarsest levels are small and are computed in float32 on the CPU.
    assert expected in dtypes
    assert (torch.bfloat16 in dtypes) == (expected == torch.bfloat16)
    assert found.boxes.dtype == found.scores.dtype == torch.float32
    torch.testing.assert_close(found.scores[:5], exact.scores[:5], rtol=0, atol=0.02)


@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
@pytest.mark.parametrize("is_supported", [False, True])
def test_a_precision_without_instructions_is_slow_and_causes_one_warning(monkeypatch, caplog, precision, is_supported):
    check = "_is_mkldnn_bf16_supported" if precision == "bfloat16" else "_is_mkldnn_fp16_supported"
    monkeypatch.setattr(torch.ops.mkldnn, check, lambda: is_supported)
    _warn_if_slow.cache_clear()
    for _ in range(2):
        autocast(torch.device("cpu"), precision)
    assert [f"{precision} is many times slower" in record.getMessage() for record in caplog.records] == (
        [] if is_supported else [True]
    )
    _warn_if_slow.cache_clear()
