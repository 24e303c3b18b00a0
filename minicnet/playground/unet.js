// The network that predicts the noise: unet.py. Every block has a method forward(x, emb, words).
"use strict";

// The sines, then the cosines, of t 10000^(-i / (dim/2)). t: B timesteps. Returns (B, dim, 1).
function timestepEmbedding(t, dim) {
  const waves = new Tensor([t.length, dim, 1]), half = dim / 2;
  for (let b = 0; b < t.length; b++)
    for (let i = 0; i < half; i++) {
      const angle = t[b] * Math.exp(-Math.log(10000) * i / half);
      waves.data[b * dim + i] = Math.sin(angle);
      waves.data[b * dim + half + i] = Math.cos(angle);
    }
  return waves;
}

// x + conv(silu(norm(conv(silu(norm(x))) + emb)))
class ResBlock {
  constructor(state) {
    this.norm1 = GroupNorm(8, state.norm1);
    this.conv1 = Conv2d(state.conv1);
    this.emb = Linear(state.emb);
    this.norm2 = GroupNorm(8, state.norm2);
    this.conv2 = Conv2d(state.conv2);
    this.shortcut = state.shortcut ? Conv2d(state.shortcut) : (x) => x;
  }

  forward(x, emb) {
    let h = this.conv1(silu(this.norm1(x)));
    h = add(h, this.emb(emb)); // the same at every location
    h = this.conv2(silu(this.norm2(h)));
    return add(this.shortcut(x), h);
  }
}

// (B, C, H, W) -> (B, C, H W): locations in columns.
const flat = (x) => new Tensor([x.shape[0], x.shape[1], x.shape[2] * x.shape[3]], x.data);

// x + proj(softmax(q k^T / sqrt(d)) v): every location attends to all locations.
class SelfAttention {
  constructor(state, heads = 4) {
    this.heads = heads;
    this.norm = GroupNorm(8, state.norm);
    this.qkv = Linear(state.qkv);
    this.proj = Linear(state.proj);
  }

  forward(x) {
    const [q, k, v] = chunk(this.qkv(flat(this.norm(x))), 3);
    const h = attend(attentionWeights(q, k, this.heads), v);
    return add(x, this.proj(h));
  }
}

// Every location attends to the words: queries come from x, keys and values from the words.
class CrossAttention {
  constructor(state, heads = 4) {
    this.heads = heads;
    this.norm = GroupNorm(8, state.norm);
    for (const name of ["q", "k", "v", "proj"]) this[name] = Linear(state[name]);
  }

  forward(x, emb, words) {
    const q = this.q(flat(this.norm(x)));
    const weights = attentionWeights(q, this.k(words.vectors), this.heads, words.mask);
    const h = attend(weights, this.v(words.vectors));
    return add(x, this.proj(h));
  }
}

class Downsample {
  constructor(state) {
    this.forward = Conv2d(state.conv, 2);
  }
}

// Mix the channels, then repeat each pixel four times.
class Upsample {
  constructor(state) {
    const conv = Conv2d(state.conv);
    this.forward = (x) => upsampled(conv(x));
  }
}

// Blocks that run one after the other.
class Blocks {
  constructor(blocks) {
    this.blocks = blocks;
  }

  forward(x, emb, words) {
    return this.blocks.reduce((h, block) => block.forward(h, emb, words), x);
  }
}

// The way down, from the noisy image to the middle block: the half that a ControlNet copies.
class Encoder {
  constructor(state, { channels, multipliers, blocks, patch }) {
    Object.assign(this, { channels, patch });
    this.text = new TextEncoder(state.text);
    this.summary = Linear(state.summary);
    this.time = [Linear(state.time[0]), silu, Linear(state.time[2])];
    this.conv_in = Conv2d(state.conv_in);
    this.stages = [];
    for (let level = 0; level < multipliers.length; level++) {
      const coarsest = level === multipliers.length - 1;
      for (let i = 0; i < blocks; i++) {
        const own = state.stages[this.stages.length], stage = [new ResBlock(own[0])];
        if (coarsest) stage.push(new SelfAttention(own[1]), new CrossAttention(own[2]));
        this.stages.push(new Blocks(stage));
      }
      if (!coarsest)
        this.stages.push(new Blocks([new Downsample(state.stages[this.stages.length][0])]));
    }
    const [first, self, cross, last] = Object.values(state.middle);
    this.middle = new Blocks([
      new ResBlock(first), new SelfAttention(self), new CrossAttention(cross), new ResBlock(last)]);
  }

  // Embed timesteps and prompts: emb (B, E, 1), and the encoded words.
  embed(t, prompt) {
    const words = this.text.forward(prompt);
    const waves = this.time.reduce((h, layer) => layer(h), timestepEmbedding(t, this.channels));
    return [silu(add(waves, this.summary(sumOf(words)))), words];
  }

  // Run the first convolution on patches of pixels.
  first(x_t) {
    return this.conv_in(pixelUnshuffle(x_t, this.patch));
  }

  // Run the stages and the middle block on h, the output of `first`. Returns the skips, and the
  // middle block's output.
  rest(h, emb, words) {
    const skips = [h];
    for (const stage of this.stages) skips.push(h = stage.forward(h, emb, words));
    return [skips, this.middle.forward(h, emb, words)];
  }

  forward(x_t, t, prompt) {
    const [emb, words] = this.embed(t, prompt);
    return [...this.rest(this.first(x_t), emb, words), emb, words];
  }
}

// The way up, from the middle block to an image. Each stage takes one skip, the last one first.
class Decoder {
  constructor(state, { multipliers, blocks, patch }) {
    this.patch = patch;
    this.stages = [];
    for (let level = multipliers.length - 1; level >= 0; level--)
      for (let i = 0; i <= blocks; i++) {
        const own = state.stages[this.stages.length], stage = [new ResBlock(own[0])];
        if (i === blocks && level > 0) stage.push(new Upsample(own[1]));
        this.stages.push(new Blocks(stage));
      }
    this.norm_out = GroupNorm(8, state.norm_out);
    this.conv_out = Conv2d(state.conv_out);
  }

  forward(skips, middle, emb, words) {
    let h = middle;
    this.stages.forEach((stage, i) => { h = stage.forward(cat(h, skips.at(-1 - i)), emb, words); });
    h = this.conv_out(silu(this.norm_out(h)));
    return pixelShuffle(h, this.patch);
  }
}

// eps_theta(x_t, t, c_t): predict the noise in x_t (B, C, H, W), given B timesteps and B prompts.
class UNet {
  constructor(state, settings, schedule) {
    Object.assign(this, { settings, schedule });
    this.encoder = new Encoder(state.encoder, settings);
    this.decoder = new Decoder(state.decoder, settings);
  }

  forward(x_t, t, prompt, control) {
    let [skips, middle, emb, words] = this.encoder.forward(x_t, t, prompt);
    this.features = [...skips, middle]; // the page compares the residuals with them
    if (control) { // added to what the decoder reads, never to the running encoder
      skips = skips.map((skip, i) => add(skip, control.skips[i]));
      middle = add(middle, control.middle);
    }
    const v = this.decoder.forward(skips, middle, emb, words);
    return this.schedule.predict_eps(x_t, v, t[0]);
  }
}
