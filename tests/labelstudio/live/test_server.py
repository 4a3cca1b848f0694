"""From an empty data folder to exported annotations, with the real server and the real commands."""

from __future__ import annotations

import base64
import io
import json
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

import anyio
import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO

from labelstudio_backend.config_writer import labeling_config_xml
from labelstudio_backend.export import image_name
from labelstudio_backend.image_fetch.locations import Owner
from labelstudio_backend.labeled_shapes import join_labels
from labelstudio_backend.labeling_config import parse_labeling_config
from labelstudio_backend.predictor import Prediction, Predictor
from labelstudio_backend.requests import Plan
from labelstudio_backend.settings import ImageSettings
from labelstudio_backend.shapes import mask_of_value
from tcl_core.cli.main import run
from tcl_core.polygons.rasterize import mask_iou
from tcl_core.vocabulary import Vocabulary
from tests.labelstudio.live.environment import TOKEN, LabelStudioServer
from tests.labelstudio.live.s3 import S3Server

pytestmark = [pytest.mark.slow, pytest.mark.timeout(7200), pytest.mark.xdist_group("Label Studio")]

LABELS = ["--label", "Sofa=sofa,couch", "--label", "cat", "--label", "sky=blue sky", "--no-background"]
SIZE = (48, 64)
ALLOWED = ["--allow-host", "127.0.0.1", "--allow-address", "127.0.0.0/8"]
"""Lets presigned addresses of the S3 server on loopback be asked."""
BRUSHES = labeling_config_xml(
    Vocabulary.from_options(["Sofa=sofa,couch", "cat", "sky=blue sky"], background=False), "brush"
)
"""The same labels with exact masks."""


