"""Scenarios: short programs that the real kernel and ours must answer alike. See README.md."""
