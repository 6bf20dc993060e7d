"""One training step: forward, backward and optimiser step on a batch, with gradient accumulation."""

from __future__ import annotations

import math
from contextlib import nullcontext
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.nn.utils import clip_grads_with_norm_, get_total_norm

from ..config import Config
from ..config.backbones import is_own
from ..data.loader import padded_size
from ..data.samplers import hash_seed, shard
from ..distributed import all_gather, mean_over_processes, world_size
from ..errors import ConfigError, TrainingError
from ..masks import Masks
from ..models import DetectionModel
from ..models.folding import fold_frozen_stages
from ..models.inference_copy import compile_modules
from ..models.weight_gradients import has_slow_weight_gradients, use_contiguous_weight_gradients
from ..precision import autocast
from ..structures import Batch, Losses, Objects
from .diagnosis import explain_non_finite
from .logs import StepResult
from .run import Run, StopRequest

_OUR_PARTS = ("fpn", "head", "proposals")
"""Parts of a detector that contain no code of a user-defined backbone, which may also build the heads of an R-CNN."""
MAX_SKIPS = 10
"""Number of consecutive skipped steps (non-finite loss or gradients) that ends a run even with `on_nonfinite=skip`."""


def count_micro_batches(model: DetectionModel, config: Config, *, most_boxes: int) -> int:
    """Return the number of micro-batches per batch, the same on all processes.

    With `train.micro_batch=auto`, halve the micro-batch until it fits into GPU memory on all processes. Every process
    must call this function.

    Args:
        model: the detector, on its device.
        config: config of the run.
        most_boxes: largest number of boxes in an image.

    Raises:
        ConfigError: there are more processes than images in a batch, or, with `sync_bn`, a process has fewer images
            than micro-batches.
    """
    batch_size, micro_batch, num_processes = config.train.batch_size, config.train.micro_batch, world_size()
    if batch_size < num_processes:
        raise ConfigError(
            f"train.batch_size={batch_size}: expected at least one image for each of the {num_processes} processes;"
            " use a larger batch, or fewer processes"
        )
    largest_shard = -(-batch_size // num_processes)
    if micro_batch == "auto":
        micro_batch = largest_shard
        while micro_batch > 1 and not all(all_gather(_fits(model, config, micro_batch, most_boxes))):
            micro_batch = -(-micro_batch // 2)
    micro_batches = -(-largest_shard // (micro_batch or largest_shard))
    if micro_batches > batch_size // num_processes and config.model.backbone.norm == "sync_bn":
        raise ConfigError(
            f"train.micro_batch={micro_batch}: sync_bn needs the same number of micro-batches on all {num_processes}"
            f" processes, but some get {batch_size // num_processes} images of a batch and others {largest_shard}; set"
            f" train.batch_size to a multiple of {num_processes}"
        )
    return micro_batches


def _fits(model: DetectionModel, config: Config, num_images: int, most_boxes: int) -> bool:
    """Return whether `num_images` images of the largest size fit into GPU memory; always True without CUDA."""
    device, data = model.device, config.data
    if device.type != "cuda":
        return True
    # A batch with both orientations is padded to a square.
    short_side = data.largest_short_side if data.group_by_aspect else data.max_side
    height, width = padded_size((short_side, data.max_side), data.size_divisor)
    images = torch.zeros(num_images, 3, height, width, dtype=torch.uint8, device=device)
    sizes = torch.tensor([[height, width]] * num_images, device=device)
    box, label = torch.tensor([[0.0, 0.0, width, height]], device=device), torch.tensor([0], device=device)
    targets = [_whole_images(box, label, most_boxes, num_keypoints=config.model.num_predicted_keypoints)] * num_images
    # A collective: call it before this process can run out of memory.
    normalizers = model.loss_normalizers([Objects(box[:0], label[:0])], (height, width))
    normalizers = None if normalizers is None else torch.ones_like(normalizers)
    total = torch.cuda.get_device_properties(device).total_memory
    torch.cuda.reset_peak_memory_stats(device)
    model.eval()  # batch norm must neither update its statistics nor wait for other processes
    try:
        with autocast(device, config.train.precision):
            losses = model(images, sizes, targets, normalizers)
        torch.stack(list(losses.terms.values())).sum().backward()
        # Leave a fifth for everything else: optimiser state, gradient buckets, fragmentation.
        return torch.cuda.max_memory_allocated(device) < 0.8 * total
    except torch.OutOfMemoryError:
        return False
    finally:
        model.train()
        model.zero_grad(set_to_none=True)
        torch.cuda.empty_cache()


def _whole_images(box: Tensor, label: Tensor, count: int, *, num_keypoints: int) -> Objects:
    """Return `count` objects of the label [1] whose masks fill the box [1, 4] and whose keypoints are in its corner."""
    x1, y1, x2, y2 = box[0].tolist()
    masks = Masks.from_polygons([[[x1, y1, x2, y1, x2, y2, x1, y2]]] * count, dtype=np.float32)
    keypoints = box.new_tensor([[[x1, y1, 2]]]).expand(count, num_keypoints, 3) if num_keypoints else None
    return Objects(box.expand(count, 4), label.expand(count), masks=masks, keypoints=keypoints)


def wrap_model(run: Run) -> nn.Module:
    """Return the model for the training steps, with the same parameters.

    Frozen stages are folded if `train.fold_frozen` is set, the model is compiled if `train.compile` is set, and it is
    wrapped in DDP if several processes train. Our convolutions avoid slow weight gradients unless compiled.
    """
    has_own_backbone = is_own(run.config.model.backbone.name)
    model = fold_frozen_stages(run.model) if run.config.train.fold_frozen else run.model
    if run.config.train.compile:
        compile_modules(model)
    elif has_slow_weight_gradients(run.device):
        for name, part in model.named_children():
            if name in _OUR_PARTS or not has_own_backbone:
                use_contiguous_weight_gradients(part)
    if world_size() == 1:
        return model
    if has_own_backbone:  # it may leave parameters unused
        return DistributedDataParallel(_UnusedParameterModel(model), find_unused_parameters=True)
    return DistributedDataParallel(model)


class _UnusedParameterModel(nn.Module):
    """Model with one unused parameter, so that DDP(find_unused_parameters=True) does not warn that there is none."""

    def __init__(self, model: DetectionModel):
        super().__init__()
        self.model = model
        self.unused = nn.Parameter(torch.zeros(1, device=model.device))

    def forward(self, *batch: Any) -> Losses:
        return self.model(*batch)


def train_step(
    ddp_model: nn.Module, batch: Batch, run: Run, stop_request: StopRequest, *, micro_batches: int
) -> StepResult:
    """Run one training step on a batch.

    Args:
        ddp_model: the model, wrapped in DDP if several processes train.
        batch: shard of this process.
        run: the run, whose optimiser, gradient scaler, weight average and state are updated.
        stop_request: stop request of this process, shared with the other processes through the result.
        micro_batches: number of micro-batches for gradient accumulation.

    Raises:
        TrainingError: a loss term or the gradient norm is not finite, and `train.on_nonfinite` is `stop` or this is the
            tenth such step in a row. The weights are left unchanged.
    """
    settings, state = run.config.train, run.state
    num_boxes = _count_boxes(batch)  # before the transfer: counting on the GPU would synchronize
    batch = _with_seeds(batch.to(run.device), settings.seed, state.iteration)
    # Any step can turn out not to be finite, and must leave the weights and the statistics as they were.
    statistics = [(buffer, buffer.clone()) for buffer in _batch_statistics(run.model)]
    run.optimizer.zero_grad(set_to_none=True)
    losses = _accumulate(ddp_model, batch, run, micro_batches)
    assert tuple(losses.terms) == run.model.loss_names
    run.scaler.unscale_(run.optimizer)
    parameters = [p for group in run.optimizer.param_groups for p in group["params"] if p.grad is not None]
    norm = get_total_norm([p.grad for p in parameters])
    # One collective and one device-to-host transfer for everything that the processes must agree on.
    terms = torch.stack(list(losses.terms.values()))
    stats = [count.to(terms) for count in losses.stats.values()]
    process_counts = terms.new_tensor([num_boxes, stop_request.requested])
    means = mean_over_processes(
        torch.cat([terms, norm.to(terms)[None], process_counts, *(count[None] for count in stats)])
    )
    loss_values, (grad_norm, boxes, stops, *counts) = (part.tolist() for part in means.cpu().tensor_split([len(terms)]))
    losses_by_name = dict(zip(losses.terms, loss_values, strict=True))

    skipped = ""
    if all(map(math.isfinite, (*loss_values, grad_norm))):
        if settings.clip_norm:
            clip_grads_with_norm_(parameters, settings.clip_norm, norm)
        run.scaler.step(run.optimizer)
        if run.average:
            run.average.update(run.model)
        state.skips = 0
    elif all(map(math.isfinite, loss_values)) and run.scaler.get_scale() > 1:
        pass  # the scaled gradients overflow float16; `update` lowers the scale until they fit
    else:
        for buffer, before in statistics:
            buffer.copy_(before)  # non-finite running statistics would never recover
        skipped = explain_non_finite(run, batch, losses_by_name, grad_norm)
        state.skips += 1
        if settings.on_nonfinite == "stop" or state.skips == MAX_SKIPS:
            raise TrainingError(skipped)
    run.scaler.update()
    totals = {name: round(mean * world_size()) for name, mean in zip(losses.stats, counts, strict=True)}
    return StepResult(losses_by_name, grad_norm, round(boxes * world_size()), totals, stops > 0, skipped)


def _accumulate(ddp_model: nn.Module, batch: Batch, run: Run, micro_batches: int) -> Losses:
    """Accumulate losses and gradients over the micro-batches of a batch; the sums equal those of the whole batch."""
    images, sizes, targets, *_ = batch
    assert targets is not None
    terms: dict[str, Tensor] = {}
    stats: dict[str, Tensor] = {}
    height, width = images.shape[-2:]
    # A collective, so the condition must not depend on the number of images, which differs between processes. For a
    # single micro-batch, `forward` computes the normalizers, which avoids assigning the targets twice.
    is_split = micro_batches > 1
    normalizers = run.model.loss_normalizers(targets, (height, width)) if is_split else None
    count = min(micro_batches, len(images))
    for number in range(count):
        rows = shard(range(len(images)), number, count)
        micro_batch = slice(rows[0], rows[-1] + 1)
        is_last = number == count - 1
        with ddp_model.no_sync() if isinstance(ddp_model, DistributedDataParallel) and not is_last else nullcontext():
            with autocast(run.device, run.config.train.precision):
                losses: Losses = ddp_model(images[micro_batch], sizes[micro_batch], targets[micro_batch], normalizers)
            share = len(rows) / len(images) if is_split and normalizers is None else 1.0
            run.scaler.scale(share * torch.stack(list(losses.terms.values())).sum()).backward()
        terms = {name: terms.get(name, 0) + share * term.detach() for name, term in losses.terms.items()}
        stats = {name: stats.get(name, 0) + count for name, count in losses.stats.items()}
    return Losses(terms, stats)


def _with_seeds(batch: Batch, seed: int, iteration: int) -> Batch:
    """Set the seed of every image, which depends on the run's seed, the iteration and the image only.

    Samples of anchors and proposals are then the same in resumed runs, micro-batches and any number of processes.
    """
    assert batch.targets is not None
    pairs = zip(batch.targets, batch.indices.tolist(), strict=True)
    targets = [replace(objects, seed=hash_seed(seed, iteration, index) >> 1) for objects, index in pairs]
    return batch._replace(targets=targets)


def _batch_statistics(model: nn.Module) -> list[Tensor]:
    norms = [m for m in model.modules() if isinstance(m, nn.BatchNorm2d | nn.SyncBatchNorm) and m.training]
    return [buffer for norm in norms for buffer in norm.buffers()]


def _count_boxes(batch: Batch) -> int:
    """Return the number of ground-truth boxes in a batch, excluding crowd boxes."""
    assert batch.targets is not None
    return sum(int((~objects.is_crowd).sum()) for objects in batch.targets)