def encoded(seed: int) -> bytes:
    """A small image of coarse random squares."""
    coarse = np.random.default_rng(seed).integers(0, 255, (3, 4, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(coarse).resize((SIZE[1], SIZE[0]), Image.Resampling.NEAREST).save(file, "PNG")
    return file.getvalue()


def data_url(seed: int) -> str:
    """The same image inside its own address."""
    return "data:image/png;base64," + base64.b64encode(encoded(seed)).decode()


def write_images(folder: Path, seeds: range) -> None:
    folder.mkdir(parents=True)
    for seed in seeds:
        (folder / f"image-{seed:03d}.png").write_bytes(encoded(seed))


def seed_of(task: dict[str, Any]) -> int:
    return int(image_name(task["data"]["image"]).rpartition("image-")[2][:3])


def command(capfd: pytest.CaptureFixture[str], *words: object) -> tuple[int, str]:
    """Run ``tcl-annotate label-studio``; gives its exit code and all it printed."""
    capfd.readouterr()
    code = run(["label-studio", *map(str, words)])
    printed = capfd.readouterr()
    return code, printed.out + printed.err


def project_of(printed: str) -> int:
    return int(printed.partition("project ")[2].partition(":")[0])


def tasks_of(server: LabelStudioServer, project: int) -> list[dict[str, Any]]:
    return server.api("GET", "/api/tasks/", params={"project": project, "page_size": 500, "fields": "all"})["tasks"]


def retrieve(server: LabelStudioServer, project: int) -> None:
    """Press *Retrieve predictions* for all tasks."""
    body = {"selectedItems": {"all": True, "excluded": []}}
    server.api("POST", f"/api/dm/actions?id=retrieve_tasks_predictions&project={project}", json=body)


def soon(condition: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + 120
    while not condition():
        assert time.monotonic() < deadline, what
        time.sleep(0.5)


def add_bucket(server: LabelStudioServer, project: int, bucket: str, presign: bool) -> None:
    """A source storage on S3, whose objects become tasks."""
    keys = {"aws_access_key_id": "test", "aws_secret_access_key": "test", "region_name": "us-east-1"}
    body = {"project": project, "bucket": bucket, "use_blob_urls": True, "presign": presign, "recursive_scan": True}
    storage = server.api("POST", "/api/storages/s3", json={**body, **keys, "title": bucket})
    server.api("POST", f"/api/storages/s3/{storage['id']}/sync")


def sdk_says(python: Path, config: str, predictions: list[dict[str, Any]]) -> dict[str, Any]:
    """What Label Studio's own library says about predictions."""
    done = subprocess.run(
        [python, Path(__file__).with_name("sdk_check.py")],
        input=json.dumps({"config": config, "predictions": predictions}),
        capture_output=True,
        encoding="utf-8",
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def expected(predictor: Predictor, config: str, seed: int) -> Prediction:
    return predictor.predict(encoded(seed), Plan(parse_labeling_config(config)))


def assert_same_regions(found: list[dict[str, Any]], wanted: list[dict[str, Any]]) -> None:
    """Compare what two runs of the model drew: scores that tie to the last bit may fall either way."""
    found, wanted = join_labels(found), join_labels(wanted)
    assert found and wanted
    for label in {each["value"][each["type"]][0] for each in (*found, *wanted)}:
        covered = []
        for results in (found, wanted):
            mask = np.zeros(SIZE, dtype=bool)
            for each in results:
                if each["value"][each["type"]] == [label]:
                    mask |= mask_of_value(each["type"], each["value"], SIZE)
            covered.append(mask)
        assert (covered[0] != covered[1]).mean() < 0.01, label


@pytest.fixture(scope="module")
def project(
    label_studio: LabelStudioServer, s3: S3Server, backend_url: str, secrets: Path, tmp_path_factory: Any
) -> Iterator[int]:
    """A project of ``setup`` with sixty tasks: uploads, local files, and two S3 buckets, of which one is presigned."""
    folder = tmp_path_factory.mktemp("images")
    write_images(folder / "uploads", range(15))
    write_images(label_studio.files / "sixty", range(15, 30))
    words = ["label-studio", "setup", "--url", label_studio.url, "--token-file", secrets / "token.txt", *LABELS]
    words += ["--backend-url", backend_url, "--auth-file", secrets / "users.txt"]
    words += ["--upload", folder / "uploads", "--local-files", label_studio.files / "sixty"]
    printed = io.StringIO()
    with redirect_stdout(printed), redirect_stderr(printed):
        code = run([str(word) for word in words])
    assert code == 0, printed.getvalue()
    number = project_of(printed.getvalue())
    for seeds, presign in ((range(30, 45), True), (range(45, 60), False)):
        bucket = f"presigned-{presign}".lower()
        for seed in seeds:
            s3.put(bucket, f"pics/image-{seed:03d} with space.png", encoded(seed))
        add_bucket(label_studio, number, bucket, presign)
    yield number


def test_retrieve_predictions_fills_every_task(
    label_studio: LabelStudioServer, project: int, server_python: Path, predictor: Predictor
) -> None:
    retrieve(label_studio, project)
    tasks = tasks_of(label_studio, project)
    config = label_studio.api("GET", f"/api/projects/{project}/")["label_config"]
    (version,) = {entry["model_version"] for entry in label_studio.api("GET", "/api/ml/", params={"project": project})}
    assert len(tasks) == 60
    checked = []
    for task in tasks:
        (prediction,) = task["predictions"]
        assert prediction["model_version"] == version and prediction["result"]
        checked.append({"result": prediction["result"], "score": prediction["score"]})
        found = join_labels(prediction["result"])
        wanted = join_labels(expected(predictor, config, seed_of(task)).results)
        exact = join_labels(expected(predictor, BRUSHES, seed_of(task)).results)
        assert [r["value"][r["type"]] for r in found] == [r["value"][r["type"]] for r in wanted]
        for region, brushed in zip(found, exact, strict=True):
            mask = mask_of_value("brushlabels", brushed["value"], SIZE)
            # Polygons are those that a hand can drag; specks lose more, as the documentation of tolerances says.
            least = 0.9 if mask.sum() >= 64 else 0.75
            assert mask_iou(mask_of_value(region["type"], region["value"], SIZE), mask) >= least
    assert sdk_says(server_python, config, checked)["errors"] == []


def test_the_storage_of_a_project_is_asked_where_the_task_is_unknown(
    label_studio: LabelStudioServer, project: int
) -> None:
    async def fetched(settings: ImageSettings, url: str) -> bytes:
        async with settings.fetcher(TOKEN) as fetcher:
            return await fetcher.fetch(url, Owner(project=project))

    allowed = ImageSettings(label_studio.url, allow_hosts=("127.0.0.1",), allow_addresses=("127.0.0.0/8",))
    for bucket, seed in (("presigned-true", 30), ("presigned-false", 45)):
        url = f"s3://{bucket}/pics/image-{seed:03d} with space.png"
        assert anyio.run(fetched, allowed, url) == encoded(seed)


def test_bulk_reads_the_same_storages(
    label_studio: LabelStudioServer,
    project: int,
    secrets: Path,
    model_path: Path,
    predictor: Predictor,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
) -> None:
    body = {"selectedItems": {"all": True, "excluded": []}}
    label_studio.api("POST", f"/api/dm/actions?id=delete_tasks_predictions&project={project}", json=body)
    server = ["--url", label_studio.url, "--token-file", secrets / "token.txt"]
    words = ["--project", project, "--model", model_path, "--min-area", "4", "--state-dir", tmp_path]
    code, printed = command(capfd, "prelabel", *server, *words, *ALLOWED)
    assert code == 0 and "60 of 60 tasks predicted" in printed, printed
    config = label_studio.api("GET", f"/api/projects/{project}/")["label_config"]
    for task in tasks_of(label_studio, project):
        (prediction,) = task["predictions"]
        wanted = expected(predictor, config, seed_of(task)).results
        assert_same_regions(prediction["result"], wanted)


def test_bulk_names_three_of_sixty_and_delivers_the_rest(
    label_studio: LabelStudioServer,
    secrets: Path,
    server_python: Path,
    model_path: Path,
    predictor: Predictor,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
) -> None:
    write_images(label_studio.files / "bulk", range(57))
    server = ["--url", label_studio.url, "--token-file", secrets / "token.txt"]
    code, printed = command(capfd, "setup", *server, *LABELS, "--shape", "brush", "--no-backend", "--title", "batch")
    assert code == 0, printed
    number = project_of(printed)
    (tmp_path / "broken.png").write_bytes(encoded(1)[:60])
    storage = {"project": number, "path": str(label_studio.files / "bulk"), "use_blob_urls": True}
    storage_id = label_studio.api("POST", "/api/storages/localfiles", json=storage)["id"]
    label_studio.api("POST", f"/api/storages/localfiles/{storage_id}/sync")
    bad = [{"image": "http://169.254.169.254/latest/a.png"}, {"image": "/data/local-files/?d=bulk/gone.png"}]
    label_studio.api("POST", f"/api/projects/{number}/import", json=bad)
    files = {"file": ("broken.png", (tmp_path / "broken.png").read_bytes())}
    label_studio.api("POST", f"/api/projects/{number}/import", files=files)

    model = ["--model", model_path, "--min-area", "4", "--state-dir", tmp_path]
    code, printed = command(capfd, "prelabel", *server, "--project", number, *model, "--workers", "2")
    assert code == 1, printed
    assert "57 of 60 tasks predicted" in printed and "bottleneck: " in printed
    tasks = tasks_of(label_studio, number)
    good = [task for task in tasks if "image-" in task["data"]["image"]]
    failed = {task["id"]: task["data"]["image"] for task in tasks if "image-" not in task["data"]["image"]}
    assert len(good) == 57 and len(failed) == 3
    for task, url in failed.items():
        (line,) = [line for line in printed.splitlines() if line.startswith(f"failed: task {task}:")]
        assert ("allow_hosts" in line) == url.startswith("http://169")
    config = label_studio.api("GET", f"/api/projects/{number}/")["label_config"]
    predictions = [task["predictions"][0] for task in good]
    said = sdk_says(server_python, config, [{"result": p["result"], "score": p["score"]} for p in predictions])
    assert said["errors"] == []
    ours = [region for prediction in predictions for region in join_labels(prediction["result"])]
    assert len(said["masks"]) == len(ours) > 57
    for task, prediction in zip(good, predictions, strict=True):
        assert_same_regions(prediction["result"], expected(predictor, config, seed_of(task)).results)
    for runs, region in zip(said["masks"], ours, strict=True):
        mask = np.repeat([value == 255 for value, _ in runs], [length for _, length in runs]).reshape(SIZE)
        assert {value for value, _ in runs} <= {0, 255}
        assert np.array_equal(mask, mask_of_value("brushlabels", region["value"], SIZE))

    code, printed = command(capfd, "prelabel", *server, "--project", number, *model)
    assert code == 1 and "0 of 60 tasks predicted" in printed and "57 skipped" in printed
    assert sum(len(task["predictions"]) for task in tasks_of(label_studio, number)) == 57

    body = {"selectedItems": {"all": True, "excluded": []}}
    label_studio.api("POST", f"/api/dm/actions?id=delete_tasks_predictions&project={number}", json=body)
    code, printed = command(capfd, "prelabel", *server, "--project", number, *model, "--workers", "0")
    assert code == 1 and "57 of 60 tasks predicted" in printed
    stored = [[(p["result"], p["score"]) for p in task["predictions"]] for task in tasks_of(label_studio, number)]
    assert stored == [[(p["result"], p["score"]) for p in task["predictions"]] for task in tasks]


@pytest.mark.parametrize("names", ["auto", "tree,car", "none"])
def test_names_compete_as_on_the_command_line(
    label_studio: LabelStudioServer,
    secrets: Path,
    model_path: Path,
    names: str,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
) -> None:
    """The same image has the same regions, whichever front end asks."""
    labels = ["--label", "Sofa=sofa,couch", "--label", "cat", "--background-threshold", "0.3"]
    labels += ["--background-names", names]
    write_images(tmp_path / "images", range(6))
    server = ["--url", label_studio.url, "--token-file", secrets / "token.txt"]
    words = [*labels, "--shape", "brush", "--no-backend", "--title", f"names {names}", "--upload", tmp_path / "images"]
    code, printed = command(capfd, "setup", *server, *words)
    assert code == 0, printed
    number = project_of(printed)
    config = label_studio.api("GET", f"/api/projects/{number}/")["label_config"]
    assert ("model_background_names" in config) == (names != "auto")
    options = ["--model", model_path, "--min-area", "0"]
    code, printed = command(capfd, "prelabel", *server, "--project", number, *options, "--state-dir", tmp_path)
    assert code == 0, printed
    out = tmp_path / "labels.json"
    words = ["prelabel", tmp_path / "images", *labels, *options, "--geometry", "rle", "--out", out, "--quiet"]
    assert run([str(word) for word in words]) == 0
    coco = COCO(out)
    for task in tasks_of(label_studio, number):
        found = np.zeros(SIZE, np.uint8)
        for region in join_labels(task["predictions"][0]["result"]):
            place = ["Sofa", "cat"].index(region["value"]["brushlabels"][0]) + 1
            found[mask_of_value("brushlabels", region["value"], SIZE)] = place
        (image,) = [entry for entry in coco.imgs.values() if f"image-{seed_of(task):03d}" in entry["file_name"]]
        wanted = np.zeros(SIZE, np.uint8)
        for annotation in coco.imgToAnns[image["id"]]:
            wanted[coco.annToMask(annotation) > 0] = annotation["category_id"]
        np.testing.assert_array_equal(found, wanted)
        assert names != "auto" or (wanted == 0).any()


def test_accepted_regions_are_exported(
    label_studio: LabelStudioServer,
    project: int,
    secrets: Path,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    predictor: Predictor,
) -> None:
    config = label_studio.api("GET", f"/api/projects/{project}/")["label_config"]
    tasks = sorted(tasks_of(label_studio, project), key=lambda task: task["id"])[:3]
    wanted: dict[str, list[Any]] = {}
    for task in tasks:
        result = expected(predictor, config, seed_of(task)).results
        # Two annotators: the first one's annotation is not the latest.
        for regions in (result[:2], result):
            label_studio.api("POST", f"/api/tasks/{task['id']}/annotations/", json={"result": regions})
        wanted[task["data"]["image"].rpartition("/")[2]] = join_labels(result)
    out = tmp_path / "coco.json"
    server = ["--url", label_studio.url, "--token-file", secrets / "token.txt"]
    code, printed = command(capfd, "export", *server, "--project", project, "--out", out)
    assert code == 0 and "3 images" in printed and "57 tasks without annotations" in printed, printed
    assert {image["file_name"] for image in json.loads(out.read_text())["images"]} == set(wanted)
    code, printed = command(
        capfd, "export", *server, "--project", project, "--out", out, "--overwrite", "--all-tasks", *ALLOWED
    )
    assert code == 0, printed
    assert run(["validate-coco", str(out)]) == 0
    coco = COCO(str(out))
    assert len(coco.imgs) == 60
    assert {f"pics/image-{seed:03d} with space.png" for seed in range(30, 60)} < {
        image["file_name"] for image in coco.imgs.values()
    }
    names = {image["file_name"]: image["id"] for image in coco.imgs.values()}
    for name, result in wanted.items():
        annotations = coco.loadAnns(coco.getAnnIds(imgIds=[names[name]]))
        assert len(annotations) == len(result)
        for annotation, region in zip(annotations, result, strict=True):
            assert coco.cats[annotation["category_id"]]["name"] == region["value"][region["type"]][0]
            mask = mask_of_value(region["type"], region["value"], SIZE)
            assert mask_iou(coco.annToMask(annotation).astype(bool), mask) >= 0.97
            assert annotation["area"] == mask.sum() and annotation["id"] > 0
    assert coco_mask.area(coco.annToRLE(coco.anns[1])) > 0


def test_a_private_backend_is_named_as_the_trouble(
    label_studio: LabelStudioServer, secrets: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """Nobody listens on this port; the message must name the backend, and no project is made."""
    server = ["--url", label_studio.url, "--token-file", secrets / "token.txt"]
    words = ["--label", "cat", "--title", "nobody listens", "--backend-url", "http://127.0.0.1:9", "--wait", "0"]
    code, printed = command(capfd, "setup", *server, *words)
    assert code == 2 and "no backend listens at http://127.0.0.1:9" in printed and "project" not in printed


def test_a_wrong_token_is_explained(
    label_studio: LabelStudioServer, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "token.txt").write_text("wrong-secret")
    server = ["--url", label_studio.url, "--token-file", tmp_path / "token.txt"]
    code, printed = command(capfd, "prelabel", *server, "--project", "1")
    assert code == 2 and "personal access token" in printed and "wrong-secret" not in printed
