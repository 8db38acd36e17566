"""Where clients come in: HTTP and plain NATS."""
