// The page's only script: what is drawn, a wish that is made of it, and the frames that come back.
"use strict";
const $ = (id) => document.getElementById(id);
const visitor = String(Math.random());
const START = 47; // the example to begin with
const NAMES = { canny: "edges", colour: "colours" };
const RADIUS = { ink: [1.1, 1.8], erase: [1.2, 2.6] }; // of the pens, in pixels of a sheet of 28
let models, colours, model, wish; // the wish is the last one that was sent
let ink, lines, palette, past = []; // bytes: H x W, H x W, 4 x 4 x 3 or null; and copies of them to go back to
let tool = "ink", wide = 0, brush = "red";
let film = { with: [], without: [] }, at = 0, sample = 0, live = false, player = 0;
let request = new AbortController(), timer;

// -- Small things -----------------------------------------------------------------------------------------------------

const toBase64 = (bytes) => bytes && btoa(String.fromCharCode(...bytes));
const fromBase64 = (text) => Uint8Array.from(atob(text), (c) => c.charCodeAt(0));
const css = ([r, g, b]) => `rgb(${255 * r} ${255 * g} ${255 * b})`;
const themed = (name) => getComputedStyle(document.body).getPropertyValue(name).match(/\d+/g).map(Number);

function element(tag, properties = {}, ...children) {
  const { dataset, ...plain } = properties;
  const node = Object.assign(document.createElement(tag), plain);
  Object.assign(node.dataset, dataset);
  node.append(...children);
  return node;
}

function press(buttons, chosen) { // of a group of buttons one is pressed
  for (const button of buttons) button.ariaPressed = button === chosen;
}

function paint(canvas, planes, C, H, W, colour = (v) => [v, v, v]) { // planes: C x H x W bytes
  if (canvas.width !== W || canvas.height !== H) Object.assign(canvas, { width: W, height: H });
  const image = new ImageData(W, H);
  for (let i = 0; i < H * W; i++) {
    const rgb = C === 3 ? [planes[i], planes[i + H * W], planes[i + 2 * H * W]] : colour(planes[i], i);
    image.data.set([...rgb, 255], 4 * i);
  }
  canvas.getContext("2d").putImageData(image, 0, 0);
}

async function ask(path, body, signal) {
  const data = body instanceof Blob ? body : JSON.stringify(body);
  const answer = await fetch(path, { method: "POST", body: data, signal });
  if (answer.ok) return answer;
  throw Object.assign(Error((await answer.json()).error), answer.status === 409 && { name: "AbortError" });
}

function save(blob, name) {
  const link = element("a", { href: URL.createObjectURL(blob), download: name });
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 1000);
}

function status(text, bad = false) {
  $("status").textContent = text;
  $("status").classList.toggle("bad", bad);
}

function complain(error) { // of words beside them, of all else below the pictures
  if (error.name === "AbortError") return;
  const ofWords = /prompt|the word/.test(error.message);
  $("problem").textContent = ofWords ? error.message : "";
  $("prompt").ariaInvalid = ofWords;
  const gone = error instanceof TypeError; // what fetch throws
  if (!ofWords) status(gone ? "the server does not answer: is it still running?" : error.message, true);
}

// -- The sheet --------------------------------------------------------------------------------------------------------

function showSheet() {
  const [, H, W] = model.shape, [paper, pen, edge] = ["--sheet", "--ink", "--edge"].map(themed);
  const mix = (a, b, share) => a.map((value, c) => value + (b[c] - value) * share / 255);
  paint($("paper"), ink, 1, H, W, (value, i) => mix(mix(paper, pen, value), edge, lines[i]));
}

function remember() {
  past.push([ink.slice(), lines.slice(), palette && palette.slice()]);
  past = past.slice(-50);
}

function dab(x, y) { // ink or eraser: a soft round spot
  const [, H, W] = model.shape, r = RADIUS[tool][wide] * W / 28;
  for (let j = Math.max(0, Math.floor(y - r - 1)); j < Math.min(H, y + r + 1); j++)
    for (let i = Math.max(0, Math.floor(x - r - 1)); i < Math.min(W, x + r + 1); i++) {
      const covered = 255 * Math.min(1, Math.max(0, r + 0.5 - Math.hypot(i + 0.5 - x, j + 0.5 - y))), k = j * W + i;
      if (tool === "ink") ink[k] = Math.max(ink[k], covered);
      else if (covered > 127) ink[k] = lines[k] = 0;
    }
}

