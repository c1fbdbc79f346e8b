"""The parts of the `rectrain` command that need the worker packages."""
