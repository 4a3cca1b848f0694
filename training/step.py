"""One step of a phase that trains a method: losses, gradients, optimizer."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from tcl_core.devices import autocast
from tcl_core.errors import SettingsError
from tcl_core.methods.trainable import BatchTrainable
from training.config import TrainPhase
from training.distributed import average_gradients, average_scalars
from training.optimizer import make_optimizer, set_learning_rate
from training.schedule import learning_rate

__all__ = ["NotFiniteError", "Stepper", "StepResult"]


class NotFiniteError(SettingsError):
    """A loss or a gradient that is NaN or infinite; the parameters are those of before the step."""


@dataclass(frozen=True)
class StepResult:
    """What a step says of itself.

    Attributes:
        losses: scalars of the method, means over all processes.
        lr: learning rate.
        grad_norm: norm of the gradient before it was clipped; not finite where the step was skipped.
        flag: mean over all processes of what each of them gave.
        skipped: whether the gradient was too large for float16 and a smaller scale is tried in the next step.
    """

    losses: dict[str, float]
    lr: float
    grad_norm: float
    flag: float
    skipped: bool = False


class Stepper:
    """Takes the steps of a phase; each is decided by its number, its batch and what the steps before it left.

    Args:
        method: what is trained, on ``device``, in float32.
        phase: stages, optimizer, schedule, clipping and precision.
        device: where the method is.
        accumulate: parts in which a batch is worked through. More than one costs a forward pass, and saves the memory
            of all parts but one (gradient caching, arXiv 2101.06983).
        seed: of what a step draws.
    """

    def __init__(
        self, method: BatchTrainable, phase: TrainPhase, device: torch.device, accumulate: int = 1, seed: int = 0
    ):
        self.method, self.phase, self.device, self.accumulate = method, phase, device, accumulate
        self._seed = seed
        module = self._module
        chosen: set[int] = set()
        for stage in phase.stages:
            chosen |= {id(parameter) for parameter in method.trainable(stage.stage)}
        self.named = {name: p for name, p in module.named_parameters() if id(p) in chosen}
        self.parameters = list(self.named.values())
        self.optimizer = make_optimizer(self.named.items(), phase.optimizer)
        self.scaler = torch.amp.GradScaler(device.type, enabled=phase.precision == "float16")
        self._groups = [{key: group[key] for key in _OF_RECIPE} for group in self.optimizer.param_groups]
        self._stage: str | None = None

    @property
    def _module(self) -> nn.Module:
        assert isinstance(self.method, nn.Module)
        return self.method

    def enter_stage(self, step: int) -> bool:
        """Freeze and unfreeze as the step's stage asks; returns whether the stage changed."""
        stage = self.phase.stage_at(step)
        if stage == self._stage:
            return False
        self.method.trainable(stage)
        self._stage = stage
        return True

    def step(self, step: int, batch: Any, flag: float = 0.0) -> StepResult:
        """Take a step.

        Args:
            step: its number, from 0.
            batch: of this process, as the method's `collate` makes it.
            flag: a number that all processes shall know the mean of, such as a wish to stop.

        Raises:
            NotFiniteError: a loss or the gradient is not finite, in any process; nothing has changed.
        """
        self.enter_stage(step)
        rate = learning_rate(self.phase.schedule, step, self.phase.steps)
        set_learning_rate(self.optimizer, rate)
        self.optimizer.zero_grad(set_to_none=True)
        rng = np.random.default_rng([self._seed, step])
        shared = self._shared(batch, torch.Generator().manual_seed(int(rng.integers(2**62))))
        losses = self._backward_in_parts(shared) if self.accumulate > 1 else self._backward(shared)
        # One copy from the device for all of them.
        values = dict(
            zip(losses, torch.stack([value.detach().float() for value in losses.values()]).tolist(), strict=True)
        )
        means = average_scalars(values | {"flag": flag}, self.device)
        flag = means.pop("flag")
        if not all(map(math.isfinite, means.values())):
            raise NotFiniteError(f"The losses of step {step} are not finite: {_listed(means)}; {_REMEDY}")
        # Averaged before they are looked at, so that all processes skip the same steps.
        average_gradients(self.parameters)
        self.scaler.unscale_(self.optimizer)
        norm = float(nn.utils.clip_grad_norm_(self.parameters, self.phase.clip_norm or float("inf")))
        skipped = not math.isfinite(norm)
        if skipped and (not self.scaler.is_enabled() or self.scaler.get_scale() < _SMALLEST_SCALE):
            raise NotFiniteError(f"The gradient of step {step} is not finite; {_REMEDY}")
        self.scaler.step(self.optimizer)
        self.scaler.update()
        return StepResult(means, rate, norm, flag, skipped)

    def state_dict(self) -> dict[str, Any]:
        """State of optimizer and scaler, for a checkpoint."""
        return {"optimizer": self.optimizer.state_dict(), "scaler": self.scaler.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take the state of a checkpoint; the recipe's own settings stay.

        Raises:
            ValueError: it is of other parameters.
        """
        self.optimizer.load_state_dict(state["optimizer"])
        # The optimizer's state holds the settings that it was made with, which --accept-changes may have changed.
        for group, own in zip(self.optimizer.param_groups, self._groups, strict=True):
            group.update(own)
        # Without one where the checkpoint was made in another precision.
        if state["scaler"]:
            self.scaler.load_state_dict(state["scaler"])

    def _precision(self) -> AbstractContextManager[object]:
        dtypes = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
        return autocast(self.device, dtypes[self.phase.precision])

    def _shared(self, batch: Any, generator: torch.Generator) -> Any:
        with self._precision(), torch.no_grad():
            return self.method.share(batch, generator)

    def _backward(self, batch: Any) -> Mapping[str, Tensor]:
        with self._precision():
            losses = self.method.loss(self.method.embed(batch), batch)
        self.scaler.scale(losses["total"]).backward()
        return losses

    def _backward_in_parts(self, batch: Any) -> Mapping[str, Tensor]:
        """Gradients of the whole batch's objective with the memory of one part.

        What the objective needs is first made of each part without gradient. Its own gradient is then handed to each
        part, which is made once more.
        """
        parts = self.method.split(batch, self.accumulate)
        with torch.no_grad(), self._precision():
            parts = [self.method.precompute(part) for part in parts]
            found = [self._compared(part) for part in parts]
        named = [_tensors_of(compared) for compared in found]
        whole = {
            name: torch.cat([tensors[name] for tensors in named]).requires_grad_(named[0][name].is_floating_point())
            for name in named[0]
        }
        with self._precision():
            losses = self.method.objective(_with_tensors(found[0], whole), batch)
        # Parameters that the objective itself holds, such as temperatures, get their gradient here.
        self.scaler.scale(losses["total"]).backward()
        sizes = [len(next(iter(tensors.values()))) for tensors in named]
        del found, named
        grads = {name: tensor.grad.split(sizes) for name, tensor in whole.items() if tensor.grad is not None}
        for number, part in enumerate(parts):
            with self._precision():
                again = _tensors_of(self._compared(part))
            names = [name for name in grads if again[name].requires_grad]
            torch.autograd.backward([again[name] for name in names], [grads[name][number] for name in names])
        return losses

    def _compared(self, part: Any) -> Any:
        return self.method.compare(self.method.embed(part), part)


def _tensors_of(value: Any) -> dict[str, Tensor]:
    """Tensors by name, of a mapping, a named tuple or a dataclass."""
    if isinstance(value, Mapping):
        return dict(value)
    if isinstance(value, tuple):
        return dict(value._asdict())  # type: ignore[attr-defined]
    return {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}


def _with_tensors(like: Any, tensors: dict[str, Tensor]) -> Any:
    """The same kind of mapping, named tuple or dataclass with other tensors."""
    return tensors if isinstance(like, Mapping) else type(like)(**tensors)


def _listed(values: Mapping[str, float]) -> str:
    return ", ".join(f"{name} {value:.4g}" for name, value in values.items())


# A gradient that is not even finite when it is scaled down this far will not become so.
_SMALLEST_SCALE = 2.0**-10
_OF_RECIPE = ("weight_decay", "betas", "eps", "scale")
_REMEDY = (
    "the step was not taken; resume with --accept-changes and a lower learning rate, a longer warm-up or "
    "--set phases.0.precision=float32"
)
