// Tensors, and the layers that the networks are made of: the part of torch that minicnet needs.
//
// Feature maps are (B, C, H, W), as in Python. Vectors stand in columns, (B, C, N), so that a
// linear layer is a 1x1 convolution; in Python they are (B, N, C). A single vector for each image,
// such as emb, is (B, C, 1).
"use strict";

class Tensor {
  constructor(shape, data = new Float32Array(shape.reduce((a, b) => a * b, 1))) {
    Object.assign(this, { shape, data });
  }

  get size() { // values in one image
    return this.data.length / this.shape[0];
  }

  // The values of image b, which share memory with the tensor.
  image(b) {
    return this.data.subarray(b * this.size, (b + 1) * this.size);
  }

  map(f) {
    return new Tensor(this.shape, this.data.map(f));
  }
}

const zerosLike = (x) => new Tensor(x.shape);

// a x + b y, for tensors of one shape and numbers a and b.
function combine(a, x, b, y) {
  const out = zerosLike(x), [from, other, to] = [x.data, y.data, out.data];
  for (let i = 0; i < to.length; i++) to[i] = a * from[i] + b * other[i];
  return out;
}

// x + y. y may be (B, C, 1), and is then the same at every location.
function add(x, y) {
  const out = zerosLike(x), [from, other, to] = [x.data, y.data, out.data];
  const repeat = from.length / other.length;
  if (repeat === 1) for (let i = 0; i < to.length; i++) to[i] = from[i] + other[i];
  else for (let i = 0, k = 0; k < other.length; k++)
    for (const value = other[k], end = i + repeat; i < end; i++) to[i] = from[i] + value;
  return out;
}

// Concatenate along the channels.
function cat(x, y) {
  const out = new Tensor([x.shape[0], x.shape[1] + y.shape[1], ...x.shape.slice(2)]);
  for (let b = 0; b < x.shape[0]; b++) {
    out.image(b).set(x.image(b));
    out.image(b).set(y.image(b), x.size);
  }
  return out;
}

// Split the channels into n equal parts.
function chunk(x, n) {
  const [B, C, ...rest] = x.shape;
  return Array.from({ length: n }, (_, k) => {
    const part = new Tensor([B, C / n, ...rest]);
    for (let b = 0; b < B; b++)
      part.image(b).set(x.image(b).subarray(k * part.size, (k + 1) * part.size));
    return part;
  });
}

// x / (1 + exp(-x)), in place: the networks apply it to new tensors only.
function silu(x) {
  const { data } = x;
  for (let i = 0; i < data.length; i++) data[i] /= 1 + Math.exp(-data[i]);
  return x;
}

// The layers. Each takes its entry of the state dict, and returns a function of a tensor.

// (B, C_in, ...) -> (B, C_out, ...): mix the channels, alike at every location.
function Linear({ weight, bias }) {
  const M = weight.shape[0], K = weight.data.length / M;
  return (x) => {
    const [B, , ...rest] = x.shape, y = new Tensor([B, M, ...rest]);
    for (let b = 0; b < B; b++)
      y.image(b).set(matmul(weight.data, x.image(b), M, K, x.size / K, bias.data));
    return y;
  };
}

// A convolution with an odd kernel, padded so that stride 1 keeps height and width. weight: (C_out,
// size, size, C_in), in an order that suits im2col; in Python it is (C_out, C_in, size, size).
function Conv2d({ weight, bias }, stride = 1) {
  const [M, size, , C] = weight.shape;
  if (size === 1) return Linear({ weight, bias });
  return (x) => {
    const [B, , H, W] = x.shape, h = Math.ceil(H / stride), w = Math.ceil(W / stride);
    const y = new Tensor([B, M, h, w]);
    for (let b = 0; b < B; b++) {
      const columns = im2col(x.image(b), C, H, W, size, stride);
      y.image(b).set(matmul(weight.data, columns, M, size * size * C, h * w, bias.data));
    }
    return y;
  };
}

// Write the pixels around each location into a column: (C, H, W) -> (size size C, h w). For each
// offset (dy, dx), this copies the whole map, shifted by the offset, and then clears what came from
// beyond its borders.
function im2col(x, C, H, W, size, stride) {
  const n = H * W, columns = heap.subarray(0, size * size * C * n), radius = size >> 1;
  for (let dy = -radius, start = 0; dy <= radius; dy++)
    for (let dx = -radius; dx <= radius; dx++, start += C * n) {
      const shift = dy * W + dx;
      const inside = x.subarray(Math.max(0, shift), C * n + Math.min(0, shift));
      columns.set(inside, start + Math.max(0, -shift));
      for (let map = start; map < start + C * n; map += n) {
        if (dy) columns.fill(0, dy < 0 ? map : map + n - dy * W, dy < 0 ? map - dy * W : map + n);
        for (let k = 0; k < Math.abs(dx); k++)
          for (let i = dx < 0 ? map + k : map + W - 1 - k; i < map + n; i += W) columns[i] = 0;
      }
    }
  return stride === 1 ? columns : strided(columns, size * size * C, H, W, stride);
}