let trail = []; // the pixels of an edge that is being drawn
function edgePixel(x, y) {
  const [, H, W] = model.shape;
  const [last, before] = [trail.at(-1), trail.at(-2)];
  if (x < 0 || y < 0 || x >= W || y >= H || (last && last[0] === x && last[1] === y)) return;
  if (!wide && before && Math.max(Math.abs(x - before[0]), Math.abs(y - before[1])) === 1) { // no corners
    const corner = last[1] * W + last[0];
    lines[corner] = past.at(-1)[1][corner];
    trail.pop();
  }
  trail.push([x, y]);
  for (const [i, j] of wide ? [[x, y], [x + 1, y], [x, y + 1], [x + 1, y + 1]] : [[x, y]])
    if (i < W && j < H) lines[j * W + i] = 255;
}

function stroke([x, y], [toX, toY]) {
  const count = Math.ceil(4 * Math.hypot(toX - x, toY - y)) || 1;
  for (let k = 0; k <= count; k++) {
    const [i, j] = [x + (toX - x) * k / count, y + (toY - y) * k / count];
    if (tool === "edge") edgePixel(Math.floor(i), Math.floor(j));
    else dab(i, j);
  }
  showSheet();
}

function placeOf(event) {
  const box = $("paper").getBoundingClientRect(), [, H, W] = model.shape;
  return [(event.clientX - box.left) / box.width * W, (event.clientY - box.top) / box.height * H];
}

let pen = null; // where it is on the sheet, or null if it is lifted
function lower(place) {
  cancel();
  remember();
  document.body.classList.add("stale");
  trail = [];
  stroke(place, pen = place);
}
function lift() {
  if (pen) redraw();
  pen = null;
}

$("paper").onpointerdown = (event) => {
  if (event.button) return;
  $("paper").setPointerCapture(event.pointerId);
  $("cursor").hidden = true;
  lower(placeOf(event));
};
$("paper").onpointermove = (event) => {
  if (!pen || !event.buttons) return;
  for (const moved of event.getCoalescedEvents?.() ?? [event]) stroke(pen, pen = placeOf(moved));
};
$("paper").onpointerup = $("paper").onpointercancel = lift;

let hand = [14.5, 14.5]; // the pen of the keyboard
$("paper").onkeydown = (event) => {
  const move = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] }[event.key];
  const [, H, W] = model.shape;
  if (event.key === " ") pen ? lift() : lower(hand);
  else if (event.key === "Escape") lift();
  else if (move) {
    hand = [Math.min(W - 0.5, Math.max(0.5, hand[0] + move[0])), Math.min(H - 0.5, Math.max(0.5, hand[1] + move[1]))];
    if (pen) stroke(pen, pen = hand);
  } else return;
  event.preventDefault();
  const [left, top] = [Math.floor(hand[0]) / W, Math.floor(hand[1]) / H].map((share) => `${100 * share}%`);
  Object.assign($("cursor").style, { left, top, width: `${100 / W}%`, height: `${100 / H}%` });
  $("cursor").hidden = false;
  $("cursor").className = pen ? "down" : "";
};
$("paper").onblur = () => { lift(); $("cursor").hidden = true; };

for (const [group, choose] of [["tools", (button) => { tool = button.dataset.tool; }],
  ["widths", (button) => { wide = +button.dataset.width; }]])
  for (const button of $(group).children)
    button.onclick = () => { choose(button); press($(group).children, button); };

function undo() {
  if (!past.length) return;
  [ink, lines, palette] = past.pop();
  redraw();
}
$("undo").onclick = undo;
$("clear").onclick = () => { remember(); ink.fill(0); lines.fill(0); redraw(); };
document.onkeydown = (event) => {
  if (!(event.ctrlKey || event.metaKey) || event.key !== "z" || event.target.tagName === "INPUT") return;
  event.preventDefault();
  undo();
};

async function begin(path, body) { // with what the server finds: an example, or a picture
  cancel();
  const own = model;
  try {
    const found = await (await ask(path, body)).json();
    if (own !== model) return;
    remember();
    ink.fill(0);
    lines = fromBase64(found.lines);
    if (found.prompt) $("prompt").value = found.prompt;
    else palette = model.controls.includes("colour") ? fromBase64(found.palette) : null;
    showChips();
    redraw();
  } catch (error) { complain(error); }
}
const example = (n) => begin("example", { visitor, model: model.name, n });
function picture(file) {
  if (file.size > 2 ** 23) return complain(Error("a picture may have at most 8 MB"));
  return begin(`picture?${new URLSearchParams({ visitor, model: model.name })}`, new Blob([file]));
}
$("example").onclick = () => example(Math.floor(1000 * Math.random()));
$("picture").onclick = () => $("file").click();
$("file").onchange = () => { if ($("file").files[0]) picture($("file").files[0]); $("file").value = ""; };
document.onpaste = (event) => {
  const file = [...event.clipboardData.files].find((one) => one.type.startsWith("image/"));
  if (file) picture(file);
};

