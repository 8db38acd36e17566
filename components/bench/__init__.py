"""Measure what a running system costs: CPU per streamed token and per request, process by process."""
