"""The report's pages in a real browser: no errors, no requests, filters, keyboard, small ones."""

import shutil
from pathlib import Path

import pytest
from playwright.sync_api import sync_playwright
from runs import document, make_run, searched_tree, write_trees
from worlds import answer_step, call_step, empty_tree, rollout

from elpo_jax.report.report import write_report
from elpo_jax.rollout.tree import ROOT

BROWSER = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
)
pytestmark = pytest.mark.skipif(
    BROWSER is None, reason="needs Chromium or Chrome (Debian: apt-get install chromium)"
)

ATTACK = "</script></title><img src=https://example.com/x onerror='window.pwned=1'>"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = make_run(tmp_path_factory.mktemp("browser") / "run")
    tree = document(searched_tree("train/9"), decode=lambda ids: ATTACK)
    tree["task"]["question"] = ATTACK
    tree["nodes"][0]["exchanges"][0]["observation"]["text"] = ATTACK
    write_trees(folder.step_trees(4), [document(searched_tree("train/8")), tree])
    write_report(folder)
    return folder


@pytest.fixture(scope="module")
def browser():
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=BROWSER, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def page(browser, folder):
    """A tab; at the end of the test nothing may have gone wrong in it."""
    page = browser.new_page()
    faults, requests = [], []
    page.on("console", lambda message: faults.append(f"{message.type}: {message.text}"))
    page.on("pageerror", lambda error: faults.append(str(error)))
    page.on("request", lambda request: requests.append(request.url))
    yield page
    assert page.evaluate("window.pwned") is None
    page.close()
    assert not faults
    root = folder.path.resolve().as_uri()
    assert requests
    assert not [url for url in requests if not url.startswith(root)]


def visit(page, path, address=""):
    page.goto(Path(path).resolve().as_uri() + address)


def shown(page, selector):
    return page.locator(f"{selector}:visible")


def test_the_report_opens_and_its_links_lead_somewhere(page, folder):
    visit(page, folder.report)
    assert page.locator("h1").inner_text().endswith("Training worked")
    links = page.eval_on_selector_all("a", "links => links.map(link => link.href)")
    for address in {link.partition("#")[0] for link in links}:
        assert Path(address.removeprefix("file://")).is_file(), address
    page.locator("#wrong .episode a").first.click()
    assert page.url.endswith("eval_000004.html#t0n5")
    assert shown(page, ".detail.open").locator("h3").inner_text() == "Step 3 of rollout 1: answer"


def test_values_are_read_off_a_chart_by_keyboard(page, folder):
    visit(page, folder.report)
    chart = page.locator(".chart", has_text="Entropy").first
    chart.focus()
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowRight")
    assert chart.locator(".readout").inner_text() == "step 2"
    assert chart.locator("output").inner_text() == "0.3"


@pytest.mark.parametrize(
    ("side", "shares"), [("lower", ["1.25%", "0.375%"]), ("upper", ["2.25%", "0.625%", "2.00%"])]
)
def test_clipped_tokens_by_side_and_elc(page, folder, side, shares):
    visit(page, folder.report)
    chart = page.locator(".chart", has_text=f"Clipped at the {side} bound")
    chart.focus()
    page.keyboard.press("ArrowRight")
    assert chart.locator("output").all_inner_texts() == shares


def test_the_index_searches_and_filters(page, folder):
    visit(page, folder.trees / "index.html")
    rows = shown(page, "#tasks tbody tr")
    everything = rows.count()
    assert everything == 9  # 2 evaluations of 2 tasks, 3 steps of one and one of 2
    page.get_by_label("Text in question").fill("ratio? step 4")
    assert rows.count() == 1
    assert page.locator("#count").inner_text() == "1 of 9 tasks"
    page.get_by_label("Text in question").fill("")
    page.get_by_label("Searched").select_option("resolved")
    assert rows.count() == 5
    page.get_by_label("From").select_option("Training step 4")
    assert rows.count() == 2
    page.reload()  # the address holds the filters
    assert rows.count() == 2
    page.get_by_label("Success").select_option("every")
    assert rows.count() == 0
    assert page.locator("#nothing").is_visible()
    page.get_by_role("button", name="Clear filters").click()
    assert rows.count() == everything
    page.get_by_label("Success").select_option("some")
    assert rows.count() == 7
    page.get_by_label("Question type").select_option("mass")
    assert rows.count() == 1


