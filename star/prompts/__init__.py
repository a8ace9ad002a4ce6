"""Prompt sets of the three tasks: generated, published, or of one's own."""
