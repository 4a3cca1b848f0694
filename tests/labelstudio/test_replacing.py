"""Old predictions make way for new ones, and for nothing else."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any, cast

import pytest

from labelstudio_backend import replacing
from labelstudio_backend.client import GoneError, LabelStudioClient, LabelStudioError, SignInError
from labelstudio_backend.model_options import FAILED_VERSION
from labelstudio_backend.replacing import Replacer, Stale, replace_predictions, stale_predictions

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


class Project:
    """The predictions of several tasks, and in which order clients asked for them."""

    def __init__(self) -> None:
        self.stored: dict[int, dict[str, Any]] = {}
        self.asked: list[int] = []
        self.errors: dict[int, list[LabelStudioError]] = {}

    def add(self, task: int, version: str) -> None:
        number = len(self.stored) + 1
        self.stored[number] = {**stored(number, version), "task": task}

    def versions(self, task: int) -> list[str]:
        return [each["model_version"] for each in self.stored.values() if each["task"] == task]

    def request(self, *tasks: int) -> list[Stale]:
        """What a request for predictions of these tasks leaves to be replaced."""
        found = []
        for task in tasks:
            stale = stale_predictions(task, [each for each in self.stored.values() if each["task"] == task], NEW)
            assert stale is not None
            found.append(stale)
        return found

    # As a client that is signed in.

    def __call__(self, url: str, token: str) -> Project:
        return self

    def __enter__(self) -> Project:
        return self

    def __exit__(self, *error: object) -> None:
        pass

    def predictions(self, task: int) -> list[dict[str, Any]]:
        self.asked.append(task)
        if self.errors.get(task):
            raise self.errors[task].pop(0)
        return [each for each in self.stored.values() if each["task"] == task]

    def update_prediction(self, number: int, content: Mapping[str, Any]) -> None:
        self.stored[number] |= content

    def delete_prediction(self, number: int) -> None:
        del self.stored[number]


@pytest.fixture
def project(monkeypatch: pytest.MonkeyPatch) -> Project:
    """Tasks 1 to 60, each with an old prediction."""
    found = Project()
    for task in range(1, 61):
        found.add(task, OLD)
    monkeypatch.setattr(replacing, "LabelStudioClient", found)
    return found


def work(replacer: Replacer, project: Project, done: list[int], *requests: list[Stale]) -> None:
    """Run until the predictions of some tasks are replaced, and nothing waits any more."""

    async def run() -> None:
        replacer.start()
        for each in requests:
            replacer.schedule(each)
        while any(project.versions(task) != [NEW] for task in done) or replacer.waiting:
            await asyncio.sleep(0.01)
        await replacer.stop()

    asyncio.run(asyncio.wait_for(run(), 60))


def replacer(pauses: tuple[float, ...] = (0.01, 0.01, 0.01)) -> Replacer:
    return Replacer("http://127.0.0.1:9", lambda: "token", pauses)


def test_a_request_whose_predictions_are_never_stored_does_not_hold_up_the_others(project: Project) -> None:
    """It was looked at again and again for two minutes, and everybody else waited."""
    requests = [project.request(1), project.request(2)]
    project.add(2, NEW)
    # Nothing is waited for: the pauses of the first would take a thousand hours.
    found = Replacer("http://127.0.0.1:9", lambda: "token", (0.01, 3_600_000.0))

    async def run() -> None:
        found.start()
        for each in requests:
            found.schedule(each)
        while project.versions(2) != [NEW]:
            await asyncio.sleep(0.01)
        assert found.waiting == 1 and project.versions(1) == [OLD]
        await found.stop()

    asyncio.run(asyncio.wait_for(run(), 60))


def test_requests_take_turns_and_one_of_many_tasks_is_done_in_parts(project: Project) -> None:
    many, one = list(range(1, 60)), [60]
    requests = [project.request(*many), project.request(*one)]
    for task in (*many, *one):
        project.add(task, NEW)
    work(replacer(), project, [*many, *one], *requests)
    assert project.asked.index(60) < project.asked.index(30)


def test_a_request_is_given_up_after_its_last_look(project: Project) -> None:
    request = project.request(1)
    work(replacer(), project, [], request)
    assert project.versions(1) == [OLD] and project.asked == [1, 1, 1]


@pytest.mark.parametrize("gone", [1, 2, 3])
def test_a_task_that_is_gone_does_not_cost_the_others_of_its_request(project: Project, gone: int) -> None:
    request = project.request(1, 2, 3)
    for task in (1, 2, 3):
        project.add(task, NEW)
    project.errors[gone] = [GoneError("404")] * 9
    work(replacer(), project, [task for task in (1, 2, 3) if task != gone], request)
    assert project.versions(gone) == [OLD, NEW]


def test_an_error_that_passes_is_tried_again_and_a_refused_token_is_not(project: Project) -> None:
    requests = [project.request(1), project.request(2)]
    for task in (1, 2):
        project.add(task, NEW)
    project.errors = {1: [LabelStudioError("503"), LabelStudioError("503")], 2: [SignInError("401")]}
    found = replacer()
    work(found, project, [1], *requests)
    assert found.state == "yes" and project.versions(2) == [OLD, NEW]


def test_where_too_many_requests_wait_the_least_promising_is_forgotten(
    project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(replacing, "_WAITING", 2)
    found = replacer((0.01, 3_600_000.0))

    async def run() -> None:
        found.start()
        for task in (1, 2):
            found.schedule(project.request(task))
        while project.asked != [1, 2]:
            await asyncio.sleep(0.01)
        request = project.request(3)
        project.add(3, NEW)
        # Both have been looked at once; the older one goes.
        found.schedule(request)
        assert found.waiting == 2
        while project.versions(3) != [NEW]:
            await asyncio.sleep(0.01)
        await found.stop()

    asyncio.run(asyncio.wait_for(run(), 60))
