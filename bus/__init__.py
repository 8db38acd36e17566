"""The bus: typed messages, subjects, queues, registry, configuration, errors, logs, metrics, lifecycle."""
