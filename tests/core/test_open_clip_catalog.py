"""What is said of open_clip's configurations, against open_clip itself."""

from __future__ import annotations

import json
from pathlib import Path

import open_clip
import pytest
import torch
from open_clip.tokenizer import get_clean_fn

from tcl_core.errors import WeightsError
from tcl_core.towers.base import PositionRule
from tcl_core.towers.hub_tokenizer import HubTokenizer
from tcl_core.towers.open_clip_catalog import architectures, clip_config, pretrained_clip, refusal
from tcl_core.towers.open_clip_vit import FrozenClip, bicubic_positions, scaled_bicubic_positions
from tcl_core.towers.tokenizer import Tokenizer

ACCEPTED = [name for name in architectures() if refusal(name) is None]


def test_known_configurations() -> None:
    assert {"ViT-B-16", "ViT-B-16-quickgelu", "ViT-L-14-336", "ViT-H-14-CLIPA", "ViT-M-16-alt"} <= set(ACCEPTED)
    for name, reason in {
        "RN50": "ResNet",
        "coca_ViT-B-32": "CoCa",
        "ViT-B-16-SigLIP": "timm",
        "xlm-roberta-base-ViT-B-32": "Hugging Face",
    }.items():
        assert reason in str(refusal(name))
        with pytest.raises(WeightsError, match=f"the CLIP {name} cannot be used: "):
            clip_config(name)


@pytest.mark.parametrize("name", ACCEPTED)
def test_every_tag_of_an_accepted_configuration(name: str) -> None:
    for tag in open_clip.list_pretrained_tags_by_model(name):
        found = pretrained_clip(name, tag)
        assert found.urls and all(url.startswith("https://") for url in found.urls)
        assert all(0 < value < 1 for value in (*found.mean, *found.std))
        flag = bool(open_clip.get_pretrained_cfg(name, tag).get("quick_gelu"))
        assert found.config["quick_gelu"] == flag
        assert bool(found.note) == (flag != bool(open_clip.get_model_config(name).get("quick_gelu")))


@pytest.mark.parametrize(
    ("name", "tag", "used"),
    [
        ("ViT-B-16", "openai", "QuickGELU"),
        ("ViT-B-16-quickgelu", "laion2b_s34b_b88k", "GELU"),
        ("ViT-L-14-quickgelu", "datacomp_xl_s13b_b90k", "GELU"),
    ],
)
def test_an_activation_of_another_kind_is_corrected_and_said(name: str, tag: str, used: str) -> None:
    found = pretrained_clip(name, tag)
    assert f"trained with {used}, which is used instead of" in found.note
    with torch.device("meta"):
        block = open_clip.CLIP(**found.config).visual.transformer.resblocks[0]
    assert type(block.mlp.gelu).__name__ == used


@pytest.mark.parametrize(
    ("name", "tag", "message"),
    [
        ("ViT-B-61", "openai", "no configuration 'ViT-B-61'; did you mean ViT-B-16"),
        ("ViT-B-16", "openal", "no weights 'openal' of ViT-B-16; did you mean openai?; known are: commonpool"),
        ("ViT-S-16", "openai", "none are known, so give a file: ViT-S-16=FILE"),
        ("ViT-B-16-plus-240", "zzz", "known are: laion400m_e31, laion400m_e32"),
    ],
)
def test_names_that_are_not_known(name: str, tag: str, message: str) -> None:
    with pytest.raises(WeightsError) as caught:
        pretrained_clip(name, tag)
    assert message in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["ViT-B-61", "hf-hub:laion/CLIP-ViT-B-16", "local-dir:/tmp/clip"])
