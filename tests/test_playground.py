"""The playground without a browser: its JavaScript under node, equal to torch, and its Python."""

import base64
import http.client
import io
import json
import shutil
import subprocess
import threading

import numpy as np
import pytest
import torch
from PIL import Image
from saved import MODELS

from minicnet.checkpoints import WEIGHTS, load_base, load_control
from minicnet.conditions import CONDITIONS
from minicnet.controlnet import Conditioning, controlled
from minicnet.data.digits import draw_digits
from minicnet.diffusion import NoiseSchedule, guided
from minicnet.errors import UserError
from minicnet.pictures import condition_from_map
from minicnet.playground import page
from minicnet.sampling import generate, seeded_noise
from minicnet.words import LENGTH, VOCABULARY, tokenize

HEADER = {"vocabulary": VOCABULARY, "length": LENGTH}
NODE, CLANG = shutil.which("node"), shutil.which("clang")
needs_node = pytest.mark.skipif(not NODE, reason="there is no node here")


def javascript(script, **data):
    """Run a script after the network's files, with `data` at hand. Returns what it returns."""
    files = [(page.HERE / f"{name}.js").read_text(encoding="utf-8")
             for name in (*page.NETWORK, "files")]
    program = "\n".join(files) + f"""
        const fs = require("fs"), data = JSON.parse(fs.readFileSync(0));
        (async () => {{ {script} }})().then((result) => {{
          fs.writeSync(1, JSON.stringify(result) ?? "null"); process.exit();
        }});"""
    return json.loads(subprocess.run([NODE, "-e", program], input=json.dumps(data), text=True,
                                     check=True, stdout=subprocess.PIPE, timeout=300).stdout)


def image_of(x):
    """One image (1, C, H, W) in [0, 1] as conditions.js takes it."""
    return dict(zip("CHW", x.shape[1:]), data=x.flatten().tolist())


COMPARE = """
  header = data.header;
  prepare(data.floats, data.simd);
  model = opened(data.about, data.weights);
  const [C, H, W] = model.shape, rows = (row) => [row, row], numbers = tokens(data.prompt);
  const controls = Object.entries(data.controls).map(([name, control]) => ({
    ...control, net: model.nets[name], switches: model.places.map(() => 1),
    condition: new Tensor([2, control.values.length / 2 / H / W, H, W],
                          Float32Array.from(control.values)) }));
  const predict = (prompt) => controlled(model.unet, rows(prompt), controls);
  const eps = guided(predict(numbers), predict(numbers.map(() => 0)), 2);
  const x_T = seededNoise([2, C, H, W], 7);
  const images = await generate(model.unet, numbers, x_T, controls, { guidance: 2, steps: 10 });
  return { eps: data.times.map((t) => [...eps(x_T, [t, t]).data]), images: [...images.data] };
"""


# The networks


@needs_node
@pytest.mark.parametrize("name, simd", [
    *((name, True) for name in MODELS), ("things", False),
    *(pytest.param(path.parent, True, id=path.parent.name, marks=pytest.mark.slow)
      for path in WEIGHTS.glob("*/base.pt"))])
def test_the_page_s_predictions_and_images_are_those_of_torch(folders, name, simd):
    folder = folders.get(name, name)
    about, weights = page.convert(folder, "model")
    (unet, _), controls = load_base(folder / "base.pt"), {}
    for path in sorted(set(folder.glob("*.pt")) - {folder / "base.pt"}):
        net, control = load_control(path, unet)
        condition = torch.rand(2, control["condition_channels"], *about["shape"][1:])
        controls[control["condition"]] = Conditioning(net, condition, 0.8, 0.0, 1.0)
    controls[control["condition"]] = Conditioning(net, condition, 1.3, 0.2, 0.7)
    prompt, x_T = about["prompts"][-1], seeded_noise((2, *about["shape"]), 7)
    tokens, times = tokenize([prompt] * 2), (999, 500, 20)
    found = javascript(
        COMPARE, header=HEADER, floats=len(weights) // 2, simd=simd, about=about, times=times,
        weights=base64.b64encode(weights).decode(), prompt=prompt, controls={
            name: {"values": control.condition.flatten().tolist(), "scale": control.scale,
                   "start": control.start, "end": control.end}
            for name, control in controls.items()})
    eps = guided(*(controlled(unet, prompt, [*controls.values()])
                   for prompt in (tokens, 0 * tokens)), 2)
    for t, prediction in zip(times, found["eps"]):
        with torch.no_grad():
            expected = eps(x_T, torch.full((2,), t)).flatten()
        torch.testing.assert_close(torch.tensor(prediction), expected, rtol=0, atol=1e-3)
    images = generate(unet, unet.schedule, tokens, x_T, controls.values(), guidance=2, steps=10)
    torch.testing.assert_close(  # two of 255 levels of brightness
        torch.tensor(found["images"]), images.flatten(), rtol=0, atol=2 / 127.5)


