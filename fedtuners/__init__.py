"""Federated fine-tuning of language models: adapters, tasks, privacy and tools, without Flower."""

__version__ = "0.1.0"
