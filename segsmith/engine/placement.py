"""How many workers a stage gets, and what share of a GPU each. Pure: no Ray.

Drawing and the ViT keep a GPU busy, so they have one worker for each. A worker that makes masks computes on its CPU
for much of the time, so several of them share a GPU as far as its memory goes. Masks without SAM need no GPU at all,
and then the nodes without one take part.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from segsmith.config import Config
from segsmith.engine.models import is_stand_in
from segsmith.engine.units import Kind
from segsmith.tools.gpu_plan import GpuStage, plan_gpu, usable

MOST_ON_A_GPU = 4
"""Workers that share a GPU, at most (ours): the CPU's part of a mask takes about as long as a few of SAM's."""


@dataclass(frozen=True)
class Node:
    """What a machine of the cluster has for workers."""

    cpus: int
    gpus: int = 0


@dataclass(frozen=True)
class Placement:
    """Workers of one stage, all alike."""

    count: int
    gpus: float
    """Share of a GPU that each has; 0 for none."""

    @property
    def cpus(self) -> int:
        """Workers with a GPU are not counted against the CPUs, which they use little."""
        return 0 if self.gpus else 1


def placement(
    kind: Kind, config: Config, nodes: Sequence[Node], card: int | None = None, workers: int | None = None
) -> Placement:
    """The workers that do units of a kind.

    `card` is the memory of the smallest GPU in bytes; None if it is not known yet, and then no GPU is shared.
    `workers` is the largest number that the user allows. Without GPUs, and for work that needs none, there is one for
    each CPU but one, which is the driver's.
    """
    gpus = sum(node.gpus for node in nodes)
    if gpus and needs_gpu(kind, config):
        together = min([_on_one_gpu(kind, config, card), *(n.cpus // n.gpus for n in nodes if n.gpus)])
        count, share = gpus * max(1, together), 1 / max(1, together)
    else:
        count, share = max(1, sum(node.cpus for node in nodes) - 1), 0.0
    if workers is None:
        return Placement(count, share)
    if workers <= gpus and share:
        return Placement(workers, 1.0)
    return Placement(min(workers, count) if share else workers, share)


def needs_gpu(kind: Kind, config: Config) -> bool:
    """Whether a kind of unit runs a model that a GPU makes faster."""
    if kind in ("detector", "vlm", "attention"):
        return not is_stand_in(kind, config)
    if kind == "export":
        return False
    return kind != "masks" or config.labeler.use_sam or config.labeler.region_doubt > 0


def _on_one_gpu(kind: Kind, config: Config, card: int | None) -> int:
    """Workers whose models fit into a GPU together, by the planner."""
    if kind not in ("masks", "regions") or card is None:
        return 1
    stage = plan_gpu(config, card).of(GpuStage.SEGMENT)
    if stage is None or not stage.size:
        return 1
    return min(MOST_ON_A_GPU, usable(card) // stage.size)
