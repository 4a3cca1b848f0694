"""Frozen groups of tensors that share their first axis, as caches, windows and prompts need them."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import Tensor

__all__ = ["TensorBundle", "state_faults"]


@dataclass(frozen=True, eq=False)
class TensorBundle:
    """Tensors with a common first axis, beside whole numbers that hold for all of them.

    A sub-class is a frozen dataclass whose fields are tensors ``[N, ...]``, whole numbers, or tuples of whole numbers.
    Whoever keeps, cuts or joins such a group needs to know no more of it than this class.

    Example:
        >>> @dataclass(frozen=True, eq=False)
        ... class Points(TensorBundle):
        ...     places: Tensor
        ...     size: tuple[int, int]
        >>> points = Points(torch.arange(6.0).view(3, 2), (4, 5))
        >>> len(points), points.nbytes, points[1:].places.tolist()
        (3, 24, [[2.0, 3.0], [4.0, 5.0]])
        >>> Points.join([points[:1], points[2:]]).places.tolist()
        [[0.0, 1.0], [4.0, 5.0]]
        >>> Points.from_tensors(points.to_tensors()).size
        (4, 5)
    """

    def tensors(self) -> dict[str, Tensor]:
        """The tensors by the names of their fields."""
        named = ((field.name, getattr(self, field.name)) for field in dataclasses.fields(self))
        return {name: value for name, value in named if isinstance(value, Tensor)}

    def _numbers(self) -> dict[str, Any]:
        named = ((field.name, getattr(self, field.name)) for field in dataclasses.fields(self))
        return {name: value for name, value in named if not isinstance(value, Tensor)}

    @property
    def nbytes(self) -> int:
        """Bytes held by the tensors."""
        return sum(tensor.element_size() * tensor.numel() for tensor in self.tensors().values())

    def __len__(self) -> int:
        return int(next(iter(self.tensors().values())).shape[0])

    def __getitem__(self, part: slice) -> Self:
        """Some of the entries of the first axis, without a copy."""
        return dataclasses.replace(self, **{name: tensor[part] for name, tensor in self.tensors().items()})

    def to(self, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> Self:
        """The same on another device or in another precision (float16 halves the memory of a cache).

        Tensors of whole numbers or truth values keep their kind.
        """
        moved = {
            name: tensor.to(device=device, dtype=dtype if tensor.is_floating_point() else None)
            for name, tensor in self.tensors().items()
        }
        return dataclasses.replace(self, **moved)

    @classmethod
    def join(cls, parts: Sequence[Self]) -> Self:
        """Concatenate several along their first axis, into memory of their own.

        Args:
            parts: at least one, with the same whole numbers.

        Raises:
            ValueError: there is none, or they do not belong together.
        """
        if not parts:
            raise ValueError(f"there is no {cls.__name__} to join")
        first = parts[0]
        if any(part._numbers() != first._numbers() for part in parts[1:]):
            raise ValueError(f"these {cls.__name__} are of different sizes")
        # cat() of one slice copies too: a view would keep its whole batch in memory.
        joined = {name: torch.cat([part.tensors()[name] for part in parts]) for name in first.tensors()}
        return dataclasses.replace(first, **joined)

    def to_tensors(self) -> dict[str, Tensor]:
        """Everything as tensors, for files and exported networks; numbers become int64 tensors."""
        numbers = {name: torch.tensor(value, dtype=torch.int64) for name, value in self._numbers().items()}
        return {**self.tensors(), **numbers}

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor]) -> Self:
        """The inverse of `to_tensors`.

        Raises:
            ValueError: a field is missing, or there are others.
        """
        # A type is a text in modules that import annotations from __future__.
        fields = {field.name: getattr(field.type, "__name__", str(field.type)) for field in dataclasses.fields(cls)}
        if set(fields) != set(tensors):
            raise ValueError(f"expected the tensors {', '.join(sorted(fields))}, found {', '.join(sorted(tensors))}")
        values: dict[str, Any] = {}
        for name, kind in fields.items():
            if kind.rpartition(".")[2] == "Tensor":
                values[name] = tensors[name]
            else:
                number = tensors[name].tolist()
                values[name] = tuple(number) if isinstance(number, list) else number
        return cls(**values)


def state_faults(
    own: Mapping[str, Tensor], given: Mapping[str, Tensor], optional: frozenset[str] = frozenset()
) -> list[str]:
    """What keeps tensors from being loaded by name: those that are missing, unknown, or of another shape.

    Args:
        own: tensors of the module.
        given: tensors that are to be loaded.
        optional: names that may be missing.

    Returns:
        A clause for each kind of fault, empty where everything fits.

    Example:
        >>> state_faults({"w": torch.zeros(2), "b": torch.zeros(1)}, {"w": torch.zeros(3), "x": torch.zeros(1)})
        ['missing: b', 'unknown: x', 'of another shape: w [3] instead of [2]']
    """
    misshaped = [
        f"{name} {list(given[name].shape)} instead of {list(own[name].shape)}"
        for name in sorted(own.keys() & given.keys())
        if given[name].shape != own[name].shape
    ]
    kinds = {
        "missing": sorted(own.keys() - given.keys() - optional),
        "unknown": sorted(given.keys() - own.keys()),
        "of another shape": misshaped,
    }
    return [f"{kind}: {', '.join(names)}" for kind, names in kinds.items() if names]
