// The page: what is drawn, a wish that is made of it, and the frames that the worker sends back.
"use strict";
const $ = (id) => document.getElementById(id);
const HEADER = JSON.parse($("header").textContent), { models, colours } = HEADER;
const START = 47; // the example to begin with
const NAMES = { canny: "edges", colour: "colours" };
const RADIUS = { ink: [1.1, 1.8], erase: [1.2, 2.6] }; // of the pens, in pixels of a sheet of 28
const MAX_SIDE = 8192, MAX_BYTES = 2 ** 26; // of a picture
let model, wish; // the wish is the last one that was sent
let ink, lines, palette; // bytes: H x W, H x W, 4 x 4 x 3 or null
let past = []; // copies of the three, for Undo
let tool = "ink", wide = 0, brush = "red";
let film = { with: [], without: [] }, at = 0, sample = 0, live = false, player = 0;
let request = 0, timer; // the number of the last drawing that was asked for

// -- Small things ---------------------------------------------------------------------------------

const fromBase64 = (text) => Uint8Array.from(atob(text), (c) => c.charCodeAt(0));
const css = ([r, g, b]) => `rgb(${255 * r} ${255 * g} ${255 * b})`;
const themed = (name) => (
  getComputedStyle(document.body).getPropertyValue(name).match(/\d+/g).map(Number));
const named = (condition) => NAMES[condition] ?? condition;
const conditions = () => Object.keys(model.nets).filter((name) => name !== "base");

function element(tag, properties = {}, ...children) {
  const { dataset, aria, ...plain } = properties;
  const node = Object.assign(document.createElement(tag), plain);
  Object.assign(node.dataset, dataset);
  for (const [name, value] of Object.entries(aria ?? {})) node.setAttribute(`aria-${name}`, value);
  node.append(...children);
  return node;
}

function press(buttons, chosen) { // of a group of buttons one is pressed
  for (const button of buttons) button.setAttribute("aria-pressed", button === chosen);
}

// Paint C x H x W bytes. colour: turns a value of a single plane into red, green and blue.
function paint(canvas, planes, C, H, W, colour = null) {
  if (canvas.width !== W || canvas.height !== H) Object.assign(canvas, { width: W, height: H });
  const image = new ImageData(W, H), { data } = image, next = C === 3 ? H * W : 0;
  for (let i = 0; i < H * W; i++) {
    const rgb = colour?.(planes[i], i);
    for (let c = 0; c < 3; c++) data[4 * i + c] = rgb ? rgb[c] : planes[i + c * next];
    data[4 * i + 3] = 255;
  }
  canvas.getContext("2d").putImageData(image, 0, 0);
}

// Mark images as those of an earlier drawing, or as new.
function stale(old, ...sides) {
  for (const side of sides.length ? sides : ["with", "without"])
    for (const name of ["x_t", "x_0"]) $(`${side}-${name}`).classList.toggle("stale", old);
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

function complain({ message }) { // about words beside them, about all else below the images
  const ofWords = /prompt|word/.test(message);
  if (ofWords) {
    $("problem").textContent = message;
    $("prompt").setAttribute("aria-invalid", true);
  }
  status(ofWords ? "" : message, true);
}
onerror = (message) => complain({ message: `Something went wrong in the page: ${message}` });

// -- The worker -----------------------------------------------------------------------------------

const source = new Blob([$("network").textContent], { type: "text/javascript" });
const worker = new Worker(URL.createObjectURL(source)), asked = new Map();
let count = 0;
worker.onmessage = ({ data: message }) => {
  const { resolve, reject, tell } = asked.get(message.id);
  if (message.kind === "seen" || message.kind === "frame") return tell(message);
  asked.delete(message.id);
  if (message.kind === "failed") reject(Error(message.sentence));
  else resolve(message);
};
worker.onerror = () => (
  status("The page cannot start the thread that draws. Try another browser.", true));

function ask(message, tell) { // -> a promise of the answer, whose kind is "done" or "stopped"
  const id = ++count;
  worker.postMessage({ id, ...message });
  return new Promise((resolve, reject) => asked.set(id, { resolve, reject, tell }));
}

// -- The sheet ------------------------------------------------------------------------------------

function showSheet() {
  const [, H, W] = model.shape, [paper, pen, edge] = ["--sheet", "--ink", "--edge"].map(themed);
  const mix = (a, b, amount) => a.map((value, c) => value + (b[c] - value) * amount / 255);
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
      const inside = r + 0.5 - Math.hypot(i + 0.5 - x, j + 0.5 - y), k = j * W + i;
      const covered = 255 * Math.min(1, Math.max(0, inside));
      if (tool === "ink") ink[k] = Math.max(ink[k], covered);
      else if (covered > 127) ink[k] = lines[k] = 0;
    }
}

