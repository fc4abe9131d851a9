"""Chance without state: uniform numbers that are a pure function of what they are for.

Every training sample of every optimizer step has a key; a place in the model, and the layer it is in, make other keys
of it; and a key and the index of an element make a number. So masks are the same in numpy, JAX and torch, for any
number of workers and of micro-steps, when activations are computed a second time, and after a resume: nothing is
carried.

`flax_trainer/random.py` and `deepspeed_trainer/random.py` are the twins of this module, and give the same bits.

The hash is the finaliser of MurmurHash3 (Appleby, 2011, public domain), a bijection of 32-bit words in which every bit
of the input moves every bit of the output.
"""

import hashlib
from functools import lru_cache

import numpy as np
import numpy.typing as npt

Keys = npt.NDArray[np.uint32]

FIRST_FACTOR, SECOND_FACTOR = 0x85EBCA6B, 0xC2B2AE35
STRIDE = 0x9E3779B9
"""2^32 over the golden ratio: multiples of it are spread evenly."""
UNIT = 2.0**-24
"""The upper 24 bits of a word times this are a float32 in [0, 1), without rounding."""
_WORD = (1 << 32) - 1


def mix(words: Keys) -> Keys:
    """The hash of each word, same shape."""
    words = words.astype(np.uint32)
    words = (words ^ (words >> np.uint32(16))) * np.uint32(FIRST_FACTOR)
    words = (words ^ (words >> np.uint32(13))) * np.uint32(SECOND_FACTOR)
    return words ^ (words >> np.uint32(16))


def sample_keys(seed: int, batch: int, ids: npt.NDArray[np.int64]) -> Keys:
    """One key for each of the samples `ids`, same shape, when they are in batch number `batch` of the data order."""
    run = np.frombuffer(hashlib.blake2s(f"{seed} {batch}".encode(), digest_size=4).digest(), "<u4")
    low, high = (ids & _WORD).astype(np.uint32), (ids >> 32).astype(np.uint32)
    return mix(mix(mix(low) ^ run) + high)


@lru_cache
def site(name: str) -> int:
    """The 32-bit number of a place in the model, such as "attention.dropout"."""
    return int.from_bytes(hashlib.blake2s(name.encode(), digest_size=4).digest(), "little")


def at(keys_B: Keys, place: int) -> Keys:
    """The keys of `place`, the number of a site or of a layer, [B]: other places give other keys."""
    return mix(keys_B ^ mix(np.asarray([place * STRIDE & _WORD], np.uint32)))


def uniform(keys_B: Keys, *shape: int) -> npt.NDArray[np.float32]:
    """Numbers in [0, 1), float32 [B, *shape]: of each key, one for each element."""
    elements = mix(np.arange(int(np.prod(shape)), dtype=np.uint32) * np.uint32(STRIDE)).reshape(shape)
    words = mix(keys_B.reshape(-1, *[1] * len(shape)) ^ elements)
    return (words >> np.uint32(8)).astype(np.float32) * np.float32(UNIT)
