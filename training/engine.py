"""Runs a recipe: phases, checkpoints, logs, and the ways in which a run may end before its end."""

from __future__ import annotations

import dataclasses
import json
import signal
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn
from tqdm import tqdm

from tcl_core.errors import SettingsError, is_full, reason_of, remedy_of
from training.checkpoints import CheckpointError, load_checkpoint, save_checkpoint
from training.config import AveragePhase, Recipe, TrainPhase
from training.data.augment import Transform
from training.data.loader import Batches, PairDataset
from training.data.order import ORDER_VERSION, Order
from training.data.source import Source
from training.distributed import average_scalars, check_equal, process_rank, world_size
from training.evaluation import evaluate
from training.log import Logger, make_logger
from training.model import Trained, build
from training.step import NotFiniteError, Stepper, StepResult

__all__ = ["Interruption", "Options", "StoppedError", "run_recipe", "to_device"]

_CHECK_EVERY = 500


class StoppedError(SettingsError):
    """The run was asked to stop; its checkpoint is written."""


@dataclass(frozen=True)
class Options:
    """What does not decide the weights.

    Attributes:
        out: folder of checkpoints, logs and the model file; one that all processes see.
        device: of this process.
        workers: processes that decode images, for each process that trains.
        accumulate: parts in which a batch is worked through, see `training.step.Stepper`.
        compile: use ``torch.compile``.
        loggers: keys of `training.log.LOGGERS`.
        accept_changes: go on from a checkpoint of another recipe or other data.
        quiet: no progress bar.
    """

    out: Path
    device: torch.device
    workers: int = 0
    accumulate: int = 1
    compile: bool = False
    loggers: tuple[str, ...] = ()
    accept_changes: bool = False
    quiet: bool = False


class Interruption:
    """Remembers that a signal asked for the end.

    Attributes:
        asked: whether one did.
    """

    def __init__(self) -> None:
        self.asked = False

    @contextmanager
    def listening(self) -> Iterator[Interruption]:
        """Take SIGTERM and the first SIGINT as a wish to stop after the step; a second SIGINT ends at once."""

        def note(number: int, frame: object) -> None:
            if self.asked and number == signal.SIGINT:
                raise KeyboardInterrupt
            self.asked = True

        before = {number: signal.signal(number, note) for number in (signal.SIGTERM, signal.SIGINT)}
        try:
            yield self
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


def to_device(batch: Any, device: torch.device) -> Any:
    """Move the tensors of a batch, which is a mapping or a dataclass."""
    if isinstance(batch, Tensor):
        return batch.to(device, non_blocking=True)
    if isinstance(batch, Mapping):
        return {name: to_device(value, device) for name, value in batch.items()}
    if dataclasses.is_dataclass(batch) and not isinstance(batch, type):
        moved = {field.name: to_device(getattr(batch, field.name), device) for field in dataclasses.fields(batch)}
        return dataclasses.replace(batch, **moved)
    return batch


