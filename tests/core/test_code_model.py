"""CoDe's parts against plain references, on a tiny model."""

from __future__ import annotations

import dataclasses
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

from tcl_core.errors import SettingsError
from tcl_core.methods import create_method
from tcl_core.methods.code import CoDe, CoDeConfig
from tcl_core.methods.code.batch import Batch
from tcl_core.methods.code.nouns import MOST_NAMED, noun_ids
from tcl_core.methods.code.objective import pair_weights
from tcl_core.towers.open_clip_vit import FrozenClip
from tcl_core.vocabulary.templates import get_templates
from tests.forked import run_ranks

NOUNS = (("cat", "sofa"), ("dog", "sky"), ("sofa", "dog"), ("cat", "dog"))
CAPTIONS = ("a red cat on the sofa", "dog and sky", "the sofa and a dog", "cat and dog on the sofa")


def model(seed: int = 0, **config: Any) -> CoDe:
    """The example with other settings, and nothing at its silent initial value."""
    example = CoDe.example()
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        code = CoDe(example.clip, CoDeConfig(**{"context_tokens": 4, "tagger": "rules", **config}))
        with torch.no_grad():
            for name, parameter in code.named_parameters():
                if name.endswith("gate.gate"):
                    parameter.fill_(0.5)
                elif not name.startswith("clip.") and parameter.ndim:
                    parameter.add_(0.1 * torch.randn_like(parameter))
    return code


def batch_of(code: CoDe, captions: tuple[str, ...] = CAPTIONS, nouns: tuple[tuple[str, ...], ...] = NOUNS) -> Batch:
    tokenizer = code.clip.tokenizer
    assert tokenizer is not None
    generator = torch.Generator().manual_seed(1)
    samples = len(captions)
    tokens = tokenizer(captions)
    labels = torch.full_like(tokens, -1)
    for row, (caption, chosen) in enumerate(zip(captions, nouns, strict=True)):
        for place, word in enumerate(caption.split(), start=1):
            if word in ("cat", "dog", "sofa", "sky"):
                labels[row, place] = chosen.index(word) + 1 if word in chosen else 0
    return Batch(
        images=torch.randn(samples, 3, 32, 40, generator=generator),
        tokens=tokens,
        nouns=torch.stack([tokenizer(chosen) for chosen in nouns]),
        templates=torch.stack([tokenizer([f"the {noun}" for noun in chosen]) for chosen in nouns]),
        labels=labels,
        ids=torch.stack([noun_ids(chosen, len(chosen)) for chosen in nouns]),
        named=torch.stack(
            [noun_ids([w for w in text.split() if w in ("cat", "dog", "sofa", "sky")], MOST_NAMED) for text in captions]
        ),
        noise=torch.rand(samples, len(nouns[0]), 16, 20, generator=generator).clamp(0.01, 0.99),
    )


