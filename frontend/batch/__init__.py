"""Batches: what they are made of, and how they are carried on, by whichever frontend takes them."""
