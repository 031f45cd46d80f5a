"""Metrics as plain functions of labels, strings and arrays; numpy, scipy and the standard library only."""
