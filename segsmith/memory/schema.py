"""The ledger's database: its schema, the schemas that are migrated to it, and how the file is opened."""

from __future__ import annotations

import sqlite3
import tempfile
from contextlib import closing
from pathlib import Path
from shutil import copyfile

from segsmith.errors import SegsmithError

SCHEMA_VERSION = 7

MIGRATED = (2, 3, 4, 5, 6)
"""Earlier schemas that are migrated when they are opened. Schema 3 added table evidence, schema 4 the hashes of masks
and table pending_images, schema 5 the counters (prompt_counts, class_counts, usage_totals) and their triggers,
schema 6 table testimonies, schema 7 table seen and the maps of testimonies."""

SCHEMA = """
CREATE TABLE IF NOT EXISTS meta (key TEXT PRIMARY KEY, value TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS prompts (
    id TEXT PRIMARY KEY,            -- hash of class and text
    class_name TEXT NOT NULL,       -- the class it was written for
    text TEXT NOT NULL,
    classes TEXT NOT NULL,          -- JSON list: every class of the list that the text names
    attributes TEXT NOT NULL,       -- JSON object: place, light, weather, state, companion
    parent_id TEXT,                 -- the prompt it refines
    round INTEGER NOT NULL,
    status TEXT NOT NULL,           -- admitted | refined | dropped
    critique TEXT NOT NULL          -- JSON object: reason and numbers
);
CREATE TABLE IF NOT EXISTS images (
    id TEXT PRIMARY KEY,            -- hash of prompt, seed and backend
    prompt_id TEXT NOT NULL REFERENCES prompts(id),
    seed INTEGER NOT NULL,
    backend TEXT NOT NULL,
    round INTEGER NOT NULL,
    sha256 TEXT NOT NULL            -- of the file images/ab/<id>.png, .webp or .jpg
);
CREATE TABLE IF NOT EXISTS pending_images (
    id TEXT PRIMARY KEY,            -- an image whose file is written before its row is
    sha256 TEXT NOT NULL            -- of the file images/ab/<id>.png, .webp or .jpg
);
CREATE TABLE IF NOT EXISTS undrawn (
    id TEXT PRIMARY KEY,            -- the id the image would have had
    prompt_id TEXT NOT NULL REFERENCES prompts(id),
    round INTEGER NOT NULL,
    reason TEXT NOT NULL,           -- filtered | refused | unsafe
    detail TEXT NOT NULL            -- the backend's own words
);
CREATE TABLE IF NOT EXISTS verdicts (
    image_id TEXT PRIMARY KEY REFERENCES images(id),
    accepted INTEGER NOT NULL,
    reason TEXT NOT NULL,           -- ok | blank | duplicate | blurred | not_there | unlike_real |
                                    -- denied | beyond_top_k | surplus | person
    scores TEXT NOT NULL            -- JSON object of numbers
);
CREATE TABLE IF NOT EXISTS evidence (
    image_id TEXT PRIMARY KEY REFERENCES images(id),
    cosines TEXT NOT NULL,          -- JSON list: CLIP cosine with each class, then with each background prompt
    text_shares TEXT NOT NULL,      -- JSON list: the prompt's own probability of each class, from CLIP's text tower
    sharpness REAL NOT NULL,
    blank INTEGER NOT NULL,
    duplicate_cosine REAL NOT NULL, -- likeness to the most similar earlier image, in [-1, 1]
    signature BLOB NOT NULL         -- float32: CLIP vector, then thumbnail; what later images are compared with
);
CREATE TABLE IF NOT EXISTS testimonies (
    image_id TEXT NOT NULL REFERENCES images(id),
    witness TEXT NOT NULL,          -- detector | vlm | attention
    model TEXT NOT NULL,            -- the model that was asked, with its settings
    scores TEXT NOT NULL,           -- JSON object: class -> how sure the witness is that it is there, in [0, 1]
    counts TEXT NOT NULL,           -- JSON object: class -> number of objects; {} if it does not count
    sightings TEXT NOT NULL,        -- JSON list of [class, score, [x0, y0, x1, y1]], as fractions of the image's size
    maps TEXT NOT NULL DEFAULT '{}', -- JSON object: class -> [h, w, base64 of (h, w) uint8]; {} if it has none
    PRIMARY KEY (image_id, witness)
);
CREATE TABLE IF NOT EXISTS labels (
    image_id TEXT NOT NULL REFERENCES images(id),
    source TEXT NOT NULL,           -- prompt | clip | real | agreement | relabel
    classes TEXT NOT NULL,          -- JSON list
    scores TEXT NOT NULL,           -- JSON object: class -> probability
    PRIMARY KEY (image_id, source)
);
CREATE TABLE IF NOT EXISTS masks (
    image_id TEXT PRIMARY KEY REFERENCES images(id),
    pixels TEXT NOT NULL,           -- JSON object: class -> pixel count
    ignore_share REAL NOT NULL,     -- share of pixels that are 255
    sources TEXT NOT NULL,          -- JSON object: how each component was found
    sha256 TEXT NOT NULL DEFAULT '' -- of the PNG file masks/ab/<id>.png; '' in ledgers of schema 3 and earlier
);
CREATE TABLE IF NOT EXISTS events (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    at REAL NOT NULL,               -- Unix time, seconds
    kind TEXT NOT NULL,
    detail TEXT NOT NULL            -- JSON object
);
CREATE TABLE IF NOT EXISTS usage (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    at REAL NOT NULL,               -- Unix time, seconds
    role TEXT NOT NULL,             -- llm | images
    model TEXT NOT NULL,
    calls INTEGER NOT NULL,
    tokens_in INTEGER NOT NULL,
    tokens_out INTEGER NOT NULL,
    images INTEGER NOT NULL,
    usd REAL NOT NULL               -- from the prices in the config; 0 for a local model
);
CREATE TABLE IF NOT EXISTS models (
    role TEXT PRIMARY KEY,          -- llm | images | judge | detector | vlm | labeler | masks | segmenter
    name TEXT NOT NULL,
    revision TEXT NOT NULL,         -- commit or version; '' when the source has none
    licence TEXT NOT NULL,
    source TEXT NOT NULL,           -- package | hub | file | url
    sha256 TEXT NOT NULL            -- of the weights; '' when they are not on this machine
);
CREATE TABLE IF NOT EXISTS decisions (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    at REAL NOT NULL,               -- Unix time, seconds
    kind TEXT NOT NULL,             -- prompt | verdict | label | mask
    subject TEXT NOT NULL,          -- id of the prompt or image decided about
    action TEXT NOT NULL,           -- accept | reject | edit; the newest of a subject and kind counts
    value TEXT NOT NULL,            -- JSON object: what an edit sets
    note TEXT NOT NULL,             -- the reviewer's own words
    source TEXT NOT NULL            -- terminal | file | server
);
CREATE TABLE IF NOT EXISTS seen (
    kind TEXT NOT NULL,             -- prompt | verdict | label | mask
    subject TEXT NOT NULL,          -- id of a prompt or image that the reviewer has seen
    decision TEXT NOT NULL,         -- the agents' decision at that time, as a word
    PRIMARY KEY (kind, subject)
);
CREATE TABLE IF NOT EXISTS guidance (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    at REAL NOT NULL,               -- Unix time, seconds
    class_name TEXT NOT NULL,       -- '' for all classes
    said TEXT NOT NULL,             -- the reviewer's own words
    wish TEXT NOT NULL,             -- JSON object: what the prompt agent makes of it
    active INTEGER NOT NULL         -- 0: withdrawn
);
CREATE TABLE IF NOT EXISTS prompt_counts (
    prompt_id TEXT PRIMARY KEY,     -- counters that triggers keep, so that nothing has to count rows
    class_name TEXT NOT NULL,
    admitted INTEGER NOT NULL,      -- 1 if the prompt is admitted
    drawn INTEGER NOT NULL,         -- images
    undrawn INTEGER NOT NULL,
    judged INTEGER NOT NULL,
    accepted INTEGER NOT NULL
);
CREATE TABLE IF NOT EXISTS class_counts (
    class_name TEXT PRIMARY KEY,    -- sums of prompt_counts over the admitted prompts of a class
    admitted INTEGER NOT NULL,
    drawn INTEGER NOT NULL,
    judged INTEGER NOT NULL,
    accepted INTEGER NOT NULL
);
CREATE TABLE IF NOT EXISTS usage_totals (
    role TEXT PRIMARY KEY,          -- sums of table usage
    model TEXT NOT NULL,            -- the last one used
    calls INTEGER NOT NULL,
    tokens_in INTEGER NOT NULL,
    tokens_out INTEGER NOT NULL,
    images INTEGER NOT NULL,
    usd REAL NOT NULL
);
CREATE INDEX IF NOT EXISTS images_prompt ON images(prompt_id);
CREATE INDEX IF NOT EXISTS images_round ON images(round);
CREATE INDEX IF NOT EXISTS undrawn_prompt ON undrawn(prompt_id);
CREATE INDEX IF NOT EXISTS events_kind ON events(kind);
CREATE INDEX IF NOT EXISTS decisions_subject ON decisions(kind, subject);
CREATE INDEX IF NOT EXISTS prompts_class_round ON prompts(class_name, round);
CREATE INDEX IF NOT EXISTS prompt_counts_waiting ON prompt_counts(drawn + undrawn) WHERE admitted;
"""

