"""The exported page in a real browser, opened from file://. Skipped where there is no Chromium.

.ci/film.py draws the README's animation of such a visit.
"""

import base64
import io
import json

import numpy as np
import pytest
import torch
from browse import CHROMIUM, browser
from PIL import Image

from minicnet.checkpoints import load_base, load_control
from minicnet.conditions import canny
from minicnet.playground import page as playground
from minicnet.sampling import generate, seeded_noise
from minicnet.words import tokenize

SEVEN = [(0.27, 0.24), (0.5, 0.22), (0.72, 0.23), (0.62, 0.45), (0.5, 0.62), (0.44, 0.83)]
DONE = ("typeof film === 'object' && !live && !timer && film.with.length === wish?.steps && "
        "film.without.length === film.with.length && !$('gif').disabled && "
        "$('status').textContent.endsWith(' s')")
COVERED = """[...Array(90).keys()].reverse().flatMap((step) => {
    scrollTo(0, 50 * step);
    return [...document.querySelectorAll('button, input, a, #paper')].filter((one) => {
      const { left, top, width, height } = one.getBoundingClientRect();
      const hit = document.elementFromPoint(left + width / 2, top + height / 2);
      return width && hit && !one.contains(hit);
    }).map((one) => one.outerHTML);
  })"""  # the controls that something covers when the page is scrolled
pytestmark = [pytest.mark.slow,
              pytest.mark.skipif(not CHROMIUM, reason="there is no Chromium here")]


@pytest.fixture(scope="module")
def visited(folders, tmp_path_factory):
    """A browser, and the address of an exported page."""
    root = tmp_path_factory.mktemp("browser")
    html = playground.build([playground.convert(folder, name) for name, folder in folders.items()])
    (root / "page.html").write_text(html, encoding="utf-8")
    with browser(root / "profile") as page:
        yield page, (root / "page.html").as_uri()


@pytest.fixture
def page(visited):
    page, url = visited
    page.open(url)
    page.wait(DONE, 120)
    yield page
    assert page.errors == []


def along(page, points, between=6):
    """Turn points in fractions of the sheet into points of the window, with some between."""
    left, top, width = page.run(
        "(({left, top, width}) => [left, top, width])($('paper').getBoundingClientRect())")
    at = np.linspace(0, len(points) - 1, between * (len(points) - 1) + 1)
    x, y = (np.interp(at, range(len(points)), values) for values in zip(*points))
    return list(zip(left + width * x, top + width * y))


def click(page, selector):
    page.run(f"document.querySelector({selector!r}).click()")


def test_strokes_become_frames_one_by_one_and_the_image_of_torch(page, folders):
    assert page.run("$('prompt').value") and page.run("lines.some(Boolean)")  # the example
    click(page, "#clear")
    page.wait(DONE)
    assert "equal, bit for bit, because nothing is drawn" in page.run("$('verdict').textContent")
    page.run("$('prompt').value = 'a seven'; $('count').value = 2; "
             "shown = []; before = showTime; showTime = () => { shown.push(at); before() }; 0")
    page.stroke(along(page, SEVEN))
    page.wait("wish.samples === 2 && " + DONE)
    assert page.run("shown") == list(range(20))  # one frame after the other
    ink = torch.tensor(page.run("[...ink]")).reshape(1, 1, 28, 28) / 255
    seen = page.run("[...$('seen').querySelector('canvas').getContext('2d')"
                    ".getImageData(0, 0, 28, 28).data].filter((_, i) => i % 4 === 0)")
    edges = canny(ink * 2 - 1)
    assert edges.sum() > 20 and seen == (255 * edges).flatten().tolist()
    unet, _ = load_base(folders["gray"] / "base.pt")
    net, _ = load_control(folders["gray"] / "canny.pt", unet)
    expected = generate(unet, unet.schedule, tokenize(["a seven"] * 2),
                        seeded_noise((2, 1, 28, 28), 0), [(net, edges)], guidance=2, steps=20)
    images = torch.tensor(page.run("[...film.with.at(-1).x_0]"))  # in 0 .. 255
    assert (images - (expected.flatten() + 1) * 127.5).abs().max() < 2
    assert "differ" in page.run("$('verdict').textContent")
    click(page, "#samples button:nth-child(2)")
    assert page.run("sample") == 1
    page.run("$('step').value = 0; $('step').oninput()")
    assert "step 1 of 20, t = 999" in page.run("$('when').textContent")


