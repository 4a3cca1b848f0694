"""Runs of the batch command in which the ground gives way: deleted tasks, and a token that is revoked.

The last of the files about the server: a user has one personal access token, which the backend of the others uses.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from labelstudio_backend.client import GoneError, LabelStudioClient
from labelstudio_backend.image_fetch import tokens
from labelstudio_backend.image_fetch.fetching import ImageFetcher
from labelstudio_backend.image_fetch.locations import Owner
from labelstudio_backend.model_options import FAILED_VERSION
from tests.labelstudio.live.environment import TOKEN, LabelStudioServer
from tests.labelstudio.live.test_server import command, data_url, encoded, tasks_of

pytestmark = [pytest.mark.slow, pytest.mark.timeout(7200), pytest.mark.xdist_group("Label Studio")]

CONFIG = (
    '<View><Image name="image" value="$image"/><BrushLabels name="b" toName="image"><Label value="cat"/></BrushLabels>'
    "</View>"
)


def project_with(server: LabelStudioServer, images: list[str]) -> tuple[int, list[int]]:
    """A project without a backend; gives its number and those of its tasks."""
    number = server.api("POST", "/api/projects/", json={"title": "bulk", "label_config": CONFIG})["id"]
    server.api("POST", f"/api/projects/{number}/import", json=[{"image": url} for url in images])
    return number, sorted(task["id"] for task in tasks_of(server, number))


def test_tasks_that_are_deleted_during_a_run(
    label_studio: LabelStudioServer,
    secrets: Path,
    model_path: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    (label_studio.files / "deleted").mkdir()
    (label_studio.files / "deleted" / "a.png").write_bytes(encoded(7))
    images = [data_url(seed) for seed in range(4)] + ["/data/local-files/?d=deleted/a.png"]
    number, tasks = project_with(label_studio, images)
    fetch = ImageFetcher.fetch
    deleted: list[int] = []

    async def delete_and_fetch(self: ImageFetcher, url: object, owner: Owner | None = None) -> bytes:
        # One whose prediction cannot be stored any more, and one whose image is gone.
        while not deleted or len(deleted) < 2:
            deleted.append(tasks[1] if not deleted else tasks[4])
            label_studio.api("DELETE", f"/api/tasks/{deleted[-1]}/")
        return await fetch(self, url, owner)

    monkeypatch.setattr(ImageFetcher, "fetch", delete_and_fetch)
    server = ["--url", label_studio.url, "--token-file", secrets / "token.txt", "--project", number]
    model = ["--model", model_path, "--state-dir", tmp_path]
    code, printed = command(capfd, "prelabel", *server, *model, "--quiet")
    assert code == 1 and "3 of 5 tasks predicted" in printed, printed
    failed = [line for line in printed.splitlines() if line.startswith("failed:")]
    assert failed == [f"failed: task {task}: the task is gone: it was deleted during this run" for task in deleted]
    assert [len(task["predictions"]) for task in tasks_of(label_studio, number)] == [1, 1, 1]
    # Label Studio answers "bad request" for the predictions of such a task.
    with LabelStudioClient(label_studio.url, TOKEN) as client, pytest.raises(GoneError, match=f"no task {deleted[0]}"):
        client.predictions(deleted[0])


def test_bulk_takes_the_place_of_failed_predictions(
    label_studio: LabelStudioServer, secrets: Path, model_path: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """As they are stored while the token is wrong, once for the list of tasks and once for the task that is opened."""
    number, tasks = project_with(label_studio, [data_url(seed) for seed in range(2)])
    said = {"from_name": "prompt", "to_name": "image", "type": "textarea", "value": {"text": ["Not predicted:"]}}
    for task, versions in zip(
        tasks, ([FAILED_VERSION, FAILED_VERSION], ["another-model", FAILED_VERSION]), strict=True
    ):
        for version in versions:
            body = {"task": task, "result": [said], "model_version": version}
            label_studio.api("POST", "/api/predictions/", json=body)
    server = ["--url", label_studio.url, "--token-file", secrets / "token.txt", "--project", number]
    code, printed = command(capfd, "prelabel", *server, "--model", model_path, "--state-dir", tmp_path, "--quiet")
    assert code == 0 and "2 of 2 tasks predicted" in printed and "3 older predictions replaced" in printed, printed
    found = sorted(tasks_of(label_studio, number), key=lambda task: task["id"])
    versions = [sorted(each["model_version"] for each in task["predictions"]) for task in found]
    assert [len(each) for each in versions] == [1, 2] and "another-model" in versions[1]
    assert FAILED_VERSION not in versions[0] + versions[1]


def test_a_token_that_is_revoked_during_a_run(
    label_studio: LabelStudioServer,
    secrets: Path,
    model_path: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    number, tasks = project_with(label_studio, [data_url(seed) for seed in range(30)])
    for entry in label_studio.api("GET", "/api/token/"):
        label_studio.api("POST", "/api/token/blacklist/", json={"refresh": entry["token"]})
    personal = label_studio.api("POST", "/api/token/")["token"]
    (tmp_path / "personal.txt").write_text(personal)
    # Access tokens live for five minutes; here each is exchanged again at once, as after that time.
    monkeypatch.setattr(tokens, "_MARGIN_SECONDS", 1e9)
    fetch = ImageFetcher.fetch
    fetched: list[Any] = []

    async def revoke_and_fetch(self: ImageFetcher, url: object, owner: Owner | None = None) -> bytes:
        fetched.append(url)
        # The first twenty predictions are stored before the fourth group of eight is read.
        if len(fetched) == 30:
            label_studio.api("POST", "/api/token/blacklist/", json={"refresh": personal})
        return await fetch(self, url, owner)

    monkeypatch.setattr(ImageFetcher, "fetch", revoke_and_fetch)
    server = ["--url", label_studio.url, "--project", number]
    model = ["--model", model_path, "--state-dir", tmp_path, "--quiet"]
    code, printed = command(capfd, "prelabel", *server, "--token-file", tmp_path / "personal.txt", *model)
    assert code == 1 and "20 of 30 tasks predicted" in printed, printed
    (stopped,) = [line for line in printed.splitlines() if line.startswith("stopped:")]
    assert "refused the personal access token" in stopped and "create a new one" in stopped
    assert "to continue later, run:" in printed and "Traceback" not in printed and personal not in printed
    code, printed = command(capfd, "prelabel", *server, "--token-file", secrets / "token.txt", *model)
    assert code == 0 and "10 of 30 tasks predicted" in printed and "20 skipped" in printed, printed
