"""What a run stores: the ledger (SQLite), prompts (Chroma), settings, and the files of the run folder."""
