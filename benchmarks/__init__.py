"""Measurements against named references; each module is a command."""
