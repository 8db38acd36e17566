"""OpenAI's HTTP API: what clients send and what they are answered."""
