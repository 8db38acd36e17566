"""Continuous batching, without tensors: the block pool, sequences and the scheduler that all own engines share."""
