"""docs/ledger.md says what the ledger is."""

import re
import sqlite3
from pathlib import Path

from segsmith.memory.ledger import Ledger
from segsmith.memory.schema import SCHEMA, SCHEMA_VERSION

DOCUMENT = (Path(__file__).parents[2] / "docs" / "ledger.md").read_text("utf-8")


def test_the_document_holds_the_real_schema(tmp_path):
    written = re.search(r"```sql\n(.*?)```", DOCUMENT, re.DOTALL).group(1)
    assert written.strip() == SCHEMA.strip()
    assert f"schema version {SCHEMA_VERSION}" in DOCUMENT
    Ledger(tmp_path / "ledger.db").close()
    db = sqlite3.connect(tmp_path / "ledger.db")
    tables = {name for (name,) in db.execute("SELECT name FROM sqlite_master WHERE type='table'")}
    tables -= {"sqlite_sequence"}
    assert tables == set(re.findall(r"^\| `(\w+)` \|", DOCUMENT, re.MULTILINE))
