"""Architectures of FBNet: blocks of the backbone and of the heads of an R-CNN.

The built-in architectures, and the JSON format of others, are those of maskrcnn-benchmark (MIT).
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from functools import cache
from itertools import accumulate, pairwise
from typing import Annotated, NamedTuple

from pydantic import BaseModel, Field, ValidationError

from ..choices import HeadKind
from ..formatting import quote

_KIND = re.compile(r"ir_k(?P<kernel>[1357])(?P<double>3|_sep)?(?:_e(?P<expansion>\d)|_s(?P<groups>[24]))?(?P<se>_se)?")
_GROUP_EXPANSIONS = {1: None, 2: 1.0, 4: 4.0}
_STRIDES = (1, 2, 4, -1, -2, -4)
_MAX_CHANNELS = 8192
MAX_BLOCKS = 256


class Block(NamedTuple):
    """Inverted residual block: 1x1 convolution (expansion), depthwise convolution, 1x1 convolution.

    Attributes:
        stage: number of its stage in the architecture, from 0.
        number: number in its stage, from 0.
        channels: output channels, before they are scaled by the width.
        stride: stride of the depthwise convolution; -n: no stride, but upsampling by n before it.
        kernel: kernel size of the depthwise convolution; 1: no depthwise convolution.
        expansion: channels of the depthwise convolution, as a multiple of the input channels.
        groups: groups of the 1x1 convolutions; above 1, the channels are shuffled after the first one.
        is_double: True for two depthwise convolutions.
        has_channel_weights: True if the output is multiplied by a weight per channel (squeeze-and-excitation).
    """

    stage: int
    number: int
    channels: int
    stride: int
    kernel: int
    expansion: float
    groups: int
    is_double: bool
    has_channel_weights: bool


class Architecture(NamedTuple):
    """Blocks of a network and of its heads.

    Attributes:
        stem: (channels, stride, kernel size) of the first convolution.
        blocks: blocks of all stages.
        trunk: stages of the backbone.
        heads: stages of every head. As in the original, a head without an entry consists of all stages.
        last_channels: channels of the optional last convolution of a head, before they are scaled; 0: none.
    """

    stem: tuple[int, int, int]
    blocks: tuple[Block, ...]
    trunk: tuple[int, ...]
    heads: Mapping[HeadKind, tuple[int, ...]]
    last_channels: int = 0

    @property
    def trunk_blocks(self) -> list[Block]:
        """Blocks of the backbone."""
        return [block for block in self.blocks if block.stage in self.trunk]

    @property
    def trunk_strides(self) -> list[int]:
        """Strides in pixels: of the first convolution, and of every block of the backbone."""
        steps = [self.stem[1], *(block.stride for block in self.trunk_blocks)]
        return list(accumulate(steps, lambda stride, step: stride * step))

    def head_blocks(self, kind: HeadKind) -> list[Block]:
        """Return the blocks of a head."""
        stages = self.heads.get(kind)
        return [block for block in self.blocks if not stages or block.stage in stages]


Rows = Sequence[tuple[str, float, int, int, int]]
"""Stage as rows (kind of block, expansion, channels, number of blocks, stride of the first block)."""


def _build_block(kind: str, expansion: float, channels: int, stride: int, *, stage: int, number: int) -> Block:
    """Build a block from the original's name of its kind, which may contain the expansion.

    Raises:
        ValueError: there is no such kind.
    """
    match = _KIND.fullmatch(kind)
    if match is None and kind != "shuffle":
        raise ValueError(f"no block {quote(kind)}; known are shuffle, and names such as ir_k3, ir_k5_e6_se, ir_k3_s4")
    if match is None:
        return Block(stage, number, channels, stride, 3, expansion, 4, is_double=False, has_channel_weights=False)
    groups = int(match["groups"] or 1)
    expansion = float(match["expansion"] or _GROUP_EXPANSIONS[groups] or expansion)
    is_double, has_weights = match["double"] is not None, match["se"] is not None
    return Block(stage, number, channels, stride, int(match["kernel"]), expansion, groups, is_double, has_weights)


def _build_blocks(*stages: Rows) -> tuple[Block, ...]:
    blocks = []
    for stage, rows in enumerate(stages):
        single = [(*row[:3], row[4] if i == 0 else 1) for row in rows for i in range(row[3])]
        blocks += [_build_block(*block, stage=stage, number=number) for number, block in enumerate(single)]
    return tuple(blocks)


_TRUNK = (0, 1, 2, 3)
ARCHITECTURES: dict[str, Architecture] = {
    "default": Architecture(
        (32, 2, 3),
        _build_blocks(
            [("ir_k3", 1, 16, 1, 1)],
            [("ir_k3", 6, 24, 2, 2)],
            [("ir_k3", 6, 32, 3, 2)],
            [("ir_k3", 6, 64, 4, 2), ("ir_k3", 6, 96, 3, 1)],
            [("ir_k3", 4, 160, 1, 2), ("ir_k3", 6, 160, 2, 1), ("ir_k3", 6, 240, 1, 1)],
            [("ir_k3", 6, 96, 3, 1)],
            [("ir_k3", 4, 160, 1, 1), ("ir_k3", 6, 160, 3, 1), ("ir_k3", 3, 80, 1, -2)],
        ),
        _TRUNK,
        {"box": (4,), "rpn": (5,), "mask": (6,)},
    ),
    "xirb16d_dsmask": Architecture(
        (16, 2, 3),
        _build_blocks(
            [("ir_k3", 1, 16, 1, 1)],
            [("ir_k3", 6, 32, 2, 2)],
            [("ir_k3", 6, 48, 3, 2)],
            [("ir_k3", 6, 96, 4, 2), ("ir_k3", 6, 128, 3, 1)],
            [("ir_k3", 4, 128, 1, 2), ("ir_k3", 6, 128, 2, 1), ("ir_k3", 6, 160, 1, 1)],
            [("ir_k3", 4, 128, 1, 2), ("ir_k3", 6, 128, 2, 1), ("ir_k3", 6, 128, 1, -2), ("ir_k3", 3, 64, 1, -2)],
            [("ir_k3", 6, 128, 3, 1)],
        ),
        _TRUNK,
        {"box": (4,), "mask": (5,), "rpn": (6,)},
    ),
    "mobilenet_v2": Architecture(
        (32, 2, 3),
        _build_blocks(
            [("ir_k3", 1, 16, 1, 1)],
            [("ir_k3", 6, 24, 2, 2)],
            [("ir_k3", 6, 32, 3, 2)],
            [("ir_k3", 6, 64, 4, 2), ("ir_k3", 6, 96, 3, 1)],
            [("ir_k3", 6, 160, 3, 1), ("ir_k3", 6, 320, 1, 1)],
        ),
        _TRUNK,
        {"box": (4,)},
    ),
    "cham_v1a": Architecture(
        (32, 2, 3),
        _build_blocks(
            [("ir_k3", 1, 24, 1, 1)],
            [("ir_k7", 4, 48, 2, 2)],
            [("ir_k3", 7, 64, 5, 2)],
            [("ir_k5", 12, 56, 7, 2), ("ir_k3", 8, 88, 5, 1)],
            [("ir_k3", 7, 152, 4, 2), ("ir_k3", 10, 104, 1, 1)],
            [("ir_k3", 8, 88, 3, 1)],
        ),
        _TRUNK,
        {"box": (4,), "rpn": (5,)},
    ),
    "cham_v2": Architecture(
        (32, 2, 3),
        _build_blocks(
            [("ir_k3", 1, 24, 1, 1)],
            [("ir_k5", 8, 32, 4, 2)],
            [("ir_k7", 5, 48, 6, 2)],
            [("ir_k5", 9, 56, 3, 2), ("ir_k3", 6, 56, 6, 1)],
            [("ir_k3", 2, 160, 6, 2), ("ir_k3", 6, 112, 1, 1)],
            [("ir_k3", 6, 56, 1, 1)],
        ),
        _TRUNK,
        {"box": (4,), "rpn": (5,)},
    ),
}
"""Built-in architectures by name."""


Channels = Annotated[int, Field(ge=1, le=_MAX_CHANNELS)]
_Row = tuple[Annotated[float, Field(gt=0, le=64)], Channels, Annotated[int, Field(ge=1, le=MAX_BLOCKS)], int]


class _Stages(BaseModel):
    """Section `block_cfg` of an architecture in JSON; rows are (expansion, channels, number of blocks, stride)."""

    first: list[int] = Field(min_length=2, max_length=3)
    stages: list[list[_Row]] = Field(min_length=1)
    last: tuple[Annotated[int, Field(ge=0, le=_MAX_CHANNELS)], float] = (0, 0.0)
    backbone: list[int] | None = None
    head: list[int] = []
    rpn: list[int] = []
    bbox: list[int] | None = None
    mask: list[int] | None = None
    kpts: list[int] | None = None


class _Definition(BaseModel):
    """Architecture in JSON, with one name per block in `block_op_type`."""

    block_op_type: list[list[str]]
    block_cfg: _Stages


@cache
def find_architecture(text: str) -> Architecture:
    """Return a built-in architecture by name, or the architecture that a JSON text defines.

    Raises:
        ValueError: there is no such architecture, or the JSON text does not define one.
    """
    if text in ARCHITECTURES:
        return ARCHITECTURES[text]
    if not text.lstrip().startswith("{"):
        raise ValueError(f"must be one of {', '.join(ARCHITECTURES)}, or a definition in JSON, found {quote(text)}")
    try:
        architecture = _convert(_Definition.model_validate_json(text))
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "the JSON text"
        raise ValueError(f"must define an architecture: {where}: {first['msg']}") from None
    except ValueError as error:
        raise ValueError(f"must define an architecture: {error}") from None
    return architecture


def _convert(definition: _Definition) -> Architecture:
    """Convert a definition and check what its types do not.

    Raises:
        ValueError: numbers of blocks, strides, or stages are inconsistent.
    """
    config, blocks = definition.block_cfg, list[Block]()
    for stage, rows in enumerate(config.stages):
        kinds = definition.block_op_type[stage] if stage < len(definition.block_op_type) else []
        count = sum(row[2] for row in rows)
        if len(kinds) != count:
            raise ValueError(f"block_op_type.{stage}: expected {count} blocks, as in block_cfg, found {len(kinds)}")
        single = [(row, row[3] if i == 0 else 1) for row in rows for i in range(row[2])]
        for number, (kind, (row, stride)) in enumerate(zip(kinds, single, strict=True)):
            blocks.append(_build_block(kind, row[0], row[1], stride, stage=stage, number=number))
    heads: dict[HeadKind, list[int]] = {
        "rpn": config.rpn,
        "box": config.head if config.bbox is None else config.bbox,
        "mask": config.head if config.mask is None else config.mask,
        "keypoint": config.head if config.kpts is None else config.kpts,
    }
    num_stages = len(config.stages)
    trunk = range(num_stages - 1) if config.backbone is None else config.backbone or range(num_stages)
    channels, stride, kernel = (*config.first, 3)[:3]
    architecture = Architecture(
        (channels, stride, kernel),
        tuple(blocks),
        tuple(trunk),
        {kind: tuple(stages) for kind, stages in heads.items() if stages},
        config.last[0],
    )
    _check(architecture, num_stages=num_stages)
    return architecture


def _check(architecture: Architecture, *, num_stages: int) -> None:
    """Check an architecture from JSON.

    Raises:
        ValueError: a value is out of range.
    """
    channels, stride, kernel = architecture.stem
    if not (1 <= channels <= _MAX_CHANNELS and stride in (1, 2, 4) and kernel in (1, 3, 5, 7)):
        raise ValueError(f"block_cfg.first: expected [channels, stride, kernel size], found {list(architecture.stem)}")
    if wrong := [block.stride for block in architecture.blocks if block.stride not in _STRIDES]:
        raise ValueError(f"block_cfg.stages: strides must be among {', '.join(map(str, _STRIDES))}, found {wrong[0]}")
    if len(architecture.blocks) > MAX_BLOCKS:
        raise ValueError(f"expected at most {MAX_BLOCKS} blocks, found {len(architecture.blocks)}")
    stages = {*architecture.trunk, *(stage for stages in architecture.heads.values() for stage in stages)}
    if unknown := sorted(stages - set(range(num_stages))):
        raise ValueError(f"block_cfg: no stage {unknown[0]}; there are {num_stages}, numbered from 0")
    strides = architecture.trunk_strides
    if len(strides) == 1 or strides[-1] < 4 or any(after < before for before, after in pairwise(strides)):
        raise ValueError(f"block_cfg.backbone: strides must not decrease and must reach 4 pixels, found {strides}")
