"""What the tasks are, how predictions are scored, and the shallow baselines. Imports no torch."""