// -- The palette ------------------------------------------------------------------------------------------------------

function showPalette() {
  $("cells").childNodes.forEach((cell, k) => {
    cell.style.background = palette ? `rgb(${palette.slice(3 * k, 3 * k + 3).join(" ")})` : "";
  });
  $("cells").classList.toggle("empty", !palette);
}

function paintCell(k) {
  const rgb = colours[brush].map((value) => Math.round(255 * value));
  palette ??= Uint8Array.from(Array(16).fill(rgb).flat()); // the first colour is everywhere
  palette.set(rgb, 3 * k);
  redraw();
}

for (let k = 0; k < 16; k++) {
  const cell = element("button", { ariaLabel: `row ${1 + (k >> 2)}, column ${1 + (k & 3)}` });
  cell.onpointerdown = (event) => {
    if (cell.hasPointerCapture(event.pointerId)) cell.releasePointerCapture(event.pointerId); // fingers move on
    cancel();
    remember();
    paintCell(k);
  };
  cell.onpointerenter = (event) => { if (event.buttons) paintCell(k); };
  cell.onclick = (event) => { if (!event.detail) { remember(); paintCell(k); } }; // of the keyboard
  $("cells").append(cell);
}
$("unpaint").onclick = () => { remember(); palette = null; redraw(); };

// -- Words ------------------------------------------------------------------------------------------------------------

function said() { // the phrase at each place of the prompt, or undefined; phrases of several words are taken out first
  let rest = ` ${$("prompt").value.toLowerCase()} `;
  const found = {};
  for (const long of [true, false])
    for (const [place, phrases] of Object.entries(model.words)) {
      found[place] ??= phrases.find((phrase) => phrase.includes(" ") === long && rest.includes(` ${phrase} `));
      if (found[place]) rest = rest.replace(` ${found[place]} `, "  ");
    }
  return found;
}

function say(place, phrase) {
  const found = said();
  found[place] = found[place] === phrase ? undefined : phrase;
  const text = Object.values(found).filter(Boolean).join(" ");
  $("prompt").value = text && `${/^(eight|orange|azure|olive)/.test(text) ? "an" : "a"} ${text}`;
  showChips();
  redraw();
}

function showChips() {
  const found = said();
  for (const chip of $("chips").querySelectorAll("button")) chip.ariaPressed = found[chip.name] === chip.value;
}

function dot(name, label) {
  const button = element("button", { className: "dot", ariaLabel: label, title: label });
  button.style.setProperty("--dot", css(colours[name]));
  return button;
}

function makeChips() {
  $("chips").replaceChildren(...Object.entries(model.words).map(([place, phrases]) => {
    const chips = phrases.map((phrase) => {
      const colour = phrase.replace(/^on (\w+) paper$/, "$1");
      const chip = colours[colour] ? dot(colour, phrase) : element("button", { textContent: phrase });
      return Object.assign(chip, { name: place, value: phrase, onclick: () => say(place, phrase) });
    });
    const name = element("span", { className: "quiet", textContent: place });
    return element("div", { role: "group", ariaLabel: place }, name, ...chips);
  }));
}
$("prompt").oninput = () => { showChips(); redraw(400); };

// -- Wishes -----------------------------------------------------------------------------------------------------------

function makeWish() {
  const value = (id) => +$(id).value, controls = {};
  for (const row of $("controls").children)
    controls[row.dataset.name] = Object.fromEntries([...row.querySelectorAll("input")].map((i) => [i.name, +i.value]));
  return {
    visitor, model: model.name, prompt: $("prompt").value, guidance: value("guidance"), steps: value("steps"),
    samples: value("count"), seed: Math.floor(value("seed")), zeroed: $("zeroed").checked, controls,
    ink: toBase64(ink), lines: toBase64(lines), palette: toBase64(palette),
  };
}

function cancel() {
  timer = clearTimeout(timer);
  request.abort();
  live = false;
}

function redraw(delay = 120) {
  cancel();
  showSheet();
  showPalette();
  timer = setTimeout(drawWish, delay);
}