def test_names_elsewhere_are_not_looked_up(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """open_clip would ask the hub, or read a folder, for what such a name says."""

    def asked(*_: object) -> None:
        raise AssertionError("open_clip was asked")

    monkeypatch.setattr(open_clip, "get_model_config", asked)
    with pytest.raises(WeightsError, match="has no configuration"):
        refusal(name)


def small(name: str) -> dict:
    """A configuration with its structure and tiny sizes."""
    config = json.loads(json.dumps(clip_config(name)))
    vision, text = config["vision_cfg"], config["text_cfg"]
    patch = vision["patch_size"]
    vision |= {"width": 32, "layers": 2, "head_width": 8, "image_size": patch * (3 if patch < 32 else 2)}
    vision.pop("mlp_ratio", None)
    text |= {"width": 16, "heads": 2, "layers": 2, "vocab_size": 50, "context_length": 9}
    return {**config, "embed_dim": 12}


def structures() -> dict[str, str]:
    """One accepted name of each structure that is left when sizes are taken away."""
    return {json.dumps(small(name), sort_keys=True): name for name in ACCEPTED}


@pytest.mark.parametrize("name", sorted(structures().values()))
def test_towers_equal_open_clip(name: str) -> None:
    config = small(name)
    with torch.random.fork_rng():
        torch.manual_seed(1)
        model = open_clip.CLIP(**config).eval()
        for block in model.visual.transformer.resblocks:
            for scale in (block.ls_1, block.ls_2):
                if hasattr(scale, "gamma"):
                    torch.nn.init.uniform_(scale.gamma, 0.2, 0.9)
        images = torch.randn(3, 3, *model.visual.image_size)
        # The end of a text has the largest id, or the one that the configuration says.
        end = config["text_cfg"].get("eos_id", 49) if config["text_cfg"].get("pool_type") == "eos" else 49
        tokens = torch.randint(3, 40, (4, 9))
        tokens[torch.arange(4), torch.tensor([3, 8, 5, 4])] = end
    clip = FrozenClip(model)
    with torch.no_grad():
        torch.testing.assert_close(clip.encode_image(images), model.encode_image(images), rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(clip.encode_text(tokens), model.encode_text(tokens), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", sorted(structures().values()))
def test_texts_that_begin_alike_equal_open_clip(name: str) -> None:
    """A causal tower that pools at the largest id computes such texts as one tree; others may not."""
    config = small(name)
    text = config["text_cfg"]
    with torch.random.fork_rng():
        torch.manual_seed(2)
        model = open_clip.CLIP(**config).eval()
        tokens = torch.randint(3, 40, (12, 9))
        tokens[:, :5] = tokens[0, :5]
        tokens[torch.arange(12), torch.arange(12) % 4 + 5] = text.get("eos_id", 49)
    with torch.no_grad():
        found, expected = FrozenClip(model).encode_text(tokens), model.encode_text(tokens)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def trained_grids() -> dict[tuple[int, int], str]:
    """One accepted name of each patch size and trained image size."""
    visions = {name: clip_config(name)["vision_cfg"] for name in ACCEPTED}
    return {(vision["patch_size"], vision["image_size"]): name for name, vision in visions.items()}


@pytest.mark.parametrize("name", sorted(trained_grids().values()))
def test_images_of_the_trained_size_equal_open_clip(name: str) -> None:
    config = small(name)
    config["vision_cfg"]["image_size"] = size = clip_config(name)["vision_cfg"]["image_size"]
    with torch.random.fork_rng():
        torch.manual_seed(3)
        model = open_clip.CLIP(**config).eval()
        images = torch.randn(2, 3, size, size)
    with torch.no_grad():
        found, expected = FrozenClip(model).encode_image(images), model.encode_image(images)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("rule", [bicubic_positions, scaled_bicubic_positions])
@pytest.mark.parametrize("trained", sorted({size // patch for patch, size in trained_grids()}))
def test_position_rules_give_every_size(rule: PositionRule, trained: int) -> None:
    table = torch.zeros(1, 1, trained, trained)
    for size in range(1, 201):
        assert rule(table, (size, 3)).shape == (1, 1, size, 3)
        assert rule(table, (2, size)).shape == (1, 1, 2, size)


# -- tokenizers --------------------------------------------------------------------------------------------------------


@pytest.fixture
def tokenizer_file(tmp_path: Path) -> Path:
    """A word-piece tokenizer as BERT's file has it."""
    tokenizers = pytest.importorskip("tokenizers")
    vocabulary = {
        word: number for number, word in enumerate(("[PAD]", "[UNK]", "[CLS]", "[SEP]", "a", "red", "sofa", "##s"))
    }
    made = tokenizers.Tokenizer(tokenizers.models.WordPiece(vocabulary, unk_token="[UNK]"))
    made.normalizer = tokenizers.normalizers.BertNormalizer(lowercase=True)
    made.pre_tokenizer = tokenizers.pre_tokenizers.BertPreTokenizer()
    made.post_processor = tokenizers.processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    path = tmp_path / "tokenizer.json"
    made.save(str(path))
    return path


def test_hub_tokenizer(tokenizer_file: Path) -> None:
    tokenizer = HubTokenizer(tokenizer_file, 6)
    assert isinstance(tokenizer, Tokenizer)
    assert (tokenizer.context_length, tokenizer.vocab_size, tokenizer.unknown_words("zebra")) == (6, 8, [])
    texts = ["A red  sofas", "a a a a a a a", "zebra", ""]
    expected = [[2, 4, 5, 6, 7, 3], [2, 4, 4, 4, 4, 3], [2, 1, 3, 0, 0, 0], [2, 3, 0, 0, 0, 0]]
    assert tokenizer(texts).tolist() == expected
    assert tokenizer([]).shape == (0, 6)
    assert [tokenizer.length(text) for text in texts] == [6, 9, 3, 2]
    stripped = HubTokenizer(tokenizer_file, 6, strip_sep_token=True)(texts).tolist()
    assert stripped == [[0 if number == 3 else number for number in row] for row in expected]


def test_hub_tokenizer_cleans_texts_as_open_clip_does(tokenizer_file: Path) -> None:
    text = "A &amp; RED_sofa,  a!"
    for clean in ("whitespace", "canonicalize", "lower"):
        found = HubTokenizer(tokenizer_file, 12, clean=clean)([text])
        assert torch.equal(found, HubTokenizer(tokenizer_file, 12)([get_clean_fn(clean)(text)]))


@pytest.fixture
def unigram_file(tmp_path: Path) -> Path:
    """A tokenizer as XLM's file has it: pieces with a mark for spaces, and padding that is not 0."""
    tokenizers = pytest.importorskip("tokenizers")
    special = [("<s>", 0.0), ("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0)]
    pieces = [("\u2581a", -1.0), ("\u2581red", -2.0), ("\u2581sofa", -2.0), ("s", -3.0)]
    made = tokenizers.Tokenizer(tokenizers.models.Unigram([*special, *pieces], unk_id=3))
    made.pre_tokenizer = tokenizers.pre_tokenizers.Metaspace()
    made.post_processor = tokenizers.processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 2)]
    )
    # What the file says of padding and truncation is not what open_clip asks for.
    made.enable_padding(direction="left", length=4, pad_id=2, pad_to_multiple_of=8)
    made.enable_truncation(3, direction="left")
    path = tmp_path / "tokenizer.json"
    made.save(str(path))
    return path


def test_hub_tokenizer_with_padding_that_is_not_zero(unigram_file: Path) -> None:
    """The ids are those of open_clip's HFTokenizer with such a file."""
    texts = ["a red  sofas", "a a a a a a a", ""]
    expected = [[0, 4, 5, 6, 7, 2, 1], [0, 4, 4, 4, 4, 4, 2], [0, 2, 1, 1, 1, 1, 1]]
    assert HubTokenizer(unigram_file, 7)(texts).tolist() == expected
    assert HubTokenizer(unigram_file, 7, clean="canonicalize")(["A, red  SOFAS!"]).tolist() == expected[:1]
    stripped = HubTokenizer(unigram_file, 7, strip_sep_token=True)(texts).tolist()
    assert stripped == [[0 if number == 2 else number for number in row] for row in expected]


def test_a_broken_tokenizer_file(tmp_path: Path) -> None:
    pytest.importorskip("tokenizers")
    path = tmp_path / "tokenizer.json"
    path.write_text('{"version": "1.0"}')
    with pytest.raises(WeightsError, match="is not a complete tokenizer file"):
        HubTokenizer(path, 6)


@pytest.mark.parametrize("name", ACCEPTED)
def test_every_accepted_configuration_takes_its_own_tensors(name: str) -> None:
    """Sizes are compared before anything is built; open_clip rounds some of them."""
    from tcl_core.models.towers import check_clip_tensors

    config = clip_config(name)
    with torch.device("meta"):
        state = open_clip.CLIP(**config).state_dict()
    check_clip_tensors(config, state, name)
