// The diffusion process, and how noise becomes an image: diffusion.py and sampling.py.
"use strict";

class NoiseSchedule {
  constructor(alpha_bar) {
    Object.assign(this, { alpha_bar, T: alpha_bar.length });
    this.sqrt_alpha_bar = alpha_bar.map(Math.sqrt);
    this.sqrt_one_minus_alpha_bar = alpha_bar.map((value) => Math.sqrt(1 - value));
  }

  // alpha_bar falls like a squared cosine; no step removes more than 0.999 of the variance.
  static cosine(T, s = 0.008) {
    const exact = (t) => Math.cos((t / T + s) / (1 + s) * Math.PI / 2) ** 2, alpha_bar = [];
    for (let t = 0, product = 1; t < T; t++)
      alpha_bar.push(product *= 1 - Math.min(0.999, 1 - exact(t + 1) / exact(t)));
    return new NoiseSchedule(alpha_bar);
  }

  predict_x0(x_t, eps, t) {
    const signal = this.sqrt_alpha_bar[t], noise = this.sqrt_one_minus_alpha_bar[t];
    return combine(1 / signal, x_t, -noise / signal, eps);
  }

  predict_eps(x_t, v, t) {
    return combine(this.sqrt_one_minus_alpha_bar[t], x_t, this.sqrt_alpha_bar[t], v);
  }
}

// Classifier-free guidance: eps_uncond + w (eps_cond - eps_uncond).
function guided(epsCond, epsUncond, w) {
  if (w === 1) return epsCond;
  if (w === 0) return epsUncond;
  return (x_t, t) => combine(1 - w, epsUncond(x_t, t), w, epsCond(x_t, t));
}

// DDIM, eta = 0: `steps` of the T timesteps, spread evenly from T-1 to 0. hook(t, x_t, x_0) is
// awaited at each step, and an error that it throws ends the drawing.
async function sampleDdim(epsModel, schedule, x_T, steps, hook = () => {}) {
  const { T, alpha_bar } = schedule, times = ddimTimes(T, steps);
  let x_t = x_T;
  for (const [i, t] of times.entries()) {
    const x_0 = schedule.predict_x0(x_t, epsModel(x_t, Array(x_t.shape[0]).fill(t)), t)
      .map((value) => Math.min(1, Math.max(-1, value)));
    await hook(t, x_t, x_0);
    if (i === steps - 1) return x_0;
    const noise = schedule.sqrt_one_minus_alpha_bar[t], previous = alpha_bar[times[i + 1]];
    // The noise that belongs to the clipped x_0, by Eq. 4.
    const eps = combine(1 / noise, x_t, -schedule.sqrt_alpha_bar[t] / noise, x_0);
    x_t = combine(Math.sqrt(previous), x_0, Math.sqrt(1 - previous), eps);
  }
}

// `steps` timesteps from T-1 to 0, equal to torch.linspace(T - 1, 0, steps).round(), which computes
// in float32 from both ends to the middle, and rounds halves to the even neighbour.
function ddimTimes(T, steps) {
  const { fround } = Math, half = Math.floor(steps / 2), step = fround((1 - T) / (steps - 1));
  return steps === 1 ? [T - 1] : Array.from({ length: steps }, (_, i) => roundHalfEven(
    i < half ? fround(T - 1 + step * i) : fround(-step * (steps - 1 - i))));
}

function roundHalfEven(x) {
  const near = Math.round(x);
  return x - Math.floor(x) === 0.5 && near % 2 ? near - 1 : near;
}

// Images from noise x_T, under one prompt and any number of controls (sampling.py). prompt: tokens.
function generate(unet, prompt, x_T, controls, { guidance, steps, hook, observe }) {
  const rows = (tokens) => Array(x_T.shape[0]).fill(tokens);
  const epsCond = controlled(unet, rows(prompt), controls, observe);
  const epsUncond = controlled(unet, rows(prompt.map(() => 0)), controls);
  return sampleDdim(guided(epsCond, epsUncond, guidance), unet.schedule, x_T, steps, hook);
}

// N(0, I) of a shape with at least 16 values. Up to rounding it equals torch.randn with a generator
// of this seed: a Mersenne Twister, then Box-Muller on blocks of 16 values. So a seed on the page
// draws what it draws in Python.
function seededNoise(shape, seed) {
  const state = new Uint32Array(624), noise = new Tensor(shape), { data } = noise;
  state[0] = seed;
  for (let i = 1; i < 624; i++)
    state[i] = Math.imul(1812433253, state[i - 1] ^ state[i - 1] >>> 30) + i;
  let at = 624;
  const uniform = () => { // in [0, 1), with 24 bits
    if (at === 624) {
      for (let i = 0; i < 624; i++) {
        const y = state[i] & 0x80000000 | state[(i + 1) % 624] & 0x7fffffff;
        state[i] = state[(i + 397) % 624] ^ y >>> 1 ^ (y & 1 ? 0x9908b0df : 0);
      }
      at = 0;
    }
    let y = state[at++];
    y ^= y >>> 11;
    y ^= y << 7 & 0x9d2c5680;
    y ^= y << 15 & 0xefc60000;
    y ^= y >>> 18;
    return (y & 0xffffff) / 2 ** 24;
  };
  const normal = (start) => {
    for (let i = start; i < start + 8; i++) {
      const radius = Math.sqrt(-2 * Math.log(1 - data[i])), angle = 2 * Math.PI * data[i + 8];
      data[i] = radius * Math.cos(angle);
      data[i + 8] = radius * Math.sin(angle);
    }
  };
  for (let i = 0; i < data.length; i++) data[i] = uniform();
  for (let i = 0; i + 16 <= data.length; i += 16) normal(i);
  if (data.length % 16) { // the last 16 values are drawn once more, as torch does
    for (let i = data.length - 16; i < data.length; i++) data[i] = uniform();
    normal(data.length - 16);
  }
  return noise;
}
