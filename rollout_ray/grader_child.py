"""The process in which answers are compared symbolically (`python -m rollout_ray.grader_child TIMEOUT_S MEMORY_MIB`).

Reads one JSON pair [gold, answer] a line and writes one JSON verdict a line, on its main thread, where math-verify's
alarm works. Its parent (grading.py) kills it where the alarm fails, and where it takes more memory than it may: a
MemoryError raised here would be swallowed inside sympy and end as a wrong 'incorrect'.
"""

from __future__ import annotations

import json
import logging
import resource
import sys


def main() -> None:
    timeout_s, memory_mib = int(sys.argv[1]), int(sys.argv[2])
    from math_verify import parse, verify
    from math_verify.errors import TimeoutException

    logging.disable(logging.CRITICAL)
    # A backstop against a growth so fast that the parent does not see it in time.
    resource.setrlimit(resource.RLIMIT_AS, (memory_mib << 22, memory_mib << 22))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))

    def compare(gold: str, answer: str) -> str:
        try:
            parsed = parse(f"\\boxed{{{gold}}}", parsing_timeout=timeout_s, raise_on_error=True)
            if not parsed:
                return "bad_gold"
            candidate = parse(f"\\boxed{{{answer}}}", parsing_timeout=timeout_s, raise_on_error=True)
            equal = verify(parsed, candidate, timeout_seconds=timeout_s, raise_on_error=True)
        except TimeoutException:
            return "timeout"
        except Exception:  # noqa: BLE001  (sympy raises anything on a hostile text; the verdict says that it failed)
            return "error"
        return "correct" if equal else "incorrect"

    if compare("\\sqrt{8}", "2\\sqrt{2}") != "correct":
        sys.exit("the symbolic comparison does not work here")
    print(json.dumps("ready"), flush=True)
    for line in sys.stdin:
        gold, answer = json.loads(line)
        print(json.dumps(compare(gold, answer)), flush=True)


if __name__ == "__main__":
    main()
