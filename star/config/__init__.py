"""The parameters."""
