// Matrix products, which take most of the time of a drawing, by a kernel in WebAssembly SIMD.
// Beside it stands a plain loop, for browsers without SIMD.
"use strict";

const MATMUL_WASM = // matmul.c, compiled
  "AGFzbQEAAAABCwFgB39/f39/f38AAg8BA2VudgZtZW1vcnkCAAIDAgEABAUBcAEBAQYIAX8BQYCIBAsHCgEGbWF0bXVsAA" +
  "AKjQUBigUECX8IewV/BXsCQCAGQQFIDQAgBEEBSA0AIARBfGohByAGQXhqIQggBkECdCEJIAZBA2whCiAGQQF0IQtBACEM" +
  "A0AgASAIIAwgDCAIShsiDUECdGohDkEAIQwDQCAHIAwgDCAHShshDwJAAkAgAg0A/QwAAAAAAAAAAAAAAAAAAAAAIhAhES" +
  "AQIRIgECETDAELIAIgD0ECdGoiDP0JAgAhEyAMQQxq/QkCACEQIAxBCGr9CQIAIREgDEEEav0JAgAhEgsCQAJAIAVBAU4N" +
  "ACAQIRQgESEVIBIhFiATIRcMAQsgACAPIAVsQQJ0aiEYIAAgD0EDaiAFbEECdGohGSAAIA9BAmogBWxBAnRqIRogACAPQQ" +
  "FqIAVsQQJ0aiEbIAUhHCAOIQwgECEUIBEhFSASIRYgEyEXA0AgDP0AAAAiHSAZ/QkAACIe/eYBIBT95AEhFCAdIBr9CQAA" +
  "Ih/95gEgFf3kASEVIB0gG/0JAAAiIP3mASAW/eQBIRYgHSAY/QkAACIh/eYBIBf95AEhFyAMQRBq/QAAACIdIB795gEgEP" +
  "3kASEQIB0gH/3mASAR/eQBIREgHSAg/eYBIBL95AEhEiAdICH95gEgE/3kASETIBhBBGohGCAMIAlqIQwgG0EEaiEbIBpB" +
  "BGohGiAZQQRqIRkgHEF/aiIcDQALCyADIA0gDyAGbGoiDEECdGoiGCAT/QsAECAYIBf9CwAAIAMgDCAGakECdGoiGCAS/Q" +
  "sAECAYIBb9CwAAIAMgDCALakECdGoiGCAR/QsAECAYIBX9CwAAIAMgDCAKakECdGoiDCAQ/QsAECAMIBT9CwAAIA9BBGoi" +
  "DCAESA0ACyANQQhqIgwgBkgNAAsLCw==";
const OPERANDS = 2 ** 23; // floats, the room for the operands and the result of one product

let heap = new Float32Array(OPERANDS); // the kernel's memory: operands, then all weights
let kept = OPERANDS; // where the next weights go
let kernel = null;

// Make room for `floats` weights, and start the kernel. Returns whether it runs in this browser.
function prepare(floats, simd = true, wasm = MATMUL_WASM) {
  heap = null;
  kept = OPERANDS;
  try {
    const pages = Math.ceil(4 * (OPERANDS + floats) / 2 ** 16);
    const memory = new WebAssembly.Memory({ initial: pages });
    const code = Uint8Array.from(atob(wasm), (letter) => letter.charCodeAt(0));
    const compiled = new WebAssembly.Instance(new WebAssembly.Module(code), { env: { memory } });
    kernel = simd && compiled.exports.matmul;
    heap = new Float32Array(memory.buffer);
  } catch {
    kernel = null;
    heap = new Float32Array(OPERANDS + floats);
  }
  return Boolean(kernel);
}

// Reserve memory for n weights. The kernel reads them there, without a copy.
function keep(n) {
  kept += n;
  return heap.subarray(kept - n, kept);
}

// Return c = a b + bias, for a (M, K) and b (K, N), stored row by row, and a bias of M values or
// none. The result is valid until the next product.
function matmul(a, b, M, K, N, bias = null) {
  if (K * N + M * N + M * K > OPERANDS) throw RangeError("This network is too large for the page.");
  const end = K * N + M * N, c = heap.subarray(K * N, end);
  if (!kernel || M < 4 || N < 8) return matmulPlain(a, b, c, M, K, N, bias);
  if (a.buffer !== heap.buffer) {
    heap.set(a, end);
    a = heap.subarray(end, end + M * K);
  }
  if (b.buffer !== heap.buffer) heap.set(b); // else b is what im2col wrote to the beginning
  kernel(a.byteOffset, 0, bias ? bias.byteOffset : 0, c.byteOffset, M, K, N);
  return c;
}

function matmulPlain(a, b, c, M, K, N, bias) {
  for (let i = 0; i < M; i++)
    for (let j = 0; j < N; j++) {
      let sum = bias ? bias[i] : 0;
      for (let k = 0; k < K; k++) sum += a[i * K + k] * b[k * N + j];
      c[i * N + j] = sum;
    }
  return c;
}
