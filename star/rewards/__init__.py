"""Rewards of the three tasks, in training and in evaluation."""