// Keep every stride-th row and column of the locations, in place.
function strided(columns, K, H, W, stride) {
  let at = 0;
  for (let k = 0; k < K; k++)
    for (let y = 0; y < H; y += stride)
      for (let x = 0; x < W; x += stride) columns[at++] = columns[(k * H + y) * W + x];
  return columns.subarray(0, at);
}

// Give each group of channels mean 0 and variance 1, then scale and shift each channel.
function GroupNorm(groups, { weight, bias }) {
  return (x) => {
    const C = x.shape[1], N = x.size / C, each = x.size / groups; // values in a group
    const y = zerosLike(x), [from, to] = [x.data, y.data];
    for (let start = 0; start < from.length; start += each) {
      const group = start / each % groups;
      let sum = 0, squares = 0;
      for (let i = start; i < start + each; i++) sum += from[i];
      const mean = sum / each;
      for (let i = start; i < start + each; i++) squares += (from[i] - mean) ** 2;
      const scale = 1 / Math.sqrt(squares / each + 1e-5);
      for (let c = group * C / groups, i = start; c < (group + 1) * C / groups; c++) {
        const a = weight.data[c] * scale, b = bias.data[c] - mean * a;
        for (const end = i + N; i < end; i++) to[i] = a * from[i] + b;
      }
    }
    return y;
  };
}

// Give each column of (B, C, N) mean 0 and variance 1, then scale and shift each channel.
function LayerNorm({ weight, bias }) {
  return (x) => {
    const [B, C, N] = x.shape, y = zerosLike(x);
    for (let b = 0; b < B; b++)
      for (let n = 0; n < N; n++) {
        const from = x.image(b), to = y.image(b);
        let mean = 0, variance = 0;
        for (let c = 0; c < C; c++) mean += from[c * N + n] / C;
        for (let c = 0; c < C; c++) variance += (from[c * N + n] - mean) ** 2 / C;
        const scale = 1 / Math.sqrt(variance + 1e-5);
        for (let c = 0; c < C; c++)
          to[c * N + n] = (from[c * N + n] - mean) * scale * weight.data[c] + bias.data[c];
      }
    return y;
  };
}

// (B, C, H p, W p) -> (B, C p p, H, W): fold patches of pixels into channels.
function pixelUnshuffle(x, p) {
  const [B, C, H, W] = x.shape, out = new Tensor([B, C * p * p, H / p, W / p]);
  shuffle(p, B * C, H, W, (pixel, folded) => { out.data[folded] = x.data[pixel]; });
  return out;
}

// (B, C p p, H, W) -> (B, C, H p, W p), the inverse.
function pixelShuffle(x, p) {
  const [B, C, H, W] = x.shape, out = new Tensor([B, C / p / p, H * p, W * p]);
  const [, maps, height, width] = out.shape;
  shuffle(p, B * maps, height, width, (pixel, folded) => { out.data[pixel] = x.data[folded]; });
  return out;
}

// Call move(pixel, folded) for the indices of each value before and after folding.
function shuffle(p, maps, H, W, move) {
  for (let c = 0, pixel = 0; c < maps; c++)
    for (let i = 0; i < H; i++)
      for (let j = 0; j < W; j++, pixel++) {
        const map = (c * p + i % p) * p + j % p, [y, x] = [Math.floor(i / p), Math.floor(j / p)];
        move(pixel, (map * (H / p) + y) * (W / p) + x);
      }
}

// Repeat each pixel: (B, C, H, W) -> (B, C, 2H, 2W).
function upsampled(x) {
  const [B, C, H, W] = x.shape, out = new Tensor([B, C, 2 * H, 2 * W]);
  for (let i = 0, at = 0; i < B * C * 2 * H; i++)
    for (let j = 0; j < 2 * W; j++, at++) out.data[at] = x.data[(i >> 1) * W + (j >> 1)];
  return out;
}

// Turn {"encoder.conv_in.weight": tensor, ...} into a tree, {encoder: {conv_in: {weight: tensor}}}.
function nested(stateDict) {
  const tree = {};
  for (const [key, tensor] of Object.entries(stateDict)) {
    const path = key.split("."), last = path.pop();
    path.reduce((node, name) => node[name] ??= {}, tree)[last] = tensor;
  }
  return tree;
}
