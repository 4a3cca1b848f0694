"""Old predictions make way for new ones, and for nothing else."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

import pytest

from labelstudio_backend.client import LabelStudioClient
from labelstudio_backend.model_options import FAILED_VERSION
from labelstudio_backend.replacing import Stale, replace_predictions, stale_predictions

OLD, NEW = "tiny-0000000000", "tiny-1111111111"


class Predictions:
    """The predictions of one task, changed as Label Studio's interface changes them."""

    def __init__(self, *versions: str) -> None:
        self.stored = {number: stored(number, version) for number, version in enumerate(versions, start=1)}

    def add(self, version: str) -> None:
        number = max(self.stored) + 1
        self.stored[number] = stored(number, version)

    @property
    def listed(self) -> list[dict[str, Any]]:
        return list(self.stored.values())

    @property
    def versions(self) -> dict[int, str]:
        return {number: each["model_version"] for number, each in self.stored.items()}

    def predictions(self, task: int) -> list[dict[str, Any]]:
        return self.listed

    def update_prediction(self, number: int, content: Mapping[str, Any]) -> None:
        self.stored[number] |= content

    def delete_prediction(self, number: int) -> None:
        del self.stored[number]


def stored(number: int, version: str) -> dict[str, Any]:
    return {"id": number, "model_version": version, "result": [f"of {number}"], "score": number / 10}


def replaced(server: Predictions, stale: Stale | None) -> int | None:
    assert stale is not None
    return replace_predictions(cast(LabelStudioClient, server), stale)


def test_the_oldest_takes_over_what_the_new_one_says() -> None:
    server = Predictions(OLD, FAILED_VERSION, "another-model")
    stale = stale_predictions(7, server.listed, NEW)
    server.add(NEW)
    assert replaced(server, stale) == 2
    assert server.stored == {1: {**stored(4, NEW), "id": 1}, 3: stored(3, "another-model")}


@pytest.mark.parametrize("other", ["another-model", "other-2222222222", OLD])
def test_a_prediction_that_another_model_adds_meanwhile_is_not_taken_for_the_new_one(other: str) -> None:
    server = Predictions(OLD)
    stale = stale_predictions(7, server.listed, NEW)
    server.add(other)
    assert replaced(server, stale) is None
    assert server.versions == {1: OLD, 2: other}
    server.add(NEW)
    server.add(other)
    assert replaced(server, stale) == 1
    assert server.versions == {1: NEW, 2: other, 4: other} and server.stored[1]["result"] == ["of 3"]


def test_predictions_that_are_not_listed_with_the_task_are_not_taken_for_the_new_one() -> None:
    server = Predictions(OLD, "another-model")
    stale = stale_predictions(7, server.listed[:1], NEW)
    assert replaced(server, stale) is None
    assert server.versions == {1: OLD, 2: "another-model"}


def test_a_request_cannot_have_other_predictions_replaced() -> None:
    """Whoever can connect can say anything of a task's predictions, but they are not deleted because of it."""
    server = Predictions("another-model", OLD, NEW, FAILED_VERSION)
    claimed = [{"id": number, "model_version": OLD} for number in (1, 2)]
    assert replaced(server, stale_predictions(7, claimed, NEW)) == 1
    assert server.versions == {1: "another-model", 2: NEW, 4: FAILED_VERSION}
    assert replaced(server, stale_predictions(7, claimed[:1], NEW)) == 0
    assert server.versions == {1: "another-model", 2: NEW, 4: FAILED_VERSION}


def test_a_task_that_fails_again_keeps_one_failure_and_its_model_s_predictions() -> None:
    server = Predictions(OLD, FAILED_VERSION)
    stale = stale_predictions(7, server.listed, FAILED_VERSION)
    server.add(FAILED_VERSION)
    assert replaced(server, stale) == 1
    assert server.versions == {1: OLD, 2: FAILED_VERSION} and server.stored[2]["result"] == ["of 3"]


def test_nothing_is_done_where_the_old_ones_are_gone() -> None:
    server = Predictions(OLD, "another-model")
    stale = stale_predictions(7, server.listed, NEW)
    server.delete_prediction(1)
    server.add(NEW)
    assert replaced(server, stale) == 0
    assert server.versions == {2: "another-model", 3: NEW}
    assert stale_predictions(7, server.listed, NEW) is None
