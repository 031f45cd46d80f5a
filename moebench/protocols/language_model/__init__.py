"""A decoder is pre-trained on text, then examined by its likelihood and by zero-shot tasks (AoE)."""
