"""A run: what it carries from step to step, and what is saved of it."""

from __future__ import annotations

import copy
import math
import signal
import threading
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, cast

import torch

from ..checkpoint import Checkpoint, load_weights
from ..config import Config
from ..distributed import barrier, rank, world_size
from ..errors import ConfigError
from .elastic import orphaned
from .environment import save_environment
from .folder import CONFIG, LAST, names_folder, write_text
from .logs import RunLog, Step, StepResult, TrainingProgress
from .optim import WeightAverage, build_optimizer
from .saving import Saver, Weights, upgraded

if TYPE_CHECKING:
    from ..data.dataset import Annotations
    from ..evaluation.evaluate import Evaluation
    from ..models import DetectionModel


@dataclass
class TrainState:
    """The plain numbers that a run continues from.

    Attributes:
        iteration: steps done.
        seconds: since the start, pauses between continuations left out.
        step_seconds: seconds of them spent in training steps.
        evaluations: done during training.
        evaluated_at: iteration of the last of them; -1: there was none.
        best: figures of the best one, see `train.best_metric`; empty before the first that has this figure.
        boxes: seen in training.
        stats: counts of boxes, see `Losses.stats`.
        reported: whether the user was warned of them.
        skips: steps in a row, up to now, that were skipped because their numbers were not finite.
        stale: evaluations since the best one.
    """

    iteration: int = 0
    seconds: float = 0.0
    step_seconds: float = 0.0
    evaluations: int = 0
    evaluated_at: int = -1
    best: dict[str, float] = field(default_factory=dict)
    boxes: int = 0
    stats: dict[str, int] = field(default_factory=dict)
    reported: bool = False
    skips: int = 0
    stale: int = 0