@needs_node
def test_the_kernel_equals_the_plain_loop_and_its_source(tmp_path):
    wasm = None
    if CLANG and shutil.which("wasm-ld"):
        command = next(line for line in (page.HERE / "matmul.c").read_text().splitlines()
                       if "clang --target" in line).split()[1:]
        shutil.copy(page.HERE / "matmul.c", tmp_path)
        subprocess.run(command, cwd=tmp_path, check=True)
        wasm = base64.b64encode((tmp_path / "a.out").read_bytes()).decode()
    errors = javascript("""
      const errors = [];
      for (const code of [MATMUL_WASM, data.wasm].filter(Boolean)) {
        errors.push(prepare(1e6, true, code) ? 0 : 1);
        for (const [M, K, N] of [[4, 1, 8], [5, 7, 9], [32, 288, 196], [6, 16, 49], [64, 3, 15]]) {
          const [a, b, bias] = [M * K, K * N, M].map((n) => keep(n).map(() => Math.random() - 0.5));
          for (const one of [bias, null]) {
            const own = one && keep(M);
            own?.set(one);
            const plain = matmulPlain(a, b, new Float32Array(M * N), M, K, N, own);
            const c = matmul(a, b, M, K, N, own);
            errors.push(...c.map((value, i) => Math.abs(value - plain[i])));
          }
        }
      }
      return [errors.length, Math.max(...errors)];""", wasm=wasm)
    assert errors[0] > 10_000 and errors[1] < 1e-4


@needs_node
def test_the_page_s_noise_timesteps_and_schedule_are_those_of_torch():
    shapes, seeds = [(1, 1, 28, 28), (2, 3, 16, 16), (1, 1, 5, 7)], [0, 3, 123456789]
    found = javascript("""
      const times = [];
      for (let steps = 1; steps <= 100; steps++) times.push(ddimTimes(1000, steps));
      const noise = data.shapes.flatMap((shape) => (
        data.seeds.map((seed) => [...seededNoise(shape, seed).data])));
      return { times, noise, alpha_bar: NoiseSchedule.cosine(1000).alpha_bar };
    """, shapes=shapes, seeds=seeds)
    noise = [seeded_noise(shape, seed).flatten() for shape in shapes for seed in seeds]
    torch.testing.assert_close([*map(torch.tensor, found["noise"])], noise, rtol=0, atol=1e-5)
    alpha_bar = torch.tensor(found["alpha_bar"])
    torch.testing.assert_close(alpha_bar, NoiseSchedule.cosine(1000).alpha_bar)
    for steps, times in enumerate(found["times"], start=1):
        assert times == torch.linspace(999, 0, steps).round().tolist()


@needs_node
def test_zero_convolutions_at_their_start_and_switched_off_leave_the_base_bit_for_bit(folders):
    about, weights = page.convert(folders["rgb"], "model")
    found = javascript("""
      header = data.header;
      prepare(data.floats);
      model = opened(data.about, data.weights);
      const sent = [], edges = new Uint8Array(784).fill(255, 350, 370);
      const control = { scale: 1, start: 0, end: 1, switches: model.places.map(() => 1) };
      send = (id, message) => sent.push(message);
      const wish = { prompt: "a seven", guidance: 2, steps: 3, samples: 2, seed: 1, ink: edges,
                     lines: edges, palette: null, zeroed: false };
      const results = [];
      for (const changes of data.changes) {
        sent.length = 0;
        current = results.length;
        const switches = model.places.map((_, i) => +!changes.off?.includes(i));
        const { identical } = await draw(current, {
          ...wish, ...changes, controls: { canny: { ...control, switches, ...changes.canny } } });
        const frames = sent.filter(({ kind }) => kind === "frame");
        results.push({ identical, frames: frames.map(({ side, step, inside }) => (
          [side, step, inside?.canny?.map(({ size }) => size[0])])) });
      }
      return results;
    """, header=HEADER, about=about, floats=len(weights) // 2,
        weights=base64.b64encode(weights).decode(),
        changes=[{}, {"zeroed": True}, {"canny": {"scale": 0}},
                 {"canny": {"start": 0.4, "end": 0.6}}, {"off": list(range(len(about["places"])))},
                 {"off": [0, 2]}, {"lines": [], "ink": []}])
    assert [one["identical"] for one in found] == [False, True, True, False, True, False, True]
    sides = [(side, step) for side, step, _ in found[0]["frames"]]
    assert sides == [(side, step) for side in ("with", "without") for step in range(3)]
    again = [(side, step) for side, step, _ in found[1]["frames"]]  # the twin is known by now
    assert again == [(side, step) for step in range(3) for side in ("without", "with")]
    inside = [[sizes for side, _, sizes in one["frames"] if side == "with"] for one in found]
    assert all(size > 0 for sizes in inside[0] for size in sizes) and not any(map(any, inside[1]))
    assert [sizes is None for sizes in inside[3]] == [True, False, True]
    assert [size > 0 for size in inside[5][0][:4]] == [False, True, False, True]


