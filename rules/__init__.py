"""Rules: pure functions from windows of a recording to findings with evidence."""
