"""Aggregation methods as Flower strategies over pure tensor functions."""
