"""`segsmith verify` finds damage that was done on purpose, and what it marks is made again by the next build."""

import json
import shutil
import sqlite3

import numpy as np
import pytest

from segsmith.files import PART, png_bytes
from segsmith.memory.ledger import Ledger
from segsmith.memory.run_config import read_record
from segsmith.memory.run_folder import RunFolder
from segsmith.testing import fingerprint
from segsmith.workflows.verify import Defect, verify


def accepted(run):
    ledger = Ledger(run / "ledger.db", read_only=True)
    ids = [row.id for row in ledger.accepted()]
    ledger.close()
    return ids


def sql(run, *statements):
    with sqlite3.connect(run / "ledger.db") as db:
        for statement in statements:
            db.execute(statement)


def rejected(run):
    ledger = Ledger(run / "ledger.db", read_only=True)
    found = next(i for i, row in ledger.verdicts().items() if not row.accepted)
    ledger.close()
    return found


def swap(one, two):
    a, b = one.read_bytes(), two.read_bytes()
    assert a != b
    one.write_bytes(b)
    two.write_bytes(a)


def mask(run, number=0):
    return RunFolder(run).mask(accepted(run)[number])


def image(run, number=0):
    return RunFolder(run).image(accepted(run)[number])


def blank(path):
    path.write_bytes(png_bytes(np.zeros((64, 64), np.uint8)))


def damaged_page(path):
    data = bytearray(path.read_bytes())
    data[4096:8192] = b"x" * 4096
    path.write_bytes(bytes(data))


def one_image_less(run):
    path = run / "dataset" / "provenance.jsonl"
    path.write_text("".join(line + "\n" for line in path.read_text().splitlines()[1:]))


DAMAGE = [
    (lambda run: image(run).unlink(), Defect.LOST_IMAGE),
    (lambda run: swap(image(run, 0), image(run, 1)), Defect.OTHER_IMAGE),
    (lambda run: image(run).write_bytes(b"garbage"), Defect.OTHER_IMAGE),
    (lambda run: RunFolder(run).image(rejected(run)).unlink(), Defect.LOST_REJECT),
    (lambda run: shutil.copy(image(run), run / "images" / "i-stranger.png"), Defect.STRAY_IMAGE),
    (lambda run: mask(run).unlink(), Defect.LOST_MASK),
    (lambda run: swap(mask(run, 0), mask(run, 1)), Defect.OTHER_MASK),
    (lambda run: blank(mask(run)), Defect.OTHER_MASK),
    (lambda run: shutil.copy(mask(run), run / "masks" / "i-stranger.png"), Defect.STRAY_MASK),
    (lambda run: sql(run, f"DELETE FROM masks WHERE image_id='{accepted(run)[0]}'"), Defect.NO_MASK),
    (lambda run: sql(run, f"DELETE FROM labels WHERE image_id='{accepted(run)[0]}'"), Defect.NO_LABELS),
    (lambda run: sql(run, "DELETE FROM prompts WHERE status='admitted'"), Defect.REFERENCE),
    (lambda run: shutil.rmtree(run / "dataset" / "voc"), Defect.DATASET),
    (lambda run: blank(next((run / "dataset/voc/SegmentationClass").iterdir())), Defect.DATASET),
    (one_image_less, Defect.COUNT),
    (lambda run: (run / "checkpoints" / "segmenter.safetensors").unlink(), Defect.SEGMENTER),
    (lambda run: (run / "checkpoints" / "segmenter.safetensors").write_bytes(b"x"), Defect.OTHER_SEGMENTER),
    (lambda run: (run / "report.html").unlink(), Defect.REPORT),
    (lambda run: sql(run, "UPDATE meta SET value = 1 WHERE key = 'sequence'"), Defect.BEHIND),
    (lambda run: (run / "graph.db").unlink(), Defect.LOST_GRAPH),
    (lambda run: damaged_page(run / "ledger.db"), Defect.DATABASE),
    (lambda run: (run / "ledger.db").unlink(), Defect.DATABASE),
    (lambda run: (run / "masks" / f"{PART}x").write_bytes(b""), Defect.PART_FILE),
]  # fmt: skip


def test_an_untouched_run_has_no_defect(run, segsmith):
    before = fingerprint(run)
    assert verify(run).findings == ()
    code, said, _ = segsmith("verify", run)
    assert code == 0
    assert "No problems found." in said
    assert fingerprint(run) == before


@pytest.mark.parametrize(("damage", "defect"), DAMAGE, ids=lambda x: str(x) if isinstance(x, Defect) else "")
def test_damage_is_found(run, segsmith, damage, defect):
    damage(run)
    assert defect in {found.defect for found in verify(run).findings}
    code, said, complaint = segsmith("verify", run)
    assert code == 1
    assert defect.wording in " ".join(said.split())
    assert complaint == ""


def test_masks_of_an_old_ledger_are_compared_by_their_pixels(run):
    sql(run, "UPDATE masks SET sha256=''")
    assert verify(run).findings == ()
    blank(mask(run))
    assert [found.defect for found in verify(run).findings] == [Defect.OTHER_MASK]


@pytest.mark.parametrize("damage", [DAMAGE[n][0] for n in (0, 2, 5, 6, 7, 9)])
def test_what_is_repaired_is_made_again_by_the_next_build(finished, run, build, damage):
    damage(run)
    found = verify(run, repair=True)
    assert found.marked
    assert found.open == ()
    build(read_record(run / "run.toml").asked, run)
    assert verify(run).findings == ()
    assert len(accepted(run)) == len(accepted(finished))
    before, after = fingerprint(finished), fingerprint(run)
    # An image that is drawn again comes last, so other images calibrate the labels: masks may differ then.
    drawn_again = {Defect.LOST_IMAGE, Defect.OTHER_IMAGE} & {marked.defect for marked in found.marked}
    folders = ("images/",) if drawn_again else ("images/", "masks/")
    assert {n: sha for n, sha in before.items() if n.startswith(folders)}.items() <= after.items()


def test_repair_moves_damaged_files_and_deletes_none(run):
    damaged = image(run)
    damaged.write_bytes(b"garbage")
    shutil.copy(damaged, run / "images" / "i-stranger.png")
    verify(run, repair=True)
    assert (run / "set-aside" / damaged.relative_to(run)).read_bytes() == b"garbage"
    assert (run / "set-aside" / "images" / "i-stranger.png").exists()
    assert not damaged.exists()
    assert json.loads((run / "dataset/voc/manifest.json").read_text())


def test_a_folder_without_a_run_is_one_line(tmp_path, segsmith):
    code, _, complaint = segsmith("verify", tmp_path)
    assert (code, complaint.count("\n")) == (2, 1)
