"""Clusters: Lambda Cloud as a node provider of Ray's autoscaler, and the check of a cluster's YAML.

Runs where `ray up` runs and on a cluster's head. Imports nothing of rollout_ray but its errors.
"""
