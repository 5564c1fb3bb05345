"""Numbers that depend on a seed and a name only: choices that do not depend on the order of rows."""

from __future__ import annotations

import hashlib


def unit_hash(seed: int, purpose: str, name: str) -> float:
    """A number in the open interval (0, 1), uniform over names.

    Args:
        seed: The user's seed.
        purpose: What the number decides, so that two decisions about one name are independent.
        name: An accession.
    """
    digest = hashlib.blake2b(f"{seed}\0{purpose}\0{name}".encode(), digest_size=8).digest()
    return ((int.from_bytes(digest, "big") >> 11) + 0.5) / 2.0**53
