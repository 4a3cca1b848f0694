"""Train the embedded model: ``python -m training.playground``.

Runs on two CPU cores or on a GPU, shows progress, can be interrupted and resumes where it stopped. Checkpoints, the
record of the run (``run.jsonl``) and the model file are kept in one folder.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import cast

import torch

from tcl_core.devices import select_device
from tcl_core.errors import SettingsError, TclError
from training.cpu import Precision, native_precision
from training.journal import code_of, read_journal, spent
from training.phase import Interruption, StoppedError
from training.playground.arguments import at_least
from training.playground.data import WORKERS
from training.playground.estimate import estimate
from training.playground.recipe import RECIPE
from training.playground.run import begin, ground, ground_folder, run

__all__ = ["main"]

_REPOSITORY = Path(__file__).parents[2]
_CODE = ("training", "tcl_core")


def _print_estimate(precision: Precision) -> None:
    total = 0.0
    for part in estimate(RECIPE, precision):
        total += part.seconds
        print(f"{part.name:<24} {part.count:>7} {part.seconds / 60:6.1f} min", flush=True)
    print(f"{'in all':<32} {total / 60:6.1f} min, in {precision}")


def _print_times(path: Path) -> None:
    parts = spent(read_journal(path))
    for name, found in parts.items():
        print(f"{name:<24} {found.wall:8.0f} s {found.cpu:8.0f} CPU s")
    wall, cpu = (sum(getattr(found, key) for found in parts.values()) for key in ("wall", "cpu"))
    print(f"{'in all':<24} {wall:8.0f} s {cpu:8.0f} CPU s ({wall / 60:.0f} minutes)")


def main(arguments: Sequence[str] | None = None) -> int:
    """Parse the command line and train."""
    parser = argparse.ArgumentParser(prog="python -m training.playground", description=__doc__)
    parser.add_argument("--work", type=Path, default=Path("build/playground"), help="folder of the run")
    parser.add_argument("--threads", type=at_least(1), default=2, help="CPU threads")
    parser.add_argument(
        "--precision",
        choices=("auto", "float32", "bfloat16"),
        default="auto",
        help="auto: that of the run if it is resumed, else bfloat16 where the processor is fast in it",
    )
    parser.add_argument("--device", default="cpu", help="cpu, or the GPU that trains: auto, cuda or cuda:N")
    parser.add_argument("--workers", type=at_least(0), default=WORKERS, help="processes that draw images")
    parser.add_argument(
        "--feeders",
        type=at_least(0),
        default=0,
        help="processes that make batches (Linux); 4 keep a GPU from waiting for them",
    )
    parser.add_argument(
        "--ground-seed",
        type=at_least(0),
        metavar="N",
        help="train the TCL stage of a finished run anew, with another seed",
    )
    parser.add_argument(
        "--estimate", action="store_true", help="only print how long training would take on this machine"
    )
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    folder = options.work if options.ground_seed is None else ground_folder(options.work, options.ground_seed)
    try:
        device = select_device(options.device)
        precision = _precision(options.precision, options.work, device)
        if options.estimate:
            _print_estimate(precision)
            return 0
        code = code_of(_REPOSITORY, _CODE)
        if code.modified:
            raise SettingsError(
                f"The checkout differs from its commit in {', '.join(code.modified[:3])}; commit the changes, so that "
                "the record of the run names the code that ran."
            )
        with Interruption().listening() as interruption:
            session = begin(
                RECIPE,
                options.work,
                precision,
                code,
                interruption,
                ground_seed=options.ground_seed,
                workers=options.workers,
                device=device,
                feeders=options.feeders,
            )
            sha256 = run(session) if options.ground_seed is None else ground(session, options.ground_seed)
    except StoppedError as error:
        print(error, file=sys.stderr)
        return 130
    except KeyboardInterrupt:
        return 130
    except TclError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    _print_times(folder / "run.jsonl")
    print(f"wrote {folder / 'playground.safetensors'} (SHA-256 {sha256})")
    if options.ground_seed is None:
        print(f"score it: python -m training.playground.tables --run {options.work}")
    return 0


def _precision(wanted: str, folder: Path, device: torch.device) -> Precision:
    if wanted != "auto":
        return cast(Precision, wanted)
    entries = read_journal(folder / "run.jsonl")
    if entries:
        return cast(Precision, entries[0]["about"]["precision"])
    return native_precision(device)


if __name__ == "__main__":
    raise SystemExit(main())