def test_the_index_is_ordered(page, folder):
    visit(page, folder.trees / "index.html")
    rows = page.locator("#tasks tbody tr")

    def column(name):
        return rows.evaluate_all(f"rows => rows.map(row => Number(row.dataset.{name}))")

    as_sampled = rows.all_inner_texts()
    right = [a / b for a, b in zip(column("successes"), column("rollouts"), strict=True)]
    assert len(set(right)) > 1
    order = page.locator("select[name=order]")
    order.select_option("worst")
    page.reload()  # the address holds it
    found = [a / b for a, b in zip(column("successes"), column("rollouts"), strict=True)]
    assert found == sorted(right)
    order.select_option("searches")
    assert column("searches") == sorted(column("searches"), reverse=True)
    order.select_option("best")
    found = [a / b for a, b in zip(column("successes"), column("rollouts"), strict=True)]
    assert found == sorted(right, reverse=True)
    page.get_by_role("button", name="Clear filters").click()
    assert rows.all_inner_texts() == as_sampled


def test_a_way_of_failing_leads_to_its_tasks(page, folder):
    visit(page, folder.report)
    cell = page.locator("#wrong tbody tr", has_text="ratio").first.locator("td a").first
    assert cell.inner_text() == "1"
    cell.click()
    assert page.get_by_label("Way of failing").input_value() == "no readable answer"
    rows = shown(page, "#tasks tbody tr")
    assert rows.count() == 1
    page.get_by_role("button", name="Clear filters").click()
    page.get_by_label("Way of failing").select_option("saw a tool error")
    assert rows.count() == 5  # one rollout of each training tree
    page.get_by_label("Text in question").fill("tool error 42")  # what was called and answered
    assert rows.count() == 5


def test_text_on_phones_is_no_smaller_than_elsewhere(page, folder):
    page.set_viewport_size({"width": 360, "height": 800})
    visit(page, folder.report)
    sizes = page.eval_on_selector_all(
        "#curves .chart text",
        "texts => texts.map(text => parseFloat(getComputedStyle(text).fontSize)"
        " * text.getScreenCTM().a)",
    )
    assert min(sizes) > 9


def test_trees_are_printed_whole(page, folder):
    page.emulate_media(media="print")
    visit(page, folder.trees / "step_000004.html")
    assert (
        page.evaluate(
            "getComputedStyle(document.querySelector('article:not([hidden]) .canvas')).maxHeight"
        )
        == "none"
    )
    drawing = page.locator(".canvas > svg:visible").bounding_box()
    assert within(drawing, page.locator(".canvas:visible").bounding_box())
    visit(page, folder.report)
    marks = (
        "[...document.querySelectorAll('.strip b')].map(e => getComputedStyle(e).printColorAdjust)"
    )
    assert set(page.evaluate(marks)) == {"exact"}


def test_a_link_into_the_index_sets_its_filters(page, folder):
    visit(page, folder.trees / "index.html", "#kind=mass&success=every&source=nonsense")
    assert shown(page, "#tasks tbody tr").count() == 1
    assert page.get_by_label("Question type").input_value() == "mass"


