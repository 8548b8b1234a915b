"""Test report.html in headless Chromium.

The page loads from disk, filters, shows all arms of a question, and runs only its own script.
test_report.py tests the file's content.
"""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pytest

from rollout_ray.core.records import Completion, Question
from rollout_ray.report.html import write_report
from rollout_ray.storage.run_directory import RunDirectory
from tests.conftest import HANG_S, demo_rows
from tests.finished_runs import drawn, finished

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

ARMS = [f"{kind}_{n}" for kind in ("wolfram", "maudlin") for n in range(4)]
HOSTILE = [
    "<script>window.hacked = 1</script>",
    "</script><script>window.hacked = 2</script>",
    "<img src=x onerror='window.hacked = 3'>",
    '"><svg onload=window.hacked=4>&lt;b&gt; <!-- ]]> {{data}} ${window.hacked = 5}',
    "reversed \u202e txet \u2066 and \x00 NUL, \x1b[31m, \u2028 a line, \ufeff",
    "javascript:window.hacked=6",
]
# The page shows the control characters of the fifth text escaped.
VISIBLE = [*HOSTILE[:4], "reversed \\u202e txet \\u2066 and \\x00 NUL, \\x1b[31m, \\u2028 a line, \\ufeff", HOSTILE[5]]


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if chromium is None:
        pytest.skip("Chromium is not installed. Install Debian's package chromium.")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=chromium)
        yield started
        started.close()


Opened = Callable[..., "Page"]


@pytest.fixture
def opened(browser: Browser) -> Iterator[Opened]:
    """Return a function that opens a page from disk and waits until it is ready.

    After the test, the page must have no error, no console message and no request besides the file.
    It must not have executed any data.
    """
    pages: list[Page] = []
    trouble: list[str] = []

    def open_page(path: str | Path, **options: Any) -> Page:
        page = browser.new_context(**options).new_page()
        page.on("console", lambda message: trouble.append(message.text))
        page.on("pageerror", lambda error: trouble.append(str(error)))
        page.on("dialog", lambda dialog: trouble.append(dialog.message))
        page.on("request", lambda request: trouble.append(request.url) if request.url.partition("#")[0] != uri else None)
        uri = Path(path).as_uri()
        page.goto(uri)
        page.wait_for_selector("html[data-ready]", timeout=HANG_S * 1000)
        pages.append(page)
        return page

    yield open_page
    for page in pages:
        assert page.evaluate("window.hacked") is None
        page.context.close()
    assert trouble == []


def tell(run: RunDirectory, *events: tuple[float, str, dict[str, Any]]) -> None:
    """Write a run's events, each with its time."""
    lines = [json.dumps({"time": 1.8e9 + time, "event": event, **fields}) for time, event, fields in events]
    Path(run.path("events.jsonl")).write_text("\n".join(lines) + "\n")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> RunDirectory:
    """60 questions under eight arms, with events of two engines. One engine died."""
    run = finished(tmp_path_factory.mktemp("page") / "run", demo_rows(60))
    tell(
        run,
        (0, "begun", {"questions": 60, "done": 0}),
        (3, "engine_started", {"engine": "engine-0", "max_num_seqs": 8, "load_seconds": 2.0}),
        (3.5, "engine_started", {"engine": "engine-1", "max_num_seqs": 8, "load_seconds": 2.5}),
        (5, "engine_died", {"engine": "engine-1", "error": "killed by the test"}),
        *((second, "load", {"generated_tokens": 1000 * second}) for second in (4, 5, 7)),
        (8, "engine_idle", {"engine": "engine-0", "pending": 0}),
        (9, "finished", {"summary": {"tokens_per_second": 1234.5, "total_seconds": 9.0, "generation_seconds": 5.0}}),
    )
    write_report(run.uri)
    return run


@pytest.fixture(scope="module")
def rows(run: RunDirectory) -> list[dict[str, Any]]:
    with run.open_parquet("merged.parquet") as file:
        return file.read().to_pylist()


def found(page: Page) -> int:
    """Return the number of questions that the list reports."""
    return int(page.inner_text("#found").split(" of ")[0].replace(",", ""))


