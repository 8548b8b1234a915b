"""Measure a report's size and speed: `python -m tests.report_scale [TRAJECTORIES] [CHARACTERS]`.

The defaults are 50,000 trajectories of about 900 characters. The script makes a finished run,
writes its report in a separate process, and opens it in headless Chromium.
It prints bytes, seconds and memory, and asserts no limit.
"""

from __future__ import annotations

import json
import random
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from rollout_ray.core.records import Completion, Question
from tests.conftest import ROOT, demo_rows
from tests.finished_runs import finished

ARMS = 8
# Changes one filter like a user.
SET = """const set = (name, value) => {
    const control = document.getElementById(`f-${name}`);
    control.value = value;
    control.dispatchEvent(new Event(name === "text" ? "input" : "change", { bubbles: true }));
};"""
WORDS = (ROOT / "README.md").read_text().split()
WRITE = """
import json, re, sys
from pathlib import Path
from rollout_ray.report.html import write_report
peak = lambda: int(re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())[1])
imported = peak()
done = write_report(sys.argv[1])
print(json.dumps({"seconds": done.seconds, "bytes": done.size, "shown": done.shown, "peak": peak(), "imported": imported}))
"""


def main() -> None:
    given = [int(word) for word in sys.argv[1:]]
    trajectories, characters = (given + [50_000, 900][len(given) :])[:2]

    def draw(question: Question, number: int, seed: int, max_tokens: int) -> Completion:
        rng = random.Random(seed)
        words: list[str] = []
        while sum(map(len, words)) + len(words) < characters * rng.uniform(0.5, 1.5):
            words += rng.choices(WORDS, k=20)
        answer = question.gold_answer if rng.random() < 0.7 else rng.randint(1, 9)
        return Completion(number, f"{' '.join(words)}\nAnswer: {answer}", 200, len(words), "stop", f"engine-{number}")

    with tempfile.TemporaryDirectory() as folder:
        run = finished(Path(folder) / "run", demo_rows(trajectories // ARMS), draw)
        size = Path(run.path("merged.parquet")).stat().st_size
        print(f"{trajectories} trajectories of about {characters} characters; merged.parquet {size / 1e6:.1f} MB")
        done = subprocess.run([sys.executable, "-c", WRITE, run.uri], capture_output=True, text=True, check=True)
        wrote = json.loads(done.stdout)
        print(
            f"written in {wrote['seconds']:.1f} s, {wrote['bytes'] / 1e6:.1f} MB, {wrote['shown']} questions, "
            f"peak memory {wrote['peak'] / 1024:.0f} MiB ({wrote['imported'] / 1024:.0f} MiB of it after the imports)"
        )
        browse(Path(run.path("report.html")))


def browse(path: Path) -> None:
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"))
        page = browser.new_page()
        began = time.monotonic()
        page.goto(path.as_uri())
        page.wait_for_selector("html[data-ready]", timeout=120_000)
        print(f"Chromium: ready after {time.monotonic() - began:.2f} s", end=", ")
        heap = page.evaluate("performance.memory.usedJSHeapSize")
        print(f"JavaScript heap {heap / 1e6:.0f} MB")

        def timed(what: str, done: str, *acts: str) -> None:
            seconds = page.evaluate(
                f"async () => {{ const began = performance.now(); {SET} {'; '.join(acts)}; "
                f"while (!({done})) await new Promise(requestAnimationFrame); "
                "document.body.offsetHeight; return (performance.now() - began) / 1000 }"
            )
            print(f"{what}: {seconds:.3f} s; {page.inner_text('#browser .bar').splitlines()[0]}")

        listed = "document.getElementById('found')?.textContent.endsWith('questions')"
        timed("filter, some right and some wrong", listed, "set('agree', 'mixed')")
        timed("filter, right in one arm and wrong in another", listed, "set('better', '0')", "set('worse', '7')")
        timed("sort by spread of rewards", listed, "set('sort', 'spread')")
        timed("clear", listed, "document.getElementById('f-clear').click()")
        timed("search all texts, after a wait of 0.25 s", "document.querySelector('#browser .empty')", "set('text', 'zzz')")
        timed("open a question", "document.getElementById('detail')", "location.hash = '#question-777'")
        browser.close()


if __name__ == "__main__":
    main()
