"""What a DVC stage calls: one module per verb, each thin."""
