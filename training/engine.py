"""Runs a recipe: phases, checkpoints, logs, and the ways in which a run may end before its end."""

from __future__ import annotations

import dataclasses
import json
import math
import signal
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm

from tcl_core.errors import SettingsError, TclError, is_full, reason_of, remedy_of
from training.checkpoints import CheckpointError, difference, load_checkpoint, save_checkpoint
from training.config import AveragePhase, Recipe, TrainPhase
from training.data.augment import Transform
from training.data.loader import Batches, PairDataset
from training.data.order import ORDER_VERSION, Order
from training.data.source import Source
from training.distributed import average_scalars, check_equal, fail_together, process_rank, world_size
from training.evaluation import check_words, evaluate, open_evaluations
from training.log import Logger, has_line, make_logger
from training.model import Trained, build
from training.step import NotFiniteError, Stepper, StepResult

__all__ = ["Interruption", "Options", "StoppedError", "check_batch", "run_recipe", "to_device"]

_CHECK_EVERY = 500
_RELAYED_WITHIN = 2.0  # seconds


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
        accept_changes: go on from a checkpoint of other settings or other data.
        evaluation_data: folder of the benchmarks that a recipe evaluates on.
        quiet: no progress bar.
    """

    out: Path
    device: torch.device
    workers: int = 0
    accumulate: int = 1
    compile: bool = False
    loggers: tuple[str, ...] = ()
    accept_changes: bool = False
    evaluation_data: Path | None = None
    quiet: bool = False


class Interruption:
    """Remembers that a signal asked for the end.

    Attributes:
        asked: whether one did.
    """

    def __init__(self) -> None:
        self.asked = False
        self._asked_at = 0.0

    @contextmanager
    def listening(self) -> Iterator[Interruption]:
        """Take SIGTERM and the first SIGINT as a wish to stop after the step; a later SIGINT ends at once."""

        def note(number: int, frame: object) -> None:
            now = time.monotonic()
            # A terminal sends Ctrl-C to torchrun and to its processes, to which torchrun then sends it once more.
            if self.asked and number == signal.SIGINT and now - self._asked_at > _RELAYED_WITHIN:
                raise KeyboardInterrupt
            self.asked, self._asked_at = True, self._asked_at if self.asked else now

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
        NotFiniteError: a loss or gradient is not finite; the weights before that step are saved, and the checkpoint
            before them is kept beside them.
        CheckpointError: a checkpoint cannot be written or read.
        SettingsError: recipe, data and processes do not fit each other.
    """
    interruption = interruption or Interruption()
    phases = [phase for phase in recipe.phases if isinstance(phase, TrainPhase)]
    if not phases:
        raise SettingsError(f"The recipe {recipe.name} has no phase that trains; give it one of kind train.")
    for each in phases:
        check_batch(each, options)
    trained = build(recipe, phases[-1].augmentation)
    module = cast(nn.Module, trained.method)
    # Convolutions are faster with the channels last, on GPUs as on CPUs.
    module.to(options.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    if options.compile:
        trained.trainable.compile_training()
    # All at once: what is wrong with the last phase should not be found out after the first one.
    runs = {phase.name: PhaseRun(recipe, phase, trained, source, options, interruption) for phase in phases}
    start, results = _copy(trained.method.learned_state_dict()), dict[str, dict[str, Tensor]]()
    for phase in recipe.phases:
        if isinstance(phase, AveragePhase):
            start = _average(results, phase)
        else:
            if phase.start is not None:
                start = results[phase.start]
            trained.method.load_learned_state_dict(start)
            # Moments of the optimizer and open files go with it.
            runs.pop(phase.name).run()
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
        self._evaluations = open_evaluations(phase.evaluation, options.evaluation_data)
        check_words(trained, self._evaluations, options.device)
        self._dataset = PairDataset(source, self._order, transform, trained.trainable, recipe.seed)
        self._path = options.out / f"{phase.name}.ckpt"
        decisive = {"seed": recipe.seed, "model": recipe.model.model_dump(mode="json")}
        shown = phase.model_dump(mode="json", exclude={"log_every", "save_every", "evaluation"})
        self._recipe = json.dumps({**decisive, "phase": shown}, sort_keys=True)
        self._data = f"{source.identity()} order {ORDER_VERSION}"
        self._seconds = 0.0
        self._replaced = 0
        self._saved = 0
        self._window: list[dict[str, float]] = []

    def run(self) -> None:
        """Take all steps that are left."""
        start = self._resume()
        lacks_evaluation = self._lacks_evaluation(start)
        if start >= self._phase.steps and not lacks_evaluation:
            return
        logger = self._logger(start)
        try:
            if lacks_evaluation:
                self._evaluate(logger, start)
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
        began, seconds_before, replaced_before = time.perf_counter(), self._seconds, self._replaced
        line_began, line_start, waited_before = began, start, 0.0
        for step in range(start, phase.steps):
            done_steps = step + 1
            try:
                batch = self._next(batches)
                done = self.stepper.step(step, to_device(batch, device), float(self._interruption.asked))
            except TclError as error:
                raise self._keep(step, error) from error
            self._seconds = seconds_before + time.perf_counter() - began
            entry = {**done.losses, "grad_norm": done.grad_norm}
            self._window.append(entry | ({"skipped": float(done.skipped)} if phase.precision == "float16" else {}))
            stopped = done.flag > 0
            due = self._is_due(done_steps)
            # Also before an evaluation, which takes long, and is made up for where it is interrupted.
            saving = stopped or due or done_steps % phase.save_every == 0 or done_steps == phase.steps
            logging = done_steps % phase.log_every == 0 or done_steps == phase.steps
            if saving or logging:
                self._replaced = replaced_before + self._sum(batches.replaced)
            if logging:
                seconds, waited = time.perf_counter() - line_began, batches.waited - waited_before
                line = self._line(done, step, (done_steps - line_start) * phase.batch, seconds, waited)
                self._write(logger, done_steps, line)
                bar.set_postfix(total=line["total"], waiting=f"{line['waiting']:.0%}")
            bar.update()
            if done_steps % _CHECK_EVERY == 0 or self.stepper.enter_stage(done_steps):
                check_equal(self.stepper.parameters, device)
            if saving:
                self._save(done_steps)
            ending = stopped and done_steps < phase.steps
            if due and not ending:
                self._evaluate(logger, done_steps)
            if ending:
                bar.close()
                raise StoppedError(
                    f"Stopped after step {done_steps} of {phase.steps} ({phase.name}) and saved; run the same command "
                    "again to resume."
                )
            if logging:
                # Checkpoints and evaluations are no part of the speed.
                line_began, line_start, waited_before = time.perf_counter(), done_steps, batches.waited
        bar.close()

    def _next(self, batches: Batches) -> Any:
        """The next batch, if all processes have theirs."""
        failure: TclError | None = None
        batch = None
        try:
            batch = next(batches)
        except TclError as error:
            failure = error
        fail_together(failure, self._options.device)
        return batch

    def _keep(self, step: int, error: TclError) -> TclError:
        """Save what was there before a step that failed in all processes; returns the error, which says so."""
        if isinstance(error, NotFiniteError) and 0 < self._saved < step:
            # Weights so close to NaN may be beyond saving, so the checkpoint before them is kept as well.
            older, saved = self._path.with_suffix(".before.ckpt"), self._saved
            _together(lambda: self._path.replace(older), self._options.device)
            error = NotFiniteError(
                f"{error}; should the weights of step {step} be beyond saving, rename {older}, which is of step {saved}"
            )
        self._save(step)
        return error

    def _sum(self, count: int) -> int:
        """Over all processes."""
        return round(average_scalars({"count": float(count)}, self._options.device)["count"] * world_size())

    def _line(self, done: StepResult, step: int, pairs: int, seconds: float, waited: float) -> dict[str, Any]:
        """The means since the last line; ``pairs`` took ``seconds``, and a part of that was spent waiting."""
        device = self._options.device
        means = {name: _finite_mean([entry[name] for entry in self._window]) for name in self._window[0]}
        waiting = average_scalars({"waiting": min(1.0, waited / max(seconds, 1e-9))}, device)["waiting"]
        self._window.clear()
        line: dict[str, Any] = {"stage": self._phase.stage_at(step), "lr": done.lr}
        line |= {name: None if value is None else float(f"{value:.7g}") for name, value in means.items()}
        line |= {"images_per_second": round(pairs / seconds, 2), "waiting": round(waiting, 3)}
        line |= {"seconds": round(self._seconds, 1), "replaced": self._replaced}
        if device.type == "cuda":
            line["peak_gib"] = round(torch.cuda.max_memory_allocated(device) / 2**30, 2)
        return line

    def _write(self, logger: Logger | None, step: int, line: dict[str, Any]) -> None:
        def write() -> None:
            if logger is not None:
                logger.write(step, line)

        try:
            _together(write, self._options.device)
        except Exception:
            self._save(step)
            raise

    def _is_due(self, step: int) -> bool:
        settings = self._phase.evaluation
        return settings is not None and step > 0 and step % settings.every == 0

    def _lacks_evaluation(self, step: int) -> bool:
        """Whether the evaluation after a step was cut off, by what the first process reads in its log."""
        if not self._is_due(step):
            return False
        lacks = process_rank() == 0 and not has_line(
            self._options.out / f"{self._phase.name}.jsonl", step, "evaluation"
        )
        return self._sum(int(lacks)) > 0

    def _evaluate(self, logger: Logger | None, step: int) -> None:
        settings = self._phase.evaluation
        assert settings is not None
        module = cast(nn.Module, self._trained.method)
        mode = module.training
        module.eval()
        found = evaluate(self._trained, self._evaluations, settings.refine, self._options.device)
        module.train(mode)
        self._write(logger, step, {"evaluation": found})

    def _save(self, step: int) -> None:
        content = {
            "format": 1,
            "recipe": self._recipe,
            "data": self._data,
            "step": step,
            "seconds": self._seconds,
            "replaced": self._replaced,
            "window": self._window,
            "learned": self._trained.method.learned_state_dict(),
            **self.stepper.state_dict(),
        }
        _together(lambda: save_checkpoint(self._path, content), self._options.device)
        self._saved = step

    def _resume(self) -> int:
        """Take the state of the checkpoint, if there is one; returns the step to go on from."""
        state = load_checkpoint(self._path)
        # All processes go on from the same step, or none does.
        step = -1.0 if state is None else float(state["step"])
        if average_scalars({"step": step}, self._options.device)["step"] != step:
            raise CheckpointError(
                f"{self._path}: is not the same in all processes; choose an --out that all of them share."
            )
        if state is None:
            return 0
        if not self._options.accept_changes:
            for what, mine in (("recipe", self._recipe), ("data", self._data)):
                if state[what] != mine:
                    raise CheckpointError(
                        f"{self._path}: was written with different settings or data "
                        f"({difference(what, state[what], mine)}); choose another --out, or resume all the same with "
                        "--accept-changes."
                    )
        try:
            self._trained.method.load_learned_state_dict(state["learned"])
            self.stepper.load_state_dict(state)
        except (TclError, ValueError) as error:
            raise CheckpointError(
                f"{self._path}: belongs to a model with other trained parameters ({error}); choose another --out."
            ) from error
        self._seconds, self._window = float(state["seconds"]), list(state["window"])
        self._replaced = int(state.get("replaced", 0))
        self._saved = int(state["step"])
        return self._saved


def _finite_mean(values: Sequence[float]) -> float | None:
    """Steps that float16 skips have an infinite gradient, which JSON has no number for."""
    finite = [value for value in values if math.isfinite(value)]
    return float(np.mean(finite)) if finite else None


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
            failure = SettingsError(
                f"{place}: cannot be written: {reason_of(error)}; {remedy} and run the command again"
            )
        except Exception as error:
            failure = error
    fail_together(failure, device)


def check_batch(phase: TrainPhase, options: Options) -> None:
    """Refuse a batch that processes and parts cannot share equally.

    Raises:
        SettingsError: it does not divide.
    """
    parts = world_size() * options.accumulate
    if phase.batch % parts:
        raise SettingsError(
            f"The batch of {phase.batch} pairs in phase {phase.name} does not split evenly over {world_size()} x "
            f"{options.accumulate} (processes x parts); choose a multiple of {parts} as the batch, or another "
            "--accumulate."
        )


def _average(results: Mapping[str, Mapping[str, Tensor]], phase: AveragePhase) -> dict[str, Tensor]:
    first = results[next(iter(phase.shares))]
    return {
        name: sum((share * results[key][name] for key, share in phase.shares.items()), torch.zeros_like(tensor))
        for name, tensor in first.items()
    }


def _copy(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.detach().clone() for name, tensor in state.items()}