_OF_IMAGE = "prompt_id = (SELECT prompt_id FROM images WHERE id = {row}.image_id)"
_ADD_TO_CLASS = """UPDATE class_counts SET admitted = admitted {sign} {row}.admitted,
    drawn = drawn {sign} {row}.admitted * {row}.drawn, judged = judged {sign} {row}.admitted * {row}.judged,
    accepted = accepted {sign} {row}.admitted * {row}.accepted WHERE class_name = {row}.class_name;"""
_COUNT_PROMPT = """INSERT INTO prompt_counts SELECT p.id, p.class_name, p.status = 'admitted',
    (SELECT COUNT(*) FROM images WHERE prompt_id = p.id),
    (SELECT COUNT(*) FROM undrawn WHERE prompt_id = p.id),
    (SELECT COUNT(*) FROM images i JOIN verdicts v ON v.image_id = i.id WHERE i.prompt_id = p.id),
    (SELECT COUNT(*) FROM images i JOIN verdicts v ON v.image_id = i.id WHERE i.prompt_id = p.id AND v.accepted)
    FROM prompts p"""
_VERDICTS_OF = "FROM verdicts WHERE image_id = {row}.id"


def _trigger(name: str, when: str, *statements: str) -> str:
    return f"CREATE TRIGGER IF NOT EXISTS {name} AFTER {when} BEGIN {' '.join(statements)} END;"


