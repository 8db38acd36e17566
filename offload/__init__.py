"""KV offload: tiers below device memory."""
