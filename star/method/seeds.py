"""Derives seeds from what they are for, so that a resumed run draws what it would have drawn."""

import hashlib


def seed_of(*path: int | str) -> int:
    """Return a seed in [0, 2^63) for a path such as ``(run seed, "start", group, rollout)``."""
    digest = hashlib.sha256("/".join(map(str, path)).encode()).digest()
    return int.from_bytes(digest[:8], "little") >> 1