let trail = []; // the pixels of an edge that is being drawn
function edgePixel(x, y) {
  const [, H, W] = model.shape;
  const [last, before] = [trail.at(-1), trail.at(-2)];
  if (x < 0 || y < 0 || x >= W || y >= H || (last && last[0] === x && last[1] === y)) return;
  const near = before && Math.max(Math.abs(x - before[0]), Math.abs(y - before[1])) === 1;
  if (!wide && near) { // no corners
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
let untouched = false; // whether the sheet holds an example, which the first stroke replaces
function lower(place) {
  $("invitation").hidden = true;
  cancel();
  remember();
  stale(true);
  if (untouched && tool !== "erase") [ink, lines].forEach((layer) => layer.fill(0));
  untouched = false;
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
  const moves = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };
  const move = moves[event.key];
  const [, H, W] = model.shape;
  if (event.key === " ") pen ? lift() : lower(hand);
  else if (event.key === "Escape") lift();
  else if (move) {
    hand = [W, H].map((side, k) => Math.min(side - 0.5, Math.max(0.5, hand[k] + move[k])));
    if (pen) stroke(pen, pen = hand);
  } else return;
  event.preventDefault();
  const [left, top] = [W, H].map((side, k) => `${100 * Math.floor(hand[k]) / side}%`);
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
  const undoes = (event.ctrlKey || event.metaKey) && event.key === "z";
  if (!undoes || event.target.tagName === "INPUT") return;
  event.preventDefault();
  undo();
};

function begin(found) { // with an example, or with what was found in a picture
  remember();
  ink.fill(0);
  lines = Uint8Array.from(found.lines);
  untouched = "prompt" in found; // which a picture has not
  if (found.prompt) $("prompt").value = found.prompt;
  if (model.nets.colour && !(found.prompt && model.line)) palette = Uint8Array.from(found.palette);
  showChips();
  redraw();
}

async function example(n) {
  cancel();
  const found = model.examples[n % model.examples.length];
  if (found) {
    const [lines, palette] = [found.lines, found.palette].map(fromBase64);
    return begin({ prompt: found.prompt, lines, palette });
  }
  const own = model;
  showSheet();
  status("Drawing something to begin with …");
  try {
    const made = await ask({ kind: "example", n });
    if (own === model && made.kind === "done" && !timer) begin(made);
  } catch (error) { complain(error); }
}

// The pixels of a picture file, turned as it was taken, on white, and at most 1024 on a side.
async function pixelsOf(file) {
  if (file.size > MAX_BYTES)
    throw Error(`This file is larger than ${MAX_BYTES / 2 ** 20} MB. Choose a smaller one.`);
  const image = new Image();
  image.src = URL.createObjectURL(file);
  try {
    await image.decode();
  } catch {
    throw Error("This file cannot be read as a picture. Try a PNG or a JPEG file.");
  } finally { URL.revokeObjectURL(image.src); }
  const { naturalWidth: W, naturalHeight: H } = image, shrink = Math.min(1, 1024 / Math.max(W, H));
  if (!W || !H) throw Error("This picture is empty.");
  if (Math.max(W, H) > MAX_SIDE)
    throw Error(`This picture has more than ${MAX_SIDE} pixels on a side. Shrink it first.`);
  const [width, height] = [W, H].map((side) => Math.max(1, Math.round(side * shrink)));
  const context = element("canvas", { width, height }).getContext("2d");
  context.fillStyle = "white";
  context.fillRect(0, 0, width, height);
  context.imageSmoothingQuality = "high";
  context.drawImage(image, 0, 0, width, height);
  return { data: context.getImageData(0, 0, width, height).data, width, height };
}

async function picture(file) {
  cancel();
  const own = model;
  try {
    const found = await ask({ kind: "find", pixels: await pixelsOf(file) });
    if (own === model) begin(found);
  } catch (error) { complain(error); }
}
$("example").onclick = () => example(Math.floor(1000 * Math.random()));
$("picture").onclick = () => $("file").click();
$("file").onchange = () => {
  if ($("file").files[0]) picture($("file").files[0]);
  $("file").value = "";
};
document.onpaste = (event) => {
  const file = [...event.clipboardData.files].find((one) => one.type.startsWith("image/"));
  if (file) picture(file);
};

// -- The palette ----------------------------------------------------------------------------------

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
  const cell = element("button", { aria: { label: `row ${1 + (k >> 2)}, column ${1 + (k & 3)}` } });
  cell.onpointerdown = (event) => {
    if (cell.hasPointerCapture(event.pointerId)) // else a finger could not move on to other cells
      cell.releasePointerCapture(event.pointerId);
    cancel();
    remember();
    paintCell(k);
  };
  cell.onpointerenter = (event) => { if (event.buttons) paintCell(k); };
  cell.onclick = (event) => { if (!event.detail) { remember(); paintCell(k); } }; // of the keyboard
  $("cells").append(cell);
}
$("unpaint").onclick = () => { remember(); palette = null; redraw(); };

