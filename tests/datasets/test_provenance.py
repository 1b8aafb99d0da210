import json
import shutil

from segsmith.datasets.provenance import write_provenance
from segsmith.graph.context import RunContext
from segsmith.memory.ledger import DecisionRow


def test_a_record_of_every_exported_image_in_drawing_order_however_many_are_read_together(
    made_up, tmp_path, monkeypatch
):
    deps = RunContext.open(shutil.copytree(made_up.run.root, tmp_path / "copy"))
    try:
        deps.run.dataset.mkdir(exist_ok=True)
        refused = made_up.data.records[3].id
        deps.ledger.add_decision(DecisionRow("mask", refused, "reject"))
        whole = write_provenance(deps.run, deps.ledger, {"segsmith": "1"}).read_bytes()
        records = [json.loads(line) for line in whole.splitlines()]
        assert [r["image_id"] for r in records] == [r.id for r in made_up.data.records if r.id != refused]
        for row, record in zip(deps.ledger.accepted(), made_up.data.records, strict=True):
            if row.id == refused:
                continue
            found = next(r for r in records if r["image_id"] == row.id)
            assert (found["sha256"], found["seed"]) == (row.sha256, row.seed)
            assert found["prompt"]["text"] == record.origin.prompt
            assert found["prompt"]["family"] == record.origin.family
            assert found["labels"] == list(record.labels)
            assert found["mask"]["pixels"] == dict(deps.ledger.mask(row.id).pixels)
            assert found["versions"] == {"segsmith": "1"}
        monkeypatch.setattr("segsmith.datasets.dataset_rows.READ", 7)
        assert write_provenance(deps.run, deps.ledger, {"segsmith": "1"}).read_bytes() == whole
    finally:
        deps.close()
