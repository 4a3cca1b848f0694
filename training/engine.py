"""Runs a recipe: its phases on pairs of a source, one after the other."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import cast

import torch
from torch import Tensor, nn

from tcl_core.errors import SettingsError
from training.config import AveragePhase, Recipe, TrainPhase
from training.data.augment import Transform
from training.data.loader import Batches, PairDataset
from training.data.order import ORDER_VERSION, Order
from training.data.source import Source
from training.distributed import process_rank, world_size
from training.evaluation import Evaluated, check_words, evaluate, open_evaluations
from training.model import Trained, build
from training.phase import Feed, Identity, Interruption, Options, PhaseRun, StoppedError, act_together, to_device
from training.step import Stepper

__all__ = ["Interruption", "Options", "StoppedError", "built", "check_batch", "run_recipe", "to_device"]


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
    trained = built(recipe, phases[-1], options)
    # All at once: what is wrong with the last phase should not be found out after the first one.
    runs = {phase.name: _source_run(recipe, phase, trained, source, options, interruption) for phase in phases}
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
    act_together(lambda: trained.write(out), options.device)
    return out


def built(recipe: Recipe, last: TrainPhase, options: Options) -> Trained:
    """The model of a recipe on its device, as its phases train it.

    Args:
        recipe: that names the model.
        last: its last phase that trains, whose images the model file will ask for.
        options: of the run.
    """
    trained = build(recipe, last.augmentation)
    module = cast(nn.Module, trained.method)
    # Convolutions are faster with the channels last, on GPUs as on CPUs.
    module.to(options.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    if options.compile:
        trained.trainable.compile_training()
    if options.keep_activations:
        trained.trainable.keep_activations()
    return trained


def _source_run(
    recipe: Recipe,
    phase: TrainPhase,
    trained: Trained,
    source: Source,
    options: Options,
    interruption: Interruption,
) -> PhaseRun:
    """A phase of a recipe, on pairs of a source."""
    stepper = Stepper(trained.trainable, phase, options.device, options.accumulate, recipe.seed)
    order = Order(source.groups, phase.batch, recipe.seed)
    evaluations = open_evaluations(phase.evaluation, options.evaluation_data)
    check_words(trained, evaluations, options.device)
    dataset = PairDataset(source, order, Transform(phase.augmentation), trained.trainable, recipe.seed)
    decisive = {"seed": recipe.seed, "model": recipe.model.model_dump(mode="json")}
    shown = phase.model_dump(mode="json", exclude={"log_every", "save_every", "evaluation"})
    identity = Identity(
        json.dumps({**decisive, "phase": shown}, sort_keys=True), f"{source.identity()} order {ORDER_VERSION}"
    )

    def feed(start: int) -> Feed:
        size, rank, workers = phase.batch, process_rank(), options.workers
        return Batches(dataset, trained.trainable, size, rank, world_size(), start, phase.steps, workers)

    score = partial(_scores, trained, evaluations, phase, options.device)
    return PhaseRun(phase, trained.method, stepper, feed, identity, options, interruption, score)


def _scores(
    trained: Trained, evaluations: Sequence[Evaluated], phase: TrainPhase, device: torch.device
) -> dict[str, float]:
    assert phase.evaluation is not None
    module = cast(nn.Module, trained.method)
    mode = module.training
    module.eval()
    found = evaluate(trained, evaluations, phase.evaluation.refine, device)
    module.train(mode)
    return found


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