// -- Words ----------------------------------------------------------------------------------------

// The prompt in its box, without capitals and punctuation; a hyphen inside a word stays.
function writtenPrompt() {
  const words = $("prompt").value.toLowerCase().match(/[^\s\p{P}]+(-[^\s\p{P}]+)*/gu) ?? [];
  return words.join(" ");
}

// A sentence that names the words of a prompt that the model was never shown, or "".
function noteOn(prompt) {
  const shown = ["", "a", ...JSON.stringify(model.words).match(/\w+/g)]; // "digit" is a key there
  const strange = [...new Set(prompt.split(" "))].filter((word) => (
    HEADER.vocabulary.includes(word) && !shown.includes(word)));
  if (!strange.length) return "";
  const [words, they] = strange.length > 1 ? ["words", "they mean"] : ["word", "that word means"];
  const list = new Intl.ListFormat("en").format(strange);
  return `This model was never shown the ${words} ${list}, so ${they} little to it.`;
}

// The phrase in the prompt for each attribute, or undefined. Phrases of several words come first.
function attributes() {
  let rest = ` ${writtenPrompt()} `;
  const found = {};
  for (const long of [true, false])
    for (const [attribute, phrases] of Object.entries(model.words)) {
      found[attribute] ??= phrases.find((phrase) => (
        phrase.includes(" ") === long && rest.includes(` ${phrase} `)));
      if (found[attribute]) rest = rest.replace(` ${found[attribute]} `, "  ");
    }
  return found;
}

function choosePhrase(attribute, phrase) {
  const found = attributes();
  found[attribute] = found[attribute] === phrase ? undefined : phrase;
  if (Object.values(found).some(Boolean) && "digit" in found) found.digit ??= "digit";
  const text = Object.values(found).filter(Boolean).join(" ");
  $("prompt").value = text && `${/^(eight|orange|azure|olive)/.test(text) ? "an" : "a"} ${text}`;
  showChips();
  redraw();
}

function showChips() {
  const found = attributes();
  for (const chip of $("chips").querySelectorAll("button"))
    chip.setAttribute("aria-pressed", found[chip.name] === chip.value);
}

function dot(name, label) {
  const button = element("button", { className: "dot", aria: { label }, title: label });
  button.style.setProperty("--dot", css(colours[name]));
  return button;
}

function makeChips() {
  $("chips").replaceChildren(...Object.entries(model.words).map(([attribute, phrases]) => {
    const chips = phrases.map((phrase) => {
      const colour = phrase.replace(/^on (\w+) paper$/, "$1");
      const chip = colours[colour]
        ? dot(colour, phrase) : element("button", { textContent: phrase });
      const onclick = () => choosePhrase(attribute, phrase);
      return Object.assign(chip, { name: attribute, value: phrase, onclick });
    });
    const name = element("span", { className: "quiet", textContent: attribute });
    return element("div", { role: "group", aria: { label: attribute } }, name, ...chips);
  }));
}
$("prompt").oninput = () => { showChips(); redraw(400); };

// -- Wishes ---------------------------------------------------------------------------------------

