"""The worker process: pulls jobs, feeds the engine, publishes what each step brings."""