# -- settings --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"tagger": "guess"}, "CoDe setting tagger is 'guess', but must be 'nltk' or 'rules'"),
        ({"negatives": "none"}, "negatives is 'none'"),
        ({"ignored_nouns": "Photo"}, "one text of words in lower case"),
        ({"ignored_nouns": ["photo"]}, "one text of words in lower case"),
        ({"nouns": 0}, "nouns is 0, but must be a whole number from 1 to 64"),
        ({"prompt_weight": -1}, "prompt_weight is -1, but must be 0 or more"),
        ({"region_prompt_size": "big"}, "number of pixels"),
        ({"area_prior": 2}, "area_prior is 2, but must be between 0 and 1"),
        ({"novelty": 1}, "Unknown CoDe settings: novelty"),
        ({"tager": "rules"}, r"settings: tager\. Did you mean tagger\? Known are: "),
        ({"context_tokens": 8}, "a text tower of 10 positions has room for 7 beside a noun"),
        ({"ie_freeze": 3}, "CoDe setting ie_freeze is 3"),
    ],
)
def test_bad_settings(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        create_method("code", {"clip": CoDe.example().clip}, settings)


def test_text_towers_that_do_not_fit() -> None:
    vision = {"image_size": 32, "patch_size": 8, "width": 24, "head_width": 8, "layers": 3}
    text = {"context_length": 24, "vocab_size": 30, "width": 16, "heads": 2, "layers": 1}
    with pytest.raises(SettingsError, match="16 and 12 channels"):
        CoDe(FrozenClip(open_clip.CLIP(12, vision, text)))
    with pytest.raises(SettingsError, match="causal"):
        CoDe(FrozenClip(open_clip.CLIP(16, vision, text | {"no_causal_mask": True})))


def test_number_of_trained_parameters_of_the_paper() -> None:
    with torch.device("meta"):
        code = CoDe(FrozenClip(open_clip.CLIP(**open_clip.get_model_config("ViT-B-16-quickgelu"))))
    assert sum(p.numel() for p in code.trainable("ust")) == 17_519_113
    assert sum(p.numel() for p in code.trainable("full")) == 24_606_985


def test_the_prompt_starts_as_words() -> None:
    code = CoDe(CoDe.example().clip, CoDeConfig(context_tokens=5, tagger="rules"))
    tokenizer, table = code.clip.tokenizer, code.clip.model.token_embedding.weight
    assert tokenizer is not None
    ids = tokenizer(["a photo of x x"])[0, 1:6]
    assert torch.equal(code.clip_text_encoder.prompt_learner.ctx, table[ids])


# -- texts -----------------------------------------------------------------------------------------------------------


def embedded_in_full(code: CoDe, words: Tensor, end: int) -> Tensor:
    """A text of vectors ``[L, C]`` through open_clip's own transformer, padding and all."""
    clip: Any = code.clip.model
    x = clip.transformer((words + clip.positional_embedding)[None], attn_mask=clip.attn_mask)
    return clip.ln_final(x)[0, end] @ clip.text_projection


def test_learned_prompt() -> None:
    code = model()
    tokenizer, table = code.clip.tokenizer, code.clip.model.token_embedding.weight
    assert tokenizer is not None
    context = code.clip_text_encoder.prompt_learner.ctx
    texts = ["cat", "red sofa", "cat", "the red red sofa and the sky"]
    expected = []
    for text in texts:
        words = tokenizer([text])[0, 1:6]
        if int(words.max()) != tokenizer.vocab_size - 1:
            words[-1] = tokenizer.vocab_size - 1
        row = torch.cat([table[tokenizer(["a"])[0, :1]], context, table[words]])
        expected.append(embedded_in_full(code, row, 5 + int(words.argmax())))
    found = code.clip_text_encoder.prompt_learner(code.clip, tokenizer(texts))
    torch.testing.assert_close(found, torch.stack(expected), atol=1e-5, rtol=1e-5)


def test_words_blend_and_ends_stay() -> None:
    code = model()
    batch = batch_of(code)
    masks = torch.rand(4, 2, 10, generator=torch.Generator().manual_seed(2))
    found = code.highlighted_texts(batch.tokens, masks)
    table = code.clip.model.token_embedding.weight
    for row, tokens in enumerate(batch.tokens):
        end = int(tokens.argmax())
        for noun in range(2):
            kept = masks[row, noun].clone()
            kept[0], kept[end:] = 1, 1
            words = kept[:, None] * table[tokens] + (1 - kept[:, None]) * code.bg_text[:, 0]
            expected = embedded_in_full(code, words, end)
            torch.testing.assert_close(found[2 * row + noun], expected, atol=1e-5, rtol=1e-5)


def test_word_features_see_everything() -> None:
    """Also what comes later, and the padding."""
    code = model()
    clip: Any = code.clip.model
    tokens = batch_of(code).tokens
    with torch.no_grad():
        states = clip.token_embedding(tokens) + clip.positional_embedding
        states = clip.transformer(states, attn_mask=clip.attn_mask)
        expected = F.normalize(code.text_decoder.transformer(states), dim=-1)
        torch.testing.assert_close(code.word_features(tokens), expected, atol=1e-5, rtol=1e-5)


def test_templates_are_normalized_before_they_are_averaged() -> None:
    code, templates = model(), ("a photo of a {}.", "the {}", "{}")
    tokenizer = code.clip.tokenizer
    assert tokenizer is not None
    prompts = code.embed_prompts(["cat", "sky"], templates)
    for place, name in enumerate(("cat", "sky")):
        each = [code.clip.encode_text(tokenizer([text.replace("{}", name)]))[0] for text in templates]
        mean = torch.stack([F.normalize(x, dim=0) for x in each]).mean(dim=0)
        torch.testing.assert_close(prompts.preserved[place], F.normalize(mean, dim=0), atol=1e-5, rtol=1e-5)
    assert not torch.allclose(prompts.text, prompts.preserved, atol=0.1)


def test_both_text_sets_have_their_part() -> None:
    code = model()
    features = code.encode(torch.randn(1, 3, 32, 32, generator=torch.Generator().manual_seed(0)))
    prompts = code.embed_prompts(["cat", "sky"], ("{}",))
    other = dataclasses.replace(prompts, preserved=prompts.preserved.flip(0))
    for weight, same in ((0.0, True), (0.3, False)):
        method = code.configured({"kp_weight": weight})
        assert torch.equal(method.similarities(features, prompts), method.similarities(features, other)) is same
    assert torch.equal(
        code.configured({"kp_weight": 1.0}).similarities(features, prompts).flip(1),
        code.configured({"kp_weight": 1.0}).similarities(features, other),
    )


# -- the objective ---------------------------------------------------------------------------------------------------


def reference(code: CoDe, batch: Batch) -> dict[str, Tensor]:
    """The nine losses from all N x N masks, images repeated noun by noun, loop by loop."""
    config, (images, chosen) = code.config, batch.nouns.shape[:2]
    clip: Any = code.clip.model
    pairs = [(b, k) for k in range(chosen) for b in range(images)]
    tokens = code.clip.tokens_after(batch.images, code.first_block)
    dense = F.normalize(code.masker.image_encoder(tokens, code.clip.grid(batch.images)), dim=1)
    nouns = torch.stack(
        [code.clip_text_encoder.prompt_learner(code.clip, batch.nouns[b, k][None])[0] for b, k in pairs]
    )
    nouns = F.normalize(nouns, dim=-1)
    pixels = torch.stack([dense[b] for b, _ in pairs])
    w, b = code.masker.sim2mask.w, code.masker.sim2mask.b
    logits = w * torch.einsum("behw,ne->bnhw", pixels, nouns) + b
    masks = logits.sigmoid()
    count = len(pairs)
    same = torch.eye(count, dtype=torch.bool)
    mask_negative, word_negative = ~same, ~same
    for i, (image, _) in enumerate(pairs):
        named = set(batch.named[image].tolist())
        for j, (other, k) in enumerate(pairs):
            if config.negatives != "all" and other == image:
                mask_negative[i, j] = False
            if config.negatives == "not named":
                if int(batch.ids[other, k]) in named:
                    mask_negative[i, j] = False
                if int(batch.ids[other, k]) == int(batch.ids[pairs[i]]):
                    word_negative[i, j] = False

    def contrast(cosines: Tensor, scale: Tensor, counted: Tensor) -> Tensor:
        total = torch.zeros(())
        for grid, kept in ((cosines, counted | same), (cosines.T, counted.T | same)):
            for i in range(count):
                row = scale * grid[i]
                total = total + torch.logsumexp(row[kept[i]], dim=0) - row[i]
        return total / (2 * count)

    noise = torch.stack([batch.noise[b, k] for b, k in pairs])  # type: ignore[index]
    soft = torch.sigmoid(logits[same] + torch.logit(noise))
    hard = (soft > 0.5).float() + soft - soft.detach()
    behind = F.interpolate(code.learnable_image_bg, size=batch.images.shape[-2:], mode="bilinear", align_corners=False)
    large = F.interpolate(hard[:, None], size=batch.images.shape[-2:], mode="nearest")
    shown = torch.stack([batch.images[b] for b, _ in pairs])
    regions = F.normalize(code.clip.encode_image(large * shown + (1 - large) * behind), dim=-1)

    states = clip.token_embedding(batch.tokens) + clip.positional_embedding
    states = clip.transformer(states, attn_mask=clip.attn_mask)
    words = F.normalize(code.text_decoder.transformer(states), dim=-1)
    texts, losses, weights = [], torch.zeros(()), 0.0
    for image in range(images):
        own = torch.stack([nouns[k * images + image] for k in range(chosen)])
        scores = torch.cat([torch.zeros(1, words.shape[1]), code.text_mask_w * own @ words[image].T + code.text_mask_b])
        for place, label in enumerate(batch.labels[image].tolist()):
            if label >= 0:
                weight = 0.5 if label == 0 else 1.0
                losses = losses - weight * scores[:, place].log_softmax(dim=0)[label]
                weights += weight
        texts.append(scores.softmax(dim=0)[1:])
    kept = torch.stack([texts[b][k] for b, k in pairs])
    reduced = []
    for i, (image, _) in enumerate(pairs):
        end = int(batch.tokens[image].argmax())
        share = torch.cat([torch.ones(1), kept[i, 1:end], torch.ones(kept.shape[1] - end)])[:, None]
        row = share * clip.token_embedding(batch.tokens[image]) + (1 - share) * code.bg_text[:, 0]
        reduced.append(embedded_in_full(code, row, end))
    reduced_texts = F.normalize(torch.stack(reduced), dim=-1)

    pooled = torch.einsum("nehw,nmhw->nme", pixels, masks) / (masks.sum(dim=(2, 3))[..., None] + 1e-6)
    grounded = torch.einsum("nme,me->nm", F.normalize(pooled, dim=-1), nouns)
    drawn = torch.stack([code.clip.encode_text(batch.templates[b, k][None])[0] for b, k in pairs])
    agreement = (nouns * F.normalize(drawn, dim=-1)).sum(dim=-1).mean()

    def variation(x: Tensor) -> Tensor:
        return (x[..., 1:] - x[..., :-1]).abs().mean() + (x[..., 1:, :] - x[..., :-1, :]).abs().mean()

    negative = masks[mask_negative].mean() if mask_negative.any() else torch.zeros(())
    scale = {name: getattr(code, name).logit_scale.exp() for name in ("tcli_loss", "tclf_loss", "hcl_loss")}
    return {
        "kg_loss": config.prompt_weight * (1 - agreement),
        "hlf_noun_loss": config.tcl_weight * contrast(grounded, scale["tclf_loss"], mask_negative),
        "hli_noun_loss": config.tcl_weight * contrast(regions @ nouns.T, scale["tcli_loss"], word_negative),
        "area_loss": config.area_weight * (masks[same].mean() - config.area_prior).abs(),
        "neg_area_loss": config.negative_area_weight * negative,
        "tv_img_loss": config.tv_weight * variation(pixels),
        "tv_mask_loss": config.tv_weight * variation(masks),
        "tseg_loss": config.text_weight * losses / weights,
        "hcl_loss": config.codecomposition_weight
        * contrast(regions @ reduced_texts.T, scale["hcl_loss"], word_negative),
    }


@pytest.mark.parametrize("negatives", ["all", "other images", "not named"])
@pytest.mark.parametrize("chosen", [1, 2])
def test_losses_and_gradients_are_those_of_the_reference(negatives: str, chosen: int) -> None:
    code = model(negatives=negatives, nouns=chosen)
    code.trainable("full")
    batch = batch_of(code, nouns=tuple(nouns[:chosen] for nouns in NOUNS))
    expected = reference(code, batch)
    torch.stack(list(expected.values())).sum().backward()
    grads = {name: p.grad.clone() for name, p in code.named_parameters() if p.grad is not None}
    code.zero_grad()
    found = code.loss(code.embed(batch), batch)
    found["total"].backward()
    assert set(found) == {*expected, "total", "mask", "neg_mask"}
    for name, value in expected.items():
        assert found[name].item() == pytest.approx(value.item(), abs=1e-6, rel=1e-5), name
    largest = max(float(grad.norm()) for grad in grads.values())
    for name, parameter in code.named_parameters():
        if name in grads:
            assert parameter.grad is not None, name
            error = float((parameter.grad - grads[name]).norm())
            assert error <= 1e-4 * float(grads[name].norm()) + 1e-6 * largest, name


def test_the_other_noun_of_an_image_is_no_negative() -> None:
    code = model()
    batch = code.share(batch_of(code))
    everything = pair_weights(batch, "all")
    assert everything.masks.all() and everything.words.all()
    own = pair_weights(batch, "other images")
    assert torch.equal(own.masks == 0, torch.eye(4).repeat_interleave(2, dim=1) == 1) and own.words.all()
    named = pair_weights(batch, "not named")
    # The last caption names a cat, a dog and a sofa, so that only the sky is a negative of its image.
    assert named.masks[3].tolist() == [0, 0, 0, 1, 0, 0, 0, 0]
    assert named.words[0].tolist() == [1, 1, 1, 1, 1, 1, 0, 1]


def test_captions_without_labeled_words_are_no_nan() -> None:
    code = model()
    batch = batch_of(code)
    silent = dataclasses.replace(batch, labels=torch.full_like(batch.labels, -1))
    losses = code.loss(code.embed(silent), silent)
    assert losses["tseg_loss"].item() == 0 and all(loss.isfinite() for loss in losses.values())
    losses["total"].backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in code.parameters())


