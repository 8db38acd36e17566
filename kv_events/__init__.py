"""Block hashes, events and the prefix index."""
