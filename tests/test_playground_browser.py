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
from saved import save_models

from minicnet.checkpoints import load_base, load_control
from minicnet.conditions import canny
from minicnet.playground import page as playground
from minicnet.sampling import generate, seeded_noise
from minicnet.words import tokenize

SEVEN = [(0.27, 0.24), (0.5, 0.22), (0.72, 0.23), (0.62, 0.45), (0.5, 0.62), (0.44, 0.83)]
DONE = ("typeof film === 'object' && !live && !timer && film.with.length === wish?.steps && "
        "film.without.length === film.with.length && !$('gif').disabled && "
        "$('status').textContent.endsWith(' s')")
pytestmark = [pytest.mark.slow,
              pytest.mark.skipif(not CHROMIUM, reason="there is no Chromium here")]


@pytest.fixture(scope="module")
def folders(tmp_path_factory, randomised):
    return save_models(tmp_path_factory.mktemp("weights"), randomised)


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


def by_torch(folder, wish, condition):
    """Draw a wish with torch: images (B, C, H, W) in 0 .. 255."""
    unet, checkpoint = load_base(folder / "base.pt")
    net, _ = load_control(folder / "canny.pt", unet)
    x_T = seeded_noise((wish["samples"], *checkpoint["image_shape"]), wish["seed"])
    images = generate(unet, unet.schedule, tokenize([wish["prompt"]] * wish["samples"]), x_T,
                      [(net, condition, wish["controls"]["canny"]["scale"])],
                      guidance=wish["guidance"], steps=wish["steps"])
    return (images.flatten() + 1) * 127.5


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
    images = torch.tensor(page.run("[...film.with.at(-1).x_0]"))
    assert (images - by_torch(folders["gray"], page.run("({...wish})"), edges)).abs().max() < 2
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

    page.run("$('clear').click(), $('tools').children[1].click(), document.activeElement.blur()")
    for _ in range(100):
        page.press("Tab")
        if page.run("document.activeElement === $('paper')"):
            break
    for key in (" ", *["ArrowRight"] * 5, "ArrowDown", " "):
        page.press(key)
    assert page.run("lines.reduce((sum, value) => sum + (value > 0), 0)") == 6  # without a corner
    cursor, paper = (page.run(f"(({{ top, height }}) => [top, height])($('{name}')"
                              ".getBoundingClientRect())") for name in ("cursor", "paper"))
    assert cursor[0] - paper[0] == pytest.approx(15 / 28 * paper[1], abs=1)
    page.wait(DONE)
    page.run("undo()")
    assert not page.run("lines.some(Boolean)")


def test_the_first_stroke_replaces_the_example_and_a_link_restores_its_pixels(page):
    example = page.run("[...lines]")
    page.stroke(along(page, SEVEN))
    page.wait(DONE)
    assert any(example) and not page.run("lines.some(Boolean)")
    drawn = page.run("[...ink]")
    page.run("undo()")
    assert page.run("[...lines]") == example
    page.run(f"[ink, lines] = [Uint8Array.from({drawn}), lines.fill(0)]; redraw(0)")
    page.wait(DONE)
    image = page.run("[...film.with.at(-1).x_0]")
    page.run("$('link').click()")
    page.wait("location.hash")
    page.open(page.run("location.href"))
    page.wait(DONE, 120)
    assert page.run("[...ink]") == drawn and page.run("[...film.with.at(-1).x_0]") == image
    assert page.run("$('invitation').hidden")


def test_switches_links_and_files_say_what_was_drawn(page):
    assert page.run("film.with[0].inside.canny.every(({ size }) => size[0] > 0)")
    click(page, "#inside figure:nth-of-type(2) input")
    page.wait("wish.controls.canny.switches[1] === 0 && " + DONE)
    shown = page.run("[...$('inside').querySelectorAll('output')].map((one) => one.textContent)")
    assert shown[1] == "0%" and "0%" not in (shown[0], shown[2])
    page.run("$('link').click()")
    page.wait("location.hash")
    link, before = page.run("location.href"), page.run("[...film.with.at(-1).x_0]")
    page.run("letters = (bytes) => Array.from(bytes, (c) => String.fromCharCode(c)).join(''); "
             "bytesOf = async (blob) => new Uint8Array(await blob.arrayBuffer()); "
             "save = async (blob) => { saved = btoa(letters(await bytesOf(blob))) }; 0")
    for selector in (".save", "#gif"):
        page.run(f"saved = ''; document.querySelector({selector!r}).click()")
        page.wait("saved")
        with Image.open(io.BytesIO(base64.b64decode(page.run("saved")))) as image:
            image.load()
            text = image.info.get("Description") or image.info["comment"].decode()
            assert f"prompt: {page.run('wish.prompt')}; " in text and "seed: 0; " in text
            assert "strength of edges: 1, from 0 to 1, zero convolutions on: 10111" in text
            assert selector == ".save" or (image.n_frames, image.size) == (20, (480, 120))
    page.open(link)
    page.wait(DONE, 120)
    assert page.run("[...film.with.at(-1).x_0]") == before
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
    for picture, sentence in ((b"", "cannot be read as a picture"), (b"nothing", "cannot be read"),
                              (flat, "No edges were found"), (long, "8192"), (pixels, "")):
        if isinstance(picture, np.ndarray):
            Image.fromarray(picture).save(file := io.BytesIO(), "PNG")
            picture = file.getvalue()
        page.run(f"status(''); data = Uint8Array.from({json.dumps(list(picture))}); "
                 "picture(new File([data], 'name'))")
        if sentence:
            page.wait("$('status').textContent")
            assert sentence in page.run("$('status').textContent")
    page.wait("palette && " + DONE)
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


@pytest.mark.parametrize("dark, width", [(False, 1280), (True, 1280), (False, 360)],
                         ids=["light", "dark", "narrow"])
def test_nothing_is_cut_off_and_everything_has_a_name(visited, dark, width):
    page, url = visited
    page.open(url, width=width, height=844, dark=dark)
    page.wait(DONE, 120)
    click(page, "#models button:nth-child(2)")
    page.wait("wish.model === 'rgb' && " + DONE)
    assert page.run("document.documentElement.scrollWidth") <= width
    assert page.run("[...document.querySelectorAll('button, input, canvas, label')].every("
                    "(one) => one.hidden || one.getBoundingClientRect().right <= innerWidth + 1)")
    tree = page.call("Accessibility.getFullAXTree")["nodes"]
    roles = "button", "slider", "textbox", "checkbox", "switch", "img", "spinbutton", "application"
    assert len(tree) > 50 and not [
        node for node in tree if not node["ignored"] and node["role"]["value"] in roles
        and not node.get("name", {}).get("value")]
    shot = Image.open(io.BytesIO(page.screenshot()))
    assert (np.asarray(shot.convert("L"))[:5].mean() < 60) == dark
    assert page.errors == []
