"""Rewards of the three tasks behind one interface; `star.rewards.base` shows how to add one."""
