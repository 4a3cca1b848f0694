from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import Tensor

from tcl_core.tensors import TensorBundle


@dataclasses.dataclass(frozen=True, eq=False)
class Groups(TensorBundle):
    values: Tensor
    numbers: Tensor
    size: tuple[int, int]
    count: int


# As a module without `from __future__ import annotations` defines it.
Plain = dataclasses.make_dataclass(
    "Plain", [("values", Tensor), ("size", tuple[int, int])], bases=(TensorBundle,), frozen=True, eq=False
)


@pytest.fixture
def groups() -> Groups:
    return Groups(torch.rand(4, 2), torch.arange(4), (3, 5), 7)


def test_precision_changes_that_of_real_numbers_alone(groups: Groups) -> None:
    half = groups.to(dtype=torch.float16)
    assert half.values.dtype == torch.float16
    assert torch.equal(half.numbers, groups.numbers) and half.numbers.dtype == torch.int64


def test_round_trip(groups: Groups) -> None:
    found = Groups.from_tensors(groups.to_tensors())
    assert (found.size, found.count) == ((3, 5), 7)
    assert torch.equal(found.values, groups.values) and torch.equal(found.numbers, groups.numbers)


def test_round_trip_where_annotations_are_types() -> None:
    plain = Plain(torch.rand(3, 2), (4, 6))
    found = Plain.from_tensors(plain.to_tensors())
    assert isinstance(found.values, Tensor) and torch.equal(found.values, plain.values)
    assert found.size == (4, 6)


def test_other_numbers_are_not_joined(groups: Groups) -> None:
    with pytest.raises(ValueError, match="different sizes"):
        Groups.join([groups, dataclasses.replace(groups, count=8)])
