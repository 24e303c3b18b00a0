// Conditions, computed from images: conditions.py, and what of pictures.py a page needs.
//
// An image here is {data, C, H, W} with C planes of values in [0, 1].
"use strict";

const picture = (C, H, W, data = new Float64Array(C * H * W)) => ({ data, C, H, W });

// A picture of the same size with C planes, whose value at (c, y, x) is f(c, y, x).
function filled(C, { H, W }, f) {
  const out = picture(C, H, W);
  for (let c = 0, i = 0; c < C; c++)
    for (let y = 0; y < H; y++)
      for (let x = 0; x < W; x++, i++) out.data[i] = f(c, y, x);
  return out;
}

const clamp = (value, low, high) => Math.min(high, Math.max(low, value));

// Correlate with an odd number of taps along x or y. Outside, the border pixel is repeated.
function filter(image, taps, along) {
  const { data, H, W } = image, radius = taps.length >> 1;
  return filled(image.C, image, (c, y, x) => taps.reduce((sum, tap, i) => {
    const v = along === "y" ? clamp(y + i - radius, 0, H - 1) : y;
    const u = along === "x" ? clamp(x + i - radius, 0, W - 1) : x;
    return sum + tap * data[(c * H + v) * W + u];
  }, 0));
}

// Canny edges: thin lines where brightness jumps. Each pixel of a colour image uses the channel in
// which its slope is steepest.
function canny(image, low = 0.05, high = 0.1, sigma = 0.8) {
  const { C, H, W } = image, radius = Math.ceil(3 * sigma);
  const difference = [-0.5, 0, 0.5], smooth = [0.25, 0.5, 0.25];
  const bell = Array.from(
    { length: 2 * radius + 1 }, (_, i) => Math.exp(-0.5 * ((i - radius) / sigma) ** 2));
  const taps = bell.map((tap) => tap / bell.reduce((a, b) => a + b));
  const blurred = filter(filter(image, taps, "y"), taps, "x");
  const slopeX = filter(filter(blurred, smooth, "y"), difference, "x").data;
  const slopeY = filter(filter(blurred, difference, "y"), smooth, "x").data;

  const steepest = new Float64Array(H * W), at = new Int32Array(H * W); // and in which channel
  for (let i = 0; i < C * H * W; i++) {
    const steep = Math.hypot(slopeX[i], slopeY[i]), k = i % (H * W);
    if (i < H * W || steep > steepest[k]) [steepest[k], at[k]] = [steep, i];
  }
  const ridge = ridges(steepest, at.length, H, W, (k) => [slopeX[at[k]], slopeY[at[k]]]);
  const edges = picture(1, H, W);
  const strong = [...ridge].flatMap((on, k) => (on && steepest[k] > high ? [k] : []));
  while (strong.length) { // hysteresis: lines go on as long as they exceed `low`
    const k = strong.pop(), y = Math.floor(k / W), x = k % W;
    if (edges.data[k]) continue;
    edges.data[k] = 1;
    for (let v = Math.max(0, y - 1); v <= Math.min(H - 1, y + 1); v++)
      for (let u = Math.max(0, x - 1); u <= Math.min(W - 1, x + 1); u++)
        if (ridge[v * W + u] && steepest[v * W + u] > low) strong.push(v * W + u);
  }
  return edges;
}

// Non-maximum suppression: 1 where a pixel is steeper than both neighbours along its slope. Ties
// follow the rule of conditions.py.
function ridges(steep, count, H, W, slopeAt, tie = 1e-6) {
  const tan = Math.SQRT2 - 1, ridge = new Uint8Array(count);
  const value = (y, x) => (y < 0 || x < 0 || y >= H || x >= W ? 0 : steep[y * W + x]);
  for (let y = 0, k = 0; y < H; y++)
    for (let x = 0; x < W; x++, k++) {
      const [sx, sy] = slopeAt(k);
      const across = Math.abs(sy) < tan * Math.abs(sx), down = Math.abs(sx) < tan * Math.abs(sy);
      const [dy, dx] = across ? [0, 1] : down ? [1, 0] : sx * sy > 0 ? [1, 1] : [1, -1];
      const before = value(y - dy, x - dx), after = value(y + dy, x + dx);
      const beyond = dy && dx ? steep[k] - tie > after : steep[k] + tie >= after;
      ridge[k] = steep[k] - tie > before && beyond;
    }
  return ridge;
}

// The means over a grid of 4 x 4 cells: (C, 4, 4).
function means({ data, C, H, W }) {
  return filled(C, { H: 4, W: 4 }, (c, i, j) => {
    let sum = 0, count = 0;
    for (let y = Math.floor(i * H / 4); y < Math.ceil((i + 1) * H / 4); y++)
      for (let x = Math.floor(j * W / 4); x < Math.ceil((j + 1) * W / 4); x++, count++)
        sum += data[(c * H + y) * W + x];
    return sum / count;
  });
}

