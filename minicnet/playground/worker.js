// The worker draws in a thread of its own, so that the page always answers. The page sends messages
// {id, kind, ...}, and every answer carries the id of its message. A newer message of kind "draw",
// "example" or "stop" ends the drawing before it within one step.
"use strict";

let header, model, current = 0, known = { key: "", frames: [] }; // the last drawing without control
const models = {};
const imageBytes = (x) => bytes(x.data, 127.5, 127.5); // [-1, 1] -> 0 .. 255
const fromBytes = (values, C, H, W) => picture(C, H, W, Float64Array.from(values, (v) => v / 255));

function bytes(values, scale = 255, shift = 0) {
  const out = new Uint8ClampedArray(values.length);
  for (let i = 0; i < out.length; i++) out[i] = scale * values[i] + shift;
  return out;
}

// -- Models ---------------------------------------------------------------------------------------

// Decode the weights of a model, in half precision and base64, into the kernel's memory.
function decoded(text) {
  const letters = atob(text), data = new Uint8Array(letters.length);
  for (let i = 0; i < data.length; i++) data[i] = letters.charCodeAt(i);
  const half = new Uint16Array(data.buffer), weights = keep(half.length);
  const bits = new Uint32Array(weights.buffer, weights.byteOffset, half.length);
  for (let i = 0; i < half.length; i++) {
    bits[i] = (half[i] & 0x7fff) << 13 | (half[i] & 0x8000) << 16;
    weights[i] *= 2 ** 112; // because the exponents of the two formats start at -15 and at -127
  }
  return weights;
}

function opened(about, text) {
  const weights = decoded(text), states = {};
  let at = 0;
  for (const [name, tensors] of Object.entries(about.nets)) {
    states[name] = {};
    for (const [key, shape] of tensors) {
      const size = shape.reduce((a, b) => a * b, 1);
      states[name][key] = new Tensor(shape, weights.subarray(at, at += size));
    }
  }
  const { base, ...controls } = states, { settings } = about, nets = {}, zeroed = {};
  for (const [name, state] of Object.entries(controls)) {
    nets[name] = new ControlNet(nested(state), settings);
    zeroed[name] = new ControlNet(nested(atItsStart(state)), settings);
  }
  const unet = new UNet(nested(base), settings, NoiseSchedule.cosine(about.T));
  return { ...about, unet, nets, zeroed };
}

// -- Conditions -----------------------------------------------------------------------------------

// The condition called `name` of a drawing, or null if nothing is drawn. ink, lines: H x W bytes;
// palette: 4 x 4 x 3 bytes, or null.
function conditionOf(name, { ink, lines, palette }) {
  const [C, H, W] = model.shape;
  if (name === "colour") {
    if (!palette) return null;
    const cells = filled(3, { H: 4, W: 4 }, (c, i, j) => palette[3 * (4 * i + j) + c] / 255);
    return colourMap(C === 3 ? cells : gray(cells), H, W);
  }
  const found = ink.some(Boolean) ? CONDITIONS[name](fromBytes(ink, 1, H, W)) : picture(1, H, W);
  const drawn = name === "depth" ? (value) => value / 255 : (value) => value > 127;
  const both = found.data.map((value, k) => Math.max(value, drawn(lines[k])));
  const condition = picture(1, H, W, both);
  return condition.data.some(Boolean) ? condition : null;
}

// The lines and the palette of an image.
function foundIn(image) {
  const cells = means(image), value = (c, k) => cells.data[(image.C === 3 ? c : 0) * 16 + k];
  const { data } = model.line ? CONDITIONS[model.line](image) : picture(1, image.H, image.W);
  const palette = Array.from({ length: 48 }, (_, i) => value(i % 3, Math.floor(i / 3)));
  return { lines: bytes(data), palette: bytes(palette) };
}

// data: red, green, blue and opacity of each pixel.
function foundInPicture({ data, width, height }) {
  const [C, H, W] = model.shape, size = { H: height, W: width };
  const colours = filled(3, size, (c, y, x) => data[4 * (y * width + x) + c] / 255);
  const found = foundIn(shrunk(C === 1 ? gray(colours) : colours, H, W));
  if (model.line && !found.lines.some(Boolean))
    throw Error("No edges were found in this picture. Try one with more contrast.");
  return found;
}

// Make an example for a model that comes with none: what its base draws without control.
async function drawnExample(id, n) {
  const prompt = model.prompts[n % model.prompts.length], [C, H, W] = model.shape;
  const x_0 = await generate(model.unet, tokens(prompt), seededNoise([1, C, H, W], n), [],
    { guidance: 2, steps: 20, hook: () => pause(id) });
  return { prompt, ...foundIn(picture(C, H, W, Float64Array.from(x_0.data, (v) => (v + 1) / 2))) };
}