def _on_image(change: str, row: str, sign: str) -> str:
    judged = f"(SELECT COUNT(*) {_VERDICTS_OF.format(row=row)})"
    accepted = f"(SELECT COALESCE(SUM(accepted), 0) {_VERDICTS_OF.format(row=row)})"
    return _trigger(
        f"count_image_{change.lower()}",
        f"{change} ON images",
        f"UPDATE prompt_counts SET drawn = drawn {sign} 1, judged = judged {sign} {judged}, "
        f"accepted = accepted {sign} {accepted} WHERE prompt_id = {row}.prompt_id;",
    )


TRIGGERS = "\n".join(
    [
        _trigger("count_prompt", "INSERT ON prompts", f"{_COUNT_PROMPT} WHERE p.id = NEW.id;"),
        _trigger(
            "count_prompt_status",
            "UPDATE OF status ON prompts WHEN NEW.status <> OLD.status",
            "UPDATE prompt_counts SET admitted = (NEW.status = 'admitted') WHERE prompt_id = NEW.id;",
        ),
        _on_image("INSERT", "NEW", "+"),
        _on_image("DELETE", "OLD", "-"),
        _trigger(
            "count_undrawn",
            "INSERT ON undrawn",
            "UPDATE prompt_counts SET undrawn = undrawn + 1 WHERE prompt_id = NEW.prompt_id;",
        ),
        _trigger(
            "count_verdict",
            "INSERT ON verdicts",
            "UPDATE prompt_counts SET judged = judged + 1, accepted = accepted + NEW.accepted "
            f"WHERE {_OF_IMAGE.format(row='NEW')};",
        ),
        _trigger(
            "count_verdict_change",
            "UPDATE OF accepted ON verdicts WHEN NEW.accepted <> OLD.accepted",
            "UPDATE prompt_counts SET accepted = accepted + NEW.accepted - OLD.accepted "
            f"WHERE {_OF_IMAGE.format(row='NEW')};",
        ),
        _trigger(
            "count_verdict_delete",
            "DELETE ON verdicts",
            "UPDATE prompt_counts SET judged = judged - 1, accepted = accepted - OLD.accepted "
            f"WHERE {_OF_IMAGE.format(row='OLD')};",
        ),
        _trigger(
            "sum_prompt",
            "INSERT ON prompt_counts",
            "INSERT OR IGNORE INTO class_counts VALUES (NEW.class_name, 0, 0, 0, 0);",
            _ADD_TO_CLASS.format(sign="+", row="NEW"),
        ),
        _trigger(
            "sum_prompt_change",
            "UPDATE ON prompt_counts",
            _ADD_TO_CLASS.format(sign="-", row="OLD"),
            _ADD_TO_CLASS.format(sign="+", row="NEW"),
        ),
        _trigger(
            "sum_usage",
            "INSERT ON usage",
            "INSERT OR IGNORE INTO usage_totals VALUES (NEW.role, '', 0, 0, 0, 0, 0);",
            "UPDATE usage_totals SET model = NEW.model, calls = calls + NEW.calls, "
            "tokens_in = tokens_in + NEW.tokens_in, tokens_out = tokens_out + NEW.tokens_out, "
            "images = images + NEW.images, usd = usd + NEW.usd WHERE role = NEW.role;",
        ),
    ]
)
"""They keep the counters equal to the tables, whoever writes."""

