"""KV blocks beyond device memory: tiers, what is kept in them, and when loading beats computing."""