def test_a_stroke_cancels_the_drawing_and_the_keyboard_alone_draws(page):
    page.run("$('steps').value = 50; $('count').value = 8; redraw(0)")
    page.wait("live && film.with.length > 1 && wish.steps === 50")
    points = along(page, SEVEN)
    page.mouse("mousePressed", *points[0])
    frames = page.run("film.with.length")
    page.run("new Promise((resolve) => setTimeout(resolve, 500))")
    assert page.run("film.with.length") == frames < 50
    page.run("$('steps').value = 3; $('count').value = 1")
    page.mouse("mouseReleased", *points[0])
    page.wait("wish.steps === 3 && " + DONE)

    page.run("$('clear').click(), $('tools').children[1].click(), $('paper').focus()")
    for key in (" ", *["ArrowRight"] * 5, "ArrowDown", " "):
        for kind in ("keyDown", "keyUp"):
            page.call("Input.dispatchKeyEvent", type=kind, key=key)
    assert page.run("lines.reduce((sum, value) => sum + (value > 0), 0)") == 6  # without a corner
    cursor, paper = (page.run(f"(({{ top, height }}) => [top, height])($('{name}')"
                              ".getBoundingClientRect())") for name in ("cursor", "paper"))
    assert cursor[0] - paper[0] == pytest.approx(15 / 28 * paper[1], abs=1)


def test_the_first_stroke_replaces_the_example_and_undo_brings_it_back(page):
    example = page.run("[...lines]")
    page.stroke(along(page, SEVEN))
    assert any(example) and not page.run("lines.some(Boolean)")
    page.run("undo()")
    assert page.run("[...lines]") == example and not page.run("ink.some(Boolean)")
    page.wait(DONE)


def test_a_link_restores_a_drawing_and_its_switches_and_files_say_how_it_was_made(page):
    page.stroke(along(page, SEVEN))
    click(page, "#inside figure:nth-of-type(2) input")
    page.wait("wish.controls.canny.switches[1] === 0 && " + DONE)
    shown = page.run("[...$('inside').querySelectorAll('output')].map((one) => one.textContent)")
    assert shown[1] == "0%" and "0%" not in (shown[0], shown[2])
    page.run("letters = (bytes) => Array.from(bytes, (c) => String.fromCharCode(c)).join(''); "
             "bytesOf = async (blob) => new Uint8Array(await blob.arrayBuffer()); "
             "save = async (blob) => { saved = btoa(letters(await bytesOf(blob))) }; 0")
    for selector in (".save", "#gif"):
        page.run(f"saved = ''; document.querySelector({selector!r}).click()")
        page.wait("saved")
        with Image.open(io.BytesIO(base64.b64decode(page.run("saved")))) as image:
            text = image.info.get("Description") or image.info["comment"].decode()
            assert f"prompt: {page.run('wish.prompt')}; " in text and "seed: 0; " in text
            assert "strength of edges: 1, from 0 to 1, zero convolutions on: 10111" in text
            assert selector == ".save" or (image.n_frames, image.size) == (20, (480, 120))
    drawn, image = page.run("[...ink]"), page.run("[...film.with.at(-1).x_0]")
    click(page, "#link")
    page.wait("location.hash")
    page.open(page.run("location.href"))
    page.wait(DONE, 120)
    assert page.run("[...ink]") == drawn and page.run("[...film.with.at(-1).x_0]") == image
    assert page.run("$('invitation').hidden")
    click(page, "#zeroed")
    page.wait("wish.zeroed && " + DONE)
    assert "are equal, bit for bit." in page.run("$('verdict').textContent")


