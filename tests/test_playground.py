"""The playground without a browser: what its server answers, and what is tried against it.

How long a drawing takes on this machine:   python -m pytest -m "" -s -k how_long tests/test_playground.py
"""

import base64
import contextlib
import http.client
import io
import json
import os
import queue
import signal
import socket
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from browse import NAMES
from PIL import Image

from minicnet import cli
from minicnet.checkpoints import CheckpointError, fingerprint, save_checkpoint
from minicnet.conditions import canny, colour
from minicnet.controlnet import ControlNet, freeze
from minicnet.playground import drawing, server
from minicnet.playground.drawing import Model, at_its_start, encoded, read_wish
from minicnet.playground.server import Playground
from minicnet.sampling import generate, seeded_noise
from minicnet.unet import UNet
from minicnet.words import VOCABULARY, tokenize

ROOT = Path(__file__).parents[1]
SIZE, STEPS = 16, 4
CROSS = torch.zeros(SIZE, SIZE)
CROSS[5, 2:] = CROSS[:-3, 8] = 1


def save_model(folder, randomised, channels, conditions, dataset):
    """A base with random weights, and a ControlNet for each of the conditions, as `export` writes them."""
    unet = freeze(randomised(UNet(in_channels=channels, channels=8, multipliers=(1,))))
    save_checkpoint(folder / "base.pt", {
        "kind": "base", "image_shape": [channels, SIZE, SIZE], "schedule": ["linear", 100], "dataset": dataset,
        "vocabulary": list(VOCABULARY), "model": unet.settings, "weights": unet.state_dict()})
    for seed, (condition, depth) in enumerate(conditions.items(), start=1):
        net = randomised(ControlNet(unet, depth), seed=seed)
        save_checkpoint(folder / f"{condition}.pt", {
            "kind": "control", "base": fingerprint(unet), "condition": condition, "condition_channels": depth,
            "weights": net.state_dict()})
    return Model(folder, torch.device("cpu"))


@pytest.fixture(scope="module")
def models(tmp_path_factory, randomised):
    folder = tmp_path_factory.mktemp("weights")
    return {"gray": save_model(folder / "gray", randomised, 1, {"canny": 1}, "cifar10"),
            "rgb": save_model(folder / "rgb", randomised, 3, {"canny": 1, "colour": 3}, "coloured-drawn")}


