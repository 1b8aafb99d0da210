"""The processes that ``accelerate launch`` (or torchrun) started together; alone, there is one."""

from __future__ import annotations

from accelerate import Accelerator, PartialState


def processes() -> PartialState:
    """accelerate's view of them; the first call joins their group.

    Through an `Accelerator`, because `PartialState` alone does not hear of ``ACCELERATE_USE_CPU``.
    """
    Accelerator()
    return PartialState()
