"""Anthropic's Messages API: its bodies become chat turns, its events are written from deltas."""
