"""Metrics as plain functions of labels, strings and arrays; numpy and the standard library only."""