def test_noise_that_does_not_fit() -> None:
    code = model()
    batch = dataclasses.replace(batch_of(code), noise=torch.rand(4, 2, 8, 8))
    with pytest.raises(ValueError, match="noise has shape"):
        code.share(batch)


# -- samples ---------------------------------------------------------------------------------------------------------


def test_samples() -> None:
    code = model()
    tokenizer = code.clip.tokenizer
    assert tokenizer is not None
    assert code.accepts("a cat on the sofa") and not code.accepts("a red cat") and not code.accepts("cat, cat and cat")
    sample = {"image": torch.zeros(3, 32, 32), "caption": "the cat and the dog on the sofa"}
    seen = set()
    for seed in range(20):
        prepared = code.prepare(sample, np.random.default_rng(seed))
        again = code.prepare(sample, np.random.default_rng(seed))
        assert all(torch.equal(prepared[name], again[name]) for name in prepared)
        words = [tokenizer.words[int(row[1]) - 2] for row in prepared["nouns"]]
        assert len(set(words)) == 2 and set(words) <= {"cat", "dog", "sofa"}
        seen.add(tuple(words))
        texts = [text.replace("{}", word) for word in words for text in get_templates("full")]
        rows = {tuple(row) for row in tokenizer(texts).tolist()}
        assert {tuple(row) for row in prepared["templates"].tolist()} <= rows
        labels = dict(zip(("cat", "dog", "sofa"), prepared["labels"][[2, 5, 8]].tolist(), strict=True))
        assert labels == {word: words.index(word) + 1 if word in words else 0 for word in labels}
        assert (prepared["labels"] == -1).sum() == len(prepared["labels"]) - 3
        assert set(prepared["named"].tolist()) == {-1, *noun_ids(["cat", "dog", "sofa"], 3).tolist()}
    assert len(seen) == 6
    fewer = model(ignored_nouns="sofa photo")
    assert not fewer.accepts("a cat on the Sofa") and fewer.accepts("a cat and a dog on the sofa")
    prepared = fewer.prepare(sample, np.random.default_rng(0))
    assert {tokenizer.words[int(row[1]) - 2] for row in prepared["nouns"]} == {"cat", "dog"}
    with pytest.raises(SettingsError, match="names fewer than 2 things"):
        code.prepare({**sample, "caption": "a dog"}, np.random.default_rng(0))
    with pytest.raises(SettingsError, match="no tokenizer"):
        CoDe(FrozenClip(code.clip.model), code.config).prepare(sample, np.random.default_rng(0))


