"""One training: its loop, its trainer, its states."""
