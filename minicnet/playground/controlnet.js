// ControlNet, a copy of the base's encoder that reads a condition: controlnet.py.
"use strict";

// The residuals that one ControlNet, or a sum of several, adds to the base.
class Control {
  constructor(skips, middle) {
    Object.assign(this, { skips, middle });
  }

  add(other) {
    const skips = this.skips.map((skip, i) => add(skip, other.skips[i]));
    return new Control(skips, add(this.middle, other.middle));
  }

  // scales: a strength for each residual, the middle block's last. A switch sets one of them to 0.
  times(scales) {
    const scaled = [...this.skips, this.middle].map((x, i) => combine(scales[i], x, 0, x));
    return new Control(scaled.slice(0, -1), scaled.at(-1));
  }
}

class ControlNet {
  constructor(state, settings) {
    const { patch } = settings, layers = state.condition_encoder;
    this.encoder = new Encoder(state.encoder, settings);
    this.condition_encoder = [
      (x) => pixelUnshuffle(x, patch), Conv2d(layers[1]), silu, Conv2d(layers[3]), silu,
      Conv2d(layers[5]), silu, Conv2d(layers[7])]; // the last one is a zero convolution, too
    this.zero_convs = {
      skips: Object.values(state.zero_convs.skips).map((own) => Conv2d(own)),
      middle: Conv2d(state.zero_convs.middle),
    };
  }

  // Return the Control to add to the base, which is given the same x_t, t and prompt. hint: the
  // result of `encode`.
  forward(x_t, t, prompt, hint) {
    const first = this.encoder.first(x_t);
    const [skips, middle] = this.encoder.rest(add(first, hint), ...this.encoder.embed(t, prompt));
    const residuals = this.zero_convs.skips.map((zero, i) => zero(skips[i]));
    return new Control(residuals, this.zero_convs.middle(middle));
  }

  encode(condition) {
    return this.condition_encoder.reduce((h, layer) => layer(h), condition);
  }
}

// The state dict of a ControlNet as before training: its zero convolutions are zero again.
function atItsStart(stateDict) {
  const isZeroConv = (key) => /^(zero_convs|condition_encoder\.7)\./.test(key);
  return Object.fromEntries(Object.entries(stateDict).map(
    ([key, tensor]) => [key, isZeroConv(key) ? zerosLike(tensor) : tensor]));
}

// Whether a control acts at timestep t of T. start, end: fractions of the way from noise to image.
function actsAt({ start, end }, t, T) {
  const done = 1 - t / (T - 1);
  return start <= done && (done < end || end === 1);
}

// eps_theta(x_t, t, c_t, c_f), as an epsModel(x_t, t): the base under a prompt and the sum of its
// controls. controls: {net, condition, scale, start, end, switches}. observe(residuals, features):
// is given the Control of each control before it is scaled, or null where it does not act, and the
// features of the base to which the residuals are added.
function controlled(unet, prompt, controls = [], observe = () => {}) {
  const hints = controls.map(({ net, condition }) => net.encode(condition));
  return (x_t, t) => {
    const residuals = controls.map((control, i) => (
      actsAt(control, t[0], unet.schedule.T)
        ? control.net.forward(x_t, t, prompt, hints[i]) : null));
    const acting = residuals.map((control, i) => (
      control?.times(controls[i].switches.map((on) => on * controls[i].scale)))).filter(Boolean);
    const sum = acting.length ? acting.reduce((a, b) => a.add(b)) : undefined;
    const eps = unet.forward(x_t, t, prompt, sum);
    observe(residuals, unet.features);
    return eps;
  };
}