def test_the_overview_shows_the_runs_numbers(opened: Opened, run: RunDirectory, rows: list[dict[str, Any]]) -> None:
    page = opened(run.path("report.html"))
    samples = [t for row in rows for t in row["trajectories"]]
    graded = [t["correct"] for t in samples if t["correct"] is not None]
    tiles = page.inner_text("#tiles")
    assert f"{100 * sum(graded) / len(graded):.1f}%" in tiles and "480" in tiles and "1,235" in tiles
    assert page.locator("#arm-table tbody tr").count() == 9
    assert page.locator("#arm-table tbody tr td.name").all_inner_texts() == [*ARMS, "all arms"]
    assert page.locator("#arm-table .whisker svg").count() == 18
    for chart in ("curves", "difficulty", "reward", "tokens", "scatter", "coherence"):
        assert page.locator(f"#chart-{chart} svg").count() == 1
    bars = page.locator("#chart-difficulty title").all_text_contents()
    assert sum(int(bar.split(": ")[1].split(" ")[0]) for bar in bars) == sum(
        all(t["correct"] is not None for t in row["trajectories"]) for row in rows
    )
    assert "engine-1" in page.inner_html("#engine-cards svg") and "killed by the test" in page.text_content("#engine-cards")
    assert page.locator("#engine-cards rect.f-idle").count() == 1
    rates = page.locator("#engine-cards svg title").all_text_contents()
    assert "5.00 s to 7.00 s: 1,000 tokens/s" in rates
    page.select_option("#chart-arm", "maudlin_1")
    assert page.locator("#chart-difficulty").count() == 0
    assert "One sample a question has no curve" in page.inner_text("#chart-curves")


def test_filters_and_their_sum(opened: Opened, run: RunDirectory, rows: list[dict[str, Any]]) -> None:
    page = opened(run.path("report.html"))

    def expect(wanted: Callable[[list[dict[str, Any]]], bool], **chosen: str) -> None:
        for name, label in chosen.items():
            page.select_option(f"#f-{name}", label=label)
        numbers = [n + 1 for n, row in enumerate(rows) if wanted(row["trajectories"])]
        assert 0 < len(numbers) < 60 and found(page) == len(numbers)
        assert page.locator(".list tbody td:first-child").all_inner_texts() == [str(n) for n in numbers[:25]]
        page.click("#f-clear")
        assert found(page) == 60

    def by(name: str, ts: list[dict[str, Any]]) -> dict[str, Any]:
        return next(t for t in ts if t["arm"] == name)

    expect(lambda ts: by("wolfram_2", ts)["score_status"] == "no_answer", arm="wolfram_2", status="no answer")
    expect(lambda ts: by("maudlin_0", ts)["finish_reason"] == "length", arm="maudlin_0", finish="truncated (length)")
    expect(lambda ts: any(t["finish_reason"] == "error" for t in ts), finish="error")
    expect(lambda ts: not any(t["correct"] for t in ts), agree="none right")
    expect(
        lambda ts: bool(by("wolfram_0", ts)["correct"]) and by("maudlin_3", ts)["correct"] is False,
        better="wolfram_0",
        worse="maudlin_3",
    )


def test_the_address_holds_the_filters(opened: Opened, run: RunDirectory, rows: list[dict[str, Any]]) -> None:
    """A link shows what its sender saw, and the way back from a question keeps the filters."""
    page = opened(run.path("report.html"))
    page.select_option("#f-arm", "wolfram_2")
    page.select_option("#f-status", label="no answer")
    wanted = [n + 1 for n, row in enumerate(rows) if row["trajectories"][2]["score_status"] == "no_answer"]
    assert found(page) == len(wanted) > 0
    address = page.evaluate("location.hash")
    assert address == "#questions?arm=wolfram_2&status=no_answer"
    page.click(".list tbody tr:first-child")
    page.wait_for_selector("#detail")
    assert page.evaluate("location.hash") == f"#question-{wanted[0]}?arm=wolfram_2&status=no_answer"
    page.click("#back")
    page.wait_for_selector(".list")
    assert page.evaluate("location.hash") == address and found(page) == len(wanted)
    page.evaluate("location.hash = '#questions?agree=allwrong&sort=long&arm=nobody'")
    page.wait_for_function("() => document.getElementById('f-agree').value === 'allwrong'")
    assert page.input_value("#f-sort") == "long" and page.input_value("#f-arm") == page.input_value("#f-status") == ""
    assert found(page) == sum(not any(t["correct"] for t in row["trajectories"]) for row in rows)
    page.click("#f-clear")
    assert page.evaluate("location.hash") == "#questions" and found(page) == 60


def test_the_users_columns_are_shown_and_those_of_few_values_filter(opened: Opened, tmp_path: Path) -> None:
    rows = [
        {**row, "level": n % 3, "source": None if n < 5 else HOSTILE[0], "note": f"note {n}"}
        for n, row in enumerate(demo_rows(60))
    ]
    run = finished(tmp_path / "run", rows)
    page = opened(write_report(run.uri).path)
    filters = page.locator("#filters label").all_inner_texts()
    assert any(text.startswith("level") for text in filters) and not any(text.startswith("note") for text in filters)
    page.locator("#filters label", has_text="level").locator("select").select_option(label="2")
    assert found(page) == 20 and page.evaluate("location.hash") == "#questions?column.level=2"
    page.locator("#filters label", has_text="source").locator("select").select_option(label="(null)")
    assert found(page) == 1
    page.click(".list tbody tr:first-child")
    page.wait_for_selector("#detail")
    assert page.locator("#columns span").all_inner_texts() == ["level 2", "source \u2013", "note note 2"]
    page.click("#back")
    page.click("#f-clear")
    page.fill("#f-text", "note 41")
    page.wait_for_function("() => document.getElementById('found').textContent.startsWith('1 of')")


