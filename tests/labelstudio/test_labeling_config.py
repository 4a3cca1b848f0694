from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from labelstudio_backend.labeling_config import parse_labeling_config
from tcl_core.errors import SettingsError, VocabularyError

CONFIG = """
<View>
  <Image name="image" value="$photo"/>
  <TextArea name="note" toName="image" perRegion="true"/>
  <TextArea name="prompt" toName="image"/>
  <PolygonLabels name="poly" toName="image" model_score_threshold="0.4">
    <Label value="Sofa" predicted_values="sofa, couch"/>
    <Label value="Cat" model_score_threshold="0.6"/>
  </PolygonLabels>
  <BrushLabels name="brush" toName="image" model_regions="holes">
    <Label value="Sofa" predicted_values="settee"/>
    <Label value="Background" model_score_threshold="0.3"/>
  </BrushLabels>
  <RectangleLabels name="rect" toName="image" smart="true" model_skip="true"><Label value="Cat"/></RectangleLabels>
  <Choices name="kind" toName="image"><Choice value="indoor"/></Choices>
</View>
"""


def test_labels_prompts_and_thresholds() -> None:
    config = parse_labeling_config(CONFIG)
    assert (config.image_name, config.image_key, config.prompt_name) == ("image", "photo", "prompt")
    assert config.values == ("Sofa", "Cat")
    sofa, cat = config.vocabulary().labels
    assert sofa.prompts == ("sofa", "couch", "settee") and sofa.threshold == 0.4
    assert cat.prompts == ("Cat",) and cat.threshold == 0.6


def test_controls() -> None:
    poly, brush, rect = parse_labeling_config(CONFIG).controls
    assert (poly.name, poly.kind, poly.labels) == ("poly", "polygon", ("Sofa", "Cat"))
    assert brush.kind == "brush" and brush.holes_only and not brush.skipped
    assert rect.kind == "rectangle" and rect.skipped


def test_background_stands_for_what_no_label_wins() -> None:
    config = parse_labeling_config(CONFIG)
    assert config.background_label == "Background"
    assert config.vocabulary().background_threshold == 0.3


def test_background_with_prompts_is_an_ordinary_label() -> None:
    config = parse_labeling_config(CONFIG.replace('"Background"', '"Background" predicted_values="wall"'))
    assert config.background_label is None
    assert config.values == ("Sofa", "Cat", "Background")
    assert config.vocabulary().labels[2].prompts == ("wall",)


def test_added_prompts_follow_the_configured_ones() -> None:
    vocabulary = parse_labeling_config(CONFIG).vocabulary({"Cat": ["kitten", "Cat"], "Gone": ["x"]})
    assert vocabulary.labels[1].prompts == ("kitten", "Cat")


def test_an_alias_is_the_result_and_the_value_the_prompt() -> None:
    xml = '<View><Image name="i" value="$i"/><PolygonLabels name="p" toName="i"><Label value="red car" alias="c1"/>'
    config = parse_labeling_config(xml + "</PolygonLabels></View>")
    assert config.values == ("c1",)
    assert config.vocabulary().labels[0].prompts == ("red car",)


@pytest.mark.parametrize("name", ["predict_interactive_textarea", "predict_interactive_rectanglelabels"])
def test_recorded_configurations(name: str, payload: Callable[[str], dict[str, Any]]) -> None:
    config = parse_labeling_config(payload(name)["body"]["label_config"])
    assert config.image_key == "image" and config.prompt_name == "prompt"
    assert "red ball" in config.values and "kp ball" not in config.values


@pytest.mark.parametrize(
    ("xml", "message"),
    [
        ("", "not valid XML"),
        ("<View>", "not valid XML"),
        ("<View/>", "has no PolygonLabels"),
        (CONFIG.replace("$photo", "photo"), "such as \\$image"),
        (CONFIG.replace("0.4", "high"), "'high'; give a number"),
        (CONFIG.replace("0.6", "nan"), "'nan'; give a number"),
        ("<View>" + " " * (1 << 20) + "</View>", "longer than"),
        ('<!DOCTYPE v [<!ENTITY a "b">]><View>&a;</View>', "not valid XML"),
        ('<View><Image name="i" value="$i"/><PolygonLabels name="p" toName="i"/></View>', "no label to predict"),
    ],
)
def test_a_configuration_that_cannot_be_used(xml: str, message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        parse_labeling_config(xml)


def test_a_label_that_cannot_be_used() -> None:
    with pytest.raises(VocabularyError):
        parse_labeling_config(CONFIG.replace('"Cat" model', '"C&#7;at" model').replace("&#7;", "&#x85;"))
