"""Lightning modules, batches, callbacks and the trainer."""
