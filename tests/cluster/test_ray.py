"""A job on a Ray cluster of two local workers: the same bytes as in one process, whatever is lost or stopped."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from tcl_core.cli.main import run
from tcl_core.errors import SettingsError
from tcl_core.jobs.inputs import find_images
from tcl_core.jobs.ray_cluster import RayCluster
from tests.cluster.deadly import make_segmenter
from tests.cluster.environment import run_python
from tests.cluster.test_object_storage import LABELS, S3_KEYS, SECRET, files_of
from tests.core.prelabel_helpers import run_prelabel
from tests.core.test_prelabel import VOCABULARY, save_image
from tests.labelstudio.live.s3 import S3Server
from tests.tiny_model import write_tiny_model

IMAGES = 22


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("ray")
    for number in range(IMAGES):
        save_image(folder / "images" / f"{number:02d}.png", number, (40, 48) if number % 3 else (33, 21))
    (folder / "images" / "11.png").write_text("I am no image")
    return folder


@pytest.fixture(scope="module")
def whole(folder: Path, tiny_model_path: Path) -> Path:
    """The output of one process, with its preview beside it."""
    out = folder / "whole" / "out.json"
    images = find_images([str(folder / "images")])
    run_prelabel(images, make_segmenter(str(tiny_model_path)), VOCABULARY, out, preview=out.parent / "preview")
    return out


def annotations(path: Path) -> dict[str, list[Any]]:
    """By file name, without ids, which are counted through all images."""
    data = json.loads(path.read_text(encoding="utf-8"))
    found: dict[int, list[Any]] = {image["id"]: [] for image in data["images"]}
    for entry in data["annotations"]:
        found[entry["image_id"]].append({key: value for key, value in entry.items() if key not in ("id", "image_id")})
    return {image["file_name"]: found[image["id"]] for image in data["images"]}


@pytest.fixture(scope="module")
def happened(folder: Path, python: Path, tiny_model_path: Path) -> dict[str, Any]:
    """What the jobs of ``ray_job`` did."""
    other = write_tiny_model(folder / "other.safetensors", seed=1)
    done = run_python(python, ["-m", "tests.cluster.ray_job", str(folder), str(tiny_model_path), str(other)], folder)
    assert done.returncode == 0, done.stderr
    return dict(json.loads(done.stdout.splitlines()[-1]))


@pytest.mark.slow
@pytest.mark.xdist_group("ray")
def test_a_killed_worker_costs_nothing(folder: Path, happened: dict[str, Any], whole: Path) -> None:
    job = happened["killed"]
    assert (folder / "marker").exists() and (job["done"], set(job["failed"])) == (IMAGES - 1, {"11.png"})
    assert "was lost; its images are done again" in job["said"]
    assert files_of(folder / "killed") == files_of(whole.parent)
    assert min(job["shares"].values()) > 0 and happened["signals are kept"]


@pytest.mark.slow
@pytest.mark.xdist_group("ray")
def test_an_interrupted_job_resumes_in_one_process(
    folder: Path, happened: dict[str, Any], whole: Path, tiny_model_path: Path
) -> None:
    job = happened["interrupted"]
    assert job["interrupted"] and 3 <= job["done"] < IMAGES - 1
    out = folder / "interrupted" / "out.json"
    images = find_images([str(folder / "images")])
    run_prelabel(images, make_segmenter(str(tiny_model_path)), VOCABULARY, out, resume=True)
    assert out.read_bytes() == whole.read_bytes()


@pytest.mark.slow
@pytest.mark.xdist_group("ray")
def test_images_that_kill_every_worker_fail_and_the_others_do_not(
    folder: Path, happened: dict[str, Any], whole: Path
) -> None:
    job = happened["deadly image"]
    # The group of four that the deadly one goes through the network with.
    assert set(job["failed"]) == {"08.png", "09.png", "10.png", "11.png"}
    assert "three workers of Ray ended while they had the images 9 to 12 of the job" in job["failed"]["09.png"]
    assert job["said"].count("was lost") == 3
    found, all_of_it = (annotations(folder / name / "out.json") for name in ("deadly image", "whole"))
    assert found == {name: entries for name, entries in all_of_it.items() if name not in job["failed"]}
    assert len(found) == IMAGES - 4


@pytest.mark.slow
@pytest.mark.xdist_group("ray")
def test_workers_that_would_give_other_results_are_refused(folder: Path, happened: dict[str, Any]) -> None:
    assert "has weights_sha256" in happened["another model"]["error"]
    assert "cannot work: " in happened["no model"]["error"] and "nowhere.safetensors" in happened["no model"]["error"]
    assert not (folder / "another model").exists() and not (folder / "no model").exists()


@pytest.mark.slow
@pytest.mark.xdist_group("ray")
def test_ray_workers_label_a_bucket(
    tmp_path: Path, python: Path, s3: S3Server, folder: Path, tiny_model_path: Path
) -> None:
    fast = ["--model", str(tiny_model_path), "--device", "cpu", "--no-refine", *LABELS]
    for name, content in files_of(folder / "images").items():
        s3.put("cluster", f"in/{name}", content)
    assert run(["prelabel", str(folder / "images"), *fast, "--workers", "0", "--out", str(tmp_path / "one.json")]) == 1
    words = ["prelabel", "s3://cluster/in", *fast, "--ray", "local", "--ray-workers", "2", "--out", "two.json"]
    done = run_python(python, ["-m", "tcl_core.cli", *words], tmp_path, **S3_KEYS, AWS_ENDPOINT_URL=s3.url)
    assert done.returncode == 1 and "skipped: 11.png" in done.stderr, done.stderr
    assert SECRET not in done.stdout + done.stderr
    assert (tmp_path / "two.json").read_bytes() == (tmp_path / "one.json").read_bytes()


@pytest.mark.slow
@pytest.mark.xdist_group("ray")
def test_no_cluster_is_one_sentence(tmp_path: Path, python: Path) -> None:
    save_image(tmp_path / "a.png")
    words = ["-m", "tcl_core.cli", "prelabel", "a.png", "--label", "a", "--out", "o.json", "--ray", "auto"]
    done = run_python(python, words, tmp_path, RAY_TMPDIR=str(tmp_path))
    assert done.returncode == 2 and "--ray auto: no connection to a cluster" in done.stderr, done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("", make_segmenter), "the address is empty"),
        (("local", make_segmenter, 0), "--ray-workers 0: give auto"),
        (("local", make_segmenter, 1, 0, "cuda:1"), "Ray chooses which device"),
    ],
)
def test_settings_of_a_cluster(arguments: tuple[Any, ...], message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        RayCluster(*arguments)


def test_ray_that_is_not_installed_is_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    save_image(tmp_path / "a.png")
    monkeypatch.setitem(sys.modules, "ray", None)
    words = ["prelabel", str(tmp_path / "a.png"), "--label", "a", "--out", str(tmp_path / "o.json")]
    assert run([*words, "--ray", "local"]) == 2
    assert "--ray: Ray is not installed; install it (pip install 'tcl-annotate[ray]')" in capsys.readouterr().err
    assert run([*words, "--ray-workers", "2"]) == 2
    assert "--ray-workers: only applies with --ray" in capsys.readouterr().err
