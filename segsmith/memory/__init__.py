"""What a run remembers: prompts (Chroma), the ledger (SQLite) and the run folder."""
