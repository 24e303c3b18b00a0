"""Draw the README's animation: a visit to the playground, in a headless Chromium.

    PYTHONPATH=.:tests python .ci/film.py               # the film in the README
    PYTHONPATH=.:tests python .ci/film.py film.gif      # another file
"""

import io
import sys
import tempfile
from pathlib import Path

from browse import browser
from PIL import Image
from test_playground_browser import DONE, SEVEN, along, click

from minicnet.checkpoints import write_atomically
from minicnet.playground import page as playground

GIF = Path(__file__).parents[1] / ".github" / "results" / "playground" / "playground.gif"
THREE = [(0.34, 0.24), (0.48, 0.18), (0.62, 0.25), (0.6, 0.4), (0.46, 0.48), (0.62, 0.56),
         (0.66, 0.7), (0.52, 0.82), (0.34, 0.77)]  # fractions of the sheet


def animation(page):
    """Frames (image, milliseconds) of a visit: a seven, and a coloured three whose words change."""
    frames = []

    def shoot(milliseconds):
        # Down to the words and a margin, because they change.
        bottom = page.run("$('status').style.visibility = 'hidden', "
                          "$('prompt').getBoundingClientRect().bottom + 14")
        shot = Image.open(io.BytesIO(page.screenshot())).convert("RGB")
        shot = shot.crop((50, 100, 1230, round(bottom)))
        size = 826, round(0.7 * shot.height)
        frames.append((shot.resize(size, Image.Resampling.LANCZOS), milliseconds))

    def watch(steps):
        page.wait(DONE, 300)
        for step in steps:
            page.run(f"goTo({step})")
            shoot(110)
        frames[-1] = frames[-1][0], 1800

    def draw(words, points):
        page.run(f"$('clear').click(); cancel(); $('prompt').value = {words!r}; showChips()")
        points = along(page, points, 3)
        page.mouse("mousePressed", *points[0])
        for point in points[1:]:
            page.mouse("mouseMoved", *point)
            shoot(60)
        page.mouse("mouseReleased", *points[-1])
        watch(range(20))

    page.wait(DONE, 300)
    draw("a seven", SEVEN)
    click(page, "#models button:nth-child(2)")
    page.wait("wish.model === 'coloured' && " + DONE, 300)
    draw("a yellow three on navy paper", THREE)
    page.run("$('prompt').value = 'a white three on maroon paper'; showChips(); redraw(0)")
    watch(range(0, 20, 2))
    return frames


def save_animation(frames, path):
    """Save frames as a GIF, with one palette, made from every sixth frame."""
    some = [image for image, _ in frames[::6]]
    sheet = Image.new("RGB", (some[0].width, sum(image.height for image in some)))
    for k, image in enumerate(some):
        sheet.paste(image, (0, k * some[0].height))
    palette = sheet.quantize(200, kmeans=1)
    first, *others = (image.quantize(palette=palette, dither=Image.Dither.NONE)
                      for image, _ in frames)
    first.save(file := io.BytesIO(), "GIF", save_all=True, append_images=others, loop=0,
               duration=[milliseconds for _, milliseconds in frames])
    write_atomically(path, file.getvalue())


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as root, browser(Path(root, "profile")) as tab:
        out = Path(root, "page.html")
        models = ["--models", "digits", "coloured", "--export", str(out)]
        playground.main(playground.parse_arguments(models))
        tab.open(out.as_uri(), height=1000)
        save_animation(animation(tab), Path(sys.argv[1]) if sys.argv[1:] else GIF)
