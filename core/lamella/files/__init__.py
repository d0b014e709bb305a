"""A network as plain data, and as a file that holds structure and arrays and no code."""
