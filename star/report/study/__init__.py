"""The runs of the study -> one HTML page, a summary and small tables."""

from star.report.study.page import write_study

__all__ = ["write_study"]