function makeWish() {
  const value = (id) => +$(id).value, controls = {};
  for (const row of $("controls").children) {
    const settings = [...row.querySelectorAll("input")].map((input) => [input.name, +input.value]);
    const switches = [...$("inside").querySelectorAll(`[data-name="${row.dataset.name}"] input`)];
    controls[row.dataset.name] = {
      ...Object.fromEntries(settings), switches: switches.map((one) => +one.checked) };
  }
  return {
    model: model.name, prompt: writtenPrompt(), guidance: value("guidance"),
    steps: value("steps"), samples: value("count"),
    seed: Math.floor(Math.min(1e9, Math.max(0, value("seed") || 0))),
    zeroed: $("zeroed").checked, controls, ink: ink.slice(), lines: lines.slice(),
    palette: palette && palette.slice(),
  };
}

function cancel() {
  timer = clearTimeout(timer);
  if (request) ask({ kind: "stop" });
  request = 0;
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
  if (!$("keep").checked) roll();
  wish = makeWish();
  $("seed").value = wish.seed; // the box may be empty, or hold a number out of range
  $("problem").textContent = noteOn(wish.prompt);
  $("prompt").setAttribute("aria-invalid", false);
  pause();
  status("Drawing …");
  $("gif").disabled = true;
  const began = performance.now();
  let fresh = true;
  const own = request = count + 1;
  const tell = (message) => {
    if (own !== request) return;
    if (fresh) beginFilm();
    fresh = false;
    receive(message);
  };
  try {
    const { kind, identical } = await ask({ kind: "draw", wish }, tell);
    if (own !== request || kind === "stopped") return;
    showVerdict(identical);
    live = false;
    const seconds = ((performance.now() - began) / 1000).toFixed(1);
    status(`${wish.steps} steps, with and without your lines, in ${seconds} s`);
    $("gif").disabled = false;
  } catch (error) {
    if (own === request) complain(error);
  }
}

function beginFilm() {
  film = { with: [], without: [] };
  live = true;
  sample = Math.min(sample, wish.samples - 1);
  $("step").max = wish.steps - 1;
  $("seen").replaceChildren();
  makeSamples(wish.samples);
  stale(true);
  $("verdict").textContent = "";
}

function receive({ kind, side, step, ...message }) {
  if (kind === "seen") return showSeen(message);
  if (film[side].push(message) === 1) stale(false, side);
  if (!live) return;
  show(side, step);
  if (side === "with") { at = step; showTime(); showInside(); }
}

function showVerdict(identical) {
  const why = $("seen").childElementCount ? "" : ", because nothing is drawn";
  $("verdict").textContent = identical
    ? `At every step, the images with and without your lines are equal, bit for bit${why}.`
    : "The two images differ. Only the control can be the reason, because their noise and their "
      + "words are the same.";
  document.body.classList.toggle("identical", identical);
}

// -- Watching -------------------------------------------------------------------------------------

function show(side, step) {
  const frame = film[side][step], [C, H, W] = model.shape, size = C * H * W;
  if (!frame) return;
  const one = (bytes, k) => bytes.subarray(k * size, (k + 1) * size);
  for (const name of ["x_t", "x_0"]) paint($(`${side}-${name}`), one(frame[name], sample), C, H, W);
  if (side !== "with") return;
  for (const canvas of document.querySelectorAll(".mini canvas"))
    paint(canvas, one(frame.x_0, sample), C, H, W);
  [...$("samples").children].forEach((button, k) => (
    paint(button.firstChild, one(frame.x_0, k), C, H, W)));
}

function showTime() {
  $("step").value = at;
  $("when").textContent = `step ${at + 1} of ${+$("step").max + 1}, t = ${film.with[at]?.t ?? ""}`;
  $("step").setAttribute("aria-valuetext", $("when").textContent);
}

function goTo(step) {
  at = step;
  show("with", at);
  show("without", at);
  showTime();
  showInside();
}

