"""A vision transformer goes from an upstream to a downstream task, and its uncertainty is judged (E³)."""
