"""Sparse layers without assignments, one a file; the file's name is the layer's."""
