"""Probes: one file for each source of readings on a host, parsing kept apart from reading."""
