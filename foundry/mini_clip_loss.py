"""Losses of the mini CLIP, for both towers.

The text tower learns slowly from few images, so both towers are aligned to anchors: one learned unit vector per noun,
place, light and weather. Images are classified by the anchors, which is fast, and the embeddings of plain prompts ("a
photo of a dog") are pulled towards them. The anchors are discarded after training.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import numpy as np
import torch
import torch.nn.functional as functional

from foundry.mini_clip_data import (
    LIGHT_NAMES,
    NOUN_NAMES,
    PLACE_NAMES,
    WEATHER_NAMES,
    Claims,
    Example,
    multi_hot,
    truth,
)
from foundry.mini_clip_text import attribute_prompt, empty_prompt, noun_prompt
from segsmith.segmentation.seeds import top_k_pool
from segsmith.tools.vision.patch_head import LOCAL_BLOCKS
from segsmith.world.language import LIGHTS, PLACES, WEATHERS, spoken
from segsmith.world.nouns import NOUNS

NOUN_PROMPTS = 40
"""Number of plain noun prompts per step that are pulled towards their anchors."""
NOISE_SHARE = 0.25
"""Share of the captions with random extra words, so that unknown words have little effect."""
PATCH_SHARE = 1 / 14
"""Share of the patches, those with the highest scores, whose mean is the image's score."""
LOCAL_SHARE = 0.5
"""Share of the steps in which the top blocks have no attention between patches."""
ATTRIBUTES = (
    ("place", PLACE_NAMES, PLACES),
    ("light", LIGHT_NAMES, LIGHTS),
    ("weather", WEATHER_NAMES, WEATHERS),
)
NOTHING = len(NOUN_NAMES)
"""Row of the noun anchors for an image without objects."""


class Anchors(torch.nn.Module):
    """A learned vector per noun, one for "nothing", and one per place, light and weather.

    `stem` classifies the pooled (B, stem_dim) features of the convolutional stem by noun, which trains the stem
    directly (deep supervision, Lee et al. 2015).
    """

    def __init__(self, dim: int, stem_dim: int) -> None:
        super().__init__()
        sizes = {"noun": NOTHING + 1} | {kind: len(keys) for kind, keys, _ in ATTRIBUTES}
        self.tables = torch.nn.ParameterDict(
            {kind: torch.nn.Parameter(torch.randn(size, dim) / dim**0.5) for kind, size in sizes.items()}
        )
        self.stem = torch.nn.Linear(stem_dim, NOTHING + 1)

    @torch.no_grad()
    def start_from(self, teacher: Teacher, model: Any) -> None:
        """Set the anchors to the embeddings of their words by a trained text tower."""
        prompts = {
            "noun": [f"a photo of a {spoken(NOUNS[name])}" for name in NOUN_NAMES] + ["an empty scene"]
        }
        prompts |= {kind: [f"a photo of a {key}" for key in keys] for kind, keys, _ in ATTRIBUTES}
        for kind, texts in prompts.items():
            self.tables[kind].copy_(teacher.embed(texts, model))

    def unit(self, kind: str) -> torch.Tensor:
        """(size, D) unit vectors."""
        return functional.normalize(self.tables[kind], dim=-1)


