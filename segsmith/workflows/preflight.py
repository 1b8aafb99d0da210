"""Checks before a run starts: models, image backend and LLM, so that what is missing is said at once."""

from __future__ import annotations

from segsmith.config import Config, api_key
from segsmith.errors import SegsmithError


def check_images(config: Config) -> None:
    """See that the image backend can start; a pipeline that is not here yet is fetched.

    Raises `SegsmithError` with what to type.
    """
    if config.images.backend == "diffusion":
        from segsmith.tools.images.diffusion import check_diffusion

        check_diffusion(config.images, offline=config.offline)
    elif config.images.backend == "hosted":
        from segsmith.tools.images.hosted import check_hosted

        check_hosted(config.images, api_key=api_key(), max_usd=config.budget.max_usd)
    if config.images.filter.enabled and config.images.backend != "diffusion":
        raise SegsmithError(
            "The online filter looks into a local diffusion process; there is none.",
            "Set images.filter.enabled = false, or images.backend = 'diffusion'.",
        )


def check_models(config: Config, *, ask_llm: bool = True) -> None:
    """Fetch what is missing (offline: refuse), open every model file a config names, once, and let it go; build the
    segmenter once, too.

    So what is missing or broken is said before the run starts. Raises `SegsmithError` with what to type. No
    server is started; one named by its URL is asked only where `ask_llm`, since a run that is past its
    prompts needs none.
    """
    from segsmith.segmentation.network import build_segmenter
    from segsmith.tools.llm.chat import check_llm
    from segsmith.tools.vision.clip import OpenClipEncoder
    from segsmith.tools.vision.sam import SamSegmenter
    from segsmith.tools.weights.hub import require
    from segsmith.tools.weights.model_requirements import needs_of

    require(needs_of(config), config.offline)
    check_images(config)
    if ask_llm or config.llm.server != "openai":
        check_llm(config.llm, api_key())
    compute = config.compute
    encoder = OpenClipEncoder.load(config.judge.clip, compute.device, compute.precision)
    build_segmenter(config.trainer, len(config.classes), encoder.tower)
    if config.labeler.vit != "judge":
        from segsmith.tools.vision.vit import TimmPatchClassifier

        spec = config.labeler.vit
        TimmPatchClassifier.from_timm(spec, 1, config.labeler, 0, pretrained=":" not in spec, device="cpu")
    if config.labeler.use_sam:
        SamSegmenter.load(config.labeler.sam, compute.device, compute.precision)
