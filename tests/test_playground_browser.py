"""The playground in a real browser: what a visitor does, and what comes of it. Skipped where there is no Chromium.

PYTHONPATH=. python tests/test_playground_browser.py draws the README's animation, from screenshots of such a visit.
"""

import contextlib
import io
import tempfile
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from browse import CHROMIUM, browser
from PIL import Image

from minicnet.checkpoints import write_atomically
from minicnet.evaluation import edge_f1
from minicnet.playground import server
from minicnet.sampling import generate, seeded_noise
from minicnet.words import tokenize

GIF = Path(__file__).parents[1] / ".github" / "results" / "playground" / "playground.gif"
SEVEN = [(0.27, 0.24), (0.5, 0.22), (0.72, 0.23), (0.62, 0.45), (0.5, 0.62), (0.44, 0.83)]  # shares of the sheet
THREE = [(0.34, 0.24), (0.48, 0.18), (0.62, 0.25), (0.6, 0.4), (0.46, 0.48), (0.62, 0.56), (0.66, 0.7), (0.52, 0.82),
         (0.34, 0.77)]
DONE = "typeof film === 'object' && !live && !timer && film.without.length === film.with.length && " \
       "film.with.length === wish?.steps && $('status').textContent.endsWith(' s')"
RED = ".filter((_, i) => i % 4 === 0)"  # of a canvas's red, green, blue and opacity


@contextlib.contextmanager
def visit():
    """A Page of a browser, and the address of a server of the shipped models."""
    models = server.shipped(torch.device("cpu"))
    first = models[0]
    generate(first.unet, first.schedule, tokenize([""]), seeded_noise((1, *first.image_shape), 0),
             [(first.nets["canny"], torch.zeros(1, 1, 28, 28), 1)], steps=1)  # an error is seen here, not on the page
    with server.Playground(models) as playground, tempfile.TemporaryDirectory() as folder:
        threading.Thread(target=playground.serve_forever, daemon=True).start()
        with browser(Path(folder)) as page:
            yield page, playground.url
        playground.shutdown()


def along(page, points, smooth=6):
    """Points of the sheet, given in shares of it, as points of the window, with some between."""
    box = page.run("(({left, top, width}) => [left, top, width])($('paper').getBoundingClientRect())")
    places = np.array(points)
    at = np.linspace(0, len(places) - 1, smooth * (len(places) - 1) + 1)
    return [(box[0] + box[2] * np.interp(x, range(len(places)), places[:, 0]),
             box[1] + box[2] * np.interp(x, range(len(places)), places[:, 1])) for x in at]


def click(page, selector):
    page.run(f"document.querySelector({selector!r}).click()")


def drawn(page, name="with"):
    """The last x_0 (1, C, H, W) in [-1, 1]."""
    values = page.run(f"[...film.{name}.at(-1).x_0]")
    return torch.tensor(values).reshape(1, *page.run("model.shape")) / 127.5 - 1


def seen(page):
    """The first condition (1, 1, H, W), as it is shown."""
    return torch.tensor(page.run(f"pixels($('seen').querySelector('canvas')){RED}")).reshape(1, 1, 28, 28) / 255


@pytest.fixture(scope="module")
def visited():
    if not CHROMIUM:
        pytest.skip("there is no Chromium here")
    pytest.importorskip("websocket")
    with visit() as (page, url):
        yield page, url


@pytest.fixture
def page(visited):
    page, url = visited
    page.open(url)
    page.wait(DONE, 120)
    page.run("pixels = (canvas) => [...canvas.getContext('2d').getImageData(0, 0, 28, 28).data]; 0")
    yield page
    assert page.errors == []


@pytest.mark.slow
def test_the_page_is_never_empty_and_a_stroke_becomes_an_image_that_follows_it(page):
    assert page.run("$('prompt').value") and seen(page).any()
    click(page, "#clear")
    page.wait(DONE)
    assert "equal, bit for bit, because nothing is drawn" in page.run("$('verdict').textContent")
    page.run("say('digit', 'seven'); say('slant', said().slant); say('stroke', said().stroke)")
    page.stroke(along(page, SEVEN))
    page.wait("!timer && film.with.length < wish.steps || live")  # frames arrive one by one
    page.wait(DONE)
    edges = seen(page)
    assert edges.sum() > 20 and page.run("$('prompt').value") == "a seven"
    assert edge_f1(drawn(page), edges) > 0.9 > edge_f1(drawn(page, "without"), edges)
    shown = page.run(f"pixels($('with-x_0')){RED}")
    assert shown == page.run("[...film.with.at(-1).x_0]")
    assert "differ" in page.run("$('verdict').textContent")


