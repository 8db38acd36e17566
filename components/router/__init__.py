"""The router process: sends each request to the worker where it costs least."""
