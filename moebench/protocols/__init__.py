"""Kinds of experiment, a folder each with the same rooms (``moebench/protocol.py`` says which); they do not import each other."""
