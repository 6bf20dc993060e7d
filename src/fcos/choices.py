"""Literal types of options with a fixed set of values, shared by the config and the code built from it."""

from typing import Literal

BoxConvention = Literal["continuous", "inclusive"]
"""`continuous`: a box covers [x1, x2) and its width is x2 - x1. `inclusive` (the original code): x2 is the last covered
pixel and the width is x2 - x1 + 1."""
ChannelOrder = Literal["rgb", "bgr"]
Norm = Literal["frozen_bn", "bn", "sync_bn", "gn"]
BatchNorm = Literal["bn", "sync_bn", "frozen_bn"]
PyramidNorm = Literal["none", "gn", "bn"]
LinearNorm = Literal["none", "gn"]
TowerNorm = Literal["gn", "bn", "none"]
ExtraLevelSource = Literal["p5", "c5", "max_pool"]
HeadKind = Literal["rpn", "box", "mask", "keypoint"]
"""Heads of R-CNN for which a backbone may define the layers."""
Tower = Literal["cls", "box"]
Regression = Literal["exp", "relu_stride"]
Location = Literal["center", "corner", "multiple"]
AnchorRounding = Literal["none", "base", "corners"]
EmptyBoxes = Literal["remove", "remove_last", "keep"]
Decode = Literal["exact", "fast"]
Resize = Literal["pillow", "torch"]
Cache = Literal["ram", "disk"]
MaskPasting = Literal["truncated", "exact"]
LossAverage = Literal["image", "batch"]
HeadLayers = Literal["own", "backbone"]
MaskHeadLayers = Literal["own", "backbone", "box"]
BoxLoss = Literal["iou", "linear_iou", "giou"]
AnchorBoxLoss = Literal["smooth_l1", "giou"]
Quality = Literal["centerness", "iou"]
Score = Literal["sqrt", "product"]
RankedBy = Literal["class", "score"]
AveragedStatistics = Literal["same_decay", "same_age"]
Precision = Literal["float32", "bfloat16", "float16"]
YoloRows = Literal["auto", "boxes", "polygons"]
Project = Literal["fcos", "fcos_core", "torchvision", "adelaidet", "detectron2", "mmdetection"]
"""Projects whose weights files can be read."""
Form = Literal["fcos", "fcos_core", "torchvision"]
"""Formats in which weights files can be written, named after their projects."""
ExportFormat = Literal["onnx", "openvino", "torch_export", "aoti"]
"""Formats of exported files, see `export.runtimes`."""
ExportPrecision = Literal[Precision, "int8"]
ExportContent = Literal["detections", "candidates", "raw"]
"""Outputs of exported files: detections, candidates before non-maximum suppression, or the raw outputs of the head."""
ExportNMS = Literal["graph", "matrix", "none"]
"""Non-maximum suppression of exported files: the operator of the runtime, `export.matrix_nms`, or none."""
OtherProject = Literal["fcos_core", "torchvision"]
"""Other projects in whose format weights files can be written."""
