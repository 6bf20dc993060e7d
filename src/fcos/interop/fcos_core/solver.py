"""Solver state in checkpoints of the original FCOS (`fcos_core`): iteration and momentum, for resuming its runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from ...errors import WeightsError


def solver_state(content: Any) -> dict[str, Any] | None:
    """Return the entries `optimizer` and `iteration` of a checkpoint, or None if it does not contain both."""
    if not isinstance(content, Mapping):
        return None
    optimizer, iteration = content.get("optimizer"), content.get("iteration")
    if type(iteration) is not int or iteration < 0 or not isinstance(optimizer, Mapping):
        return None
    if not isinstance(optimizer.get("state"), Mapping) or not isinstance(optimizer.get("param_groups"), Sequence):
        return None
    return {"optimizer": optimizer, "iteration": iteration}


def momentum_by_name(
    optimizer: Mapping[str, Any], names: Sequence[str], trainable: Mapping[str, Tensor], *, where: str
) -> dict[str, Tensor]:
    """Return the momentum of an optimizer of the original, by our parameter names.

    The original's optimizer has one group per trainable parameter, in the order of the tensors in its state dict, and
    does not store names.

    Args:
        optimizer: state dict of the original's SGD.
        names: our tensor names in the order of the original's state dict.
        trainable: trainable parameters of our model by name, built from the config of that run.
        where: source of the checkpoint, for messages.

    Raises:
        WeightsError: the optimizer was built for other parameters.
    """
    ours = [name for name in names if name in trainable]
    try:
        indices = [index for group in optimizer["param_groups"] for index in group["params"]]
        states = [optimizer["state"].get(index, {}) for index in indices]
        momentum = [state.get("momentum_buffer") for state in states]
    except (AttributeError, KeyError, TypeError):
        raise WeightsError(f"{where}: damaged optimizer state; start a new run with train.weights={where}") from None
    pairs = dict(zip(ours, momentum, strict=False))
    wrong = [
        name
        for name, value in pairs.items()
        if value is not None
        and (not isinstance(value, Tensor) or value.shape != trainable[name].shape or not value.is_floating_point())
    ]
    if len(momentum) != len(ours) or wrong:
        same_count = len(momentum) == len(ours)
        reason = f"the momentum of {wrong[0]} has another shape" if same_count else f"the config trains {len(ours)}"
        raise WeightsError(
            f"{where}: its optimizer state is of a model with {len(momentum)} trainable parameters, but {reason};"
            " resume with the config of that run (for example, the same MODEL.BACKBONE.FREEZE_CONV_BODY_AT), or start"
            f" a new run with train.weights={where}"
        )
    return {name: value for name, value in pairs.items() if value is not None}
