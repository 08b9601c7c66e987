"""The agent: the one place that wires probes, rings, recording, rules and exporters together."""