def test_a_picture_gives_lines_and_a_palette_and_what_is_no_picture_is_refused(page):
    click(page, "#models button:nth-child(2)")
    page.wait("wish.model === 'rgb' && " + DONE)
    pixels = np.zeros((64, 40, 3), np.uint8)
    pixels[8:40, 8:24] = (250, 30, 30)
    flat = np.full((20, 20, 3), 90, np.uint8)
    long = np.zeros((1, 9000, 3), np.uint8)
    says = "$('status').textContent.includes('{}')".format
    for picture, result in ((b"", says("cannot be read as a picture")),
                            (b"nothing", says("cannot be read as a picture")),
                            (flat, says("No edges were found")), (long, says("8192")),
                            (pixels, "palette && " + DONE)):
        if isinstance(picture, np.ndarray):
            Image.fromarray(picture).save(file := io.BytesIO(), "PNG")
            picture = file.getvalue()
        page.run(f"status(''); data = Uint8Array.from({json.dumps(list(picture))}); "
                 "picture(new File([data], 'name'))")
        page.wait(result)
    assert page.run("palette[3 * 5]") > 100 > page.run("Math.max(...palette.slice(-3))")
    assert page.run("$('seen').textContent") == "edgescolours"
    page.run("brush = 'navy'; remember(); paintCell(0)")
    page.wait(DONE)
    assert page.run("film.with.at(-1).inside.colour[0].size[0]") > 0
    click(page, "#models button:nth-child(3)")  # which makes an example of its own
    page.wait("wish.model === 'things' && " + DONE)
    assert page.run("$('prompt').value") == "a horse"
    assert page.run("$('sheet').hidden && palette.length")
    page.run("$('prompt').value = 'a sevn'; $('prompt').oninput()")
    page.wait("$('problem').textContent")
    assert "Did you mean “seven”?" in page.run("$('problem').textContent")


def test_punctuation_is_ignored_and_words_never_shown_are_named(page):
    for words, prompt, chips, note in (
            ("A thick SEVEN, leaning left.", "a thick seven leaning left",
             ["thick", "seven", "leaning left"], ""),
            ("“an eight” - a digit!", "an eight a digit", ["eight"], ""),
            ("a red, red one", "a red red one", ["one"], "the word red, so that word means little"),
            ("", "", [], ""),
            ("a red horse", "a red horse", [], "the words red and horse, so they mean little")):
        page.run(f"$('prompt').value = {words!r}; $('prompt').oninput()")
        page.wait(DONE)
        assert page.run("wish.prompt") == prompt
        assert page.run("$('problem').textContent") == (
            note and f"This model was never shown {note} to it.")
        assert page.run("$('prompt').ariaInvalid") == "false"
        assert page.run("[...$('chips').querySelectorAll('[aria-pressed=true]')]"
                        ".map((chip) => chip.value)") == chips


def test_the_seed_that_is_used_stands_in_its_box_which_has_room_for_it(page):
    for typed, used in (("", "0"), ("-5", "0"), ("7.9", "7"), ("99999999999", "1000000000")):
        page.run(f"$('seed').value = '{typed}'; "
                 "$('seed').dispatchEvent(new Event('input', {bubbles: true}))")
        page.wait(DONE)
        assert page.run("$('seed').value") == used == page.run("String(wish.seed)")
    assert page.run("$('seed').scrollWidth <= $('seed').clientWidth")


@pytest.mark.parametrize("dark, width, height", [
    (False, 1280, 844), (True, 1280, 844), (False, 360, 740), (False, 640, 400)],
    ids=["light", "dark", "narrow", "zoomed"])
def test_nothing_is_cut_off_or_covered_and_everything_has_a_name(visited, dark, width, height):
    page, url = visited
    page.open(url, width=width, height=height, dark=dark)
    page.wait(DONE, 120)
    click(page, "#models button:nth-child(2)")
    page.wait("wish.model === 'rgb' && " + DONE)
    assert page.run("document.documentElement.scrollWidth") <= width
    assert page.run("[...document.querySelectorAll('button, input, canvas, label')].every("
                    "(one) => one.hidden || one.getBoundingClientRect().right <= innerWidth + 1)")
    assert page.run(COVERED) == [] and page.run("$('paper').clientHeight") < height
    tree = page.call("Accessibility.getFullAXTree")["nodes"]
    roles = "button", "slider", "textbox", "checkbox", "switch", "img", "spinbutton", "application"
    assert len(tree) > 50 and not [
        node for node in tree if not node["ignored"] and node["role"]["value"] in roles
        and not node.get("name", {}).get("value")]
    shot = Image.open(io.BytesIO(page.screenshot()))
    assert (np.asarray(shot.convert("L"))[:5].mean() < 60) == dark
    assert page.errors == []
