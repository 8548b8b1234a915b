"""Things a user submits with `ray job submit`; each module runs as `python -m rollout_ray.jobs.NAME`."""
