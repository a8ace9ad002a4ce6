"""Scores of a checkpoint or of a folder of images."""
