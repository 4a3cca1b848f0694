"""Programs in processes of their own that start at once.

They fork from a server that has imported PyTorch and open_clip, which takes seconds; the project itself is imported by
each program anew, with the folders of packages, the arguments and the environment that it is given. Where Python
cannot fork, they are started as usual.
"""

from __future__ import annotations

import atexit
import multiprocessing
import os
import runpy
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

__all__ = ["forking_context", "run_python", "run_ranks"]

_LIBRARIES = ["open_clip", "torch", "torchvision", "PIL.Image", "shapely", "scipy.ndimage", "skimage.measure"]


def forking_context() -> Any:
    """Starts processes as `multiprocessing` does, from the server that has imported the libraries."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(_LIBRARIES)
    return context


def run_python(
    words: Sequence[str | Path],
    *,
    env: Mapping[str, str] | None = None,
    cwd: str | Path | None = None,
    timeout: float = 600,
) -> subprocess.CompletedProcess[str]:
    """Run ``python WORDS``, which begin with ``-m MODULE`` or ``-c CODE``.

    Args:
        words: what follows ``python``.
        env: its environment; the libraries above have seen that of the tests before.
        cwd: its working directory.
        timeout: seconds after which it is killed.

    Returns:
        Its exit code and what it printed.

    Raises:
        subprocess.TimeoutExpired: it took longer.
    """
    command, environment = list(map(str, words)), dict(os.environ if env is None else env)
    folder = os.getcwd() if cwd is None else os.fspath(cwd)
    if "forkserver" not in multiprocessing.get_all_start_methods():
        return subprocess.run(
            [sys.executable, *command],
            env=environment,
            cwd=folder,
            capture_output=True,
            encoding="utf-8",
            timeout=timeout,
        )
    context = forking_context()
    with tempfile.TemporaryDirectory() as kept:
        streams = [Path(kept, name) for name in ("stdout", "stderr")]
        process = context.Process(target=_run, args=(command, environment, folder, list(map(str, streams))))
        process.start()
        process.join(timeout)
        if process.exitcode is None:
            process.kill()
            process.join()
            raise subprocess.TimeoutExpired(command, timeout)
        texts = [path.read_text(encoding="utf-8") if path.exists() else "" for path in streams]
    assert process.exitcode is not None
    return subprocess.CompletedProcess(command, process.exitcode, *texts)


def run_ranks(action: Callable[..., Any], count: int, *arguments: Any) -> None:
    """Run a function in several processes at once, each with its rank as the first argument.

    Args:
        action: a function of a module.
        count: of processes.
        *arguments: the function's others.

    Raises:
        torch.multiprocessing.ProcessRaisedException: one of them failed.
    """
    from torch.multiprocessing import start_processes

    method = "forkserver" if "forkserver" in multiprocessing.get_all_start_methods() else "spawn"
    if method == "forkserver":
        multiprocessing.get_context(method).set_forkserver_preload(_LIBRARIES)
    start_processes(action, args=arguments, nprocs=count, start_method=method)


def _run(command: list[str], environment: dict[str, str], folder: str, streams: list[str]) -> None:
    for number, name in enumerate(streams, start=1):
        os.dup2(os.open(name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    packages = environment.get("PYTHONPATH", "")
    sys.path[:] = [folder, *filter(None, packages.split(os.pathsep)), *sys.path]
    kind, program, *arguments = command
    sys.argv = [program, *arguments]
    try:
        if kind == "-m":
            runpy.run_module(program, run_name="__main__", alter_sys=True)
        else:
            variables: dict[str, Any] = {"__name__": "__main__"}
            exec(compile(program, "<string>", "exec"), variables)
    finally:
        # Processes of multiprocessing leave them out.
        atexit._run_exitfuncs()
