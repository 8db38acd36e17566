"""The doors for clients: HTTP and NATS."""
