"""A Kubernetes for tests: the API server alone, or one whole node, from public Go modules and Debian packages."""
