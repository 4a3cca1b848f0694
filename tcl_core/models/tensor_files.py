"""Reading tensors from files, into memory of their own with no more than that memory, or mapped."""

from __future__ import annotations

import os
import pickle
import pickletools
import re
import sys
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from tcl_core.errors import WeightsError

__all__ = ["all_finite", "mapped_entries", "pytorch_entries", "read_pytorch_file", "safetensors_entries", "unchanged"]

# The file is mapped into memory as long as one of its tensors is held, and its pages count as the program's.
_AT_ONCE = 32 << 20


def all_finite(tensor: Tensor) -> bool:
    """Whether a floating-point tensor holds neither NaN nor infinity, found without a copy of it."""
    return not tensor.numel() or all(bool(torch.isfinite(bound)) for bound in torch.aminmax(tensor))


def safetensors_entries(path: Path, prefix: str = "") -> Iterator[tuple[str, Tensor]]:
    """Names and tensors of a safetensors file, one after the other.

    The tensors do not share the file's pages, so that nothing happens to them when another process replaces it.

    Args:
        path: the file.
        prefix: names that begin otherwise are passed over.

    Yields:
        Name and tensor on the CPU: float32 where floating point is stored, and as it is stored otherwise.

    Raises:
        OSError: the file cannot be read.
        SafetensorError: the file is damaged.
        WeightsError: the file was replaced between its tensors.
    """
    with unchanged(path):
        yield from _entries(path, prefix)


def mapped_entries(path: Path) -> Iterator[tuple[str, Tensor]]:
    """Names and tensors of a safetensors file, which stay in the file if it stores float32.

    Processes that read the same file share such tensors, and they take no time to be copied. Who replaces the file by
    renaming another, as `tcl_core.models.paths.write_atomically` does, leaves them as they are; the same file must not
    be written to. Windows does not let a mapped file be replaced, so there everything is copied. So are the tensors of
    a file with numbers of other kinds: its pages would be held beside the copies that have to be made anyway.

    Args:
        path: the file.

    Yields:
        Name and tensor on the CPU: float32 where floating point is stored, and as it is stored otherwise.

    Raises:
        OSError: the file cannot be read.
        SafetensorError: the file is damaged.
        WeightsError: the file was replaced between its tensors.
    """
    with unchanged(path), safe_open(path, framework="pt") as handle:
        kinds = {handle.get_slice(name).get_dtype() for name in handle.keys()}
        # Safetensors calls floating point F64, F16, BF16, F8_E4M3 and so on.
        if sys.platform != "win32" and not any(kind.startswith(("F", "BF")) for kind in kinds - {"F32"}):
            for name in handle.keys():
                yield name, handle.get_tensor(name)
            return
    yield from safetensors_entries(path)


def _entries(path: Path, prefix: str) -> Iterator[tuple[str, Tensor]]:
    with safe_open(path, framework="pt") as handle:
        names = iter([name for name in handle.keys() if name.startswith(prefix)])
    while group := list(islice(names, 1)):
        read, size = [], 0
        # Opened anew for each group, which takes a millisecond and gives the pages back.
        with safe_open(path, framework="pt") as handle:
            while group:
                stored = handle.get_tensor(group[0])
                # Straight from the file's pages: a copy in half precision would leave holes in the heap.
                tensor = stored.to(torch.float32 if stored.is_floating_point() else stored.dtype, copy=True)
                del stored
                read.append((group[0], tensor))
                size += tensor.nbytes
                group = list(islice(names, 1)) if size < _AT_ONCE else []
        while read:
            yield read.pop(0)


def pytorch_entries(path: Path, keys: tuple[str, ...]) -> Iterator[tuple[str, Tensor]]:
    """Names and tensors of a file of ``torch.save``, one after the other; whatever else is in it takes no memory.

    Args:
        path: the file.
        keys: under one of these lie the tensors, unless they lie at the top.

    Yields:
        Name and tensor in the stored precision, on the CPU. Tensors that say to be larger than their memory are given
        as they are, for the caller to refuse.

    Raises:
        WeightsError: the file is missing, damaged, holds Python objects or a program, or was replaced between its
            tensors.
    """
    with unchanged(path):
        yield from _pytorch_entries(path, keys)


