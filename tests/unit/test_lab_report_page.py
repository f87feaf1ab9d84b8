"""The HTML report in a real browser: it renders, chooses, filters, zooms, and keeps up."""

from __future__ import annotations

import pathlib
from collections.abc import Iterator
from typing import Any

import pytest
from browser import Browser
from made_recordings import TEXT, made

from pykvm.lab.report import write_html


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with Browser() as browser:
        yield browser


def opened(browser: Browser, tmp_path: pathlib.Path, count: int, vcpus: int = 1) -> Browser:
    with made(count, vcpus) as recording:
        write_html(recording, tmp_path / "x.html", title="a <guest>", facts={"memory": "64 MiB"})
    browser.errors.clear()
    browser.resize(1280, 1200)
    browser.open(tmp_path / "x.html")
    browser.wait("document.body && document.body.dataset.ready")
    assert browser.run("document.body.dataset.ready") == "yes", browser.run("problems.join()")
    return browser


def unharmed(browser: Browser) -> None:
    assert browser.run("problems") == []
    assert browser.errors == []


def colours(browser: Browser) -> int:
    """How many different colours the timeline has."""
    script = """(() => { const c = document.querySelector('#timeline');
      const image = c.getContext('2d').getImageData(0, 0, c.width, c.height);
      const d = new Uint32Array(image.data.buffer);
      return new Set(d).size })()"""
    return int(browser.run(script))


def frame(browser: Browser) -> None:
    browser.run("new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)))")


def test_it_renders(browser: Browser, tmp_path: pathlib.Path) -> None:
    opened(browser, tmp_path, 3000, 2)
    frame(browser)
    assert browser.run("document.querySelector('#title').textContent") == "a <guest>"
    assert browser.run("document.querySelector('#numbers').textContent").startswith("exits3,000")
    assert colours(browser) > 4
    rows = browser.run("[...document.querySelectorAll('#exits .row')].map(r => r.textContent)")
    assert 10 < len(rows) < 60  # only those in sight exist
    assert "out 0x3f8 ← 'H'COM1 THRout dx, al · main+0x10" in rows[0]
    groups = browser.run("[...document.querySelectorAll('#groups tbody tr')].map(r => r.innerText)")
    assert len(groups) == 3
    assert any("unclaimed (keyboard)" in row and "1,000" in row for row in groups)
    unharmed(browser)


def test_nothing_moves_once_it_is_ready(browser: Browser, tmp_path: pathlib.Path) -> None:
    """Else a click right then would land beside what it was meant for."""
    script = """new MutationObserver(() => {
      if (document.body && document.body.dataset.ready) {
        window.top_then ??= document.querySelector('#exits').getBoundingClientRect().top;
      } }).observe(document, { attributes: true, subtree: true })"""
    added = browser.call("Page.addScriptToEvaluateOnNewDocument", source=script)
    opened(browser, tmp_path, 3000)
    browser.call("Page.removeScriptToEvaluateOnNewDocument", identifier=added["identifier"])
    frame(browser)
    top = browser.run("document.querySelector('#exits').getBoundingClientRect().top")
    assert browser.run("top_then") == top
    unharmed(browser)


def test_an_exit_is_explained_when_it_is_clicked(browser: Browser, tmp_path: pathlib.Path) -> None:
    opened(browser, tmp_path, 3000)
    browser.click_on('#exits .row[data-exit="4"]')
    browser.wait("document.body.dataset.selected === '4'")
    told = browser.run("document.querySelector('#detail').innerText")
    assert "in 0x60 → 0xff [unclaimed (keyboard)]" in told
    assert "0x100020 <main+0x10> in al, dx" in told
    assert "A PC has its keyboard there" in told
    assert "AMD APM" in told
    browser.click_on('#exits .row[data-exit="5"]')  # with a symbol that looks like markup
    browser.wait("document.body.dataset.selected === '5'")
    assert "</script><script>oops()" in browser.run("document.querySelector('#detail').innerText")
    unharmed(browser)


def test_a_row_in_sight_stays_the_same_while_it_is_pressed(
    browser: Browser, tmp_path: pathlib.Path
) -> None:
    opened(browser, tmp_path, 3000)
    x, y = browser.run(
        "(() => { const b = document.querySelector('#exits .row[data-exit=\"7\"]')"
        ".getBoundingClientRect(); return [b.x + 9, b.y + b.height / 2] })()"
    )
    for kind in ("mousePressed", "mouseReleased"):
        browser.call("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", clickCount=1)
        browser.run("$('exits').scrollTop += 1; $('exits').dispatchEvent(new Event('scroll'))")
    browser.wait("document.body.dataset.selected === '7'")
    unharmed(browser)


