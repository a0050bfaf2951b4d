"""Bases: models in files, read key by key into float32, and what their names and headers tell."""
