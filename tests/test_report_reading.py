"""Test how a reader finds things in report.html: prompts, shapes and headings."""

from __future__ import annotations

import pytest

from rollout_ray.report.html import write_report
from rollout_ray.storage.run_directory import RunDirectory
from tests.conftest import demo_rows
from tests.finished_runs import finished
from tests.test_report_page import Opened, browser, opened

__all__ = ["browser", "opened"]
TEMPLATE = "Solve this problem step by step, and end with the answer in a box.\n\n{{ prompt }}"


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> RunDirectory:
    """60 questions with a prompt template."""
    folder = tmp_path_factory.mktemp("reading") / "run"
    run = finished(folder, demo_rows(60), data={"prompt_template": TEMPLATE})
    write_report(run.uri)
    return run


def test_the_list_shows_the_data_s_prompt_and_the_question_folds_the_template(opened: Opened, run: RunDirectory) -> None:
    page = opened(run.path("report.html"))
    titles = page.locator(".list td.prompt").all_inner_texts()
    assert len(set(titles)) > 20 and not any(title.startswith("Solve this") for title in titles)
    page.click(".list tbody tr:nth-child(1)")
    page.wait_for_selector("#detail")
    asked = demo_rows(60)[0]["prompt"]
    assert page.locator("#detail .prompts > p.text").text_content() == asked
    assert not page.locator("#rendered p").is_visible()
    page.click("#rendered summary")
    assert page.locator("#rendered p").text_content() == TEMPLATE.replace("{{ prompt }}", asked)


def test_outcomes_differ_in_shape_and_have_names(opened: Opened, run: RunDirectory) -> None:
    page = opened(run.path("report.html"))
    shapes = {
        kind: page.evaluate(
            "k => (s => [s.transform, s.borderRadius, s.backgroundColor === 'rgba(0, 0, 0, 0)'].join())"
            "(getComputedStyle(document.querySelector(`.dots i.${k}`)))",
            kind,
        )
        for kind in ("right", "wrong", "none", "unknown")
    }
    assert len(set(shapes.values())) == 4
    labels = [dot.get_attribute("aria-label") or "" for dot in page.locator(".dots i").all()[:8]]
    assert all(": " in label for label in labels)


@pytest.mark.parametrize("width", [900, 1400])
def test_headings_and_whiskers_are_in_view_at_every_width(opened: Opened, run: RunDirectory, width: int) -> None:
    page = opened(run.path("report.html"), viewport={"width": width, "height": 700})
    page.evaluate("location.hash = '#engines'")
    page.wait_for_function("Math.abs(scrollY) > 100")
    header = page.evaluate(
        "(e => getComputedStyle(e).position === 'sticky' ? e.offsetHeight : 0)(document.querySelector('.top'))"
    )
    assert page.evaluate("document.querySelector('#engines h2').getBoundingClientRect().top") >= header
    whisker = page.locator("#arm-table .whisker svg").first.bounding_box()
    assert whisker and whisker["x"] + whisker["width"] <= width
