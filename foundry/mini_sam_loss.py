"""Losses of the mini SAM, and decoding of the prompts of several images together."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from segment_anything.modeling import Sam
from segment_anything.modeling.image_encoder import Attention as EncoderAttention
from segment_anything.modeling.transformer import Attention as DecoderAttention
from torch import Tensor, nn


def decode_pairs(sam: Sam, embeddings: Tensor, owners: Tensor, points: Tensor) -> tuple[Tensor, Tensor]:
    """`MaskDecoder.predict_masks` for prompts of several images: (P, K + 1, h, w) logits and (P, K + 1) IoUs."""
    decoder, encoder = sam.mask_decoder, sam.prompt_encoder
    labels = torch.ones(points.shape[:2])
    sparse, dense = encoder(points=(points, labels), boxes=None, masks=None)
    output = torch.cat([decoder.iou_token.weight, decoder.mask_tokens.weight])
    tokens = torch.cat([output[None].expand(len(owners), -1, -1), sparse], dim=1)
    source = embeddings[owners] + dense
    b, c, h, w = source.shape
    hidden, source = decoder.transformer(source, encoder.get_dense_pe().expand(b, -1, -1, -1), tokens)
    upscaled = decoder.output_upscaling(source.transpose(1, 2).reshape(b, c, h, w))
    weights = torch.stack(
        [mlp(hidden[:, 1 + i]) for i, mlp in enumerate(decoder.output_hypernetworks_mlps)], dim=1
    )
    masks = (weights @ upscaled.flatten(2)).unflatten(2, upscaled.shape[2:])
    return masks, decoder.iou_prediction_head(hidden[:, 0])


def mask_loss(logits: Tensor, truth: Tensor, border: Tensor) -> Tensor:
    """(P, K) loss per mask: dice plus cross-entropy with five times the weight near the border."""
    weight = 0.25 + border
    entropy = F.softplus(logits) - logits * truth
    entropy = (entropy * weight).sum((2, 3)) / weight.sum((2, 3))
    probability = logits.sigmoid()
    overlap = (probability * truth).sum((2, 3))
    dice = 1 - 2 * overlap / (probability.sum((2, 3)) + truth.sum((2, 3)) + 1)
    return entropy + dice


def loss_of(masks: Tensor, ious: Tensor, truth: Tensor) -> Tensor:
    """Scalar mask and IoU loss of (P, K + 1, h, w) logits and (P, K + 1) predicted IoUs.

    The mask loss is computed at full resolution for the candidate with the highest predicted IoU, which is the one
    that will be used, and at low resolution for the best candidate (SAM, section 3: only the lowest loss counts) and
    for all.
    """
    coarse = F.interpolate(truth, masks.shape[-2:], mode="area")
    border = F.max_pool2d(coarse, 3, 1, 1) + F.max_pool2d(-coarse, 3, 1, 1)
    every = mask_loss(masks, coarse, border)
    used = 1 + ious[:, 1:].detach().argmax(1)
    chosen = masks[torch.arange(len(masks)), used][:, None]
    fine = F.interpolate(chosen, truth.shape[-2:], mode="bilinear", align_corners=False)
    full = mask_loss(fine, truth, F.interpolate(border, truth.shape[-2:], mode="nearest"))
    with torch.no_grad():
        found, wanted = masks > 0, coarse > 0.5
        union = (found | wanted).sum((2, 3)).clamp(min=1)
        actual = (found & wanted).sum((2, 3)) / union
    best = every[:, 1:].amin(1)
    return full.mean() + 0.5 * best.mean() + 0.3 * every.mean() + 5 * F.mse_loss(ious, actual)


class LayoutHead(nn.Module):
    """Predicts `Batch.layout` from the image embedding; used in training only.

    It trains the image encoder with a target for every pixel, where the prompts train it only through the decoder.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.project = nn.Conv2d(width, 4 * 16, 1)

    def forward(self, embeddings: Tensor, layout: Tensor) -> Tensor:
        """The scalar loss of the predicted layout."""
        guess = F.pixel_shuffle(self.project(embeddings), 4)
        solid = F.binary_cross_entropy_with_logits(guess[:, 0], layout[:, 0])
        border = F.binary_cross_entropy_with_logits(guess[:, 1], layout[:, 1], pos_weight=torch.tensor(3.0))
        inside = layout[:, :1]
        way = (F.smooth_l1_loss(guess[:, 2:], layout[:, 2:], beta=0.2, reduction="none") * inside).sum()
        return solid + border + way / inside.sum().clamp(min=1)


def fuse_attention() -> None:
    """Replace segment-anything's attention by torch's equivalent fused kernel, in this process."""
    EncoderAttention.forward = _encoder_attention
    DecoderAttention.forward = _decoder_attention


def _encoder_attention(self: EncoderAttention, x: Tensor) -> Tensor:
    b, h, w, _ = x.shape
    q, k, v = self.qkv(x).reshape(b, h * w, 3, self.num_heads, -1).permute(2, 0, 3, 1, 4).unbind(0)
    return self.proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(b, h, w, -1))


def _decoder_attention(self: DecoderAttention, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    heads = [self._separate_heads(p(t), self.num_heads) for p, t in
             ((self.q_proj, q), (self.k_proj, k), (self.v_proj, v))]  # fmt: skip
    return self.out_proj(self._recombine_heads(F.scaled_dot_product_attention(*heads)))
