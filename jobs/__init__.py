"""Programs to submit with `ray job submit`. Each module runs as `python -m rollout_ray.jobs.NAME`."""