function showInside() {
  const inside = film.with[at]?.inside ?? {}, [from, to] = ["--sheet", "--edge"].map(themed);
  for (const row of $("inside").children) {
    const { name } = row.dataset;
    const silent = film.with.length && !inside[name];
    row.firstChild.textContent = named(name) + (silent ? ", which add nothing at this step" : "");
    [...row.querySelectorAll("figure")].forEach((figure, k) => {
      const [canvas, bar] = figure.children, residual = inside[name]?.[k];
      const size = residual?.size[sample] ?? 0;
      const { map, h, w } = residual ?? { map: [0], h: 1, w: 1 };
      const own = residual ? map.slice(sample * h * w, (sample + 1) * h * w) : map;
      paint(canvas, own, 1, h, w, (value) => from.map((v, c) => v + (to[c] - v) * value / 255));
      bar.firstChild.style.width = `${Math.min(100, 100 * size)}%`;
      const percent = (100 * size).toFixed(size && size < 0.1 ? 1 : 0);
      figure.querySelector("output").textContent = `${percent}%`;
      figure.classList.toggle("off", Boolean(residual) && !size);
    });
  }
}

function makeInside() {
  const one = (name, place) => {
    const input = element("input", {
      type: "checkbox", checked: true, role: "switch", onchange: () => redraw(),
      aria: { label: `${named(name)}, ${place}` } });
    return element("figure", {},
      element("canvas", { className: "pixels", aria: { hidden: true } }),
      element("div", { className: "bar" }, element("div")),
      element("figcaption", {}, element("label", {}, input, " ", place), element("output")));
  };
  $("inside").replaceChildren(...conditions().map((name) => (
    element("div", { dataset: { name }, className: "row" },
      element("h4", { textContent: named(name) }),
      ...model.places.map((place) => one(name, place))))));
}

function showSeen({ name, condition, C }) {
  const [, H, W] = model.shape;
  const canvas = element("canvas", {
    className: "pixels", role: "img", aria: { label: `${named(name)} of your drawing` } });
  paint(canvas, condition, C, H, W);
  const caption = element("figcaption", { textContent: named(name) });
  $("seen").append(element("figure", {}, canvas, caption));
}

function makeSamples(count) {
  const make = (_, k) => {
    const canvas = element("canvas", { className: "pixels" });
    const button = element("button", { aria: { label: `sample ${k + 1}` } }, canvas);
    button.onclick = () => { sample = k; press($("samples").children, button); goTo(at); };
    return button;
  };
  if ($("samples").childElementCount !== count)
    $("samples").replaceChildren(...Array.from({ length: count }, make));
  press($("samples").children, $("samples").children[sample]);
}

for (const button of document.querySelectorAll(".mini"))
  button.onclick = () => $("watch-card").scrollIntoView({ behavior: "smooth" });

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

function recipe() { // how the image that is shown was made
  const { controls, zeroed, prompt, model, seed, guidance, steps, samples } = wish;
  const parts = [`prompt: ${prompt || "none"}`, `model: ${model}`, `seed: ${seed}`,
    `guidance: ${guidance}`, `steps: ${steps}`, `sample: ${sample + 1} of ${samples}`];
  for (const [name, { scale, start, end, switches }] of Object.entries(controls)) {
    const on = switches.every(Boolean) ? "" : `, zero convolutions on: ${switches.join("")}`;
    parts.push(`strength of ${named(name)}: ${scale}, from ${start} to ${end}${on}`);
  }
  if (zeroed) parts.push("zero convolutions as before training");
  return [...parts, "made with minicnet"].join("; ");
}

for (const button of document.querySelectorAll(".save"))
  button.onclick = () => {
    const from = $(button.dataset.of);
    const large = element("canvas", { width: 8 * from.width, height: 8 * from.height });
    const context = large.getContext("2d");
    context.imageSmoothingEnabled = false;
    context.drawImage(from, 0, 0, large.width, large.height);
    large.toBlob(async (blob) => {
      const png = new Uint8Array(await blob.arrayBuffer());
      save(pngWithText(png, "Description", recipe()), `${button.dataset.of}-${at + 1}.png`);
    });
  };