def test_a_node_opens_by_keyboard(page, folder):
    visit(page, folder.trees / "step_000004.html")
    opened = shown(page, ".detail.open")
    assert opened.locator("h3").inner_text() == "Step 2 of rollout 0: lookup"  # the critical step
    page.locator(".node.open:visible").focus()
    page.keyboard.press("ArrowLeft")
    page.keyboard.press("Enter")
    assert opened.locator("h3").inner_text() == "Step 1 of rollout 0: lookup"
    page.keyboard.press("ArrowRight")  # to the first child
    page.keyboard.press("ArrowRight")
    page.keyboard.press("Enter")
    assert opened.locator("h3").inner_text() == "Step 3 of rollout 0: answer"
    assert "✗ failed" in opened.inner_text()
    page.keyboard.press("ArrowDown")
    page.keyboard.press(" ")
    assert opened.locator("h3").inner_text() == "Step 3 of rollout 2: answer"
    assert page.url.endswith("#t0n4")
    assert shown(page, ".detail").count() == 3  # with the turns before it
    page.get_by_label("with the turns before it").locator("visible=true").uncheck()
    assert shown(page, ".detail").count() == 1


def test_a_node_opens_by_click_and_trees_are_turned_over(page, folder):
    visit(page, folder.trees / "step_000004.html", "#t1n0")
    assert ATTACK in shown(page, ".detail.open").inner_text()
    shown(page, ".node[data-node='3']").click()
    assert shown(page, ".detail.open").locator("h3").inner_text() == "Step 2 of rollout 1: answer"
    page.get_by_role("button", name="next tree").click()
    page.wait_for_url("**#t0*")
    assert shown(page, "article").count() == 1
    assert "train/8" in shown(page, "article").inner_text()
    page.locator("#choose").select_option("1")
    page.wait_for_url("**#t1*")
    assert "train/9" in shown(page, "article").inner_text()


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [360, 1280])
def test_pages_fit_their_window_and_can_be_read(page, folder, width, scheme):
    page.set_viewport_size({"width": width, "height": 800})
    page.emulate_media(color_scheme=scheme)
    for path in (folder.report, folder.trees / "index.html", folder.trees / "step_000004.html"):
        visit(page, path)
        assert page.evaluate("document.documentElement.scrollWidth") <= width, path
        colours = page.evaluate(
            "[getComputedStyle(document.body).color, getComputedStyle(document.body)"
            ".backgroundColor].map(c => c.match(/\\d+/g).slice(0, 3).reduce((a, b) => a + +b, 0))"
        )
        assert abs(colours[0] - colours[1]) > 500, path  # of 765
        assert (colours[1] > colours[0]) == (scheme == "light"), path


@pytest.mark.parametrize("turns", [3, 4, 5, 8])
def test_a_tree_fits_beside_its_details(page, folder, turns):
    """Up to five turns at 1280 pixels; of a deeper tree the open node is in view."""
    tree = empty_tree()
    for ordinal in range(2):
        calls = [call_step(arguments={"element": "Uue"}) for _ in range(turns - 1)]
        tree.add(rollout(ordinal, ROOT, [*calls, answer_step()], False, end="observation"))
    tree.add(rollout(2, 0, [answer_step()], True))
    own = make_run(folder.path / f"turns_{turns}")
    write_trees(own.step_trees(3), [document(tree)])
    write_report(own)
    page.set_viewport_size({"width": 1280, "height": 800})
    visit(page, own.trees / "step_000003.html")
    frame, prompt, opened = (
        page.locator(each).bounding_box()
        for each in (".canvas", ".node[data-node='-1']", ".node.open")
    )
    assert within(opened, frame)
    ends = page.locator(".canvas > svg text").all()
    drawing = page.locator(".canvas > svg").bounding_box()
    assert all(within(end.bounding_box(), drawing) for end in ends if end.bounding_box())
    if turns <= 5:
        assert within(prompt, frame)
        assert within(drawing, frame)
        assert drawing["width"] >= 0.78 * float(
            page.locator(".canvas > svg").get_attribute("width")
        )


def within(part, box):
    return part["x"] >= box["x"] - 1 and part["x"] + part["width"] <= box["x"] + box["width"] + 1


def test_pages_stand_without_scripts(browser, folder):
    context = browser.new_context(java_script_enabled=False)
    page = context.new_page()
    visit(page, folder.trees / "step_000004.html")
    assert shown(page, "article").count() == 2
    assert shown(page, ".detail").count() == 2 * 8
    context.close()
