"""Exporters: OTLP through a durable outbox, Prometheus text, the HTML report and traces."""