@needs_node
def test_a_prompt_becomes_the_tokens_of_python_or_one_sentence_that_helps():
    prompts = ["", "An eight", "a red seven on navy paper", "ship"]
    found = javascript("""
      const one = (prompt) => {
        try { return tokenize(prompt, data.vocabulary, data.length); }
        catch (error) { return error.message; }
      };
      return data.prompts.map(one);
    """, prompts=[*prompts, "a sevn", "a " * 9], **HEADER)
    assert found[:4] == tokenize(prompts).tolist()
    assert found[4] == "The vocabulary has no word “sevn”. Did you mean “seven”?"
    assert found[5] == "A prompt has at most 8 words, and this one has 9."


# Conditions and files


@needs_node
@pytest.mark.parametrize("name", CONDITIONS)
def test_the_page_finds_the_conditions_that_python_finds(name):
    digits = draw_digits(6, 5)[0]
    smooth = torch.nn.functional.interpolate(torch.rand(4, 3, 7, 5), (26, 30), mode="bilinear")
    images = [*digits.split(1), *(2 * smooth - 1).split(1), torch.zeros(1, 1, 9, 9)]
    found = javascript("return data.images.map((image) => [...CONDITIONS[data.name](image).data]);",
                       name=name, images=[image_of((image + 1) / 2) for image in images])
    for one, image in zip(found, images):
        expected = CONDITIONS[name](image).flatten()
        torch.testing.assert_close(torch.tensor(one).float(), expected, rtol=0, atol=1e-5)


@needs_node
@pytest.mark.parametrize("H, W", [(64, 64), (40, 100), (17, 5), (28, 28)])
def test_the_page_shrinks_pictures_as_python_does(H, W):
    picture = torch.rand(1, 3, H, W)
    found = javascript("return [...shrunk(data.image, 28, 28).data];", image=image_of(picture))
    # The colour map of Python is the shrunk picture.
    expected = condition_from_map(picture, "colour", 3, (28, 28)).flatten()
    torch.testing.assert_close(torch.tensor(found), expected, rtol=0, atol=1e-5)


@needs_node
def test_saved_pictures_and_films_show_the_frames_and_carry_a_text():
    frames = np.random.default_rng(0).integers(0, 6, (3, 12, 15, 3)).astype(np.uint8) * 50
    frames[0] = np.arange(180).reshape(12, 15, 1)  # each has fewer than 256 colours
    Image.fromarray(frames[0]).save(png := io.BytesIO(), "PNG")
    found = javascript("""
      const bytes = async (blob) => Buffer.from(await blob.arrayBuffer()).toString("base64");
      const frames = data.frames.map((rgb, i) => ({ rgb, width: 15, height: 12, delay: 10 + i }));
      const png = new Uint8Array(Buffer.from(data.png, "base64"));
      const files = [gif(frames, data.text), pngWithText(png, "Description", data.text)];
      return Promise.all(files.map(bytes));
    """, frames=[frame.flatten().tolist() for frame in frames], text="prompt: a seven; seed: 3",
        png=base64.b64encode(png.getvalue()).decode())
    with Image.open(io.BytesIO(base64.b64decode(found[0]))) as gif:
        assert gif.n_frames == 3 and gif.size == (60, 48)
        assert gif.info["comment"] == b"prompt: a seven; seed: 3" and gif.info["loop"] == 0
        for i, frame in enumerate(frames):
            gif.seek(i)
            assert gif.info["duration"] == 10 * (10 + i)
            assert (np.asarray(gif.convert("RGB"))[1::4, 1::4] == frame).all()
    with Image.open(io.BytesIO(base64.b64decode(found[1]))) as image:
        assert image.text == {"Description": "prompt: a seven; seed: 3"}
        assert (np.asarray(image) == frames[0]).all()


