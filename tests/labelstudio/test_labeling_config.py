from __future__ import annotations

import re
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from labelstudio_backend.config_writer import SHAPES, labeling_config_xml
from labelstudio_backend.image_source import value_of
from labelstudio_backend.labeling_config import find_prompt_field, parse_labeling_config, parse_project_config
from tcl_core.errors import SettingsError, VocabularyError
from tcl_core.vocabulary import Vocabulary

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
    assert config.values == ("red car",) and config.controls[0].written_as("red car") == "c1"
    assert config.vocabulary().labels[0].prompts == ("red car",)


def test_one_value_with_several_aliases_is_one_label() -> None:
    config = parse_labeling_config(
        '<View><Image name="i" value="$i"/>'
        '<BrushLabels name="b" toName="i"><Label value="car" alias="1_b"/><Label value="moon" alias="2"/></BrushLabels>'
        '<PolygonLabels name="p" toName="i"><Label value="car" alias="1_p"/><Label alias="2"/></PolygonLabels></View>'
    )
    assert config.values == ("car", "moon", "2")
    assert [control.written_as("car") for control in config.controls] == ["1_b", "1_p"]
    # The same alias is another label in another tag.
    assert (config.label_of("b", "2"), config.label_of("p", "2"), config.label_of("b", "9")) == ("moon", "2", None)


def test_blanks_are_written_as_they_stand_in_the_configuration() -> None:
    xml = '<View><Image name="i" value="$i"/><PolygonLabels name="p" toName="i"><Label value=" red car "/>'
    config = parse_labeling_config(xml + "</PolygonLabels></View>")
    assert config.values == ("red car",) and config.controls[0].written_as("red car") == " red car "
    assert config.label_of("p", " red car ") == config.label_of(None, "red car") == "red car"


def test_the_background_may_be_named_true() -> None:
    vocabulary = parse_labeling_config(CONFIG.replace("<View>", '<View model_background="True">')).vocabulary()
    assert vocabulary.background and vocabulary.background_threshold == 0.3


@pytest.mark.parametrize(
    ("expression", "found"),
    [
        ("$image", "a.png"),
        ("$meta.image", "b.png"),
        ("$images[1]", "d.png"),
        ("$deep[0].list[1].url", "e.png"),
        ("$dotted.key", "f.png"),
        ("$with-dash", "g.png"),
        ("/data/local-files/?d=$folder/$image", "/data/local-files/?d=x/a.png"),
        ("$none", None),
        ("$images[7]", None),
        ("$image.name", None),
        ("/data/$none", None),
    ],
)
def test_where_the_image_is(expression: str, found: object) -> None:
    data = {
        "image": "a.png",
        "meta": {"image": "b.png"},
        "images": ["c.png", "d.png"],
        "deep": [{"list": [None, {"url": "e.png"}]}],
        "dotted.key": "f.png",
        "with-dash": "g.png",
        "folder": "x",
    }
    assert value_of(expression, data) == found


TWO = (
    '<View><Image name="ref" value="$ref"/><Image name="pages" valueList="$pages"/><Image name="shown" value="$ref"/>'
    '<PolygonLabels name="p" toName="ref"><Label value="cat"/></PolygonLabels>'
    '<PolygonLabels name="q" toName="pages"><Label value="dog"/></PolygonLabels></View>'
)


def test_every_image_that_is_drawn_on_counts() -> None:
    config = parse_project_config(TWO)
    assert config.values == ("cat", "dog")
    found = config.images_of({"ref": "a", "pages": ["b", "c"]})
    assert [(image.image_name, image.item_index, url) for image, url in found] == [
        ("ref", None, "a"),
        ("pages", 0, "b"),
        ("pages", 1, "c"),
    ]
    (_, first), (_, second) = config.images_of({"ref": "a", "pages": []})
    assert first == "a" and "no images for 'pages'" in str(second)


