"""Metrics with named definitions, exact across ranks, and ranking evaluation over the full corpus."""