@contextlib.contextmanager
def serving(models):
    with Playground(models.values()) as playground:
        thread = threading.Thread(target=playground.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
        thread.start()
        yield playground
        playground.shutdown()
    thread.join(10)


@pytest.fixture(scope="module")
def playground(models):
    with serving(models) as running:
        yield running


def send(playground, method, path, body=None, **headers):
    """-> status, headers, body"""
    connection = http.client.HTTPConnection("127.0.0.1", playground.server_port, timeout=60)
    connection.request(method, path, body, {name.replace("_", "-"): value for name, value in headers.items()})
    answer = connection.getresponse()
    data = answer.read()
    connection.close()
    return answer.status, answer.headers, data


def post(playground, path, body, **headers):
    """-> status, what the JSON says"""
    body = body if isinstance(body, bytes) else json.dumps(body).encode()
    status, _, data = send(playground, "POST", path, body, **headers)
    return status, json.loads(data)


def wish_for(model="gray", lines=CROSS, controls=None, **changes):
    settings = {"scale": 1, "from": 0, "until": 1}
    return {"model": model, "prompt": "a seven", "guidance": 2, "steps": STEPS, "seed": 3, "samples": 2,
            "lines": None if lines is None else encoded(lines), "controls": controls or {"canny": settings}, **changes}


def stream(playground, wish):
    """All lines of a drawing."""
    status, _, data = send(playground, "POST", "/draw", json.dumps(wish))
    assert status == 200
    return [json.loads(line) for line in data.splitlines()]


def frames(lines, side):
    return [(line["step"], line["x_t"], line["x_0"]) for line in lines if line.get("side") == side]


def by_hand(model, wish, scale=1.0, spans=None, net=None):
    """The frames that `generate` makes of the cross, as they are sent."""
    seen, samples = [], wish["samples"]
    prompt = tokenize([wish["prompt"]] * samples)
    x_T = seeded_noise((samples, *model.image_shape), wish["seed"])
    controls = [(net or model.nets["canny"], CROSS.expand(samples, 1, -1, -1), scale)]

    def see(t, x_t, x_0):
        seen.append((len(seen), encoded((x_t + 1) / 2), encoded((x_0 + 1) / 2)))

    generate(model.unet, model.schedule, prompt, x_T, controls, spans=spans, guidance=wish["guidance"],
             steps=wish["steps"], hook=see)
    return seen


# What is served


@pytest.mark.parametrize("path, kind", [("/", "html"), ("/?x=1", "html"), ("/style.css", "css"),
                                        ("/app.js", "javascript")])
def test_the_page_is_served_and_fetches_nothing_from_elsewhere(playground, path, kind):
    status, headers, data = send(playground, "GET", path)
    assert status == 200 and headers["Content-Type"] == f"text/{kind}; charset=utf-8"
    assert "default-src 'self'" in headers["Content-Security-Policy"] and b"//" not in data.replace(b"// ", b"")


def test_the_page_learns_what_there_is_to_draw_with(playground, models):
    about = json.loads(send(playground, "GET", "/models")[2])
    gray, rgb = about["models"]
    assert (gray["name"], gray["shape"], gray["line"]) == ("gray", [1, SIZE, SIZE], "canny")
    assert rgb["controls"] == ["canny", "colour"] and list(rgb["words"]) == ["ink", "digit", "paper"]
    assert gray["words"]["thing"][7] == "horse"
    assert len(gray["places"]) == len(models["gray"].nets["canny"].zero_skips) + 1
    for words in (gray["words"], rgb["words"]):
        tokenize([phrase for phrases in words.values() for phrase in phrases])  # all are known


def test_an_example_is_edges_and_the_words_for_them(playground, models):
    status, first = post(playground, "/example", {"model": "gray", "n": 7})
    assert status == 200 and first["prompt"] == "a horse" and len(base64.b64decode(first["lines"])) == SIZE**2
    assert post(playground, "/example", {"model": "gray", "n": 7})[1] == first
    assert post(playground, "/example", {"model": "gray", "n": 8})[1]["lines"] != first["lines"]


def test_where_colours_alone_are_followed_an_example_and_a_picture_can_be_drawn_with(tmp_path, randomised):
    model = save_model(tmp_path / "colours", randomised, 3, {"colour": 3}, "coloured-drawn")
    picture = np.random.default_rng(0).integers(256, size=(40, 40, 3), dtype=np.uint8)
    with serving({"colours": model}) as playground:
        for path, body in (("/example", {"model": "colours", "n": 47}),
                           ("/picture?model=colours", picture_file(picture))):
            status, found = post(playground, path, body)
            assert status == 200 and base64.b64decode(found["lines"]) == bytes(SIZE**2)
            wish = wish_for("colours", None, {"colour": {"scale": 1, "from": 0, "until": 1}})
            lines = stream(playground, {**wish, **found})
            assert list(lines[0]["seen"]) == ["colour"] and lines[-2:] == [{"identical": False}, {"done": True}]


@pytest.mark.parametrize("dataset", ["drawn", "mnist", "coloured-drawn"])
def test_digits_come_with_captions_like_those_of_training(models, monkeypatch, dataset):
    model = models["rgb" if "coloured" in dataset else "gray"]
    monkeypatch.setattr(model, "dataset", dataset)
    model.__dict__.pop("digits", None)
    found = model.example(47)
    lines = np.frombuffer(base64.b64decode(found["lines"]), np.uint8)
    assert found["prompt"].split()[0] in ("a", "an") and "four" in found["prompt"] and set(lines) == {0, 255}
    assert ("paper" in found["prompt"]) == ("coloured" in dataset) and tokenize([found["prompt"]]).any()


def picture_file(pixels, **settings):
    Image.fromarray(pixels).save(file := io.BytesIO(), "PNG", **settings)
    return file.getvalue()


def test_edges_are_found_in_a_picture_which_is_turned_as_it_was_taken(playground):
    pixels = np.zeros((64, 64, 3), np.uint8)
    pixels[8:40, 8:24] = (250, 30, 30)
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by a quarter
    status, found = post(playground, "/picture?model=rgb", picture_file(np.rot90(pixels).copy(), exif=exif.tobytes()))
    assert status == 200 and found == post(playground, "/picture?model=rgb", picture_file(pixels))[1]
    picture = torch.tensor(pixels).permute(2, 0, 1)[None] / 255
    image = F.interpolate(picture, SIZE, mode="bilinear", antialias=True)
    assert found["lines"] == encoded(canny(image.clamp(0, 1) * 2 - 1))
    palette = np.frombuffer(base64.b64decode(found["palette"]), np.uint8).reshape(4, 4, 3)
    assert palette[1, 1, 0] > 100 > palette[3, 3].max()


@pytest.mark.parametrize("data, sentence", [
    (b"", "cannot read the picture as an image"), (b"no picture", "cannot read the picture as an image"),
    (picture_file(np.full((20, 20, 3), 90, np.uint8)), "nothing to follow was found in the picture")])
def test_a_picture_that_is_none_or_shows_nothing_is_refused(playground, data, sentence):
    status, answer = post(playground, "/picture?model=gray", data)
    assert status == 400 and sentence in answer["error"]
    assert "/tmp" not in answer["error"] and "\n" not in answer["error"]


# Drawing


def test_every_step_is_told_in_order_with_control_and_without(playground, models):
    wish = wish_for(seed=11)
    lines = stream(playground, wish)
    assert lines[0] == {"seen": {"canny": encoded(CROSS)}, "steps": STEPS, "samples": 2}
    assert lines[-2:] == [{"identical": False}, {"done": True}]
    assert [(line["side"], line["step"], line["t"]) for line in lines[1:-2]] == [
        (side, step, t) for side in ("with", "without") for step, t in enumerate((99, 66, 33, 0))]
    assert frames(lines, "with") == by_hand(models["gray"], wish)
    assert frames(lines, "without") == by_hand(models["gray"], wish, scale=0)


def test_what_is_known_without_control_is_not_drawn_again_but_told_beside(playground, models):
    first, again, other = (stream(playground, wish_for(seed=seed, lines=lines)) for seed, lines in (
        (12, CROSS), (12, CROSS.T), (13, CROSS)))
    sides = [line["side"] for line in again[1:-2]]
    assert sides == ["without", "with"] * STEPS and frames(again, "without") == frames(first, "without")
    assert frames(again, "with") != frames(first, "with") and frames(other, "without") != frames(first, "without")


@pytest.mark.parametrize("changes", [
    {"controls": {"canny": {"scale": 0, "from": 0, "until": 1}}}, {"zeroed": True}, {"lines": None},
    {"lines": torch.zeros(SIZE, SIZE)}], ids=["strength 0", "zeroed", "nothing drawn", "an empty sheet"])
def test_strength_0_and_zero_convolutions_at_their_start_are_the_base_bit_for_bit(playground, changes):
    lines = stream(playground, wish_for(**changes))
    assert lines[-2] == {"identical": True} and frames(lines, "with") == frames(lines, "without")


def test_only_the_zero_convolutions_are_put_back_to_their_start(models):
    net = models["gray"].nets["canny"]
    fresh = at_its_start(net)
    before, after = net.state_dict(), fresh.state_dict()
    changed = {name.split(".")[0] for name in before if not torch.equal(before[name], after[name])}
    assert changed == {"zero_skips", "zero_middle", "condition_encoder"}
    assert torch.equal(fresh.condition_encoder[1].weight, net.condition_encoder[1].weight)


def test_a_wish_that_is_read_while_another_is_drawn_gets_a_net_that_nobody_listens_to(models):
    drawn, zeroed = read_wish(models, wish_for()), wish_for(zeroed=True)
    with drawing.listening(drawn):
        net, *_ = read_wish(models, zeroed).controls["canny"]
    assert not net._forward_hooks and net is read_wish(models, zeroed).controls["canny"][0]


def test_a_control_acts_from_and_until(playground, models):
    lines = stream(playground, wish := wish_for(controls={"canny": {"scale": 2, "from": 0.5, "until": 0.75}}))
    acting, alone = frames(lines, "with"), frames(lines, "without")
    assert acting[:2] == alone[:2] and acting[2] != alone[2]
    assert acting == by_hand(models["gray"], wish, scale=2, spans=[(0.5, 0.75)])
    assert [bool(line["inside"]) for line in lines if line.get("side") == "with"] == [False, False, True, False]


def test_inside_is_what_each_zero_convolution_adds(playground, models):
    model, wish = models["gray"], wish_for(controls={"canny": {"scale": 0.5, "from": 0, "until": 1}})
    first = next(line for line in stream(playground, wish) if line.get("side") == "with")
    x_t, t = seeded_noise((2, 1, SIZE, SIZE), 3), torch.full((2,), 99)
    prompt = tokenize(["a seven"] * 2)
    with torch.no_grad():
        control = 0.5 * model.nets["canny"](x_t, t, prompt, CROSS.expand(2, 1, -1, -1))
        skips, middle, *_ = model.unet.encoder(x_t, t, prompt)
    told = first["inside"]["canny"]
    assert len(told) == len(skips) + 1
    for place, residual, feature in zip(told, (*control.skips, control.middle), (*skips, middle)):
        sizes = residual.flatten(1).norm(dim=1) / feature.flatten(1).norm(dim=1)
        assert place["size"] == pytest.approx(sizes.tolist(), rel=1e-3)
        where = np.frombuffer(base64.b64decode(place["map"]), np.uint8).reshape(2, *residual.shape[2:])
        expected = residual.abs().mean(1)
        np.testing.assert_allclose(where[1], 255 * expected[1] / expected[1].max(), atol=1)
    assert not model.unet.encoder._forward_hooks and not model.nets["canny"]._forward_hooks


def test_ink_is_seen_through_canny_and_lines_as_they_are(models):
    ink = torch.zeros(SIZE, SIZE)
    ink[4:12, 5:9] = 1
    outline = canny(ink[None, None] * 2 - 1)
    for lines, expected in ((None, outline), (CROSS, outline.maximum(CROSS))):
        wish = read_wish(models, wish_for(lines=lines, ink=encoded(ink)))
        assert torch.equal(wish.controls["canny"][1], expected.expand(2, 1, -1, -1))


def test_a_palette_is_the_colour_map_of_an_image_painted_so(models):
    palette = torch.randint(256, (4, 4, 3)).float() / 255
    settings = {"scale": 0.7, "from": 0, "until": 1}
    asked = wish_for("rgb", palette=encoded(palette), controls={"canny": settings, "colour": settings})
    wish = read_wish(models, asked)
    image = palette.permute(2, 0, 1)[None].repeat_interleave(4, 2).repeat_interleave(4, 3)
    torch.testing.assert_close(wish.controls["colour"][1][:1], colour(image * 2 - 1), rtol=0, atol=1e-6)
    assert list(wish.controls) == ["canny", "colour"] and wish.spans == [(0, 1), (0, 1)]
    assert list(read_wish(models, {**asked, "palette": None}).controls) == ["canny"]


def test_a_drawing_is_saved_as_an_animation_of_all_its_steps(playground):
    palette = encoded(torch.rand(4, 4, 3))
    settings = {"scale": 1, "from": 0, "until": 1}
    wish = wish_for("rgb", palette=palette, controls={"canny": settings, "colour": settings}, visitor="g")
    status, headers, data = send(playground, "POST", "/gif", json.dumps(wish))
    with Image.open(io.BytesIO(data)) as gif:
        assert (status, headers["Content-Type"], gif.format, gif.n_frames) == (200, "image/gif", "GIF", STEPS)
        assert gif.size == (5 * 4 * (SIZE + 2), 2 * 4 * (SIZE + 2))  # edges, palette, x_t, x_0, without; two samples


# What is refused


CANNY = {"scale": 1, "from": 0, "until": 1}


@pytest.mark.parametrize("changes, sentence", [
    ({"model": "none"}, "model must be one of gray, rgb"), ({"model": ["gray"]}, "model must be one of"),
    ({"prompt": "a sevn"}, "the word 'sevn' is unknown: is 'seven' meant?"), ({"prompt": 7}, "prompt must be a text"),
    ({"prompt": "a " * 101}, "at most 200 characters"), ({"prompt": "a " * 9}, "at most 8 words"),
    ({"steps": 0}, "steps must be a whole number from 1 to 100"), ({"steps": 101}, "from 1 to 100"),
    ({"steps": 2.5}, "whole number"), ({"steps": True}, "whole number"), ({"steps": "4"}, "whole number"),
    ({"samples": 9}, "samples must be a whole number from 1 to 8"), ({"samples": 0}, "from 1 to 8"),
    ({"seed": -1}, "seed must be"), ({"seed": 10**30}, "seed must be"), ({"seed": None}, "seed must be"),
    ({"guidance": float("nan")}, "guidance must be a number from 0 to 10"), ({"guidance": float("inf")}, "guidance"),
    ({"lines": encoded(torch.zeros(5))}, "lines must be 16 x 16 bytes in base64"), ({"lines": "?"}, "lines must be"),
    ({"ink": 5}, "ink must be"), ({"palette": encoded(CROSS)}, "palette must be 4 x 4 x 3 bytes"),
    ({"controls": {"depth": CANNY}}, "controls here are canny"), ({"controls": [1]}, "controls here are canny"),
    ({"controls": {"canny": 1}}, "controls here are"), ({"controls": {"canny": {}}}, "scale must be a number"),
    ({"controls": {"canny": {**CANNY, "scale": 2.5}}}, "scale must be"),
    ({"controls": {"canny": {**CANNY, "from": 0.5, "until": 0.5}}}, "until a later one"),
    ({"controls": {"canny": {**CANNY, "until": 1.5}}}, "until must be a number from 0 to 1")])
def test_a_wish_that_makes_no_sense_is_refused_in_one_sentence(playground, changes, sentence):
    for path in ("/draw", "/gif"):
        status, answer = post(playground, path, {**wish_for(), **changes})
        assert status == 400 and sentence in answer["error"] and "\n" not in answer["error"]


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b"7", b"null", b'"gray"', b"\xff\xfe", b"[" * 50_000, b"1" * 5000])
def test_what_is_no_wish_at_all_is_refused(playground, body):
    for path in ("/draw", "/example"):
        status, answer = post(playground, path, body)
        assert status == 400 and answer["error"]