// Each row of the GIF shows the conditions, x_t and x_0 of a sample, and its x_0 without the lines.
$("gif").onclick = () => {
  const [C, H, W] = model.shape, gap = 2;
  const seen = [...$("seen").querySelectorAll("canvas")].map((canvas) => (
    canvas.getContext("2d").getImageData(0, 0, W, H).data));
  const height = wish.samples * (H + gap), width = (seen.length + 3) * (W + gap);
  const frames = film.with.map((frame, step) => {
    const rgb = new Uint8Array(3 * width * height).fill(255);
    const place = (row, column, at) => {
      for (let i = 0; i < H * W; i++) {
        const y = row * (H + gap) + 1 + Math.floor(i / W), x = column * (W + gap) + 1 + i % W;
        for (let c = 0; c < 3; c++) rgb[3 * (y * width + x) + c] = at(i, c);
      }
    };
    for (let k = 0; k < wish.samples; k++) {
      seen.forEach((data, column) => place(k, column, (i, c) => data[4 * i + c]));
      [frame.x_t, frame.x_0, film.without[step].x_0].forEach((planes, column) => (
        place(k, seen.length + column, (i, c) => planes[(k * C + (C === 3 ? c : 0)) * H * W + i])));
    }
    return { rgb, width, height, delay: step === wish.steps - 1 ? 200 : 10 };
  });
  save(gif(frames, recipe()), "drawing.gif");
  status("The GIF is saved.");
};

// -- Links ----------------------------------------------------------------------------------------

