"""Launch clusters on Lambda Cloud by Ray's autoscaler, and check a cluster's YAML.

It runs on the machine of `ray up` and on a cluster's head. Of rollout_ray it imports only the errors.
"""