# -- processes -------------------------------------------------------------------------------------------------------


def step(part: slice, negatives: str) -> dict[str, Tensor]:
    code = model(negatives=negatives, area_prior=0.24)
    code.trainable("full")
    whole = batch_of(code)
    cut = {f.name: v[part] for f in dataclasses.fields(whole) if isinstance(v := getattr(whole, f.name), Tensor)}
    batch = dataclasses.replace(whole, **cut)
    losses = code.loss(code.embed(batch), batch)
    losses["total"].backward()
    grads = {f"grad/{name}": p.grad for name, p in code.named_parameters() if p.grad is not None}
    return {name: value.detach() for name, value in losses.items()} | grads


def work(rank: int, folder: str, negatives: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            torch.save(step(slice(2 * rank, 2 * rank + 2), negatives), f"{folder}/{rank}.pt")
    finally:
        dist.destroy_process_group()


@pytest.mark.slow
@pytest.mark.parametrize("negatives", ["all", "not named"])
def test_two_processes_give_the_losses_and_gradients_of_one(tmp_path: Path, negatives: str) -> None:
    run_ranks(work, 2, str(tmp_path), negatives)
    parts = [torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(2)]
    for name, expected in step(slice(None), negatives).items():
        # Losses and gradients are means over processes.
        actual = torch.stack([part[name] for part in parts]).mean(dim=0)
        assert float((actual - expected).norm()) <= 1e-4 * max(float(expected.norm()), 1e-3), name
