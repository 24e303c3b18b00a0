// Prompts, and the small text encoder that reads them: words.py.
"use strict";

// Turn a prompt into `length` tokens. An error is one sentence for the visitor.
function tokenize(prompt, vocabulary, length) {
  const words = prompt.toLowerCase().split(/\s+/).filter(Boolean)
    .map((word) => (word === "an" ? "a" : word));
  if (words.length > length)
    throw Error(`A prompt has at most ${length} words, and this one has ${words.length}.`);
  const unknown = words.find((word) => !vocabulary.includes(word));
  if (unknown) {
    const near = nearest(unknown, vocabulary.slice(1));
    throw Error(`The vocabulary has no word “${unknown}”. Did you mean “${near}”?`);
  }
  return Array.from({ length }, (_, i) => (i < words.length ? vocabulary.indexOf(words[i]) : 0));
}

// The word that takes the fewest insertions, deletions and replacements.
function nearest(word, vocabulary) {
  const distance = (other) => {
    let row = Array.from({ length: other.length + 1 }, (_, j) => j);
    for (let i = 1; i <= word.length; i++) {
      const above = row;
      row = [i];
      for (let j = 1; j <= other.length; j++) {
        const replaced = above[j - 1] + (word[i - 1] !== other[j - 1]);
        row[j] = Math.min(above[j] + 1, row[j - 1] + 1, replaced);
      }
    }
    return row.at(-1);
  };
  return vocabulary.reduce((best, other) => (distance(other) < distance(best) ? other : best));
}

// softmax(k^T q / sqrt(d)), for queries q (B, C, N) and keys k (B, C, M), d = C / heads. mask: for
// each image, the keys that queries may attend to. Returns (B, heads, M, N), whose columns sum to
// 1: the weights of Python, transposed.
function attentionWeights(q, k, heads, mask) {
  const [B, C, N] = q.shape, M = k.shape[2], d = C / heads, weights = new Tensor([B, heads, M, N]);
  const transposed = new Float32Array(M * d);
  for (let b = 0; b < B; b++)
    for (let head = 0; head < heads; head++) {
      const query = q.image(b).subarray(head * d * N, (head + 1) * d * N);
      const keys = k.image(b).subarray(head * d * M);
      for (let c = 0; c < d; c++)
        for (let m = 0; m < M; m++) transposed[m * d + c] = keys[c * M + m] / Math.sqrt(d);
      const scores = weights.image(b).subarray(head * M * N, (head + 1) * M * N);
      scores.set(matmul(transposed, query, M, d, N));
      mask?.[b].forEach((visible, m) => {
        if (!visible) scores.fill(-Infinity, m * N, (m + 1) * N);
      });
      softmax(scores, M, N);
    }
  return weights;
}

// Softmax over each column of scores (M, N), in place.
function softmax(scores, M, N) {
  for (let n = 0; n < N; n++) {
    let largest = -Infinity, sum = 0;
    for (let i = n; i < M * N; i += N) largest = Math.max(largest, scores[i]);
    for (let i = n; i < M * N; i += N) sum += scores[i] = Math.exp(scores[i] - largest);
    for (let i = n; i < M * N; i += N) scores[i] /= sum;
  }
}

// The weighted averages of the values v (B, C, M), with weights (B, heads, M, N): (B, C, N).
function attend(weights, v) {
  const [B, heads, M, N] = weights.shape, C = v.shape[1], d = C / heads;
  const out = new Tensor([B, C, N]);
  for (let b = 0; b < B; b++)
    for (let head = 0; head < heads; head++) {
      const values = v.image(b).subarray(head * d * M, (head + 1) * d * M);
      const own = weights.image(b).subarray(head * M * N, (head + 1) * M * N);
      out.image(b).set(matmul(values, own, d, M, N), head * d * N);
    }
  return out;
}

// Token and position embeddings, then one transformer block.
class TextEncoder {
  constructor(state, heads = 4) {
    this.heads = heads;
    this.tokens = state.tokens.weight;
    this.positions = state.positions.weight;
    for (const name of ["norm1", "norm2", "norm_out"]) this[name] = LayerNorm(state[name]);
    for (const name of ["qkv", "proj", "mlp1", "mlp2"]) this[name] = Linear(state[name]);
  }

  // prompt: B rows of L tokens. Returns vectors (B, E, L), and a mask that is false at padding.
  // Position 0 is never masked.
  forward(prompt) {
    const [B, L, E] = [prompt.length, prompt[0].length, this.tokens.shape[1]];
    const mask = prompt.map((row) => row.map((token, i) => token !== 0 || i === 0));
    let x = new Tensor([B, E, L]);
    for (let b = 0; b < B; b++)
      for (let e = 0; e < E; e++)
        for (let i = 0; i < L; i++)
          x.image(b)[e * L + i] =
            this.tokens.data[prompt[b][i] * E + e] + this.positions.data[i * E + e];
    const [q, k, v] = chunk(this.qkv(this.norm1(x)), 3);
    x = add(x, this.proj(attend(attentionWeights(q, k, this.heads, mask), v)));
    x = add(x, this.mlp2(silu(this.mlp1(this.norm2(x)))));
    return { vectors: this.norm_out(x), mask };
  }
}

// The sum of each prompt's vectors: (B, E, 1).
function sumOf({ vectors, mask }) {
  const [B, E, L] = vectors.shape, sum = new Tensor([B, E, 1]);
  for (let b = 0; b < B; b++)
    for (let i = 0; i < E * L; i++)
      if (mask[b][i % L]) sum.image(b)[Math.floor(i / L)] += vectors.image(b)[i];
  return sum;
}
