"""Typed messages: the wire contract."""
