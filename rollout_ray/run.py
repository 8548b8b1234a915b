"""The command line as a module: `python -m rollout_ray.run`."""

import sys

from rollout_ray.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