class Teacher:
    """Draws the texts of a step and computes the losses of both towers."""

    def __init__(self, tokenizer: Any, rng: np.random.Generator) -> None:
        self.tokenizer = tokenizer
        self.rng = rng
        self._encode = lru_cache(maxsize=50_000)(tokenizer.encode)

    def losses(
        self,
        model: Any,
        anchors: Anchors,
        images: torch.Tensor,
        examples: Sequence[Example],
        *,
        mosaic: bool = False,
    ) -> dict[str, torch.Tensor]:
        """Named losses, each a weighted scalar, of a batch of (B, 3, S, S) images.

        With `mosaic`, every four images become the quarters of one, and each quarter is classified separately, so
        that patch embeddings describe their own place.
        contrast: images against captions; every true pair is a positive.
        noun, word: image and caption against the anchors of their nouns, or of "nothing". patch: the same for the
        best patches, so that patch embeddings localise; stem: the same for the convolutional stem.
        place, light, weather: the image's attributes. align: plain prompts against their anchors.
        """
        shows = [example.shows for example in examples]
        chosen = [example.texts[int(self.rng.integers(len(example.texts)))] for example in examples]
        says = [claims for _, claims in chosen]
        prompts, targets = self._prompts(shows, anchors)
        texts = self.embed([self._noisy(text) for text, _ in chosen] + prompts, model)
        texts, prompted = texts[: len(chosen)], texts[len(chosen) :]
        local = bool(self.rng.random() < LOCAL_SHARE)
        patches, stem = patch_embeddings(model, tile(images) if mosaic else images, local=local)
        if mosaic:
            patches, stem = untile(patches), untile(stem.movedim(1, -1)).movedim(-1, 1)
        image = functional.normalize(patches.mean((1, 2)), dim=-1)
        scale = model.logit_scale.exp()
        nouns = anchors.unit("noun")
        seen, said = _with_nothing(multi_hot(shows)), _with_nothing(multi_hot(says))

        logits, true = scale * image @ texts.T, truth(shows, says)
        per_patch = functional.normalize(patches, dim=-1) @ nouns.T * scale
        best = top_k_pool(per_patch.permute(0, 3, 1, 2), max(1, round(patches.shape[1] ** 2 * PATCH_SHARE)))
        out = {
            "contrast": 0.5 * (_several(logits, true) + _several(logits.T, true.T)),
            "noun": _several(scale * image @ nouns.T, seen),
            "word": 0.3 * _several(scale * texts @ nouns.T, said),
            "patch": 0.5 * _several(best, seen),
            "stem": 0.5 * _several(anchors.stem(stem.mean((2, 3))), seen),
            "align": 5 * (1 - (prompted * targets).sum(1)).mean(),
        }
        if mosaic:
            whole = functional.normalize(patches.unflatten(0, (-1, 4)).mean((1, 2, 3)), dim=-1)
            named = multi_hot(shows).unflatten(0, (-1, 4)).amax(1)
            out["whole"] = 0.5 * _several(scale * whole @ nouns.T, _with_nothing(named))
        for kind, _, _ in ATTRIBUTES:
            answer = torch.tensor([getattr(claims, kind) for claims in shows])
            out[kind] = 0.2 * functional.cross_entropy(scale * image @ anchors.unit(kind).T, answer)
        return out

    def embed(self, texts: Sequence[str], model: Any, buckets: int = 4) -> torch.Tensor:
        """(T, D) unit embeddings of texts, computed in groups of similar length to save padding."""
        start, end = self.tokenizer.sot_token_id, self.tokenizer.eot_token_id
        limit = model.context_length - 2
        rows = [[start, *self._encode(text)[:limit], end] for text in texts]
        order = np.argsort([len(row) for row in rows], kind="stable")
        groups = [group for group in np.array_split(order, buckets) if len(group)]
        embedded = torch.cat([_encode_text(model.text, [rows[i] for i in group]) for group in groups])
        back = torch.empty(len(rows), dtype=torch.long)
        back[torch.from_numpy(order)] = torch.arange(len(rows))
        return embedded[back]

    def _prompts(self, shows: Sequence[Claims], anchors: Anchors) -> tuple[list[str], torch.Tensor]:
        """Plain prompts, half of them of nouns in the batch, and their (P, D) anchors."""
        present = sorted({noun for claims in shows for noun in claims.nouns})
        half = min(NOUN_PROMPTS // 2, len(present))
        nouns = [int(i) for i in self.rng.choice(present, half, replace=False)]
        nouns += [int(i) for i in self.rng.choice(NOTHING, NOUN_PROMPTS - half, replace=False)]
        texts = [noun_prompt(NOUN_NAMES[i], self.rng) for i in nouns]
        texts += [empty_prompt(self.rng), empty_prompt(self.rng, PLACE_NAMES)]
        targets = [anchors.unit("noun")[[*nouns, NOTHING, NOTHING]]]
        for kind, keys, words in ATTRIBUTES:
            picked = self.rng.choice(len(keys), min(4, len(keys)), replace=False)
            texts += [attribute_prompt(kind, (keys[i], *words[keys[i]]), self.rng) for i in picked]
            targets.append(anchors.unit(kind)[picked])
        return texts, torch.cat(targets)

    def _noisy(self, text: str) -> str:
        if self.rng.random() > NOISE_SHARE:
            return text
        words = text.split(" ")
        for _ in range(int(self.rng.integers(1, 4))):
            stray = self.tokenizer.decoder[int(self.rng.integers(512, self.tokenizer.vocab_size - 2))]
            words.insert(int(self.rng.integers(len(words) + 1)), stray.removesuffix("</w>"))
        return " ".join(words)


def patch_embeddings(
    model: Any, images: torch.Tensor, *, local: bool = False
) -> tuple[torch.Tensor, torch.Tensor]:
    """Patch embeddings (B, h, w, D) and stem features (B, F, h, w) of (B, 3, S, S) images.

    The mean of the patch embeddings is the image's embedding. With `local`, patches only attend to themselves in the
    top blocks, as in the labeler's ViT.
    """
    trunk = model.visual.trunk
    stems: list[torch.Tensor] = []
    hook = trunk.patch_embed.backbone.register_forward_hook(lambda _m, _i, output: stems.append(output[-1]))
    if local:
        below = len(trunk.blocks) - LOCAL_BLOCKS
        (tokens,) = trunk.forward_intermediates(
            images, indices=[below - 1], stop_early=True, intermediates_only=True, output_fmt="NLC"
        )
        alone = torch.full((tokens.shape[1],) * 2, -torch.inf).fill_diagonal_(0)
        for block in trunk.blocks[below:]:
            tokens = block(tokens, attn_mask=alone)
        tokens = trunk.norm(tokens)
    else:
        tokens = trunk.forward_features(images)
    hook.remove()
    return model.visual.head(tokens).unflatten(1, stems[0].shape[-2:]), stems[0]


def tile(images: torch.Tensor) -> torch.Tensor:
    """(4 M, C, S, S) -> (M, C, 2 S, 2 S): every four images become the quarters of one."""
    top_left, top_right, low_left, low_right = images.unflatten(0, (-1, 4)).unbind(1)
    rows = [torch.cat([top_left, top_right], 3), torch.cat([low_left, low_right], 3)]
    return torch.cat(rows, 2).contiguous(memory_format=torch.channels_last)


def untile(grid: torch.Tensor) -> torch.Tensor:
    """(M, 2 h, 2 w, D) -> (4 M, h, w, D): the inverse of `tile` on a grid of patches."""
    return grid.unflatten(1, (2, -1)).unflatten(3, (2, -1)).movedim(3, 2).flatten(0, 2)


def _encode_text(text: Any, rows: Sequence[Sequence[int]]) -> torch.Tensor:
    """Unit embeddings of token rows by open_clip's TextTransformer, padded to the longest row only.

    The module's own forward requires the full context length; the tower is causal, so padding has no effect.
    """
    length = max(map(len, rows))
    tokens = torch.zeros(len(rows), length, dtype=torch.long)
    for i, row in enumerate(rows):
        tokens[i, : len(row)] = torch.tensor(row)
    x = text.token_embedding(tokens) + text.positional_embedding[:length]
    x = text.ln_final(text.transformer(x, attn_mask=text.attn_mask[:length, :length]))
    pooled = x[torch.arange(len(rows)), tokens.argmax(1)]
    return functional.normalize(pooled @ text.text_projection, dim=-1)


def _with_nothing(hot: torch.Tensor) -> torch.Tensor:
    """(B, N) -> (B, N + 1): a last column that is 1 where all others are 0."""
    return torch.cat([hot, (hot.sum(1, keepdim=True) == 0).float()], 1)


def _several(logits: torch.Tensor, positive: torch.Tensor) -> torch.Tensor:
    """Cross-entropy against equal shares for all positives of a row; rows without positives are left out."""
    target = positive.float()
    target = target / target.sum(1, keepdim=True).clamp_min(1)
    per_row = -(target * functional.log_softmax(logits, dim=1)).sum(1)
    return per_row.sum() / (target.sum(1) > 0).sum().clamp_min(1)