# The program


def test_an_export_is_one_file_that_opens_no_connection(folders, tmp_path, capsys):
    out = tmp_path / "page.html"
    argv = ["--models", "--run", folders["gray"], "--run", folders["rgb"], "--export", out]
    page.main(page.parse_arguments(list(map(str, argv))))
    html = out.read_text(encoding="utf-8")
    assert f"{out}: " in capsys.readouterr().out
    assert "default-src 'none'" in html and "connect-src" not in html
    assert not any(text in html for text in ("src=\"", "url(", "import(", "fetch(", "{{"))
    header = json.loads(html.split('id="header">')[1].split("</script>")[0])
    gray, rgb = header["models"]
    assert (gray["name"], gray["line"]) == ("gray", "canny")
    assert list(rgb["nets"]) == ["base", "canny", "colour"]
    assert list(rgb["words"]) == ["ink", "digit", "paper"]
    for model in (gray, rgb):
        phrases = [phrase for phrases in model["words"].values() for phrase in phrases]
        tokenize([*phrases, *(example["prompt"] for example in model["examples"])])


def test_networks_that_do_not_load_or_are_there_twice_are_left_out_with_a_note(
        folders, tmp_path, monkeypatch, capsys):
    good = shutil.copytree(folders["gray"], tmp_path / "good")
    shutil.copy(good / "canny.pt", good / "control.pt")  # a second control for edges
    shutil.copytree(folders["rgb"], tmp_path / "partly")
    shutil.copy(folders["gray"] / "canny.pt", tmp_path / "partly" / "colour.pt")  # of another base
    shutil.copytree(folders["gray"], tmp_path / "bad")
    (tmp_path / "bad" / "base.pt").write_bytes(b"no checkpoint")
    monkeypatch.setattr(page, "WEIGHTS", tmp_path)
    models = page.collect(["good", "bad", "partly"], [])
    assert [(about["name"], list(about["nets"])) for about, _ in models] == [
        ("good", ["base", "canny"]), ("partly", ["base", "canny"])]
    notes = capsys.readouterr().err
    assert notes.count("note: left out: ") == 3 and "second control for canny" in notes
    assert "bad" in notes and "colour.pt" in notes


def test_two_models_of_one_name_a_run_that_does_not_load_and_no_model_are_refused(
        folders, tmp_path):
    twin = shutil.copytree(folders["gray"], tmp_path / "twin" / "gray")
    (twin / "canny.pt").unlink()
    for runs, problem in (([folders["gray"], twin], "two models named 'gray'"), ([], "no model"),
                          ([tmp_path], "base.pt"), ([twin], "no control")):
        with pytest.raises(UserError, match=problem):
            page.collect([], runs)


@pytest.mark.parametrize("host, path, status", [
    ("", "/", 200), ("localhost", "/index.html", 200), ("evil.example", "/", 403),
    ("127.0.0.1.evil.example", "/", 403), ("", "/../page.py", 404), ("", "/%2e%2e/page.py", 404)])
def test_the_page_is_served_to_this_computer_alone(host, path, status):
    with page.serving("<p>a page") as server:
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        connection = http.client.HTTPConnection("127.0.0.1", server.server_port, timeout=30)
        connection.request("GET", path, headers={"Host": host} if host else {})
        answer = connection.getresponse()
        assert answer.status == status and server.server_address[0] == "127.0.0.1"
        assert (answer.read() == b"<p>a page") == (status == 200)
        with pytest.raises(UserError, match="another --port"):
            page.serving("", server.server_port).__enter__()
        server.shutdown()


@pytest.mark.parametrize("flags, patience", [([], 10), (["--no-browser"], 0.5)])
def test_the_playground_prints_its_address_and_opens_the_browser_unless_it_must_not(
        folders, monkeypatch, capsys, flags, patience):
    opened = threading.Event()
    monkeypatch.setattr(page.webbrowser, "open", lambda url: opened.set())
    monkeypatch.setattr(page.ThreadingHTTPServer, "serve_forever", lambda _: opened.wait(patience))
    page.main(page.parse_arguments(["--models", "--run", str(folders["gray"]), *flags]))
    assert opened.is_set() != bool(flags) and "http://127.0.0.1:" in capsys.readouterr().out
