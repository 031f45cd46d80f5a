"""A toy: a sparse layer learns which of four classes a noisy function of two numbers gives."""
