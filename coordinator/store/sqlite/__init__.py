"""The embedded store: one SQLite file, one connection that writes and checkpoints, read-only ones beside it (DESIGN §8)."""
