"""Orders to read files in: the same for all in a round, another one in the next. Plain functions."""

from __future__ import annotations

import random


def shuffled(count: int, limit: int, seed: int) -> list[int]:
    """Return *limit* of the keys below *count*, in random order."""
    return random.Random(seed).sample(range(count), min(limit, count))


def within(count: int, window: int, seed: int) -> list[int]:
    """Return all keys, each window of them shuffled: what a loader with a shuffle buffer reads."""
    chance, order = random.Random(seed), list[int]()
    for start in range(0, count, window):
        part = list(range(start, min(start + window, count)))
        chance.shuffle(part)
        order += part
    return order
