"""A random daemon against a random netfs, with random faults, and what must hold all the same."""