def _pytorch_entries(path: Path, keys: tuple[str, ...]) -> Iterator[tuple[str, Tensor]]:
    # Files from before version 1.6 cannot be mapped into memory.
    mapped = zipfile.is_zipfile(path)

    def tensors() -> dict[str, Tensor]:
        content = read_pytorch_file(path, mapped=mapped)
        for key in keys:
            if isinstance(content, dict) and isinstance(content.get(key), Mapping):
                content = content[key]
        held = content if isinstance(content, Mapping) else {}
        return {name: value for name, value in held.items() if isinstance(name, str) and isinstance(value, Tensor)}

    content = tensors()
    names, size = list(content), 0
    for name in names:
        if mapped and size > _AT_ONCE:
            # Mapped anew, which gives the pages back.
            content, size = {}, 0
            content = tensors()
        tensor = content.pop(name)
        held = tensor.layout == torch.strided and tensor.untyped_storage().nbytes() >= tensor.numel() * tensor.itemsize
        size += tensor.nbytes if held else 0
        yield name, tensor.clone() if mapped and held else tensor


@contextmanager
def unchanged(path: Path) -> Iterator[None]:
    """See to it that everything that is read from a file inside the block is of one version of it.

    Model files are replaced by renaming (`tcl_core.models.paths.write_atomically`), so a file that is opened several
    times could otherwise give the hash of one version and tensors of two.

    Args:
        path: the file.

    Raises:
        WeightsError: the file was replaced, changed or removed before the block ended, whatever else went wrong in it.
    """
    before = _version(path)
    try:
        yield
    except Exception as error:
        if _version(path) != before:
            raise WeightsError(_replaced(path)) from error
        raise
    if _version(path) != before:
        raise WeightsError(_replaced(path))


def _version(path: Path) -> tuple[int, ...] | None:
    """What differs between two versions of a file; ``None`` where there is none, which whoever reads it reports."""
    try:
        found = os.stat(path)
    except OSError:
        return None
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns


def _replaced(path: Path) -> str:
    return f"{path}: was replaced while it was read; run the command again"


def read_pytorch_file(source: Path, *, mapped: bool = False) -> Any:
    """Read what ``torch.save`` wrote, as far as it is tensors and plain containers; nothing in it is run.

    Args:
        source: the file.
        mapped: leave the tensors in the file until they are used, for as long as it stays as it is.

    Raises:
        WeightsError: the file is missing, damaged, or holds Python objects or a program.
    """
    try:
        if _is_program(source):
            raise WeightsError(
                f"{source}: this is a TorchScript archive, which contains code; only "
                "checkpoints of tensors can be imported"
            )
        return torch.load(source, map_location="cpu", weights_only=True, mmap=mapped)
    except WeightsError:
        raise
    except pickle.UnpicklingError as error:
        raise WeightsError(_unpickling_message(source, error)) from error
    except FileNotFoundError as error:
        raise WeightsError(f"{source}: no such file") from error
    except OSError as error:
        raise WeightsError(f"{source}: cannot be read: {error.strerror or error}") from error
    # Damaged archives surface as many kinds of errors, depending on where the damage is.
    except Exception as error:
        raise WeightsError(f"{source}: is not a complete PyTorch checkpoint ({_first_sentence(error)})") from error


def _unpickling_message(source: Path, error: Exception) -> str:
    found = re.search(r"GLOBAL ([\w.]+)", str(error))
    with open(source, "rb") as file:
        is_archive = zipfile.is_zipfile(file)
        file.seek(0)
        is_pickle = file.read(1) == pickle.PROTO
    # Where no class is asked for the file is damaged or something else altogether; to trust it would not help.
    if not (found and (is_archive or is_pickle)) and not (is_pickle and _asks_for_class(source)):
        return f"{source}: is not a complete PyTorch checkpoint"
    what = f" ({found[1]})" if found else ""
    return (
        f"{source}: holds Python objects besides tensors{what}; reading such objects can run any code, "
        "so it was not read; if you trust the file, keep only its tensors in the environment that wrote it with "
        '\'import torch; c = torch.load("IN.pth", map_location="cpu", weights_only=False); '
        'torch.save({"model": c["model"]}, "OUT.pth")\' and import OUT.pth'
    )


def _asks_for_class(source: Path) -> bool:
    """Whether a pickle, of any protocol, names a class or function; it is looked through, not run."""
    with open(source, "rb") as file:
        try:
            return any("GLOBAL" in opcode.name for opcode, _, _ in pickletools.genops(file))
        # Damage surfaces as many kinds of errors.
        except Exception:
            return False


def _is_program(source: Path) -> bool:
    if not zipfile.is_zipfile(source):
        return False
    with zipfile.ZipFile(source) as archive:
        return any(re.fullmatch(r"[^/]+/(constants\.pkl|code/.*)", entry) for entry in archive.namelist())


def _first_sentence(error: Exception) -> str:
    return re.split(r"(?<=[.:])\s|\n", str(error).strip() or type(error).__name__)[0].rstrip(".:")
