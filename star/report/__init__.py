"""Scores and logs of a run -> one self-contained HTML page and small metric files."""

from star.report.page import write_report

__all__ = ["write_report"]