@pytest.mark.parametrize("n", [-1, 1.5, "1", None, 10**12])
def test_an_example_has_a_number(playground, n):
    assert post(playground, "/example", {"model": "gray", "n": n})[0] == 400


def test_bodies_are_limited_before_they_are_read(playground):
    for path, limit in (("/draw", server.LARGEST_WISH), ("/picture?model=gray", server.LARGEST_PICTURE)):
        with socket.create_connection(("127.0.0.1", playground.server_port), timeout=30) as client:
            client.sendall(f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {limit + 1}\r\n\r\n".encode())
            assert client.recv(100).startswith(b"HTTP/1.1 413")
    for header in ("", "Content-Length: -5\r\n", "Content-Length: many\r\n", "Transfer-Encoding: chunked\r\n"):
        with socket.create_connection(("127.0.0.1", playground.server_port), timeout=30) as client:
            client.sendall(f"POST /draw HTTP/1.1\r\nHost: localhost\r\n{header}\r\n".encode())
            assert client.recv(100).startswith(b"HTTP/1.1 411")


@pytest.mark.parametrize("headers", [
    {"Host": "evil.example"}, {"Host": "127.0.0.1.evil.example"}, {"Host": ""}, {"Host": "evil.example@127.0.0.1"},
    {"Origin": "http://evil.example"}, {"Origin": "null"}, {"Origin": "https://127.0.0.1"},
    {"Origin": "http://localhost:1"}])
def test_a_page_from_elsewhere_can_not_use_it(playground, headers):
    for method, path in (("GET", "/"), ("GET", "/models"), ("POST", "/draw")):
        status, _, data = send(playground, method, path, json.dumps(wish_for()), **headers)
        assert status == 403 and json.loads(data)["error"] in (
            "this page is for this computer alone", "a page from elsewhere must not use this one")


def test_its_own_page_can_under_both_names(playground):
    for host in (f"127.0.0.1:{playground.server_port}", f"localhost:{playground.server_port}", "localhost"):
        assert post(playground, "/example", {"model": "gray", "n": 1}, Host=host, Origin=f"http://{host}")[0] == 200
    assert playground.server_address[0] == "127.0.0.1"


@pytest.mark.parametrize("path", [
    "/server.py", "/../server.py", "/..%2fserver.py", "/%2e%2e/server.py", "//etc/passwd", "/./index.html",
    "/index.html/..", "/style.css/../server.py", "/..\\server.py", "/link", "/style.css%00", "/favicon.ico"])
def test_nothing_but_its_own_files_is_served(playground, path):
    link = Path(server.__file__).parent / "link"
    link.symlink_to("/etc/passwd")
    try:
        status, _, data = send(playground, "GET", path)
    finally:
        link.unlink()
    assert status == 404 and b"error" in data


@pytest.mark.parametrize("raw, status", [
    (b"PUT / HTTP/1.1\r\nHost: localhost\r\n\r\n", b"501"), (b"nonsense\r\n\r\n", b"400"),
    (b"GET /" + b"a" * 70_000 + b" HTTP/1.1\r\n\r\n", b"414"),
    (b"GET / HTTP/1.1\r\n" + b"a: b\r\n" * 200 + b"\r\n", b"431")])
def test_nonsense_is_answered_with_an_error(playground, raw, status):
    with socket.create_connection(("127.0.0.1", playground.server_port), timeout=30) as client:
        client.sendall(raw)
        assert status in client.makefile("rb").readline() or raw == b"nonsense\r\n\r\n"
    assert send(playground, "GET", "/")[0] == 200


# Many wishes, and none


def test_a_newer_wish_of_a_visitor_cancels_the_one_before_within_one_step(playground):
    go = threading.Event()

    def slow(tell):
        for step in range(3):
            tell(step)
            assert go.wait(30)

    told, _ = playground.submit("anna", slow)
    assert told.get(timeout=30) == (False, 0)
    other, _ = playground.submit("bert", lambda tell: "done")
    newer, _ = playground.submit("anna", lambda tell: "done")
    go.set()
    done, error = told.get(timeout=30)
    assert done and isinstance(error, server.Cancelled)
    assert other.get(timeout=30) == newer.get(timeout=30) == (True, "done")


def test_a_drawing_that_is_cancelled_says_so(playground):
    long = wish_for(steps=100, samples=8, visitor="carla", seed=21)
    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(stream, playground, long)
        while "carla" not in playground.waiting.values() and not first.done():
            time.sleep(0.001)
        newer = stream(playground, {**long, "steps": 2})
        lines = first.result(60)
    assert lines[-1] == {"cancelled": True} and len(lines) < 100 and newer[-1] == {"done": True}


def test_of_a_gif_that_is_cancelled_the_visitor_is_told(playground):
    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(post, playground, "/gif", wish_for(steps=100, samples=8, visitor="dora", seed=22))
        while "dora" not in playground.waiting.values() and not first.done():
            time.sleep(0.001)
        stream(playground, wish_for(steps=1, visitor="dora"))
        assert first.result(60) == (409, {"error": "a newer wish took the place of this one"})


def wait_until_idle(playground, seconds=30):
    end = time.monotonic() + seconds
    while playground.waiting:
        assert time.monotonic() < end, "a drawing goes on"
        time.sleep(0.01)


@pytest.mark.parametrize("lines", [0, 2])
def test_a_client_that_vanishes_takes_its_drawing_with_it(playground, models, lines):
    steps = []
    handle = models["gray"].unet.register_forward_hook(lambda *_: steps.append(1))
    body = json.dumps(wish_for(steps=100, samples=8, seed=30 + lines)).encode()
    with socket.create_connection(("127.0.0.1", playground.server_port), timeout=30) as client:
        client.sendall(b"POST /draw HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n\r\n" % len(body) + body)
        file = client.makefile("rb")
        while lines:
            assert (line := file.readline()) and b"error" not in line, line
            lines -= line.startswith(b'{"side"')
        file.close()
    # The next visitor is another one: what the first asked for may be read only now, and must not cancel this.
    assert stream(playground, wish_for(visitor="next"))[-1] == {"done": True}
    wait_until_idle(playground)
    handle.remove()
    assert len(steps) < 150  # 200 and those of the next visitor would be all


def test_a_client_that_stops_in_the_middle_of_a_request_harms_nobody(playground):
    with socket.create_connection(("127.0.0.1", playground.server_port)) as client:
        client.sendall(b"POST /draw HTTP/1.1\r\nHost: localhost\r\nContent-Length: 500\r\n\r\n{")
        assert stream(playground, wish_for())[-1] == {"done": True}


def test_ten_clients_at_once_all_get_their_drawing(playground, models):
    wishes = [wish_for(seed=seed, samples=1, visitor=f"visitor {seed}") for seed in range(10)]
    with ThreadPoolExecutor(10) as pool:
        for wish, lines in zip(wishes, pool.map(lambda wish: stream(playground, wish), wishes)):
            assert lines[-1] == {"done": True} and frames(lines, "with") == by_hand(models["gray"], wish)
    assert not playground.waiting


def test_more_than_can_wait_are_told_to_come_again(playground, monkeypatch):
    monkeypatch.setattr(server, "MOST_WAITING", 1)
    go = threading.Event()
    told, _ = playground.submit("emil", lambda tell: go.wait(30))
    status, answer = post(playground, "/draw", wish_for(visitor="frida"))
    go.set()
    assert status == 503 and "try again" in answer["error"] and told.get(timeout=30) == (True, True)


def test_an_error_in_the_middle_of_a_drawing_is_told_and_the_next_drawing_works(playground, monkeypatch, capsys):
    monkeypatch.setattr(drawing, "seeded_noise", lambda *_: 1 / 0)
    assert stream(playground, wish_for(seed=44))[1:] == [{"error": "this failed: division by zero"}]
    assert post(playground, "/gif", wish_for(seed=44)) == (500, {"error": "this failed: division by zero"})
    assert capsys.readouterr().err.count("ZeroDivisionError: division by zero") == 2
    monkeypatch.undo()
    assert stream(playground, wish_for())[-1] == {"done": True}


def test_closing_ends_what_is_drawn(models):
    with serving(models) as playground:
        told, _ = playground.submit("gustav", lambda tell: [tell(step) for step in iter(lambda: time.sleep(0.001), 1)])
        told.get(timeout=30)
    while not (last := told.get(timeout=30))[0]:
        pass
    assert isinstance(last[1], server.Cancelled)
    with pytest.raises(queue.Empty):
        told.get_nowait()


# The program


def start(monkeypatch, models, *argv):
    """Runs main with these models, and Ctrl-C as soon as it serves. -> a queue of what the browser was to open

    The browser is one of text, of which nothing is seen before it is served.
    """
    opened, served = queue.SimpleQueue(), threading.Event()

    def serve(self):
        served.set()
        raise KeyboardInterrupt

    monkeypatch.setattr(server, "shipped", lambda device: list(models.values()))
    monkeypatch.setattr(server.webbrowser, "open", lambda url: opened.put(served.wait(30) and url))
    monkeypatch.setattr(Playground, "serve_forever", serve)
    cli.run(server.main, server.parse_arguments(["--device", "cpu", *map(str, argv)]))
    return opened


def test_it_says_where_the_page_is_and_opens_it_unless_told_not_to(monkeypatch, models, capsys):
    opened = start(monkeypatch, models)
    line = capsys.readouterr().out
    assert line.startswith("http://127.0.0.1:") and opened.get(timeout=60) == line.split()[0]
    assert start(monkeypatch, models, "--no-browser").empty()


def test_a_port_that_is_taken_is_one_sentence(monkeypatch, models, playground):
    for port in (playground.server_port, 70_000):
        with pytest.raises(SystemExit) as ended:
            start(monkeypatch, models, "--port", port, "--no-browser")
        assert f"error: cannot listen on port {port}: " in ended.value.code and "\n" not in ended.value.code


def test_a_run_folder_is_one_more_model(monkeypatch, models, tmp_path, randomised):
    made = []

    def stop(models, port):
        made.extend(models)
        raise OSError("enough")

    monkeypatch.setattr(server, "Playground", stop)
    save_model(tmp_path / "mine", randomised, 1, {"mask": 1}, "mnist")
    (tmp_path / "mine" / "mask.pt").rename(tmp_path / "mine" / "control.pt")
    with pytest.raises(SystemExit, match="enough"):
        start(monkeypatch, models, "--run", tmp_path / "mine")
    assert [model.name for model in made] == ["gray", "rgb", str(tmp_path / "mine")] and made[2].line == "mask"


def test_a_folder_that_is_no_run_is_one_sentence(monkeypatch, models, tmp_path, randomised):
    save_model(tmp_path / "lone", randomised, 1, {"canny": 1}, "mnist")
    (tmp_path / "lone" / "canny.pt").unlink()
    for folder, sentence in ((tmp_path, "base.pt: train first"), (tmp_path / "lone", "there is no control in")):
        with pytest.raises(SystemExit, match=sentence):
            start(monkeypatch, models, "--run", folder)
        with pytest.raises(CheckpointError):
            Model(folder, torch.device("cpu"))


def test_a_browser_that_the_tests_would_take_is_not_installed_again():
    assert f"command -v {' '.join(NAMES)} >" in (ROOT / ".ci" / "run").read_text()


@pytest.mark.slow
def test_ctrl_c_ends_it_cleanly_while_it_draws():
    with subprocess.Popen([sys.executable, "-m", "minicnet.playground", "--no-browser", "--device", "cpu"], cwd=ROOT,
                          stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
                          env={**os.environ, "PYTHONUNBUFFERED": "1"}) as process:
        port = int(process.stdout.readline().split("/ is")[0].rpartition(":")[2])
        wish = {**wish_for("digits", None), "steps": 100, "samples": 8}
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
        connection.request("POST", "/draw", json.dumps(wish))
        connection.getresponse().readline()
        process.send_signal(signal.SIGINT)
        assert process.wait(30) == 0 and process.stderr.read() == "" and process.stdout.read() == ""


@pytest.mark.slow
@pytest.mark.parametrize("samples", [1, 4])
def test_how_long_a_drawing_takes(samples):
    """With what is known without control, as after a stroke, and without. Prints; asserts nothing of time."""
    shipped = {model.name: model for model in server.shipped(torch.device("cpu"))}
    with serving(shipped) as playground:
        for name, model in shipped.items():
            lines = model.example(47)["lines"]
            for attempt in ("warming up", "all anew", "after a stroke"):
                wish = {**wish_for(name, None, samples=samples, steps=20), "lines": lines, "prompt": "",
                        "seed": len(attempt)}
                began, at = time.perf_counter(), {}
                connection = http.client.HTTPConnection("127.0.0.1", playground.server_port, timeout=300)
                connection.request("POST", "/draw", json.dumps(wish))
                for line in connection.getresponse():
                    if b'"side": "with"' in line:
                        at.setdefault("first", time.perf_counter() - began)
                        at["last"] = time.perf_counter() - began
                print(f"\n{name}, {samples} samples, {attempt}: first frame after {at['first']:.2f} s, last with "
                      f"control {at['last']:.2f} s, all {time.perf_counter() - began:.2f} s", end="")
                assert json.loads(line) == {"done": True}
    print(f"\n{torch.get_num_threads()} threads, load {os.getloadavg()[0]:.1f}")