async function drawWish() {
  timer = undefined;
  const own = request = new AbortController();
  if (!$("keep").checked) roll();
  wish = makeWish();
  pause();
  status("drawing …");
  $("gif").disabled = true;
  const began = performance.now();
  try {
    const reader = (await ask("draw", wish, own.signal)).body.pipeThrough(new TextDecoderStream()).getReader();
    $("problem").textContent = "";
    $("prompt").ariaInvalid = false;
    for (let text = ""; ;) {
      const { value, done } = await reader.read();
      if (done) break;
      const parts = (text + value).split("\n");
      text = parts.pop();
      if (own === request && !own.signal.aborted) for (const line of parts) receive(JSON.parse(line), began);
    }
  } catch (error) { complain(error); }
  if (own === request) $("gif").disabled = false;
}

function receive(line, began) {
  if (line.seen) {
    film = { with: [], without: [] };
    live = true;
    sample = Math.min(sample, line.samples - 1);
    $("step").max = line.steps - 1;
    showSeen(line.seen);
    makeSamples(line.samples);
    document.body.classList.add("stale");
    $("verdict").textContent = "";
  } else if (line.side) {
    const bytes = { t: line.t, x_t: fromBase64(line.x_t), x_0: fromBase64(line.x_0), inside: line.inside };
    if (film[line.side].push(bytes) === 1 && line.side === "with") document.body.classList.remove("stale");
    if (!live) return;
    show(line.side, line.step);
    if (line.side === "with") { at = line.step; showTime(); showInside(); }
  } else if ("identical" in line) {
    const drawn = Object.keys(wish.controls).length && $("seen").childElementCount;
    $("verdict").textContent = line.identical
      ? `Compared, at every step: with and without are equal, bit for bit${drawn ? "" : ", because nothing is drawn"}.`
      : "Compared: with and without differ. Only the control can be the reason; the noise and the words are the same.";
    document.body.classList.toggle("identical", line.identical);
  } else if (line.done) {
    live = false;
    const seconds = ((performance.now() - began) / 1000).toFixed(1);
    status(`${wish.steps} steps, with and without your drawing, in ${seconds} s`);
  } else if (line.cancelled) {
    live = false;
    status("the drawing was cancelled");
  } else if (line.error) complain(Error(line.error));
}

// -- Watching ---------------------------------------------------------------------------------------------------------

function show(side, step) {
  const frame = film[side][step], [C, H, W] = model.shape, size = C * H * W;
  if (!frame) return;
  const one = (bytes, k) => bytes.subarray(k * size, (k + 1) * size);
  for (const name of ["x_t", "x_0"]) paint($(`${side}-${name}`), one(frame[name], sample), C, H, W);
  if (side === "with")
    [...$("samples").children].forEach((button, k) => paint(button.firstChild, one(frame.x_0, k), C, H, W));
}

function showTime() {
  $("step").value = at;
  $("when").textContent = `step ${at + 1} of ${+$("step").max + 1}, t = ${film.with[at]?.t ?? ""}`;
}

function goTo(step) {
  at = step;
  show("with", at);
  show("without", at);
  showTime();
  showInside();
}

function showInside() {
  const inside = film.with[at]?.inside ?? {}, rows = $("inside").children;
  [...rows].forEach((row) => {
    const told = inside[row.dataset.name];
    [...row.querySelectorAll("figure")].forEach((figure, k) => {
      const [canvas, bar, caption] = figure.children, size = told?.[k].size[sample] ?? 0;
      const maps = told && fromBase64(told[k].map), count = told ? maps.length / wish.samples : 1;
      const map = told ? maps.subarray(sample * count, (sample + 1) * count) : [0], side = Math.sqrt(count);
      const [from, to] = ["--sheet", "--edge"].map(themed);
      paint(canvas, map, 1, side, side, (value) => from.map((v, c) => v + (to[c] - v) * value / 255));
      bar.firstChild.style.width = `${Math.min(100, 100 * size)}%`;
      caption.lastChild.textContent = `${(100 * size).toFixed(size && size < 0.1 ? 1 : 0)}%`;
    });
  });
}

function makeInside() {
  $("inside").replaceChildren(...model.controls.map((name) => element("div", { dataset: { name }, className: "row" },
    element("h3", { textContent: NAMES[name] ?? name }),
    ...model.places.map((place) => element("figure", {}, element("canvas", { className: "pixels", ariaHidden: true }),
      element("div", { className: "bar" }, element("div")),
      element("figcaption", {}, place, element("br"), element("output")))))));
}

function showSeen(seen) {
  const [, H, W] = model.shape;
  $("seen").replaceChildren(...Object.entries(seen).map(([name, text]) => {
    const canvas = element("canvas", { className: "pixels", role: "img", ariaLabel: name }), bytes = fromBase64(text);
    paint(canvas, bytes, bytes.length / H / W, H, W);
    return element("figure", {}, canvas, element("figcaption", { textContent: NAMES[name] ?? name }));
  }));
}