const tokens = (prompt) => tokenize(prompt, header.vocabulary, header.length);

// -- Drawing --------------------------------------------------------------------------------------

const channel = new MessageChannel(), resting = []; // timers would wait for 4 ms
channel.port1.onmessage = () => resting.shift()();

// Let newer messages in, and end this drawing if one of them replaces it.
async function pause(id) {
  await new Promise((resolve) => {
    resting.push(resolve);
    channel.port2.postMessage(0);
  });
  if (current !== id) throw "stopped";
}

async function draw(id, wish) {
  const { samples, steps, guidance, seed, prompt } = wish, [C, H, W] = model.shape;
  const numbers = tokens(prompt), controls = [], names = [];
  for (const [name, settings] of Object.entries(wish.controls)) {
    const condition = conditionOf(name, wish);
    if (!condition) continue; // where nothing is drawn, nothing is added
    const batch = new Tensor([samples, condition.C, H, W]);
    for (let b = 0; b < samples; b++) batch.image(b).set(condition.data);
    const nets = wish.zeroed ? model.zeroed : model.nets;
    controls.push({ net: nets[name], condition: batch, ...settings });
    names.push(name);
    send(id, { kind: "seen", name, C: condition.C, condition: bytes(condition.data) });
  }
  const key = JSON.stringify([model.name, numbers, samples, guidance, steps, seed]);
  const twin = known.key === key ? known.frames : [];
  const tell = (side, step, { t, x_t, x_0, inside }) => (
    send(id, { kind: "frame", side, step, t, x_t, x_0, inside }));

  const film = async (side, own) => {
    const frames = [];
    let inside;
    const observe = (residuals, features) => {
      inside = {};
      names.forEach((name, i) => {
        if (!residuals[i]) return;
        const { switches, scale } = controls[i], { skips, middle } = residuals[i];
        inside[name] = [...skips, middle].map((x, k) => (
          compared(x, switches[k] * scale, features[k])));
      });
    };
    const hook = async (t, x_t, x_0) => {
      const step = frames.length, frame = { t, x_t: imageBytes(x_t), x_0: imageBytes(x_0) };
      frames.push({ ...frame, exact: [x_t.data, x_0.data] });
      if (side === "with" && twin[step]) tell("without", step, twin[step]);
      tell(side, step, { ...frame, inside });
      await pause(id);
    };
    const x_T = seededNoise([samples, C, H, W], seed), options = { guidance, steps, hook };
    if (side === "with") options.observe = observe;
    await generate(model.unet, numbers, x_T, own, options);
    return frames;
  };

  const frames = await film("with", controls);
  const without = twin.length ? twin : await film("without", []);
  known = { key, frames: without };
  const identical = frames.every(({ exact }, i) => exact.every((values, k) => (
    values.every((value, j) => value === without[i].exact[k][j]))));
  return { identical };
}

// What a zero convolution adds. size: for each image, the norm of the scaled residual relative to
// that of the feature. map: where, as the mean magnitude of the residual over the channels, (B, h,
// w), 255 where it is largest.
function compared(residual, scale, feature) {
  const [B, C, h, w] = residual.shape, map = new Uint8ClampedArray(B * h * w), size = [];
  const norm = (values) => Math.sqrt(values.reduce((sum, value) => sum + value * value, 0));
  for (let b = 0; b < B; b++) {
    const where = new Float64Array(h * w);
    residual.image(b).forEach((value, i) => { where[i % (h * w)] += Math.abs(value); });
    const largest = Math.max(...where, 1e-12);
    where.forEach((value, k) => { map[b * h * w + k] = 255 * value / largest; });
    size.push(scale * norm(residual.image(b)) / norm(feature.image(b)));
  }
  return { size, map, h, w };
}

// -- Messages -------------------------------------------------------------------------------------

let send = (id, message) => self.postMessage({ id, ...message });

const ANSWERS = {
  start(message) {
    ({ header } = message);
    return { simd: prepare(message.floats) };
  },
  open({ about, text }) {
    if (text) models[about.name] = opened(about, text);
    model = models[about.name];
  },
  stop() {},
  find: ({ pixels }) => foundInPicture(pixels),
  example: ({ id, n }) => drawnExample(id, n),
  draw: ({ id, wish }) => draw(id, wish),
};

if (typeof self !== "undefined")
  self.onmessage = async ({ data: message }) => {
    if (["draw", "example", "stop"].includes(message.kind)) current = message.id;
    try {
      send(message.id, { kind: "done", ...await ANSWERS[message.kind](message) });
    } catch (error) {
      if (error === "stopped") send(message.id, { kind: "stopped" });
      else send(message.id, { kind: "failed", sentence: error.message });
    }
  };