const toLetters = (bytes) => btoa(String.fromCharCode(...bytes))
  .replace(/\+/g, "-").replace(/\//g, "_").replace(/=+$/, "");
const fromLetters = (text) => fromBase64(text.replace(/-/g, "+").replace(/_/g, "/"));

function packed(values, bits) { // bytes, of which the upper `bits` are kept, side by side
  const out = new Uint8Array(Math.ceil(values.length * bits / 8));
  values.forEach((value, i) => { out[i * bits >> 3] |= value >> 8 - bits << i * bits % 8; });
  return toLetters(out);
}

function unpacked(text, bits, count) {
  const bytes = fromLetters(text), most = 2 ** bits - 1;
  if (bytes.length !== Math.ceil(count * bits / 8)) throw Error();
  return Uint8Array.from({ length: count }, (_, i) => (
    Math.round((bytes[i * bits >> 3] >> i * bits % 8 & most) * 255 / most)));
}

const lineBits = () => (model.line === "depth" ? 4 : 1); // all other lines are drawn or not

function linkTo() { // the drawing, as the part of an address behind "#"
  const { prompt, guidance, steps, samples, seed, zeroed, controls } = makeWish();
  const parts = new URLSearchParams({ model: model.name, prompt, seed, guidance, steps, samples });
  if (zeroed) parts.set("zeroed", zeroed);
  for (const [name, { scale, start, end, switches }] of Object.entries(controls))
    parts.set(name, [scale, start, end, switches.join("")]);
  if (lines.some(Boolean)) parts.set("lines", packed(lines, lineBits()));
  if (ink.some(Boolean)) parts.set("ink", packed(ink, 8));
  if (palette) parts.set("palette", toLetters(palette));
  return `#${parts}`;
}

// Restore the drawing of a link. Returns whether the link holds one.
function follow(hash) {
  const parts = new URLSearchParams(hash.slice(1));
  const found = models.findIndex(({ name }) => name === parts.get("model"));
  if (found < 0) return false;
  choose(found, null);
  $("invitation").hidden = true;
  untouched = false;
  const [, H, W] = model.shape;
  try {
    if (parts.has("lines")) lines = unpacked(parts.get("lines"), lineBits(), H * W);
    if (parts.has("ink")) ink = unpacked(parts.get("ink"), 8, H * W);
    if (parts.has("palette") && model.nets.colour) palette = unpacked(parts.get("palette"), 8, 48);
  } catch {
    status("The link is incomplete, so only a part of the drawing is here.", true);
  }
  $("prompt").value = parts.get("prompt") ?? "";
  for (const [id, name] of Object.entries(
    { seed: "seed", guidance: "guidance", steps: "steps", count: "samples" }))
    if (parts.has(name)) $(id).value = parts.get(name);
  $("zeroed").checked = parts.has("zeroed");
  for (const row of $("controls").children) {
    const [scale, start, end, switches] = (parts.get(row.dataset.name) ?? "").split(",");
    const inputs = row.querySelectorAll("input");
    [scale, start, end].forEach((value, i) => { if (value) inputs[i].value = value; });
    if (+inputs[1].value >= +inputs[2].value) [inputs[1].value, inputs[2].value] = [0, 1];
    const boxes = $("inside").querySelectorAll(`[data-name="${row.dataset.name}"] input`);
    boxes.forEach((box, k) => { box.checked = switches?.[k] !== "0"; });
  }
  showSettings();
  showChips();
  redraw(0);
  return true;
}

$("link").onclick = async () => {
  const link = linkTo();
  own = link;
  location.hash = link;
  try {
    await navigator.clipboard.writeText(location.href);
    status("The link is copied. It opens this page with this drawing.");
  } catch {
    status("The address of this page is now a link to this drawing: copy it from there.");
  }
};
let own = ""; // the link that this page set itself
onhashchange = () => { if (location.hash !== own) follow(location.hash); };

// -- Settings -------------------------------------------------------------------------------------

function slider(label, name, max, value) {
  const input = element("input", { type: "range", name, min: 0, max, step: 0.05, value });
  return element("label", {}, label, " ", element("span", { className: "value" }), input);
}

function makeControls() {
  $("controls").replaceChildren(...conditions().map((name) => {
    const row = element("div", { dataset: { name }, className: "row" },
      slider(`Strength of ${named(name)}`, "scale", 2, 1), slider("start", "start", 1, 0),
      slider("end", "end", 1, 1));
    const [, start, end] = row.querySelectorAll("input");
    start.oninput = () => { start.value = Math.min(start.value, end.value - 0.05); };
    end.oninput = () => { end.value = Math.max(end.value, +start.value + 0.05); };
    return row;
  }));
  showSettings();
}

function showSettings() {
  for (const input of document.querySelectorAll("#settings input[type=range], #controls input")) {
    const fraction = input.name === "start" || input.name === "end";
    input.parentNode.querySelector(".value").textContent =
      fraction ? `${Math.round(100 * input.value)}%` : input.value;
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

// -- Models ---------------------------------------------------------------------------------------

const opened = new Set();

function present(index) { // a model, before its network is needed
  model = models[index];
  press($("models").children, $("models").children[index]);
  const [, H, W] = model.shape;
  [ink, lines, palette, past, sample] = [new Uint8Array(H * W), new Uint8Array(H * W), null, [], 0];
  for (const id of ["sheet", "tools", "widths", "clear"]) $(id).hidden = !model.line;
  $("palette").hidden = !model.nets.colour;
  makeChips();
  makeControls();
  makeInside();
  stale(true);
}

function choose(index, n = START) { // n: the example to begin with, or null
  cancel();
  present(index);
  const weights = document.querySelectorAll(".weights")[index];
  const text = opened.has(index) ? null : weights.textContent;
  ask({ kind: "open", about: model, text }).catch(complain);
  opened.add(index);
  if (n === null) return;
  example(n);
  past = [];
}

// Show what the page is about while the weights are still being read: lines, and noise.
function firstPaint() {
  present(0);
  const [C, H, W] = model.shape, first = model.examples[START % model.examples.length];
  if (first) {
    lines = fromBase64(first.lines);
    $("prompt").value = first.prompt;
    showChips();
  }
  showSheet();
  const noise = Uint8Array.from({ length: C * H * W }, () => 256 * Math.random());
  for (const canvas of document.querySelectorAll("#pictures canvas, .mini canvas"))
    paint(canvas, noise, C, H, W);
  showInside();
}

$("swatches").append(...Object.keys(colours).map((name) => {
  const swatch = dot(name, name);
  swatch.onclick = () => { brush = name; press($("swatches").children, swatch); };
  return swatch;
}));
press($("swatches").children, $("swatches").children[1]);
$("models").append(...models.map(({ name }, index) => (
  element("button", { textContent: name, onclick: () => choose(index) }))));
matchMedia("(prefers-color-scheme: dark)").onchange = () => { showSheet(); showInside(); };

firstPaint();

document.addEventListener("DOMContentLoaded", () => { // by then the weights are here
  const { vocabulary, length } = HEADER;
  const shapes = models.flatMap(({ nets }) => Object.values(nets).flat());
  const floats = shapes.reduce((sum, [, shape]) => sum + shape.reduce((a, b) => a * b, 1), 0);
  ask({ kind: "start", header: { vocabulary, length }, floats }).then(({ simd }) => {
    if (!simd) status("This browser has no WebAssembly SIMD, so drawing is slow.", true);
  }).catch(complain);
  if (!follow(location.hash)) choose(0);
});