class Run:
    """What a run works with and carries from step to step.

    Args:
        folder: see `folder.find_folder`.
        config: resolved.
        model: the detector that learns, on its device.
        train_data: what it learns from.
        val_data: what it is measured on.
        elapsed: tells the seconds since `train` was entered.
        licence: of the weights that it started from, see `Checkpoint`.

    Attributes:
        unlogged: steps that no row of metrics.csv sums up yet; `RunLog` fills and empties it.
        marks: how many multiples of `eval_every` had been passed when it was last evaluated.
    """

    def __init__(
        self,
        folder: Path,
        config: Config,
        *,
        model: DetectionModel,
        train_data: Annotations,
        val_data: Annotations | None,
        elapsed: Callable[[], float],
        licence: str = "",
    ) -> None:
        self.folder = folder
        settings = config.train.model_copy(update={"resume": False})  # continuing is asked for each time
        self.config = config.model_copy(update={"output_dir": folder, "train": settings})
        self.model = model
        self.train_data = train_data
        self.val_data = val_data
        self.optimizer = build_optimizer(model, config.train)
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=config.train.precision == "float16")
        self.average = WeightAverage(model, config.train.ema) if config.train.ema else None
        self.state = TrainState()
        self.unlogged: list[tuple[TrainingProgress, Step]] = []
        self.marks = 0
        self._saver = Saver(
            folder,
            self.config,
            class_names=train_data.class_names,
            category_ids=train_data.category_ids,
            licence=licence,
        )
        self._elapsed = elapsed
        self._earlier = 0.0

    def save_config(self) -> None:
        """Write config.yaml, not before it is known that the run can be continued with it, and environment.json."""
        if rank() == 0:
            with names_folder(self.folder):
                write_text(self.folder / CONFIG, self.config.to_yaml())
                save_environment(self.folder, self.device)

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return self.model.device

    def elapsed(self) -> float:
        """Seconds since the start of the run, pauses between continuations left out."""
        return self._earlier + self._elapsed()

    def progress(self, total: float) -> TrainingProgress:
        """Where the run stands, `total` iterations being its length."""
        iteration = self.state.iteration
        epoch = iteration * self.config.train.batch_size / len(self.train_data)
        return TrainingProgress(iteration, epoch, self.elapsed() / 60, iteration / total)

    def count(self, step: Step) -> None:
        """Take in a finished step."""
        self.state.iteration += 1
        self.state.step_seconds += step.seconds
        self.state.boxes += step.result.boxes
        for name, count in step.result.stats.items():
            self.state.stats[name] = self.state.stats.get(name, 0) + count

    @property
    def detector(self) -> DetectionModel:
        """The model that is evaluated and saved: the average if there is one."""
        return cast("DetectionModel", self.average.model) if self.average else self.model

    def save_last(self, evaluation: Evaluation | None = None) -> None:
        """Write weights/last.pt with all that is needed to continue, see `Saver`.

        The best weights are in it, too, while they could not be written to weights/best.pt.
        """
        self._saver.save_best_again()
        best = self._saver.unsaved_best
        self.state.seconds = self.elapsed()
        optimizer = self.optimizer.state_dict()
        for group in optimizer["param_groups"]:
            group["lr"] = group["initial_lr"]  # every step sets its own
        training = {
            "state": asdict(self.state),
            "optimizer": optimizer,
            "learning": self._learning(),
            "scaler": self.scaler.state_dict(),
            "weights": self.model.state_dict() if self.average else None,
            "updates": self.average.updates if self.average else 0,
            "best": (best.model.state_dict(), *best[1:]) if best else None,
            "steps": [(tuple(progress), tuple(step.result), *step[1:]) for progress, step in self.unlogged],
            "rng": torch.get_rng_state(),
            "cuda_rng": torch.cuda.get_rng_state(self.device) if self.device.type == "cuda" else None,
        }
        self._saver.save_last(self._weights(evaluation), training)

    def save_if_best(self, evaluation: Evaluation) -> None:
        """Write weights/best.pt, val/metrics.json and val/detections.json if `train.best_metric` is a new maximum."""
        name = self.config.train.best_metric
        value = evaluation.metrics[name]
        if math.isnan(value):  # val has no such object: nothing got better or worse
            return
        self.state.stale += 1
        best = self.state.best.get(name, math.nan)
        if math.isnan(best) or value > best:
            self.state.stale = 0
            self.state.best = dict(evaluation.metrics)
            self._saver.save_best(self._weights(evaluation))
            self._saver.save_evaluation(evaluation)

    def save_best_without_figures(self) -> None:
        """Write the weights of now to weights/best.pt, when there is nothing to tell which were best."""
        self._saver.save_best(self._weights(None))

    def require_saved(self) -> None:
        """See `Saver.require_saved`."""
        self._saver.require_saved(self.command)

    @property
    def command(self) -> str:
        """How to go on after a stop."""
        return f"continue with: fcos train {self.folder / CONFIG} train.resume=true"

    def _learning(self) -> list[str]:
        """The names of the parameters that learn, in the order of the optimiser's state."""
        names = {parameter: name for name, parameter in self.model.named_parameters()}
        return [names[parameter] for group in self.optimizer.param_groups for parameter in group["params"]]

    def _weights(self, evaluation: Evaluation | None) -> Weights:
        """The current weights with the figures of their evaluation."""
        metrics, thresholds = (evaluation.metrics, evaluation.thresholds) if evaluation else ({}, {})
        return Weights(self.detector, metrics, thresholds, self.state.iteration)

    def restore(self, checkpoint: Checkpoint) -> None:
        """Continue from weights/last.pt; rates and decays are those of the config of today.

        Raises:
            ConfigError: the file holds no training, or that of another optimiser, other parameters or other classes.
            WeightsError: weights of another model.
        """
        where = str(self.folder / LAST)
        if checkpoint.training is None:
            raise ConfigError(
                f"train.resume: {where} is for detection only; start a new run with train.weights={where}"
            )
        saved = upgraded(checkpoint.training)
        if checkpoint.class_names != self.train_data.class_names:
            raise ConfigError(
                f"train.resume: {where} has the classes {', '.join(checkpoint.class_names)}, the data"
                f" {', '.join(self.train_data.class_names)}; to train on other classes start a new run with"
                f" train.weights={where}"
            )
        names, before = self._learning(), saved.get("learning", self._learning())
        groups = self.optimizer.state_dict()["param_groups"]
        if set(groups[0]) != set(saved["optimizer"]["param_groups"][0]) or set(names) != set(before):
            raise ConfigError(
                f"train.resume: {where} was trained with another optimiser, or other parameters learned;"
                f" restore these options, or start a new run with train.weights={where}"
            )
        load_weights(self.model, saved["weights"] or checkpoint.model, where=where)
        if self.average:
            load_weights(self.average.model, checkpoint.model, where=where)
            self.average.updates = saved["updates"]
        # Options of today put the parameters into other groups, so each finds its state by its name.
        state = {names.index(before[i]): values for i, values in saved["optimizer"]["state"].items()}
        self.optimizer.load_state_dict({"state": state, "param_groups": groups})
        if saved.get("scaler"):
            self.scaler.load_state_dict(saved["scaler"])
        self.state = TrainState(**saved["state"])
        if saved.get("best"):
            best, *known = saved["best"]
            self._saver.unsaved_best = Weights(copy.deepcopy(self.detector).cpu(), *known)
            load_weights(self._saver.unsaved_best.model, best, where=where)
        self.unlogged[:] = [
            (TrainingProgress(*progress), Step(StepResult(*result), *rest))
            for progress, result, *rest in saved["steps"]
        ]
        self._earlier = self.state.seconds
        torch.set_rng_state(saved["rng"])
        if saved["cuda_rng"] is not None and self.device.type == "cuda":
            torch.cuda.set_rng_state(saved["cuda_rng"], self.device)


class StopRequest:
    """Ctrl-C or SIGTERM asks the run to save and stop after the step in hand; a second one stops at once.

    That the launcher of several processes is gone asks for the same: nobody could stop them any more, and who continues
    the run would do so beside them.
    """

    def __init__(self, run: Run, log: RunLog) -> None:
        self._signalled = False
        self._run, self._log = run, log
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> StopRequest:
        if threading.current_thread() is threading.main_thread():  # no other thread may handle signals
            self._previous = {
                number: signal.signal(number, self._request) for number in (signal.SIGINT, signal.SIGTERM)
            }
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if world_size() == 1 or kind in (None, KeyboardInterrupt):
            self._restore()  # else a launcher, as it misses another process, sends SIGTERM before it is told why we end
        if kind is KeyboardInterrupt and (self._run.folder / LAST).is_file():
            reason = "interrupted: the launcher is gone" if orphaned() else "interrupted"
            self._log.message(f"{reason}; {self._run.command}")

    @property
    def requested(self) -> bool:
        """Whether this process was asked; what the others were is for the training step to tell."""
        return self._signalled or orphaned()

    def stop(self) -> NoReturn:
        """Save and raise KeyboardInterrupt, on every process."""
        self._run.save_last()
        self._run.require_saved()
        barrier()  # a launcher ends the others as soon as one is gone
        raise KeyboardInterrupt

    def _request(self, *_: object) -> None:
        self._signalled = True
        self._restore()

    def _restore(self) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)