def run_recipe(recipe: Recipe, source: Source, options: Options, interruption: Interruption | None = None) -> Path:
    """Train, from the beginning or from where an earlier run in the same folder stopped.

    Args:
        recipe: what to do.
        source: images and captions of all phases.
        options: how to do it here.
        interruption: asked after each step.

    Returns:
        The model file.

    Raises:
        StoppedError: the run was asked to stop, and is saved.
        NotFiniteError: a loss or gradient is not finite; the weights before that step are saved.
        CheckpointError: a checkpoint cannot be written or read.
        SettingsError: recipe, data and processes do not fit each other.
    """
    interruption = interruption or Interruption()
    phases = [phase for phase in recipe.phases if isinstance(phase, TrainPhase)]
    if not phases:
        raise SettingsError(f"The recipe {recipe.name} has no phase that trains; give it one of kind train.")
    for each in phases:
        _check_batch(each, options)
    trained = build(recipe, phases[-1].augmentation)
    module = cast(nn.Module, trained.method)
    # Convolutions are faster with the channels last, on GPUs as on CPUs.
    module.to(options.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    if options.compile:
        trained.trainable.compile_training()
    start, results = _copy(trained.method.learned_state_dict()), dict[str, dict[str, Tensor]]()
    for phase in recipe.phases:
        if isinstance(phase, AveragePhase):
            start = _average(results, phase)
        else:
            if phase.start is not None:
                start = results[phase.start]
            trained.method.load_learned_state_dict(start)
            PhaseRun(recipe, phase, trained, source, options, interruption).run()
            start = _copy(trained.method.learned_state_dict())
        results[phase.name] = start
    trained.method.load_learned_state_dict(start)
    out = options.out / f"{recipe.name}.safetensors"
    _together(lambda: trained.write(out), options.device)
    return out


class PhaseRun:
    """One phase that trains.

    Args:
        recipe: that the phase is of.
        phase: what to do.
        trained: with the weights to start from, on the device.
        source: of the pairs.
        options: how to do it here.
        interruption: asked after each step.
    """

    def __init__(
        self,
        recipe: Recipe,
        phase: TrainPhase,
        trained: Trained,
        source: Source,
        options: Options,
        interruption: Interruption,
    ):
        self._phase, self._trained, self._options, self._interruption = phase, trained, options, interruption
        self.stepper = Stepper(trained.trainable, phase, options.device, options.accumulate, recipe.seed)
        self._order = Order(source.groups, phase.batch, recipe.seed)
        transform = Transform(phase.augmentation)
        self._dataset = PairDataset(source, self._order, transform, trained.trainable, recipe.seed)
        self._path = options.out / f"{phase.name}.ckpt"
        decisive = {"seed": recipe.seed, "model": recipe.model.model_dump(mode="json")}
        shown = phase.model_dump(mode="json", exclude={"log_every", "save_every", "evaluation"})
        self._recipe = json.dumps({**decisive, "phase": shown}, sort_keys=True)
        self._data = f"{source.identity()} order {ORDER_VERSION}"
        self._seconds = 0.0
        self._window: list[dict[str, float]] = []

    def run(self) -> None:
        """Take all steps that are left."""
        start = self._resume()
        if start >= self._phase.steps:
            return
        logger = self._logger(start)
        try:
            self._steps(start, logger)
        finally:
            if logger is not None:
                logger.close()

    def _logger(self, start: int) -> Logger | None:
        made: list[Logger] = []

        def make() -> None:
            made.append(make_logger(self._options.out, self._phase.name, start, self._options.loggers))

        _together(make, self._options.device)
        return made[0] if made else None

    def _steps(self, start: int, logger: Logger | None) -> None:
        phase, device = self._phase, self._options.device
        batches = Batches(
            self._dataset,
            self._trained.trainable,
            phase.batch,
            process_rank(),
            world_size(),
            start,
            phase.steps,
            self._options.workers,
        )
        shown = not self._options.quiet and process_rank() == 0
        bar = tqdm(total=phase.steps, initial=start, desc=phase.name, disable=not shown, mininterval=2)
        began, waited_before, seconds_before = time.perf_counter(), 0.0, self._seconds
        line_began = began
        for step, batch in zip(range(start, phase.steps), batches, strict=True):
            done_steps = step + 1
            try:
                done = self.stepper.step(step, to_device(batch, device), float(self._interruption.asked))
            except NotFiniteError:
                self._save(step)
                raise
            self._seconds = seconds_before + time.perf_counter() - began
            self._window.append({**done.losses, "grad_norm": done.grad_norm})
            stopped = done.flag > 0
            if done_steps % phase.log_every == 0 or done_steps == phase.steps:
                now = time.perf_counter()
                line = self._line(done, step, now - line_began, batches.waited - waited_before)
                line["replaced"] = batches.replaced
                line_began, waited_before = now, batches.waited
                self._write(logger, done_steps, line)
                bar.set_postfix(total=line["total"], waiting=f"{line['waiting']:.0%}")
            bar.update()
            if done_steps % _CHECK_EVERY == 0 or self.stepper.enter_stage(done_steps):
                check_equal(self.stepper.parameters, device)
            if stopped or done_steps % phase.save_every == 0 or done_steps == phase.steps:
                self._save(done_steps)
            if phase.evaluation is not None and done_steps % phase.evaluation.every == 0:
                self._evaluate(logger, done_steps)
            if stopped and done_steps < phase.steps:
                bar.close()
                raise StoppedError(
                    f"Stopped after step {done_steps} of {phase.steps} of {phase.name}, which is saved; run the same "
                    "command again to go on."
                )
        bar.close()

    def _line(self, done: StepResult, step: int, seconds: float, waited: float) -> dict[str, Any]:
        """The means since the last line."""
        device = self._options.device
        means = {name: float(np.mean([entry[name] for entry in self._window])) for name in self._window[0]}
        waiting = average_scalars({"waiting": min(1.0, waited / max(seconds, 1e-9))}, device)["waiting"]
        pairs = len(self._window) * self._phase.batch
        self._window.clear()
        line: dict[str, Any] = {"stage": self._phase.stage_at(step), "lr": done.lr}
        line |= {name: float(f"{value:.7g}") for name, value in means.items()}
        line |= {"images_per_second": round(pairs / seconds, 2), "waiting": round(waiting, 3)}
        line["seconds"] = round(self._seconds, 1)
        if device.type == "cuda":
            line["peak_gib"] = round(torch.cuda.max_memory_allocated(device) / 2**30, 2)
        return line

    def _write(self, logger: Logger | None, step: int, line: dict[str, Any]) -> None:
        def write() -> None:
            if logger is not None:
                logger.write(step, line)

        try:
            _together(write, self._options.device)
        except SettingsError:
            self._save(step)
            raise

    def _evaluate(self, logger: Logger | None, step: int) -> None:
        settings = self._phase.evaluation
        assert settings is not None
        module = cast(nn.Module, self._trained.method)
        mode = module.training

        def score() -> None:
            module.eval()
            found = evaluate(self._trained, settings, self._options.device)
            if logger is not None:
                logger.write(step, {"evaluation": found})

        _together(score, self._options.device)
        module.train(mode)

    def _save(self, step: int) -> None:
        content = {
            "format": 1,
            "recipe": self._recipe,
            "data": self._data,
            "step": step,
            "seconds": self._seconds,
            "window": self._window,
            "learned": self._trained.method.learned_state_dict(),
            **self.stepper.state_dict(),
        }
        _together(lambda: save_checkpoint(self._path, content), self._options.device)

    def _resume(self) -> int:
        """Take the state of the checkpoint, if there is one; returns the step to go on from."""
        state = load_checkpoint(self._path)
        # All processes go on from the same step, or none does.
        step = -1.0 if state is None else float(state["step"])
        if average_scalars({"step": step}, self._options.device)["step"] != step:
            raise CheckpointError(
                f"{self._path}: is not the same in all processes; give a folder for --out that all of them see."
            )
        if state is None:
            return 0
        if not self._options.accept_changes:
            for what, mine in (("recipe", self._recipe), ("data", self._data)):
                if state[what] != mine:
                    raise CheckpointError(
                        f"{self._path}: was made with other settings or data ({_difference(what, state[what], mine)}); "
                        "choose another folder for --out, or go on with --accept-changes."
                    )
        self._trained.method.load_learned_state_dict(state["learned"])
        self.stepper.load_state_dict(state)
        self._seconds, self._window = float(state["seconds"]), list(state["window"])
        return int(state["step"])


def _difference(what: str, before: str, now: str) -> str:
    if what == "data":
        return f"data {before}, now {now}"
    old, new = _flat(json.loads(before)), _flat(json.loads(now))
    name = next(name for name in sorted(old.keys() | new.keys()) if old.get(name) != new.get(name))
    return f"{name} {old.get(name)}, now {new.get(name)}"


def _flat(value: Any, prefix: str = "") -> dict[str, Any]:
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else None
    if items is None:
        return {prefix: value}
    found: dict[str, Any] = {}
    for key, part in items:
        found |= _flat(part, f"{prefix}.{key}".lstrip("."))
    return found


def _together(action: Any, device: torch.device) -> None:
    """Let the first process act while the others wait, and fail together if it fails.

    Raises:
        SettingsError: what the first process could not do.
    """
    failure: BaseException | None = None
    if process_rank() == 0:
        try:
            action()
        except OSError as error:
            place = error.filename or "a file of the run"
            remedy = remedy_of(error) if is_full(error) else "choose another folder"
            failure = SettingsError(f"{place}: cannot be written: {reason_of(error)}; {remedy} and go on")
        except Exception as error:
            failure = error
    if world_size() > 1:
        failed = torch.tensor(float(failure is not None), device=device)
        dist.all_reduce(failed)
        if failed and failure is None:
            failure = CheckpointError("The first process could not go on; its message says why.")
    if failure is not None:
        raise failure


def _check_batch(phase: TrainPhase, options: Options) -> None:
    parts = world_size() * options.accumulate
    if phase.batch % parts:
        raise SettingsError(
            f"The batch of {phase.batch} pairs of {phase.name} cannot be cut into {world_size()} processes with "
            f"{options.accumulate} parts each; choose numbers whose product divides it."
        )


def _average(results: Mapping[str, Mapping[str, Tensor]], phase: AveragePhase) -> dict[str, Tensor]:
    first = results[next(iter(phase.shares))]
    return {
        name: sum((share * results[key][name] for key, share in phase.shares.items()), torch.zeros_like(tensor))
        for name, tensor in first.items()
    }


def _copy(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.detach().clone() for name, tensor in state.items()}