COUNT_ALL = f"""
DELETE FROM prompt_counts;
DELETE FROM class_counts;
{_COUNT_PROMPT} ORDER BY p.rowid;
DELETE FROM usage_totals;
INSERT INTO usage_totals
    SELECT role, model, calls, tokens_in, tokens_out, images, usd FROM (
        SELECT role, model, SUM(calls) AS calls, SUM(tokens_in) AS tokens_in, SUM(tokens_out) AS tokens_out,
               SUM(images) AS images, SUM(usd) AS usd, MAX(id) FROM usage GROUP BY role);
"""

MOVE_SEEN = """
INSERT OR IGNORE INTO seen
    SELECT kinds.key, subjects.key, subjects.value
    FROM meta, json_each(meta.value, '$.seen') kinds, json_each(kinds.value) subjects
    WHERE meta.key='review' AND json_valid(meta.value);
UPDATE meta SET value=json_remove(value, '$.seen') WHERE key='review' AND json_valid(value);
"""
"""Before schema 7 all that a reviewer had seen was one JSON object, written again with each item."""

TABLES = "SELECT COUNT(*) FROM sqlite_master WHERE type='table'"
VERSION = "SELECT value FROM meta WHERE key='schema_version'"


def open_ledger(path: Path | str) -> sqlite3.Connection:
    """Open the database for reading and writing; create or migrate it first where necessary.

    A committed transaction survives a power failure. Raises `SegsmithError` for a file that is no ledger, or one
    of a version that is not supported.
    """
    try:
        db = sqlite3.connect(path, check_same_thread=False)
        try:
            version = _version(db, path)
            db.execute("PRAGMA journal_mode=WAL")
            db.execute("PRAGMA synchronous=FULL")
            if version != SCHEMA_VERSION:
                _migrate(db)
        except BaseException:
            db.close()
            raise
    except sqlite3.Error as error:
        raise _unusable(path, error) from None
    return db


