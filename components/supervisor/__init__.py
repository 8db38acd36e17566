"""`busway up`: the whole system on this machine, each part a process of its own, restarted when it dies."""