function makeSamples(count) {
  const make = (_, k) => {
    const button = element("button", { ariaLabel: `sample ${k + 1}` }, element("canvas", { className: "pixels" }));
    button.onclick = () => { sample = k; press($("samples").children, button); goTo(at); };
    return button;
  };
  if ($("samples").childElementCount !== count) $("samples").replaceChildren(...Array.from({ length: count }, make));
  press($("samples").children, $("samples").children[sample]);
}

function pause() {
  clearInterval(player);
  player = 0;
  $("play").textContent = "▶";
  $("play").ariaLabel = "Play";
}
$("play").onclick = () => {
  if (player || live) { live = false; return pause(); }
  if (at >= film.with.length - 1) goTo(0);
  player = setInterval(() => (at < film.with.length - 1 ? goTo(at + 1) : pause()), 120);
  $("play").textContent = "❚❚";
  $("play").ariaLabel = "Pause";
};
$("step").oninput = () => { live = false; pause(); goTo(+$("step").value); };

for (const button of document.querySelectorAll(".save"))
  button.onclick = () => {
    const from = $(button.dataset.of), large = element("canvas", { width: 8 * from.width, height: 8 * from.height });
    const context = large.getContext("2d");
    context.imageSmoothingEnabled = false;
    context.drawImage(from, 0, 0, large.width, large.height);
    large.toBlob((blob) => save(blob, `${button.dataset.of}-${at + 1}.png`));
  };
$("gif").onclick = async () => {
  const own = request = new AbortController();
  status("making the GIF …");
  $("gif").disabled = true;
  try {
    save(await (await ask("gif", wish, own.signal)).blob(), "drawing.gif");
    status("the GIF is made");
  } catch (error) {
    if (own === request) status("");
    complain(error);
  }
  if (own === request) $("gif").disabled = false;
};

// -- Settings ---------------------------------------------------------------------------------------------------------

function slider(label, name, max, value) {
  const input = element("input", { type: "range", name, min: 0, max, step: 0.05, value });
  return element("label", {}, label, " ", element("output"), input);
}

function makeControls() {
  $("controls").replaceChildren(...model.controls.map((name) => {
    const row = element("div", { dataset: { name }, className: "row" },
      slider(`Strength of ${NAMES[name] ?? name}`, "scale", 2, 1), slider("acts from", "from", 1, 0),
      slider("until", "until", 1, 1));
    const [, from, until] = row.querySelectorAll("input");
    from.oninput = () => { from.value = Math.min(from.value, until.value - 0.05); };
    until.oninput = () => { until.value = Math.max(until.value, +from.value + 0.05); };
    return row;
  }));
  showSettings();
}

function showSettings() {
  for (const input of document.querySelectorAll("#settings input[type=range], #controls input")) {
    const share = input.name === "from" || input.name === "until";
    input.parentNode.querySelector("output").textContent = share ? `${Math.round(100 * input.value)}%` : input.value;
  }
}

function roll() {
  $("seed").value = Math.floor(1e6 * Math.random());
}
for (const id of ["settings", "controls"]) $(id).oninput = (event) => {
  showSettings();
  if (event.target.id !== "keep") redraw(200);
};
$("dice").onclick = () => { roll(); redraw(); };
$("zeroed").onchange = () => redraw();

// -- Models -----------------------------------------------------------------------------------------------------------

async function choose(chosen, button) {
  cancel();
  model = chosen;
  press($("models").children, button);
  const [, H, W] = model.shape;
  [ink, lines, palette, past, sample] = [new Uint8Array(H * W), new Uint8Array(H * W), null, [], 0];
  for (const id of ["sheet", "tools", "widths", "clear"]) $(id).hidden = !model.line;
  $("palette").hidden = !model.controls.includes("colour");
  makeChips();
  makeControls();
  makeInside();
  document.body.classList.add("stale");
  await example(START);
  past = [];
}

async function start() {
  ({ models, colours } = await (await fetch("models")).json());
  $("swatches").append(...Object.keys(colours).map((name) => {
    const swatch = dot(name, name);
    swatch.onclick = () => { brush = name; press($("swatches").children, swatch); };
    return swatch;
  }));
  press($("swatches").children, $("swatches").children[1]);
  $("models").append(...models.map((one) => {
    const button = element("button", { textContent: one.name });
    button.onclick = () => choose(one, button);
    return button;
  }));
  await choose(models[0], $("models").firstChild);
}
matchMedia("(prefers-color-scheme: dark)").onchange = () => { showSheet(); showInside(); };
start();
