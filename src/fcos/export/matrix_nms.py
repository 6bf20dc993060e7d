"""Non-maximum suppression in plain tensor operations, for runtimes without an operator for it.

Shape letters: N images, C candidates of an image.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.export import ExportedProgram


def with_matrix_nms(program: ExportedProgram) -> ExportedProgram:
    """Return a program that calls `matrix_nms` in the place of `padded.nms_operator`."""
    operator = torch.ops.fcos.class_wise_nms.default
    if all(node.target is not operator for node in program.graph.nodes):
        return program
    return program.run_decompositions({operator: matrix_nms})


def matrix_nms(  # noqa: PLR0917 (arguments of the operator)
    boxes: Tensor, scores: Tensor, labels: Tensor, valid: Tensor, num_classes: int, threshold: float
) -> tuple[Tensor, Tensor]:
    """Perform non-maximum suppression per class and image, exactly as `padded.nms_operator` does.

    Greedy suppression keeps a box if no kept box of its class with a higher score overlaps it. The kept boxes are
    therefore a fixed point of this rule, and the only one, since the rule decides the box with the highest score, then
    the next, and so on. To find it, the rule is applied to all boxes at once until nothing changes: at most C + 1
    times, and usually as often as the longest chain of boxes that decide about each other.

    Takes memory for about ten [N, C, C] matrices of 4 bytes.

    Args:
        boxes: [N, C, 4] in the continuous convention.
        scores: [N, C].
        labels: [N, C] int64.
        valid: [N, C] bool; other boxes are ignored.
        num_classes: unused; an argument of the operator.
        threshold: IoU in (0, 1]; 0 or less disables suppression.

    Returns:
        See `padded.nms_operator`; indices after those of the kept boxes are arbitrary.
    """
    count = scores.shape[1]
    index = torch.arange(count, device=scores.device)
    is_tie = scores[:, :, None] == scores[:, None]
    is_better = (scores[:, :, None] > scores[:, None]) | (is_tie & (index[:, None] < index))  # [N, C, C]
    keep = valid
    if threshold > 0:
        decides = is_better & (labels[:, :, None] == labels[:, None]) & (_overlaps(boxes) > threshold)
        keep = _find_fixed_point(decides.float(), valid)
    # The number of better boxes that are kept is the place of a box. Sorting by score would not keep the order of ties.
    place = torch.bmm(keep.float()[:, None], is_better.float()).squeeze(1)  # [N, C]
    order = (count - place).where(keep, 0.0).topk(count, dim=1).indices
    return order, keep.sum(dim=1)


def _overlaps(boxes: Tensor) -> Tensor:
    """Return the IoU [N, C, C] of all pairs, rounded as in `torchvision.ops.nms`; NaN for two boxes without area."""
    x1, y1, x2, y2 = boxes.unbind(dim=2)  # [N, C]
    width = (x2[:, :, None].minimum(x2[:, None]) - x1[:, :, None].maximum(x1[:, None])).clamp(min=0)
    height = (y2[:, :, None].minimum(y2[:, None]) - y1[:, :, None].maximum(y1[:, None])).clamp(min=0)
    area, intersection = (x2 - x1) * (y2 - y1), width * height
    return intersection / (area[:, :, None] + area[:, None] - intersection)


def _find_fixed_point(decides: Tensor, valid: Tensor) -> Tensor:
    """Return the mask [N, C] of the valid boxes that no kept box decides about.

    Args:
        decides: [N, C, C] 1 if the first box suppresses the second once it is kept, otherwise 0.
        valid: [N, C] bool.
    """

    def is_open(keep: Tensor, last: Tensor, *_: Tensor) -> Tensor:
        return (keep != last).any()

    def apply_rule(keep: Tensor, _: Tensor, decides: Tensor, valid: Tensor) -> tuple[Tensor, Tensor]:
        num_suppressors = torch.bmm(keep.float()[:, None], decides).squeeze(1)
        return valid & (num_suppressors == 0), keep.clone()

    # A loop in the graph, such as Loop of ONNX; called directly, a loop in Python.
    loop = torch.ops.higher_order.while_loop
    return loop(is_open, apply_rule, (valid.clone(), torch.zeros_like(valid)), (decides, valid))[0]
