"""Tests of cluster/: a strict fake of Lambda's API, and pretend instances in network namespaces."""