@pytest.mark.slow
def test_a_stroke_cancels_the_drawing_under_way(page):
    page.run("$('steps').value = 50; $('count').value = 8; redraw(0)")
    page.wait("live && film.with.length > 2 && wish.steps === 50")
    points = along(page, THREE)
    page.mouse("mousePressed", *points[0])
    page.mouse("mouseMoved", *points[1])
    frames = page.run("film.with.length")
    time.sleep(0.5)
    assert page.run("film.with.length") == frames < 50
    page.run("$('steps').value = 4; $('count').value = 1")
    page.mouse("mouseReleased", *points[1])
    page.wait("wish.steps === 4 && " + DONE)


@pytest.mark.slow
def test_zero_convolutions_at_their_start_turn_the_picture_into_the_bases_and_the_page_says_so(page):
    click(page, "#zeroed")
    page.wait("wish.zeroed && " + DONE)
    assert "equal, bit for bit" in page.run("$('verdict').textContent")
    assert torch.equal(drawn(page), drawn(page, "without"))
    assert page.run("[...document.querySelectorAll('#inside output')].map((one) => one.textContent)") == ["0%"] * 5


@pytest.mark.slow
def test_edges_eraser_undo_and_the_keyboard(page):
    count = "lines.reduce((sum, value) => sum + (value > 0), 0)"
    click(page, "#clear")
    click(page, "[data-tool=edge]")
    page.stroke(along(page, [(0.2, 0.2), (0.8, 0.7)], 40))
    thin = page.run(count)
    assert 15 <= thin <= 19  # as long as it is wide, without corners
    page.run("$('paper').focus()")
    for key in (" ", *["ArrowRight"] * 5, " "):
        page.run(f"$('paper').dispatchEvent(new KeyboardEvent('keydown', {{key: {key!r}}}))")
    assert thin + 4 <= page.run(count) <= thin + 6
    click(page, "#undo")
    assert page.run(count) == thin
    click(page, "[data-tool=erase]")
    click(page, "[data-width='1']")
    page.stroke(along(page, [(0.1, 0.1), (0.9, 0.8)], 40))
    assert page.run(count) < 4
    page.wait(DONE)


@pytest.mark.slow
def test_the_slider_goes_back_through_the_steps_and_play_forward(page):
    page.run("$('step').value = 0; $('step').oninput()")
    assert "step 1 of 20, t = 999" in page.run("$('when').textContent")
    first = page.run("pixels($('with-x_t'))")
    assert first == page.run("pixels($('without-x_t'))")  # one noise
    click(page, "#play")
    page.wait("at > 3 && player")
    click(page, "#play")
    assert 3 < page.run("at") and page.run("!player")


@pytest.mark.slow
def test_the_button_of_the_sample_that_is_shown_is_pressed(page):
    pressed = "[...$('samples').children].findIndex((button) => button.ariaPressed === 'true')"
    page.run("$('count').value = 3; $('steps').value = 2; redraw(0)")
    page.wait("wish.samples === 3 && " + DONE)
    click(page, "#samples button:nth-child(3)")
    assert page.run("sample") == page.run(pressed) == 2
    click(page, "#models button:nth-child(2)")
    page.wait("wish.model === 'coloured' && " + DONE)
    assert page.run("sample") == page.run(pressed) == 0


@pytest.mark.slow
def test_a_gif_is_made_once_nothing_is_drawn_and_the_page_says_so(page):
    page.run("saved = 0; save = (blob) => { saved = blob.size }; $('steps').value = 50; redraw(0)")
    page.wait("live && wish.steps === 50")
    assert page.run("$('gif').disabled")
    page.run("$('steps').value = 2; redraw(0)")
    page.wait("wish.steps === 2 && " + DONE)
    page.wait("!$('gif').disabled")
    click(page, "#gif")
    assert page.run("$('gif').disabled && $('status').textContent") == "making the GIF …"
    page.wait("saved && !$('gif').disabled")
    assert page.run("$('status').textContent") == "the GIF is made"


@pytest.mark.slow
def test_a_drawing_that_is_cancelled_from_elsewhere_is_not_waited_for(page):
    page.run("$('steps').value = 50; $('count').value = 8; redraw(0)")
    page.wait("live && wish.steps === 50")
    page.run("ask('example', {visitor, model: model.name, n: 1}).then(() => 0)")
    page.wait("$('status').textContent === 'the drawing was cancelled' && !$('gif').disabled && !live")


@pytest.mark.slow
def test_where_there_are_no_lines_only_what_draws_them_is_missing(page):
    page.run("choose({...models[1], line: null, controls: ['colour']}, null)")
    page.wait("wish.model === 'coloured' && " + DONE)
    assert page.run("['sheet', 'tools', 'widths', 'clear', 'palette', 'undo', 'example', 'picture']"
                    ".filter((id) => $(id).checkVisibility())") == ["palette", "undo", "example", "picture"]


