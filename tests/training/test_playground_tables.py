"""Weights, tables and documents belong together, and no scene that is scored was ever trained on."""

from __future__ import annotations

import copy
import json
from itertools import chain
from pathlib import Path

import numpy as np
import pytest

from tcl_core.errors import SettingsError
from tcl_core.evaluation.playground import SEEDS, held_out_scene
from tcl_core.evaluation.projects import PROJECT_SEED, VALIDATION_SEED
from tcl_core.models.modelfile import read_model_file
from tests.docs.pages import REPOSITORY
from training.playground import publish_methods, shards
from training.playground.method_tables import comparison
from training.playground.pages import parts_of, targets_of, with_parts
from training.playground.recipe import RECIPE

RESULTS = REPOSITORY / "training" / "playground" / "results"
ASSET = REPOSITORY / "tcl_core" / "assets" / "playground.safetensors"


def _results() -> dict:
    names = ("table", "projects", "training-free", "methods", "units")
    return {name: json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8")) for name in names}


def test_documents_say_what_was_recorded() -> None:
    for place, parts in parts_of(_results()).items():
        page = (REPOSITORY / place).read_text(encoding="utf-8")
        assert with_parts(page, parts, str(place)) == page, place


def test_what_was_recorded_is_of_the_embedded_weights() -> None:
    results, file = _results(), read_model_file(ASSET)
    table = results["table"]
    digests = {table["weights_sha256"], *(entry["weights_sha256"] for entry in results["training-free"])}
    digests.add(results["projects"].get("weights_sha256") or results["projects"]["settings"]["weights_sha256"])
    assert digests == {file.sha256}
    assert table["bytes"] == ASSET.stat().st_size
    assert all(target.met for target in targets_of(table)) and len(targets_of(table)) == 4


def test_a_target_that_is_missed_is_shown() -> None:
    results = copy.deepcopy(_results())
    main = next(row for row in results["table"]["rows"] if row["variant"] == "TCL + PAMR")
    main["lost"] = 10.04
    text = next(parts["table"] for place, parts in parts_of(results).items() if place.name == "playground.md")
    assert "| points lost on held-out combinations | at most 10 | 10.0 | **missed** |" in text
    main["lost"] = 10.0
    assert all(target.met for target in targets_of(results["table"]))


def test_a_comparison_without_scores_or_models(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--work", str(tmp_path), "--repository", str(tmp_path)]
    assert publish_methods.main(words) == 2
    assert "is no checkout" in capsys.readouterr().err
    copy = tmp_path / "training/playground/results/table.json"
    copy.parent.mkdir(parents=True)
    copy.write_bytes((RESULTS / "table.json").read_bytes())
    assert publish_methods.main(words) == 2
    assert "has no scores; run training.playground.compare_methods first" in capsys.readouterr().err
    scores = tmp_path / "scores"
    scores.mkdir()
    (scores / "tcl-375-0.json").write_text(json.dumps({"scenes": 500, "split": "validation", "rows": []}))
    assert publish_methods.main(words) == 2
    message = capsys.readouterr().err
    assert "tcl-375-0.safetensors" in message and "Traceback" not in message
    assert not list(tmp_path.glob("**/methods.json"))


def test_a_comparison_on_former_weights_says_so() -> None:
    results = _results()
    texts = [
        comparison(results["methods"], digest, {"tcl": "TCL", "code": "CoDe"})
        for digest in (results["methods"]["clip_of"], "")
    ]
    assert "of the embedded weights" in texts[0] and "of former embedded weights" in texts[1]


def test_losses_of_a_log(tmp_path: Path) -> None:
    log = tmp_path / "a.jsonl"
    lines = [
        {"stage": "object", "object_loss": 1.0, "total": 1.0},
        {"stage": "all", "object_loss": 0.5, "pixel_loss": None, "total": 0.5, "lr": 0.1, "peak_gib": 3.0},
        {"stage": "all", "object_loss": 0.25, "pixel_loss": 0.125, "total": 0.375, "lr": 0.1, "peak_gib": 3.0},
        {"stage": "all", "playground": 50.0},
    ]
    log.write_text("\n".join(map(json.dumps, lines)))
    found = publish_methods._last_losses(log)
    assert found == {"object_loss": 0.375, "pixel_loss": 0.125, "total": 0.4375}
    assert publish_methods._last_losses(tmp_path / "removed.jsonl") == {}
    key = {"run": "a", "steps": 1, "seed": 0}
    former, again = ({"runs": [{**key, "weights_sha256": "x", "losses": losses}]} for losses in (found, {}))
    assert publish_methods.joined(former, again)["runs"][0]["losses"] == found
    again["runs"][0]["weights_sha256"] = "y"
    assert publish_methods.joined(former, again)["runs"][0]["losses"] == {}


def test_a_page_keeps_what_is_not_generated() -> None:
    page = "a\n<!-- generated: x -->\nold\n<!-- end of x -->\nb\n"
    assert with_parts(page, {"x": "new\n|"}, "page") == page.replace("old", "new\n|")
    for damaged in (page.replace("end of x", "end"), page.replace("generated: x", "x"), page + page):
        with pytest.raises(SettingsError, match=r"page: must have the markers .* once"):
            with_parts(damaged, {"x": "new"}, "page")


def test_scenes_of_scores_are_never_trained_on() -> None:
    """Every scene is made by a generator whose first number is the seed of its set."""
    scored = [*chain.from_iterable(sets.values() for sets in SEEDS.values()), PROJECT_SEED, VALIDATION_SEED]
    assert sorted(scored) == [*range(19_101, 19_105), *range(19_201, 19_205)]
    trained = {images.seed for images in RECIPE.image_sets()} | {shards._SCENES.seed}
    # Batches, captions and noise of the phases; the other seeds of the TCL stage are given by hand.
    trained |= {RECIPE.seed + number for number in range(len(RECIPE.clip_phases))}
    former = {7_001, 7_002, 7_003, 7_101, 7_204}
    assert not set(scored) & (trained | former)
    drawn = [held_out_scene(which, 0, split).image for split, sets in SEEDS.items() for which in sets]
    assert len({image.tobytes() for image in drawn}) == len(drawn) == 6
    assert all(np.asarray(image).shape == (128, 128, 3) for image in drawn)
