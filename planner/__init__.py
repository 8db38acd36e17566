"""Planning: replicas and roles from load and service levels."""
