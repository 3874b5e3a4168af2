"""Seeds from a few integers."""

import hashlib


def seed_of(*numbers: int, bits: int = 64) -> int:
    """A well-mixed seed from a few integers, such as (seed, epoch, batch): seeds of neighbouring numbers share nothing.

    It is the first 64 bits (little-endian) of blake2b over the numbers in decimal, separated by blanks.

    Args:
        bits: the seed keeps so many of the leading ones. Steps of a run take 64 and batches 63, as all runs so far have;
            another number would draw another run.
    """
    digest = hashlib.blake2b(" ".join(map(str, numbers)).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> (64 - bits)
