"""CoDe against numbers that the official model produced, see `tests.core.code_records`."""

from __future__ import annotations

import re
from functools import cache, partial

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from tcl_core.methods.code import CoDe, CoDePrompts
from tcl_core.methods.code.nouns import word_labels
from tcl_core.methods.semantic_unit import PIXELS
from tcl_core.refinement.pamr import Pamr
from tests.core.code_records import FOLDER, CodeRecord, missing_files

if missing_files(FOLDER):
    pytest.skip(f"no record of CoDe at {FOLDER}; name one with CODE_PARITY_DIR", allow_module_level=True)

RECORD = CodeRecord(FOLDER)
NUMBERS, TENSORS = RECORD.numbers, RECORD.tensors
STAGES = sorted({match[1] for key in NUMBERS if (match := re.match(r"train_(\w+)/losses/", key))})
SEGMENTED = sorted(key for key in TENSORS if re.fullmatch(r"seg/pamr[01]_kp[\d.]+", key))


@cache
def official() -> CoDe:
    return RECORD.model()


def assert_near(actual: Tensor, expected: Tensor, tolerance: float = 1e-5) -> None:
    assert actual.shape == expected.shape
    torch.testing.assert_close(actual, expected, rtol=0, atol=tolerance)


def test_the_record_is_complete() -> None:
    """A record that lost its tensors must not pass for want of comparisons."""
    assert STAGES == ["full", "ust"] and len(SEGMENTED) >= 4
    assert {key[8] for key in SEGMENTED} == {"0", "1"}
    assert len([key for key in NUMBERS if "/grad_norms/" in key]) > 40


@torch.no_grad()
def test_nouns_and_classes() -> None:
    code, batch = official(), RECORD.batch()
    tokenizer = code.clip.tokenizer
    assert tokenizer is not None
    nouns = code.embed_nouns(batch.nouns.flatten(0, 1)).view(*batch.nouns.shape[:2], -1)
    assert_near(nouns, RECORD.by_image(TENSORS["noun_embs"]))
    prompts = code.embed_prompts(NUMBERS["classes"], NUMBERS["kp_templates"])
    assert_near(prompts.text, TENSORS["cls_emb"])
    assert_near(prompts.preserved, TENSORS["kp_emb"])


def test_labels_of_words() -> None:
    tokenizer = official().clip.tokenizer
    assert tokenizer is not None
    rows = zip(NUMBERS["captions"], NUMBERS["all_nouns"], NUMBERS["selected"], strict=True)
    found = [word_labels(tokenizer([text])[0], tokenizer(nouns), tokenizer(chosen)) for text, nouns, chosen in rows]
    assert torch.equal(torch.stack(found), TENSORS["pseudo_text_mask"].long())


@torch.no_grad()
def test_text_segmenter() -> None:
    code, batch = official(), RECORD.batch()
    words = code.word_features(batch.tokens)
    assert_near(words.transpose(0, 1), TENSORS["text_dense"])
    masks = code.word_logits(words, RECORD.by_image(TENSORS["noun_embs"])).softmax(dim=1)[:, 1:]
    expected = RECORD.by_image(TENSORS["text_masks"])
    places, ends = torch.arange(masks.shape[-1]), batch.tokens.argmax(dim=1)
    fixed = (places == 0) | (places >= ends[:, None])
    if torch.equal(expected.masked_fill(~fixed[:, None], 1), torch.ones_like(expected)):
        # Recorded after start, end and padding were kept.
        masks = masks.masked_fill(fixed[:, None], 1)
    assert_near(masks, expected)
    texts = F.normalize(code.highlighted_texts(batch.tokens, expected), dim=-1)
    assert_near(texts.view(*batch.nouns.shape[:2], -1), RECORD.by_image(TENSORS["hl_text_emb"]))


@pytest.mark.parametrize("key", SEGMENTED)
def test_masks(key: str) -> None:
    code, image = official(), TENSORS["seg_image"]
    use_pamr, kp_weight = key.removeprefix("seg/pamr").split("_kp")
    refiner = Pamr()
    refine = partial(refiner.refine, code.window_guide(refiner, image)) if use_pamr == "1" else None
    prompts = CoDePrompts(TENSORS["cls_emb"], TENSORS["kp_emb"])
    method = code.configured({"kp_weight": float(kp_weight), **PIXELS})
    assert_near(method.similarities(code.encode(image), prompts, refine), TENSORS[key])


@cache
def training_step(stage: str) -> tuple[dict[str, float], dict[str, Tensor]]:
    code, batch = official(), RECORD.batch()
    parameters = code.trainable(stage)
    code.zero_grad(set_to_none=True)
    losses = code.loss(code.embed(batch), batch)
    losses["total"].backward()
    trained = {id(parameter) for parameter in parameters}
    grads = {name: p.grad for name, p in code.named_parameters() if id(p) in trained and p.grad is not None}
    return {name: loss.item() for name, loss in losses.items()}, grads


@pytest.mark.parametrize("stage", STAGES)
def test_losses(stage: str) -> None:
    losses, _ = training_step(stage)
    prefix = f"train_{stage}/losses/"
    names = {key.removeprefix(prefix) for key in NUMBERS if key.startswith(prefix)}
    assert names | {"total"} == set(losses)
    for name in names:
        assert losses[name] == pytest.approx(NUMBERS[prefix + name], abs=1e-5, rel=1e-5), name
    assert losses["total"] == pytest.approx(NUMBERS[f"train_{stage}/total"], abs=1e-5, rel=1e-5)
    assert losses["total"] == pytest.approx(sum(v for name, v in losses.items() if name.endswith("_loss")), rel=1e-6)


@pytest.mark.parametrize("stage", STAGES)
def test_soft_masks_of_training(stage: str) -> None:
    code, nouns = official(), TENSORS["noun_embs"]
    with torch.no_grad():
        pixels = code.encode(TENSORS["image"]).image_emb.repeat(len(NUMBERS["noun_lists"]), 1, 1, 1)
        masks = torch.sigmoid(code.masker.sim2mask(pixels, nouns))
    same = torch.eye(len(masks), dtype=torch.bool)
    assert_near(masks[same], TENSORS[f"train_{stage}/mask"][:, 0])
    assert_near(masks[~same], TENSORS[f"train_{stage}/neg_mask"].flatten(0, 1))


@pytest.mark.parametrize("stage", STAGES)
def test_gradients(stage: str) -> None:
    _, grads = training_step(stage)
    prefix = f"train_{stage}/grad_norms/"
    expected = {key.removeprefix(prefix): value for key, value in NUMBERS.items() if key.startswith(prefix)}
    assert set(grads) == set(expected)
    # A gradient that is a sum of cancelling parts is only as exact as the largest of them.
    floor = 1e-6 * max(expected.values())
    for name, norm in expected.items():
        assert float(grads[name].norm()) == pytest.approx(norm, rel=1e-3, abs=floor), name
