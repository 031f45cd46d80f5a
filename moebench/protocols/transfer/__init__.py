"""An encoder with an inserted sparse layer is pre-trained on many languages, fine-tuned in one and tested in all (X-MoE)."""
