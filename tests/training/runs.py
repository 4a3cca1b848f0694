"""Small trainings, here and in processes of their own."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch

from tcl_core.methods.mgca import MGCAStyle
from tcl_core.methods.tcl import TCL
from tcl_core.models.metadata import ModelMetadata, Preprocess
from tcl_core.models.modelfile import write_model_file
from tests.ports import free_port
from tests.training.shards import plain_shards
from training.config import Recipe
from training.data.shards import ShardSource
from training.distributed import process_group
from training.engine import Options, run_recipe

PROCESSES = get_context("forkserver")
# Children start in no time when torch is imported already.
PROCESSES.set_forkserver_preload(["training.engine", "tests.training.shards"])


def tiny_model(path: Path, kind: type[TCL] | type[MGCAStyle] = TCL) -> Path:
    """A model file of a method's example, on a CLIP that has these sizes."""
    method = kind.example()
    clip: Any = method.clip.model
    config = {
        "embed_dim": 12,
        "vision_cfg": {"image_size": 32, "patch_size": 8, "width": 24, "head_width": 8, "layers": 3},
        "text_cfg": {
            "context_length": clip.context_length,
            "vocab_size": clip.vocab_size,
            "width": 16,
            "heads": 2,
            "layers": 1,
        },
    }
    sizes = {"short_side": 64, "max_long_side": 128, "window": 32, "stride": 16}
    metadata = ModelMetadata(
        name="tiny",
        preprocess=Preprocess(mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5), **sizes),
        method=method.name,
        method_config=method.config_to_dict(),
        clip={"config": config},
        tokenizer=method.clip.tokenizer.to_dict(),
    )
    write_model_file(path, metadata, method.learned_state_dict(), clip.state_dict())
    return path


def tiny_recipe(folder: Path, **phase: Any) -> Recipe:
    """Twelve steps of both stages on a tiny model that lies in ``folder``."""
    model = folder / "tiny.safetensors"
    if not model.exists():
        tiny_model(model)
    settings = {
        "kind": "train",
        "name": "main",
        "stages": [{"stage": "ust", "steps": 5}, {"stage": "full", "steps": 7}],
        "batch": 6,
        "schedule": {"lr": 0.01, "warmup": 3},
        "precision": "float32",
        "augmentation": {"size": 32, "mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5)},
        "log_every": 1,
        "save_every": 3,
    }
    return Recipe.model_validate({"name": "small", "model": {"clip": str(model)}, "phases": [{**settings, **phase}]})


def tiny_data(folder: Path) -> ShardSource:
    """Twenty-one pairs in three shards."""
    data = folder / "data"
    if not data.exists():
        data.mkdir()
        plain_shards(data)
    return ShardSource(sorted(data.glob("*.tar")), folder=folder / "index")


def log_of(folder: Path, name: str = "main") -> list[dict[str, Any]]:
    """The lines of a log that are of steps."""
    lines = [json.loads(line) for line in (folder / f"{name}.jsonl").read_text().splitlines()]
    return [line for line in lines if "total" in line]


def train_here(folder: Path, out: str, recipe: Recipe | None = None, **options: Any) -> Path:
    """Train in this process."""
    settings = Options(folder / out, torch.device("cpu"), quiet=True, **options)
    return run_recipe(recipe or tiny_recipe(folder), tiny_data(folder), settings)


def _member(rank: int, count: int, store: str, action: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
    torch.set_num_threads(1)
    address, port = store.split(":")
    environment = {"RANK": rank, "WORLD_SIZE": count, "LOCAL_RANK": rank, "MASTER_ADDR": address, "MASTER_PORT": port}
    os.environ |= {name: str(value) for name, value in environment.items()}
    with process_group(torch.device("cpu")):
        action(*arguments)


def in_processes(count: int, action: Callable[..., Any], *arguments: Any) -> list[int]:
    """Run a function in several processes that know each other, as torchrun would; returns their exit codes."""
    store = f"127.0.0.1:{free_port()}"
    workers = [PROCESSES.Process(target=_member, args=(rank, count, store, action, arguments)) for rank in range(count)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(240)
        if worker.is_alive():
            worker.kill()
    return [worker.exitcode or 0 for worker in workers]


def in_process(action: Callable[..., Any], *arguments: Any) -> Any:
    """A started process that runs a function."""
    worker = PROCESSES.Process(target=_alone, args=(action, arguments))
    worker.start()
    return worker


def _alone(action: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
    torch.set_num_threads(1)
    action(*arguments)


def totals(folder: Path) -> list[float]:
    """The whole loss of every step of a run."""
    return [line["total"] for line in log_of(folder)]
