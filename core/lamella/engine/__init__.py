"""Runs a graph forward and backward: flat buffers, one pass over a slice, rounds over all slices, threads."""
