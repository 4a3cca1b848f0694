"""``python -m benchmarks.pipeline speed|memory|simulate``; let the machine do nothing else."""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

from benchmarks.compare_revision import BenchmarkError, worktree
from benchmarks.pipeline.processes import WatchedRun, watch

_FASTER, _FASTER_THAN_OLD, _MORE_MEMORY, _MEGABYTES_OF_WORKER, _BUSY = 1.5, 4.0, 1.3, 300, 0.85
_FLAT_MEGABYTES = 50
_OTHERS = 0.05
"""If other processes take more of the cores than this, times say little."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure one part, and print figures beside their targets."""
    options = _parser().parse_args(arguments)
    try:
        return int(options.run(options))
    except BenchmarkError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.pipeline", description=__doc__)
    parts = parser.add_subparsers(required=True, metavar="PART")
    speed = parts.add_parser("speed", help="photographs from files to COCO, without and with workers")
    speed.add_argument("--images", type=int, default=200)
    speed.add_argument("--rounds", type=int, default=1)
    speed.add_argument("--workers", default="auto", help="compared with none")
    speed.add_argument("--backend", default="auto")
    speed.add_argument("--side", type=int, default=448, help="of the windows and the images' short side, in pixels")
    speed.add_argument("--layers", type=int, default=12, help="blocks of the image tower; 12 is a ViT-B/16")
    speed.add_argument("--method", default="", help="another method on the same CLIP, such as maskclip")
    speed.add_argument("--against", metavar="REVISION", help="also compare with this revision")
    speed.set_defaults(run=_speed)
    memory = parts.add_parser("memory", help="many small images; memory has to stay flat")
    memory.add_argument("--images", type=int, default=10_000)
    memory.add_argument("--workers", default="auto")
    memory.set_defaults(run=_memory)
    simulation = parts.add_parser("simulate", help="a device of 5 ms an image and 16 workers that sleep")
    simulation.add_argument("--images", type=int, default=400)
    simulation.add_argument("--workers", type=int, default=16)
    simulation.add_argument("--size", type=int, nargs=2, default=(640, 480), metavar=("WIDTH", "HEIGHT"))
    simulation.add_argument(
        "--maps-apart",
        action="store_true",
        help="the device's 5 ms do not hold the way of an image's maps to main memory",
    )
    simulation.add_argument(
        "--in-turn", action="store_true", help="the device waits while a group is decided, as a CPU does"
    )
    simulation.set_defaults(run=_simulate)
    return parser


