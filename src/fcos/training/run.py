"""State of a training run: model, optimiser, counters, saving and resuming, and stop requests."""

from __future__ import annotations

import copy
import math
import shlex
import signal
import threading
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, cast

import torch
from pydantic import ValidationError
from torch import Tensor

from ..checkpoint import Checkpoint, load_weights
from ..config import Config
from ..distributed import barrier, rank, world_size
from ..errors import ConfigError, WeightsError
from ..files import write_text
from .changed_options import find_structural_changes
from .elastic import is_orphaned
from .environment import save_environment
from .folder import CONFIG, LAST
from .logs import RunLog, Step, TrainingProgress
from .optim import WeightAverage, build_optimizer
from .resume import TrainState, read_training_state
from .saving import Saver, Weights

if TYPE_CHECKING:
    from ..data.dataset import Annotations
    from ..evaluation.evaluate import Evaluation
    from ..models import DetectionModel


class Run:
    """Everything that a run keeps from step to step, with saving and resuming.

    Args:
        folder: run folder, see `folder.find_folder`.
        config: resolved config.
        model: the detector to train, on its device.
        train_data: training annotations.
        val_data: validation annotations; None without a val split.
        elapsed: function that returns the seconds since `train` was called.
        licence: licence of the initial weights, see `Checkpoint`.

    Attributes:
        unlogged: steps not yet summarised in a row of metrics.csv; filled and emptied by `RunLog`.
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
        settings = config.train.model_copy(update={"resume": False})  # resuming must be requested each time
        self.config = config.model_copy(update={"output_dir": folder, "train": settings})
        self.model = model
        self.train_data = train_data
        self.val_data = val_data
        self.optimizer = build_optimizer(model, config.train)
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=config.train.precision == "float16")
        self.average = None
        if config.train.ema:
            self.average = WeightAverage(model, config.train.ema, statistics=config.train.ema_statistics)
        self.state = TrainState()
        self.unlogged: list[tuple[TrainingProgress, Step]] = []
        self._saver = Saver(
            folder,
            self.config,
            class_names=train_data.class_names,
            category_ids=train_data.category_ids,
            licence=licence,
            keypoint_layout=train_data.keypoint_layout,
        )
        self._elapsed = elapsed
        self._earlier_seconds = 0.0
        self._resumed_config: dict[str, Any] = {}

    def save_config(self) -> None:
        """Write config.yaml and environment.json. Call this only after all checks of the config have passed."""
        if rank() == 0:
            write_text(self.folder / CONFIG, self.config.to_yaml())
            save_environment(self.folder, self.device)

    def keep_config(self) -> bool:
        """Save the config of the resumed checkpoint instead of the current one from now on.

        Returns:
            False if the folder has no config.yaml or the config in the checkpoint is not valid. The current config then
            remains the one to save.
        """
        if not (self.folder / CONFIG).is_file():
            return False
        try:
            config = Config.model_validate(self._resumed_config)
        except ValidationError:  # of another version
            return False
        self._saver.config = config.model_copy(update={"output_dir": self.folder})
        return True

    @property
    def device(self) -> torch.device:
        """Device of the model."""
        return self.model.device

    def elapsed(self) -> float:
        """Return the seconds since the start of the run, excluding the time between a stop and a resume."""
        return self._earlier_seconds + self._elapsed()

    def progress(self, total: float) -> TrainingProgress:
        """Return the current progress of a run of `total` iterations."""
        iteration = self.state.iteration
        epoch = self.state.images / len(self.train_data)
        return TrainingProgress(iteration, epoch, self.elapsed() / 60, iteration / total)

    @property
    def is_out_of_patience(self) -> bool:
        """True if early stopping applies: the last `train.patience` evaluations brought no new best."""
        patience = self.config.train.patience
        return patience is not None and self.state.stale >= patience

    def count(self, step: Step) -> None:
        """Add a finished step to the counters."""
        self.state.iteration += 1
        self.state.images += self.config.train.batch_size
        self.state.step_seconds += step.seconds
        self.state.boxes += step.result.boxes
        for name, count in step.result.stats.items():
            self.state.stats[name] = self.state.stats.get(name, 0) + count

    @property
    def detector(self) -> DetectionModel:
        """Model to evaluate and save: the weight average if `train.ema` is set, otherwise the trained model."""
        return cast("DetectionModel", self.average.model) if self.average else self.model

    def save_last(self, evaluation: Evaluation | None = None) -> None:
        """Write weights/last.pt with everything needed to resume.

        It also holds the best weights as long as they cannot be written to weights/best.pt. A full disk is only
        reported, see `Saver`.
        """
        self._saver.save_best_again()
        best = self._saver.unsaved_best
        self.state.seconds = self.elapsed()
        optimizer = self.optimizer.state_dict()
        for group in optimizer["param_groups"]:
            group["lr"] = group["initial_lr"]  # the schedule sets `lr` in every step
        training = {
            "state": asdict(self.state),
            "optimizer": optimizer,
            "learning": self._trainable_names(),
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
        """Write weights/best.pt, val/metrics.json and val/detections.json if `train.best_metric` has a new maximum."""
        name = self.config.train.best_metric
        value = evaluation.metrics[name]
        if math.isnan(value):  # undefined because val has no such object: neither better nor worse
            return
        self.state.stale += 1
        best = self.state.best.get(name, math.nan)
        if math.isnan(best) or value > best:
            self.state.stale = 0
            self.state.best = dict(evaluation.metrics)
            self._saver.save_best(self._weights(evaluation))
            self._saver.save_evaluation(evaluation)

    def save_last_as_best(self, evaluation: Evaluation | None) -> None:
        """Write the current weights to weights/best.pt, for runs in which `train.best_metric` was never defined.

        Args:
            evaluation: Evaluation of these weights, which is written to val/; None: there is no val split.
        """
        self._saver.save_best(self._weights(evaluation))
        if evaluation is not None:
            self._saver.save_evaluation(evaluation)

    def require_saved(self) -> None:
        """Raise TrainingError if the last attempt to write a file failed, see `Saver.require_saved`."""
        self._saver.require_saved(self.resume_hint)

    @property
    def resume_hint(self) -> str:
        """Hint for the user with the command that resumes the run."""
        return f"continue with: fcos train {shlex.quote(str(self.folder / CONFIG))} train.resume=true"

    def _trainable_names(self) -> list[str]:
        """Return the names of the trainable parameters, in the order of the optimiser state."""
        names = {parameter: name for name, parameter in self.model.named_parameters()}
        return [names[parameter] for group in self.optimizer.param_groups for parameter in group["params"]]

    def _explain_misfit(self, checkpoint: Checkpoint, difference: str, *, where: str) -> ConfigError:
        """Return an error for a checkpoint that does not fit the run, with the changed options that may cause it."""
        changes = find_structural_changes(checkpoint.config, self.config)
        options = f" ({', '.join(map(str, changes))}); restore the old values, or" if changes else ";"
        return ConfigError(
            f"train.resume: {where} was saved with {difference}{options} start a new run with train.weights={where}"
        )

    def _weights(self, evaluation: Evaluation | None) -> Weights:
        """Return the current weights with the metrics of their evaluation, if any."""
        metrics, thresholds = (evaluation.metrics, evaluation.thresholds) if evaluation else ({}, {})
        return Weights(self.detector, metrics, thresholds, self.state.iteration)

    def restore(self, checkpoint: Checkpoint, *, where: str) -> None:
        """Resume from a checkpoint. Learning rates and weight decays are taken from the current config.

        Args:
            checkpoint: checkpoint with training state.
            where: path or address of the checkpoint, for messages.

        Raises:
            ConfigError: the classes, the keypoints, the optimiser, the trainable parameters or the shapes of the
                weights differ; the message names the changed options.
            WeightsError: the training state is missing, or it does not belong to the weights.
        """
        saved = read_training_state(checkpoint, where=where)
        if checkpoint.class_names != self.train_data.class_names:
            raise ConfigError(
                f"train.resume: {where} has the classes {', '.join(checkpoint.class_names)}, but the data has"
                f" {', '.join(self.train_data.class_names)}; to train on other classes, start a new run with"
                f" train.weights={where}"
            )
        trained_keypoints, keypoints = checkpoint.keypoint_layout.names, self.train_data.keypoint_layout.names
        if self.config.model.num_predicted_keypoints and trained_keypoints and trained_keypoints != keypoints:
            raise ConfigError(
                f"train.resume: {where} has the keypoints {', '.join(trained_keypoints)}, but the data has"
                f" {', '.join(keypoints)}; to train on other keypoints, start a new run with train.weights={where}"
            )
        names = self._trainable_names()
        groups = self.optimizer.state_dict()["param_groups"]
        has_same_optimizer = ("betas" in groups[0]) == ("betas" in saved.optimizer.param_groups[0])
        if not has_same_optimizer or set(names) != set(saved.learning):
            raise self._explain_misfit(checkpoint, "another optimiser or other trainable parameters", where=where)
        try:
            load_weights(self.model, saved.weights or checkpoint.model, where=where)
        except WeightsError:
            raise self._explain_misfit(checkpoint, "other shapes of the weights", where=where) from None
        if self.average:
            load_weights(self.average.model, checkpoint.model, where=where)
            self.average.updates = saved.updates
        # The current options may group the parameters differently, so the state is matched by parameter name.
        parameters = dict(self.model.named_parameters())
        state = {
            names.index(name): _with_layout_of(parameters[name], saved.optimizer.state[i])
            for i, name in enumerate(saved.learning)
            if i in saved.optimizer.state
        }
        if self.config.train.optimizer == "sgd":
            state = _fill_momentum(state, [parameters[name] for name in names])
        self.optimizer.load_state_dict({"state": state, "param_groups": groups})
        if saved.scaler:
            self.scaler.load_state_dict(saved.scaler)
        self.state = saved.state
        if saved.best:
            best, metrics, thresholds, iteration = saved.best
            self._saver.unsaved_best = Weights(copy.deepcopy(self.detector).cpu(), metrics, thresholds, iteration)
            load_weights(self._saver.unsaved_best.model, best, where=where)
        self._resumed_config = checkpoint.config
        self.unlogged[:] = [(progress, Step(result, *timing)) for progress, result, *timing in saved.steps]
        self._earlier_seconds = self.state.seconds
        torch.set_rng_state(saved.rng)
        if saved.cuda_rng is not None and self.device.type == "cuda":
            torch.cuda.set_rng_state(saved.cuda_rng, self.device)


def _fill_momentum(state: dict[int, dict[str, Any]], parameters: list[Tensor]) -> dict[int, dict[str, Any]]:
    """Return the state of SGD with zero momentum for parameters without momentum, if any parameter has momentum.

    The fused kernel needs a tensor for every parameter. Zeros and no momentum give the same next step.
    """
    momenta = [state.get(i, {}).get("momentum_buffer") for i in range(len(parameters))]
    if all(momentum is None for momentum in momenta):
        return state
    return {
        i: {"momentum_buffer": torch.zeros_like(parameter) if momentum is None else momentum}
        for i, (momentum, parameter) in enumerate(zip(momenta, parameters, strict=True))
    }


def _with_layout_of(parameter: Tensor, state: dict[str, Any]) -> dict[str, Any]:
    """Return the optimiser state of a parameter with its memory layout, on which the fused kernels rely."""
    return {
        name: torch.empty_like(parameter).copy_(value) if torch.is_tensor(value) and value.ndim else value
        for name, value in state.items()
    }


class StopRequest:
    """Context manager that handles Ctrl-C, SIGTERM and SIGHUP: the run saves and stops after the current step.

    A terminal that is closed sends SIGHUP, which `nohup` ignores. A second signal stops the run at once. The run also
    stops if the launcher of several processes is gone: nothing else would stop these processes, and they would keep
    training beside a resumed run.
    """

    def __init__(self, run: Run, log: RunLog) -> None:
        self._signalled = False
        self._run, self._log = run, log
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> StopRequest:
        if threading.current_thread() is threading.main_thread():  # only the main thread may set signal handlers
            self._previous = {number: signal.signal(number, self._request) for number in _stop_signals()}
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if world_size() == 1 or kind in (None, KeyboardInterrupt):
            self._restore()  # not on errors: the launcher's SIGTERM would end this process before its error is shown
        if kind is KeyboardInterrupt and (self._run.folder / LAST).is_file():
            reason = "interrupted: the launcher has ended" if is_orphaned() else "interrupted"
            self._log.message(f"{reason}; {self._run.resume_hint}")

    @property
    def requested(self) -> bool:
        """True if this process was asked to stop. `train_step` combines the requests of all processes."""
        return self._signalled or is_orphaned()

    def stop(self) -> NoReturn:
        """Write weights/last.pt and raise KeyboardInterrupt. Every process must call this method."""
        self._run.save_last()
        self._run.require_saved()
        barrier()  # the launcher stops all processes as soon as one ends
        raise KeyboardInterrupt

    def _request(self, *_: object) -> None:
        self._signalled = True
        self._restore()

    def _restore(self) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)


def _stop_signals() -> list[int]:
    signals: list[int] = [signal.SIGINT, signal.SIGTERM]
    if hasattr(signal, "SIGHUP") and signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:  # not on Windows
        signals.append(signal.SIGHUP)
    return signals
