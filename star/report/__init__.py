"""Scores and logs of runs -> one self-contained HTML page, metric files, exported adapters."""
