"""Released weight files: names, shards, index."""
