"""Errors, files, locks, processes: what any program needs."""
