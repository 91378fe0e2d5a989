"""The Flower ServerApp: compose, start, run rounds, evaluate, checkpoint, report."""
