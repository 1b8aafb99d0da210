"""Workers on made-up clusters."""

import pytest

from segsmith.config import load_config
from segsmith.device_memory import GIB
from segsmith.engine.placement import MOST_ON_A_GPU, Node, Placement, placement
from segsmith.tools.gpu_plan import GpuStage, plan_gpu, usable

LARGE, SMALL = 80 * GIB, 24 * GIB
BOX = [Node(cpus=64, gpus=8)]
MIXED = [Node(cpus=32, gpus=4), Node(cpus=16), Node(cpus=16)]


def config_of(**labeler):
    return load_config(preset="gpu", flags={"classes": ["cat", "dog"], "labeler": labeler})


@pytest.mark.parametrize("kind", ["draw", "teach", "relabel"])
def test_models_that_keep_a_gpu_busy_have_it_alone(kind):
    assert placement(kind, config_of(), BOX, LARGE) == Placement(8, 1.0)
    assert placement(kind, config_of(), MIXED, LARGE) == Placement(4, 1.0)


@pytest.mark.parametrize("kind", ["masks", "regions"])
def test_workers_that_make_masks_share_a_gpu_as_far_as_they_fit(kind):
    config = config_of()
    size = plan_gpu(config, LARGE).of(GpuStage.SEGMENT).size
    assert MOST_ON_A_GPU * size <= usable(LARGE), "the example must have room for all"
    assert placement(kind, config, BOX, LARGE) == Placement(8 * MOST_ON_A_GPU, 1 / MOST_ON_A_GPU)
    found = placement(kind, config, BOX, SMALL)
    together = found.count // 8
    assert together * size <= usable(SMALL) < (together + 1) * size or together == MOST_ON_A_GPU
    assert found.gpus == 1 / together


def test_an_unknown_gpu_is_not_shared():
    assert placement("masks", config_of(), BOX) == Placement(8, 1.0)


def test_workers_on_a_gpu_have_a_cpu_each():
    assert placement("masks", config_of(), [Node(cpus=4, gpus=2)], LARGE) == Placement(4, 0.5)
    assert placement("masks", config_of(), [Node(cpus=1, gpus=2)], LARGE) == Placement(2, 1.0)


def test_nodes_without_a_gpu_take_part_where_none_is_needed():
    found = placement("masks", config_of(use_sam=False, region_doubt=0.0), MIXED, LARGE)
    assert found == Placement(63, 0.0)
    assert found.cpus == 1
    assert placement("export", config_of(), MIXED, LARGE) == found


@pytest.mark.parametrize("kind", ["draw", "masks"])
def test_without_gpus_there_is_a_worker_for_each_cpu_but_one(kind):
    assert placement(kind, config_of(), [Node(cpus=4), Node(cpus=2)]) == Placement(5, 0.0)
    assert placement(kind, config_of(), [Node(cpus=1)]) == Placement(1, 0.0)


@pytest.mark.parametrize(
    ("asked", "found"), [(3, Placement(3, 1.0)), (20, Placement(20, 0.25)), (99, Placement(32, 0.25))]
)
def test_the_user_bounds_the_number(asked, found):
    assert placement("masks", config_of(), BOX, LARGE, asked) == found