def test_sorting_and_paging(opened: Opened, run: RunDirectory, rows: list[dict[str, Any]]) -> None:
    page = opened(run.path("report.html"))
    assert page.inner_text("#page") == "page 1 of 3" and page.is_disabled("#previous")
    page.click("#next")
    page.click("#next")
    assert page.locator(".list tbody tr").count() == 10 and page.is_disabled("#next")
    page.select_option("#f-sort", "right")
    shares = [int(text.split("/")[0]) for text in page.locator(".list tbody td:nth-child(4)").all_inner_texts()]
    assert shares == sorted(sum(bool(t["correct"]) for t in row["trajectories"]) for row in rows)[:25]


def test_text_search_looks_into_every_trajectory(opened: Opened, run: RunDirectory, rows: list[dict[str, Any]]) -> None:
    page = opened(run.path("report.html"))
    words = random.Random(2).choice(rows)["trajectories"][3]["full_text"].split("\n")[0][:30].upper()
    texts = [[row["prompt"], row["gold_answer"], *(t["full_text"] for t in row["trajectories"])] for row in rows]
    expected = sum(any(words.lower() in text.lower() for text in one) for one in texts)
    page.fill("#f-text", words)
    page.wait_for_function("n => document.getElementById('found').textContent.startsWith(n + ' of')", arg=expected)
    assert found(page) == expected > 0
    page.fill("#f-text", "no text holds these words")
    page.wait_for_selector(".empty >> text=No question fits these filters")


def test_all_arms_of_a_question_stand_side_by_side_with_the_terms_of_their_rewards(
    opened: Opened, run: RunDirectory, rows: list[dict[str, Any]]
) -> None:
    page = opened(run.path("report.html"))
    page.click(".list tbody tr:nth-child(3)")
    page.wait_for_selector("#detail")
    row = rows[2]
    assert row["prompt"] in page.inner_text("#detail") and f"s_wm {row['s_wm']:.3f}" in page.inner_text("#detail .facts")
    cards = page.locator("#detail article")
    assert cards.locator("h3").all_inner_texts() == ARMS
    tops = {round(box["y"]) for box in (card.bounding_box() for card in cards.all()[:3]) if box}
    assert len(tops) == 1  # on one line
    for card, trajectory in zip(cards.all(), row["trajectories"], strict=True):
        assert card.locator("pre").text_content() == trajectory["full_text"]
        assert card.locator(".badge").inner_text() == trajectory["score_status"].replace("_", " ")
        why = card.locator("details.why")
        assert why.count() == (trajectory["finish_reason"] != "error")
        if why.count():
            why.locator("summary").click()
            assert why.locator("dd").all_inner_texts()[1:3] == [trajectory["answer"] or "(none)", row["gold_answer"]]
        parts = card.locator(".term").all_inner_texts()
        if trajectory["reward"] is None:
            assert parts == []
            continue
        values = [float(part.split()[1]) * (-1 if part.startswith("\u2212") else 1) for part in parts]
        assert sum(values) == pytest.approx(trajectory["reward"], abs=0.002)
        assert [part.split()[2] for part in parts][:2] == ["correct", "coherence"]
    page.click("#next")
    page.wait_for_selector("#detail[data-question='4']")
    assert rows[3]["prompt"] in page.inner_text("#detail")
    page.click("#back")
    page.wait_for_selector(".list")


def test_an_address_opens_its_question(opened: Opened, run: RunDirectory, rows: list[dict[str, Any]]) -> None:
    page = opened(f"{run.path('report.html')}")
    page.evaluate("location.hash = '#question-60'")
    page.wait_for_selector("#detail")
    assert rows[59]["prompt"] in page.inner_text("#detail") and page.is_disabled("#next")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_follows_the_browsers_scheme_and_fits_a_narrow_window(opened: Opened, run: RunDirectory, scheme: str) -> None:
    page = opened(run.path("report.html"), color_scheme=scheme, viewport={"width": 390, "height": 800})
    background, ink = page.evaluate("(s => [s.backgroundColor, s.color])(getComputedStyle(document.body))")
    light = [sum(map(int, colour[4:-1].split(","))) / 3 for colour in (background, ink)]
    assert (light[0] > 230 and light[1] < 60) if scheme == "light" else (light[0] < 40 and light[1] > 200)
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    page.evaluate("location.hash = '#question-1'")
    page.wait_for_selector("#detail")
    assert page.evaluate("document.documentElement.scrollWidth") <= 390


