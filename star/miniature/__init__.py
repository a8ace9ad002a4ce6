"""The miniature: its world, its models, and how they are made from nothing."""