// Such means, interpolated to H x W: the condition "colour".
function colourMap({ data, C }, H, W) {
  const near = (i, size) => { // the two cells around a pixel, and the weight of the second
    const place = Math.max(0, (i + 0.5) * 4 / size - 0.5), first = Math.min(3, Math.floor(place));
    return [first, Math.min(3, first + 1), place - first];
  };
  return filled(C, { H, W }, (c, y, x) => {
    const [top, bottom, v] = near(y, H), [left, right, u] = near(x, W);
    const cell = (i, j) => data[(c * 4 + i) * 4 + j];
    return (1 - v) * ((1 - u) * cell(top, left) + u * cell(top, right))
      + v * ((1 - u) * cell(bottom, left) + u * cell(bottom, right));
  });
}

const colour = (image) => colourMap(means(image), image.H, image.W);

// The foreground: the pixels whose difference from the border's median colour is more than half of
// the largest difference.
function mask({ data, C, H, W }, faint = 0.02) {
  const paper = Array.from({ length: C }, (_, c) => {
    const border = [], value = (y, x) => data[(c * H + y) * W + x];
    for (let x = 0; x < W; x++) border.push(value(0, x), value(H - 1, x));
    for (let y = 0; y < H; y++) border.push(value(y, 0), value(y, W - 1));
    return border.sort((a, b) => a - b)[(border.length - 1) >> 1];
  });
  const difference = filled(1, { H, W }, (_, y, x) => Math.hypot(
    ...paper.map((value, c) => data[(c * H + y) * W + x] - value)));
  const half = 0.50001 * Math.max(...difference.data);
  return picture(1, H, W, difference.data.map((value) => value > half && value > faint));
}

// A relief of the foreground: the distance to the background, at most `relief` pixels.
function depth(image, relief = 4) {
  const { data, H, W } = mask(image);
  return filled(1, image, (_, y, x) => {
    let nearest = Infinity;
    for (let k = 0; k < H * W; k++)
      if (!data[k]) nearest = Math.min(nearest, Math.hypot(y - Math.floor(k / W), x - k % W));
    return Math.min(1, nearest / relief);
  });
}

// What a hand might scribble: thick edges that waver and break.
function scribble(image) {
  const edges = canny(image).data, { H, W } = image;
  let sum = 0, count = 0;
  edges.forEach((on, k) => { if (on) { sum += Math.floor(k / W) + k % W; count++; } });
  const phase = 3 * sum / Math.max(1, count);
  const wave = (position, period) => Math.sin(2 * Math.PI * position / period + phase);
  const on = (y, x) => (y < H && x < W ? edges[y * W + x] : 0);
  return filled(1, image, (_, y, x) => {
    const v = clamp(roundHalfEven(y + wave(x, 29)), 0, H - 1);
    const u = clamp(roundHalfEven(x + wave(y, 31)), 0, W - 1);
    const broken = wave(x + y, 9) * wave(x - y, 13) > 0.6;
    return broken ? 0 : Math.max(on(v, u), on(v, u + 1), on(v + 1, u), on(v + 1, u + 1));
  });
}

const CONDITIONS = { canny, colour, mask, depth, scribble };

// Pad a picture to a square, repeating its border, and shrink it to H x W with antialiasing: as in
// pictures.py.
function shrunk(image, H, W) {
  const side = Math.max(image.H, image.W);
  const top = (side - image.H) >> 1, left = (side - image.W) >> 1;
  const weights = (size) => Array.from({ length: size }, (_, i) => {
    const scale = side / size, support = Math.max(1, scale), centre = scale * (i + 0.5);
    const first = Math.max(0, Math.floor(centre - support + 0.5));
    const last = Math.min(side, Math.floor(centre + support + 0.5));
    const taps = Array.from({ length: last - first }, (_, j) => (
      Math.max(0, 1 - Math.abs(first + j - centre + 0.5) / support)));
    const sum = taps.reduce((a, b) => a + b);
    return [first, taps.map((tap) => tap / sum)];
  });
  const rows = weights(H), columns = weights(W);
  const narrow = filled(image.C, { H: image.H, W }, (c, y, x) => {
    const [first, taps] = columns[x], row = (c * image.H + y) * image.W;
    return taps.reduce((sum, tap, j) => (
      sum + tap * image.data[row + clamp(first + j - left, 0, image.W - 1)]), 0);
  });
  return filled(image.C, { H, W }, (c, y, x) => {
    const [first, taps] = rows[y];
    const row = (i) => c * image.H + clamp(first + i - top, 0, image.H - 1);
    return clamp(taps.reduce((sum, tap, i) => sum + tap * narrow.data[row(i) * W + x], 0), 0, 1);
  });
}

// The mean over the channels.
const gray = (image) => filled(1, image, (_, y, x) => {
  let sum = 0;
  for (let c = 0; c < image.C; c++) sum += image.data[(c * image.H + y) * image.W + x];
  return sum / image.C;
});