def open_ledger_read_only(path: Path) -> sqlite3.Connection:
    """Open the database without writing to it or to its folder, as far as possible.

    An earlier schema is migrated in a copy in memory. Raises as `open_ledger`, and where there is no file.
    """
    if not path.is_file():
        raise SegsmithError(f"{path} does not exist.", "Name a run folder.")
    try:
        db = _connect_read_only(path)
        version = _version(db, path)
        if version != SCHEMA_VERSION:
            with closing(db) as stored:
                db = _copy_to_memory(stored)
            _migrate(db)
        db.execute("PRAGMA query_only=ON")
    except sqlite3.Error as error:
        raise _unusable(path, error) from None
    return db


def _connect_read_only(path: Path) -> sqlite3.Connection:
    """Where SQLite cannot create the files of WAL mode, open the database without them, or a copy of it."""
    try:
        db = sqlite3.connect(f"{path.resolve().as_uri()}?mode=ro", uri=True, check_same_thread=False)
        db.execute(TABLES).fetchone()
        return db
    except sqlite3.OperationalError:
        log = path.with_name(f"{path.name}-wal")
        if not (log.exists() and log.stat().st_size):
            return sqlite3.connect(
                f"{path.resolve().as_uri()}?mode=ro&immutable=1", uri=True, check_same_thread=False
            )
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / path.name
        copyfile(path, copy)
        copyfile(log, copy.with_name(log.name))
        with closing(sqlite3.connect(copy)) as stored:
            return _copy_to_memory(stored)


def _copy_to_memory(stored: sqlite3.Connection) -> sqlite3.Connection:
    db = sqlite3.connect(":memory:", check_same_thread=False)
    stored.backup(db)
    return db


def _version(db: sqlite3.Connection, path: Path | str) -> int:
    """The schema version of a ledger; 0 for an empty database. Raises `SegsmithError` for one not supported."""
    if db.execute(TABLES).fetchone() == (0,):
        return 0
    row = db.execute(VERSION).fetchone()
    stored = "" if row is None else str(row[0])
    version = int(stored) if stored.isascii() and stored.isdigit() else None
    if version not in (*MIGRATED, SCHEMA_VERSION):
        remedy = "Name another run folder."
        if version is not None and version > SCHEMA_VERSION:
            remedy = "Use the version of segsmith named in run.toml, or another run folder."
        raise SegsmithError(
            f"{path} has ledger schema {stored[:40] or 'unknown'}; this version of segsmith reads schemas "
            f"{', '.join(map(str, MIGRATED))} and {SCHEMA_VERSION}.",
            remedy,
        )
    return version


def _migrate(db: sqlite3.Connection) -> None:
    """Create what is missing, in one transaction; two processes may do it one after the other."""
    try:
        db.executescript(f"BEGIN IMMEDIATE;{SCHEMA}{TRIGGERS}{COUNT_ALL}{MOVE_SEEN}")
        if "sha256" not in [column[1] for column in db.execute("PRAGMA table_info(masks)")]:
            db.execute("ALTER TABLE masks ADD COLUMN sha256 TEXT NOT NULL DEFAULT ''")
        if "maps" not in [column[1] for column in db.execute("PRAGMA table_info(testimonies)")]:
            db.execute("ALTER TABLE testimonies ADD COLUMN maps TEXT NOT NULL DEFAULT '{}'")
        db.execute("INSERT OR REPLACE INTO meta VALUES ('schema_version', ?)", (str(SCHEMA_VERSION),))
        db.commit()
    except BaseException:
        db.rollback()
        raise


def _unusable(path: Path | str, error: sqlite3.Error) -> SegsmithError:
    return SegsmithError(f"{path} is not a usable segsmith ledger ({error}).", "Name another run folder.")
