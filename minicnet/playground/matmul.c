// Multiply matrices: c = a b + bias, for a (M, K), b (K, N) and c (M, N), stored row by row. M is
// at least 4, and N at least 8. bias: one value for each row of c, or null. The kernel computes 4 x
// 8 values of c at a time, which stay in registers. Where M or N is no multiple of 4 or 8, the last
// block overlaps the one before it. This builds a.out, which matmul.js holds in base64:
//
// clang --target=wasm32 -O3 -msimd128 -nostdlib -Wl,--no-entry,--import-memory,-s matmul.c
#include <wasm_simd128.h>

__attribute__((export_name("matmul")))
void matmul(const float *a, const float *b, const float *bias, float *c, int M, int K, int N) {
  for (int j = 0; j < N; j += 8) {
    if (j > N - 8) j = N - 8;
    for (int i = 0; i < M; i += 4) {
      if (i > M - 4) i = M - 4;
      v128_t sum[4][2];
      for (int row = 0; row < 4; row++)
        sum[row][0] = sum[row][1] = wasm_f32x4_splat(bias ? bias[i + row] : 0);
      for (int k = 0; k < K; k++)
        for (int row = 0; row < 4; row++)
          for (int half = 0; half < 2; half++)
            sum[row][half] = wasm_f32x4_add(sum[row][half], wasm_f32x4_mul(
                wasm_v128_load32_splat(a + (i + row) * K + k),
                wasm_v128_load(b + k * N + j + 4 * half)));
      for (int row = 0; row < 4; row++)
        for (int half = 0; half < 2; half++)
          wasm_v128_store(c + (i + row) * N + j + 4 * half, sum[row][half]);
    }
  }
}