def hostile(question: Question, sample: int, seed: int, max_tokens: int) -> Completion:
    one = drawn(question, sample, seed, max_tokens)
    if sample == 7:
        return Completion(sample, "", 0, 0, "error", HOSTILE[2], HOSTILE[1])
    text = "y" * 1_000_000 if sample == 6 else f"{HOSTILE[sample % 6]}\nAnswer: {HOSTILE[sample % 6]}"
    return Completion(sample, text, one.num_prompt_tokens, 40, "stop", HOSTILE[2])


def test_hostile_text_is_shown_as_text_and_runs_nothing(opened: Opened, tmp_path: Path) -> None:
    """Hostile text is in prompts, gold answers, ids, texts, answers, errors, names and events."""
    folder = tmp_path / HOSTILE[2].replace("/", "")
    rows = [{"question_id": f"{n} {text}", "prompt": text, "gold_answer": text} for n, text in enumerate(HOSTILE)]
    rows[4]["question_id"] = "4"
    arms = [{"name": name, "system_prompt": HOSTILE[n % 6], "samples": 1} for n, name in enumerate(ARMS)]
    run = finished(folder, rows, hostile, arms={"arm_list": arms}, model={"model_path": HOSTILE[1]})
    tell(
        run,
        (0, "begun", {}),
        (1, "placed", {"note": HOSTILE[1]}),
        (2, "engine_started", {"engine": HOSTILE[0], HOSTILE[2]: HOSTILE[2]}),
        (3, "engine_died", {"engine": HOSTILE[0], "error": HOSTILE[1] + " half a pair \ud83d"}),
        (4, "finished", {"summary": {"bound_by": HOSTILE[0]}}),
    )
    page = opened(write_report(run.uri).path)
    assert page.title().startswith(HOSTILE[2]) and page.inner_text("h1") == HOSTILE[2]
    assert HOSTILE[1] in page.inner_text("#subtitle") and HOSTILE[0] in page.inner_text("#notes")
    assert "half a pair \\ud83d" in page.text_content("#engine-cards") and HOSTILE[0] in page.inner_text("#engine-cards")
    titles = page.locator(".list td.prompt").all_inner_texts()
    assert [title[:20] for title in titles] == [" ".join(text.split())[:20] for text in VISIBLE]
    for number, text in enumerate(VISIBLE):
        page.evaluate(f"location.hash = '#question-{number + 1}'")
        page.wait_for_selector(f"#detail[data-question='{number + 1}']")
        assert page.locator("#detail .prompts .text").text_content() == text
        shown = page.locator("#detail pre").all_text_contents()
        assert {part.split("\n")[0] for part in shown if len(part) < 1000} == {*VISIBLE, ""}
        assert sum("[... 980000 characters are left out here ...]" in part for part in shown) == 1
        assert HOSTILE[1] in page.locator("#detail article .note").inner_text()
    assert page.locator("script").count() == page.locator("script[type='text/plain']").count() + 1
    assert page.locator("img, iframe, object, embed, base, link").count() == 0


def test_the_policy_lets_nothing_be_added_to_the_page(opened: Opened, browser: Browser, run: RunDirectory) -> None:
    """The browser refuses markup even if the page's own script had a mistake."""
    page = browser.new_page()
    page.goto(Path(run.path("report.html")).as_uri())
    page.wait_for_selector("html[data-ready]")
    refused = page.evaluate("() => { try { document.body.innerHTML = '<b>x</b>'; return false } catch { return true } }")
    assert refused is True
    script = "() => { const s = document.createElement('script'); s.append('window.hacked = 1'); document.body.append(s) }"
    page.evaluate(f"() => {{ try {{ ({script})() }} catch {{}} }}")
    assert page.evaluate("window.hacked") is None
    assert page.evaluate("() => fetch('https://example.org').then(() => 'sent', () => 'refused')") == "refused"
    page.close()


def test_an_empty_run_and_an_ungraded_run_have_pages(opened: Opened, tmp_path: Path) -> None:
    empty = finished(tmp_path / "empty", pa.table({"prompt": pa.array([], pa.string())}))
    assert found(opened(write_report(empty.uri).path)) == 0
    ungraded = finished(tmp_path / "ungraded", [{"prompt": f"question {n}"} for n in range(3)])
    page = opened(write_report(ungraded.uri).path)
    assert "nothing was graded" in page.inner_text("#tiles") and found(page) == 3
    assert "Nothing was graded." in page.inner_text("#chart-difficulty")
    page.click(".list tbody tr")
    page.wait_for_selector("#detail")
    assert page.locator("#detail .badge").first.inner_text() in ("no gold", "error")