def test_every_image_of_a_repeater_has_names_of_its_own() -> None:
    config = parse_project_config(
        '<View><Repeater on="$doc" indexFlag="{{i}}"><Image name="page_{{i}}" value="$doc[{{i}}].url"/>'
        '<BrushLabels name="b_{{i}}" toName="page_{{i}}"><Label value="cat"/></BrushLabels></Repeater></View>'
    )
    found = config.images_of({"doc": [{"url": "a"}, {"url": "b"}]})
    assert [(image.image_name, image.controls[0].name, url) for image, url in found] == [
        ("page_0", "b_0", "a"),
        ("page_1", "b_1", "b"),
    ]
    ((_, error),) = config.images_of({"doc": "x"})
    assert "no list 'doc'" in str(error)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("$doc", "doc", "<Repeater> has the on 'doc'"),
        ('value="cat"', 'value="cat {{idx}}"', "changes with the {{idx}}"),
        ("<Image", '<Repeater on="$x"/><Image', "in another one"),
    ],
)
def test_repeaters_that_cannot_be_predicted(old: str, new: str, message: str) -> None:
    xml = (
        '<View><Repeater on="$doc"><Image name="p_{{idx}}" value="$doc[{{idx}}]"/>'
        '<BrushLabels name="b_{{idx}}" toName="p_{{idx}}"><Label value="cat"/></BrushLabels></Repeater></View>'
    )
    with pytest.raises(SettingsError, match=re.escape(message)):
        parse_project_config(xml.replace(old, new, 1))


@pytest.mark.parametrize("attribute", ["value", "valueList"])
def test_more_than_a_thousand_images_are_refused_however_they_come_about(attribute: str) -> None:
    """One list that every repetition names must not grow a thousandfold."""
    config = parse_project_config(
        f'<View><Repeater on="$doc"><Image name="p_{{{{idx}}}}" {attribute}="$all"/>'
        '<BrushLabels name="b_{{idx}}" toName="p_{{idx}}"><Label value="cat"/></BrushLabels></Repeater></View>'
    )
    tracemalloc.start()
    try:
        ((_, error),) = config.images_of({"doc": [0] * 1001, "all": ["a"] * 100_000})
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert "has more than 1000 images" in str(error) and peak < 2**23
    found = config.images_of({"doc": [0] * 1000, "all": ["a"]})
    assert len(found) == 1000 and found[-1][0].image_name == "p_999"


def test_a_number_of_thousands_of_digits_names_nothing() -> None:
    config = parse_project_config(CONFIG.replace("$photo", f"$photos[{'9' * 5000}]"))
    ((_, error),) = config.images_of({"photos": ["a"]})
    assert "in its data" in str(error)


def test_many_images_among_many_tags_are_refused_before_they_are_read() -> None:
    image = '<Image name="i" value="$i"/>'
    xml = '<View>%s<PolygonLabels name="p" toName="i"><Label value="a"/></PolygonLabels></View>'
    assert len(parse_project_config(xml % (image * 100), max_names=10).images) == 100
    with pytest.raises(SettingsError, match="has 20000 images among 20003 tags, which takes too long to read"):
        parse_project_config(xml % (image * 20_000), max_names=10)


def test_too_many_names_are_refused_before_anything_is_made_of_them() -> None:
    labels = "".join(f'<Label value="l{number}" predicted_values="a, b, c"/>' for number in range(300))
    xml = f'<View><Image name="i" value="$i"/><PolygonLabels name="p" toName="i">{labels}</PolygonLabels></View>'
    assert parse_project_config(xml).values[299] == "l299"
    with pytest.raises(SettingsError, match="900 labels and prompts, more than 899; .*max_names"):
        parse_project_config(xml, max_names=899)


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


def test_the_example_of_the_documentation() -> None:
    page = (Path(__file__).parents[2] / "docs" / "label-studio.md").read_text(encoding="utf-8")
    (xml,) = re.findall(r"```xml\n(.*?)```", page, re.DOTALL)
    config = parse_labeling_config(xml)
    assert config.labels == {"Sofa": (("sofa", "couch"), None), "Lamp": ((), None)}
    assert config.prompt_name == "prompt" and [each.name for each in config.drawing] == ["polygon"]


def test_prompts_can_be_typed_one_after_the_other() -> None:
    """With ``maxSubmissions`` the field is gone after the first one, whatever came of it."""
    for shape in SHAPES:
        xml = labeling_config_xml(Vocabulary.from_options(["cat"]), shape)
        assert 'name="prompt"' in xml and "maxSubmissions" not in xml


def test_a_prompt_field_is_found_in_a_configuration_that_cannot_be_used() -> None:
    field = (
        '<View><Image name="i"/><TextArea name="n" toName="i" perRegion="true"/><TextArea name="t" toName="i"/></View>'
    )
    assert find_prompt_field(field) == ("t", "i")
    repeated = (
        '<View><Repeater on="$d" indexFlag="{{k}}"><Image name="i_{{k}}" value="$d[{{k}}]"/>'
        '<TextArea name="t_{{k}}" toName="i_{{k}}"/></Repeater></View>'
    )
    assert find_prompt_field(repeated) == ("t_0", "i_0")
    for none in ("<", "<View/>", '<View><TextArea name="t" toName="text"/></View>'):
        assert find_prompt_field(none) is None
