"""Processes other than frontends and planners: worker, engines, supervisor, CLI."""
