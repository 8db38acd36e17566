"""OpenAI's Responses API: its items become chat turns, its events are written from deltas, its answers are kept."""
