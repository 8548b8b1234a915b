"""Run `rollout merge-lora` as a job, on a node of the cluster that sees the model.

ray job submit --working-dir . -- python -m rollout_ray.jobs.merge_lora --base /m/base --adapter /m/lora --output /m/merged
"""

from __future__ import annotations

import sys

from rollout_ray.cli.main import main

if __name__ == "__main__":
    sys.exit(main(["merge-lora", *sys.argv[1:]]))
