"""One router a file; the file's name is the router's."""