@pytest.mark.slow
def test_two_conditions_at_once_on_coloured_digits(page):
    click(page, "#models button:nth-child(2)")
    page.wait("model.name === 'coloured' && wish.model === 'coloured' && " + DONE)
    page.run("brush = 'navy'; remember(); paintCell(0); brush = 'yellow'; [5, 6, 9, 10].forEach(paintCell)")
    page.wait("wish.palette && " + DONE)
    assert page.run("$('seen').textContent") == "edgescolours"
    assert edge_f1(drawn(page), seen(page)) > edge_f1(drawn(page, "without"), seen(page))
    assert page.run("film.with.at(-1).inside.colour[0].size[0]") > 0


@pytest.mark.slow
def test_an_unknown_word_is_named_beside_the_prompt(page):
    page.run("$('prompt').value = 'a sevn'; $('prompt').oninput()")
    page.wait("$('problem').textContent")
    assert page.run("$('problem').textContent") == "the word 'sevn' is unknown: is 'seven' meant?"
    page.errors.clear()  # the browser logs every answer of 400


@pytest.mark.slow
@pytest.mark.parametrize("dark, width", [(False, 1280), (True, 1280), (False, 390)], ids=["light", "dark", "narrow"])
def test_nothing_is_cut_off_in_light_dark_and_on_a_phone(visited, tmp_path, dark, width):
    page, url = visited
    page.open(url, width=width, height=844, dark=dark, phone=width < 500)
    page.wait(DONE, 120)
    assert page.run("document.documentElement.scrollWidth") <= width
    assert page.run("[...document.querySelectorAll('button, input, canvas')].every((one) => one.hidden || "
                    "one.getBoundingClientRect().right <= innerWidth + 1)")
    shot = Image.open(io.BytesIO(page.screenshot()))
    assert (np.asarray(shot.convert("L"))[:5].mean() < 60) == dark
    shot.save(tmp_path / "page.png")


def picture(page):
    """The window as the animation shows it: down to the prompt, and without the seconds that a machine takes."""
    bottom = page.run("$('status').style.visibility = 'hidden', $('prompt').getBoundingClientRect().bottom")
    shot = Image.open(io.BytesIO(page.screenshot())).convert("RGB").crop((50, 90, 1230, round(bottom) + 12))
    return shot.resize((826, round(0.7 * shot.height)), Image.Resampling.LANCZOS)


@pytest.mark.slow
def test_the_animation_shows_the_prompt_and_no_seconds(page):
    before = picture(page)
    page.run("status('20 steps, with and without your drawing, in 13.2 s')")
    assert picture(page) == before
    page.run("$('prompt').value = 'a seven'")
    assert picture(page) != before


def animation(page, url):
    """Frames (image, milliseconds) of a visit: a seven is drawn, a coloured three, and its words are changed."""
    frames = []

    def look(milliseconds):
        frames.append((picture(page), milliseconds))

    def draw(words, points):
        page.run(f"$('clear').click(); cancel(); $('prompt').value = {words!r}; showChips()")
        points = along(page, points, 3)
        page.mouse("mousePressed", *points[0])
        for point in points[1:]:
            page.mouse("mouseMoved", *point)
            look(60)
        page.mouse("mouseReleased", *points[-1])
        watch(range(20))

    def watch(steps):
        page.wait(DONE + " && !$('gif').disabled", 300)
        for step in steps:
            page.run(f"goTo({step})")
            look(110)
        frames[-1] = frames[-1][0], 1800

    page.open(url)
    page.wait(DONE, 300)
    draw("a seven", SEVEN)
    click(page, "#models button:nth-child(2)")
    page.wait("wish.model === 'coloured' && " + DONE, 300)
    draw("a yellow three on navy paper", THREE)
    page.run("$('prompt').value = 'a white three on maroon paper'; showChips(); redraw(0)")
    watch(range(0, 20, 2))
    return frames


if __name__ == "__main__":
    with visit() as visited:
        images, durations = zip(*animation(*visited))
    ends = [image for image, duration in zip(images, durations) if duration > 1000]  # the colours of all others, too
    sheet = Image.new("RGB", (images[0].width, images[0].height * len(ends)))
    for k, image in enumerate(ends):
        sheet.paste(image, (0, k * image.height))
    palette = sheet.quantize(200, kmeans=1)
    first, *others = (image.quantize(palette=palette, dither=Image.Dither.NONE) for image in images)
    first.save(file := io.BytesIO(), "GIF", save_all=True, append_images=others, duration=durations, loop=0)
    write_atomically(GIF, file.getvalue())
    print(f"{GIF}: {len(file.getvalue()):,} bytes, {len(images)} frames")
