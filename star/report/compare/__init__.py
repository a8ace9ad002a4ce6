"""Runs of any results trees against each other: a table for the terminal and one self-contained
HTML page."""

from star.report.compare.page import compare_runs

__all__ = ["compare_runs"]
