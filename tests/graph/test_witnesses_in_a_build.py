"""A build with the simulator's witnesses: asked before labelling, once, and what they deny is replaced."""

from contextlib import closing

import pytest

from segsmith.errors import SegsmithError
from segsmith.memory.ledger import Ledger
from segsmith.testing import ScriptedChat, small_config
from segsmith.workflows.build import build_run
from segsmith.workflows.preflight import check_witnesses


def test_accepted_images_are_vouched_for_and_asked_about_once(tmp_path):
    config = small_config(
        witnesses={"detector": "simulated", "vlm": "simulated"},
        trainer={"epochs": 1, "batch_size": 4},
        evaluation={"images": 0},
    )
    for _ in range(2):
        for _ in build_run(config, tmp_path / "run", parts={"chat": ScriptedChat()}):
            pass
    with closing(Ledger(tmp_path / "run" / "ledger.db", read_only=True)) as ledger:
        accepted = [row.id for row in ledger.accepted()]
        heard = ledger.testimonies(accepted)
        assert set(heard) == set(accepted)
        assert all(set(said) == {"detector", "vlm"} for said in heard.values())
        asked = [(detail["witness"], detail["images"]) for _, _, detail in ledger.events("witness")]
        known = ledger.testimonies([row.id for row in ledger.images()])
        assert sum(count for _, count in asked) == 2 * len(known)
        targets = {row.id: ledger.prompt(row.prompt_id).class_name for row in ledger.images()}
        verdicts = ledger.verdicts()
        for image_id, said in known.items():
            denied = all(testimony.scores[targets[image_id]] < 0.1 for testimony in said.values())
            assert not (denied and verdicts[image_id].accepted)
        assert set(ledger.labels("agreement")) >= set(accepted)
        assert ledger.finished_at


def test_stand_ins_need_the_simulator():
    config = small_config(
        witnesses={"detector": "simulated"}, images={"backend": "diffusion", "model": "a/b", "size": 64}
    )
    with pytest.raises(SegsmithError, match=r"witnesses\.detector"):
        check_witnesses(config)


def test_a_missing_detector_costs_one_line(tmp_path):
    with pytest.raises(SegsmithError, match="not on this machine"):
        check_witnesses(small_config(witnesses={"detector": str(tmp_path / "nothing")}))
