"""One phase of a training: its steps, checkpoints and log, and the ways in which it may end before its end."""

from __future__ import annotations

import dataclasses
import math
import signal
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from tcl_core.errors import SettingsError, TclError, is_full, reason_of, remedy_of
from training.checkpoints import CheckpointError, difference, load_checkpoint, save_checkpoint
from training.config import TrainPhase
from training.distributed import average_scalars, check_equal, fail_together, process_rank, world_size
from training.log import Logger, has_line, make_logger
from training.step import NotFiniteError, Stepper, StepResult

__all__ = ["Feed", "Identity", "Interruption", "Options", "PhaseRun", "StoppedError", "act_together", "to_device"]

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
        keep_activations: spare a second forward pass with more memory, see `BatchTrainable.keep_activations`.
        loggers: keys of `training.log.LOGGERS`.
        accept_changes: go on from a checkpoint of other settings or other data.
        evaluation_data: folder of the benchmarks that a recipe evaluates on.
        quiet: no progress bar.
        observer: told the name of the phase, the step and the numbers of each line of the log.
    """

    out: Path
    device: torch.device
    workers: int = 0
    accumulate: int = 1
    compile: bool = False
    keep_activations: bool = False
    loggers: tuple[str, ...] = ()
    accept_changes: bool = False
    evaluation_data: Path | None = None
    quiet: bool = False
    observer: Callable[[str, int, Mapping[str, Any]], None] | None = None


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
    """Move the tensors of a batch, which is a mapping, a list or a dataclass."""
    if isinstance(batch, Tensor):
        return batch.to(device, non_blocking=True)
    if isinstance(batch, Mapping):
        return {name: to_device(value, device) for name, value in batch.items()}
    if isinstance(batch, list):
        return [to_device(value, device) for value in batch]
    if dataclasses.is_dataclass(batch) and not isinstance(batch, type):
        moved = {field.name: to_device(getattr(batch, field.name), device) for field in dataclasses.fields(batch)}
        return dataclasses.replace(batch, **moved)
    return batch


class Feed(Protocol):
    """Batches of a process, from a step on.

    Attributes:
        waited: seconds that were spent waiting for batches so far.
        replaced: pairs that could not be used so far.
    """

    waited: float
    replaced: int

    def __next__(self) -> Any:
        """The next batch, as the method's `embed` and `loss` take it."""

    def close(self) -> None:
        """End what makes batches."""


class Learned(Protocol):
    """What a checkpoint holds of a method."""

    def learned_state_dict(self) -> dict[str, Tensor]:
        """The tensors that training changes."""

    def load_learned_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Take such tensors."""


@dataclass(frozen=True)
class Identity:
    """What must be the same where a checkpoint is resumed.

    Attributes:
        recipe: everything that decides the weights, as JSON.
        data: what the batches are made of.
    """

    recipe: str
    data: str


class PhaseRun:
    """One phase that trains.

    Args:
        phase: what to do.
        learned: whose tensors a checkpoint holds.
        stepper: takes the steps, from the weights to start from.
        feed: the batches from a step on.
        identity: of recipe and data.
        options: how to do it here.
        interruption: asked after each step.
        score: what the phase's evaluation measures; needed where it asks for one.
    """

    def __init__(
        self,
        phase: TrainPhase,
        learned: Learned,
        stepper: Stepper,
        feed: Callable[[int], Feed],
        identity: Identity,
        options: Options,
        interruption: Interruption,
        score: Callable[[], dict[str, float]] | None = None,
    ):
        self._phase, self._learned, self._options, self._interruption = phase, learned, options, interruption
        self.stepper, self._feed, self._score = stepper, feed, score
        self._path = options.out / f"{phase.name}.ckpt"
        self._recipe, self._data = identity.recipe, identity.data
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
            with closing(self._feed(start)) as batches:
                self._steps(start, batches, logger)
        finally:
            if logger is not None:
                logger.close()

    def _logger(self, start: int) -> Logger | None:
        made: list[Logger] = []

        def make() -> None:
            made.append(make_logger(self._options.out, self._phase.name, start, self._options.loggers))

        act_together(make, self._options.device)
        return made[0] if made else None

    def _steps(self, start: int, batches: Feed, logger: Logger | None) -> None:
        phase, device = self._phase, self._options.device
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

    def _next(self, batches: Feed) -> Any:
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
            act_together(lambda: self._path.replace(older), self._options.device)
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
            if self._options.observer is not None:
                self._options.observer(self._phase.name, step, line)

        try:
            act_together(write, self._options.device)
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
        assert self._score is not None
        self._write(logger, step, {"evaluation": self._score()})

    def _save(self, step: int) -> None:
        content = {
            "format": 1,
            "recipe": self._recipe,
            "data": self._data,
            "step": step,
            "seconds": self._seconds,
            "replaced": self._replaced,
            "window": self._window,
            "learned": self._learned.learned_state_dict(),
            **self.stepper.state_dict(),
        }
        act_together(lambda: save_checkpoint(self._path, content), self._options.device)
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
            self._learned.load_learned_state_dict(state["learned"])
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


def act_together(action: Any, device: torch.device) -> None:
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