def _speed(options: argparse.Namespace) -> int:
    from benchmarks.pipeline.inputs import label_options, write_model, write_old_model, write_photographs

    with tempfile.TemporaryDirectory() as name, ExitStack() as stack:
        folder = Path(name)
        write_photographs(folder / "photographs", options.images)
        model = write_model(folder / "random.safetensors", layers=options.layers, side=options.side)
        named = f"{options.method}:{model}" if options.method else str(model)
        common = ["prelabel", str(folder / "photographs"), *label_options(), "--model", named, "--device", "cpu"]
        new = [*common, "--backend", options.backend]
        runs: dict[str, list[WatchedRun]] = {"without": [], "with": []}
        tree = None
        if options.against:
            tree = stack.enter_context(worktree(options.against))
            runs["old"] = []
        outputs = {}
        for number in range(options.rounds):
            for kind, words in (("without", [*new, "--workers", "0"]), ("with", [*new, "--workers", options.workers])):
                out = folder / f"{kind}-{number}.json"
                runs[kind].append(watch([*words, "--out", str(out)], out))
                outputs[kind] = out.read_bytes()
            if tree is not None:
                out = folder / f"old-{number}.json"
                model = write_old_model(folder / "random.safetensors", folder / "old.safetensors")
                words = [str(model) if word == named else word for word in common]
                runs["old"].append(watch([*words, "--out", str(out)], out, tree))
        if outputs["without"] != outputs["with"]:
            raise BenchmarkError("the outputs without and with workers differ.")
    best = {kind: min(found, key=lambda run: run.seconds) for kind, found in runs.items()}
    for kind, run in best.items():
        print(
            f"{kind:<8} {run.seconds:8.1f} s  {run.processor_seconds:8.1f} s of the cores  {run.megabytes:6.0f} MB  "
            f"others took {run.others:.0%} of the cores"
        )
        if run.stages:
            print(f"         {run.stages}")
    without, with_workers = best["without"], best["with"]
    faster = without.seconds / with_workers.seconds
    print(f"with workers {faster:.2f} times as fast (target {_FASTER:g}); the outputs are the same bytes")
    workers = 2 if options.workers == "auto" else int(options.workers)
    bound = _MORE_MEMORY * without.megabytes + _MEGABYTES_OF_WORKER * workers
    print(f"memory {with_workers.megabytes:.0f} MB (at most {bound:.0f} MB)")
    met = faster >= _FASTER and with_workers.megabytes <= bound
    if "old" in best:
        old = best["old"].seconds / with_workers.seconds
        print(f"{old:.2f} times as fast as {options.against} (target {_FASTER_THAN_OLD:g})")
        met = met and old >= _FASTER_THAN_OLD
    if max(run.others for run in best.values()) > _OTHERS:
        print("the machine was not idle, so the times say little", file=sys.stderr)
    return 0 if met else 1


def _memory(options: argparse.Namespace) -> int:
    from benchmarks.pipeline.inputs import label_options, write_model, write_small_images

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_small_images(folder / "images", options.images)
        model = write_model(folder / "tiny.safetensors", layers=2, width=64, side=64)
        out = folder / "out.json"
        words = ["prelabel", str(folder / "images"), *label_options(), "--model", str(model), "--device", "cpu"]
        words += ["--no-refine", "--background-names", "none", "--workers", options.workers, "--out", str(out)]
        run = watch(words, out)
    tenth = options.images // 10
    early = [size for done, size in run.samples if tenth <= done < 2 * tenth]
    # At the very end the processes take themselves apart.
    late = [size for done, size in run.samples if 9 * tenth <= done < options.images - 50]
    if not early or not late:
        raise BenchmarkError("the run was too short to be looked at; use more images.")
    growth = max(late) - max(early)
    tenths = [[size for done, size in run.samples if part * tenth <= done < (part + 1) * tenth] for part in range(10)]
    print(
        "MB that belong to no file, by tenths of the images: "
        + ", ".join(f"{max(sizes):.0f}" for sizes in tenths if sizes)
    )
    print(f"{options.images:,} images in {run.seconds:.0f} s; {run.stages}")
    print(
        f"of all processes: {max(early):.0f} MB after a tenth of the images, {max(late):.0f} MB after nine; "
        f"it grew by {growth:.0f} MB (at most {_FLAT_MEGABYTES})"
    )
    return 0 if growth <= _FLAT_MEGABYTES else 1


def _simulate(options: argparse.Namespace) -> int:
    from benchmarks.pipeline.simulation import simulate
    from benchmarks.pipeline.sleeping import Simulation

    simulation = Simulation(
        images=options.images,
        workers=options.workers,
        size=tuple(options.size[::-1]),
        maps=not options.maps_apart,
        ahead=not options.in_turn,
    )
    busy, times = simulate(simulation)
    print(
        f"{simulation.images} images of {options.size[0]} x {options.size[1]}, {simulation.workers} workers, "
        f"read {1000 * simulation.read:g} ms, device {1000 * simulation.device:g} ms, "
        f"trace {1000 * simulation.trace:g} ms"
    )
    print(str(times))
    print(f"the device is busy {busy:.0%} of the time (target {_BUSY:.0%})")
    return 0 if busy >= _BUSY else 1


if __name__ == "__main__":
    sys.exit(main())
