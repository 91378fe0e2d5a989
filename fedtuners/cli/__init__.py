"""Command-line verbs around a federated run."""
