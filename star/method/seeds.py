"""Seeds as a pure function of what they are for: independent of the order of draws, so a resumed
run is exact."""

import hashlib


def seed_of(*path: int | str) -> int:
    """A seed in [0, 2^63) for a path of names and indices, such as ``(run seed, "start", epoch,
    group)``."""
    digest = hashlib.sha256("/".join(map(str, path)).encode()).digest()
    return int.from_bytes(digest[:8], "little") >> 1
