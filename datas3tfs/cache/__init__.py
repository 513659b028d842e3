"""Local disk: the cache of indices."""
