"""What a training says while it runs: always a file of JSON lines, and what else is asked for."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any, Protocol

from tcl_core.errors import SettingsError

__all__ = ["LOGGERS", "JsonLines", "Logger", "make_logger"]


class Logger(Protocol):
    """Takes the numbers of a step."""

    def write(self, step: int, values: dict[str, Any]) -> None:
        """Take numbers by name."""

    def close(self) -> None:
        """Let go of files and connections."""


class JsonLines:
    """Appends a line for each call.

    Args:
        path: the file.
        start: lines of later steps than this are dropped, because those steps are taken again.
    """

    def __init__(self, path: Path, start: int):
        self._path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
        kept = [line for line in lines if _step_of(line) <= start]
        if len(kept) != len(lines):
            path.write_text("".join(line + "\n" for line in kept), encoding="utf-8")

    def write(self, step: int, values: dict[str, Any]) -> None:
        """Append ``{"step": step, ...}``."""
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"step": step, **values}) + "\n")

    def close(self) -> None:
        """Nothing is held open between lines."""


def _step_of(line: str) -> float:
    try:
        return float(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError):
        # A line that was cut when its process was killed.
        return float("inf")


class TensorBoard:
    """Writes event files (extra ``tensorboard``)."""

    def __init__(self, folder: Path, name: str):
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise SettingsError("--log tensorboard needs the package tensorboard: pip install tensorboard.") from error
        self._writer = SummaryWriter(str(folder / "tensorboard" / name))

    def write(self, step: int, values: dict[str, Any]) -> None:
        """Write what is a number."""
        for name, value in values.items():
            if isinstance(value, int | float):
                self._writer.add_scalar(name, value, step)

    def close(self) -> None:
        """Close the event file."""
        self._writer.close()


class Wandb:
    """Sends numbers to Weights & Biases (extra ``wandb``)."""

    def __init__(self, folder: Path, name: str):
        try:
            wandb = import_module("wandb")
        except ImportError as error:
            raise SettingsError("--log wandb needs the package wandb: pip install wandb.") from error
        self._run = wandb.init(project="tcl-annotate", name=name, id=name, resume="allow", dir=str(folder))

    def write(self, step: int, values: dict[str, Any]) -> None:
        """Send everything."""
        self._run.log(values, step=step)

    def close(self) -> None:
        """Finish the run."""
        self._run.finish()


LOGGERS: dict[str, Callable[[Path, str], Logger]] = {"tensorboard": TensorBoard, "wandb": Wandb}
"""Beside the file that is always written, by the name that the command line knows."""


class _Several:
    def __init__(self, loggers: Sequence[Logger]):
        self._loggers = loggers

    def write(self, step: int, values: dict[str, Any]) -> None:
        for logger in self._loggers:
            logger.write(step, values)

    def close(self) -> None:
        for logger in self._loggers:
            logger.close()


def make_logger(folder: Path, name: str, start: int, extra: Sequence[str] = ()) -> Logger:
    """The loggers of a phase.

    Args:
        folder: of the run.
        name: of the phase.
        start: step that it starts from.
        extra: keys of `LOGGERS`.

    Raises:
        SettingsError: a package is not installed.
    """
    loggers: list[Logger] = [JsonLines(folder / f"{name}.jsonl", start)]
    loggers += [LOGGERS[key](folder, name) for key in extra]
    return _Several(loggers)