def test_the_filter_and_the_groups_narrow_the_list(
    browser: Browser, tmp_path: pathlib.Path
) -> None:
    opened(browser, tmp_path, 3000, 2)

    def narrowed(script: str) -> Any:
        browser.run(script)
        return browser.run("Number(document.body.dataset.shown)")

    browser.run("$('filter').focus()")
    browser.call("Input.insertText", text="keyboard in")
    browser.wait("document.body.dataset.shown === '1000'")
    row = browser.run("document.querySelector('#exits .row').textContent")
    assert "in 0x60" in row
    assert narrowed("$('clear').click()") == 3000
    assert narrowed("$('reason').value = 'hlt'; $('reason').onchange; applyFilter()") == 1000
    assert narrowed("$('vcpu').value = '1'; applyFilter()") == 500
    assert narrowed("$('clear').click()") == 3000
    browser.click_on("#groups tbody tr")
    browser.wait("document.body.dataset.shown === '1000'")
    unharmed(browser)


def test_serial_output_and_exits_lead_to_each_other(
    browser: Browser, tmp_path: pathlib.Path
) -> None:
    opened(browser, tmp_path, 3000)
    third = "document.querySelectorAll('#serial .text')[2]"
    assert browser.run(f"{third}.textContent") == TEXT.decode().rstrip()
    place = browser.run(
        f"(() => {{ $('serial').scrollIntoView(); const r = document.createRange();"
        f" r.setStart({third}.firstChild, 4);"
        f" r.setEnd({third}.firstChild, 5); const b = r.getBoundingClientRect();"
        " return [b.x + b.width / 4, b.y + b.height / 2] })()"
    )
    browser.click(*place)
    position = 2 * len(TEXT) + 4
    browser.wait(f"document.body.dataset.selected === '{3 * position}'")
    assert "'o'" in browser.run("document.querySelector('#detail h3').textContent")
    browser.run(f"select({3 * (3 * len(TEXT))})")
    assert browser.run("document.querySelector('#serial mark').textContent") == "H"
    unharmed(browser)


def test_zoom_keys_and_a_click_on_the_timeline(browser: Browser, tmp_path: pathlib.Path) -> None:
    opened(browser, tmp_path, 3000)
    frame(browser)
    whole = browser.run("timeline.to - timeline.from")
    for _ in range(8):
        browser.click_on("#zoom-in")
    frame(browser)
    assert browser.run("timeline.to - timeline.from") < whole / 100
    assert "each as wide" in browser.run("$('span').textContent")
    x, y = browser.run(
        "(() => { const b = $('timeline').getBoundingClientRect(), i = lowerBound(trace.time,"
        " (timeline.from + timeline.to) / 2); const s = (b.width - LEFT - RIGHT) /"
        " (timeline.to - timeline.from); return [b.x + LEFT + (trace.time[i] + 400 -"
        " timeline.from) * s, b.y + TOP + LANE / 2] })()"
    )
    browser.click(x, y)
    chosen = browser.run("Number(document.body.dataset.selected)")
    assert chosen == browser.run("lowerBound(trace.time, (timeline.from + timeline.to) / 2)")
    browser.run("$('exits').focus()")
    browser.call("Input.dispatchKeyEvent", type="keyDown", key="ArrowDown")
    assert browser.run("Number(document.body.dataset.selected)") == chosen + 1
    unharmed(browser)


def test_narrow_and_dark(browser: Browser, tmp_path: pathlib.Path) -> None:
    opened(browser, tmp_path, 300)
    light = browser.run("getComputedStyle(document.body).backgroundColor")
    browser.scheme("dark")
    browser.resize(400, 900)
    frame(browser)
    assert browser.run("getComputedStyle(document.body).backgroundColor") != light
    assert browser.run("document.documentElement.scrollWidth") <= 400
    browser.scheme("light")
    unharmed(browser)


def test_an_empty_trace(browser: Browser, tmp_path: pathlib.Path) -> None:
    opened(browser, tmp_path, 0)
    frame(browser)
    assert browser.run("document.querySelectorAll('#exits .row').length") == 0
    unharmed(browser)


def many(browser: Browser, tmp_path: pathlib.Path, count: int) -> None:
    opened(browser, tmp_path, count, 2)
    frame(browser)
    assert browser.run("trace.n") == count
    browser.run("$('exits').focus()")
    browser.call("Input.dispatchKeyEvent", type="keyDown", key="End")
    last = browser.run("document.querySelector('#exits .row:last-child').dataset.exit")
    assert int(last) == count - 1
    assert browser.run("document.querySelector('#exits .row.on').dataset.exit") == last
    middle = count // 2
    browser.run(f"select({middle})")
    box = f"document.querySelector('.row[data-exit=\"{middle}\"]').getBoundingClientRect()"
    inside = f"(() => {{ const l = $('exits').getBoundingClientRect(), r = {box};"
    assert browser.run(inside + " return l.top <= r.top && r.bottom <= l.bottom })()")
    browser.run("$('filter').value = 'keyboard'; applyFilter()")
    assert browser.run("Number(document.body.dataset.shown)") == count // 3
    assert browser.run("document.querySelectorAll('#exits .row').length") < 60
    unharmed(browser)


def test_a_hundred_thousand_exits(browser: Browser, tmp_path: pathlib.Path) -> None:
    many(browser, tmp_path, 99_999)


@pytest.mark.slow
def test_a_million_exits(browser: Browser, tmp_path: pathlib.Path) -> None:
    many(browser, tmp_path, 999_999)
