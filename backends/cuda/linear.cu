// out_TO = x_TI @ weight_OI.T + bias_O + add_TO        for few tokens; bias_O and add_TO may be missing
//
// Bytes that must move: the weights, once: 4, 2, 1.06 or 0.56 each. The tokens' vectors stay in the nearest cache. For
// one token a block takes 4 rows (16 of a quantised matrix), or one where there are few rows, see matrix.cuh;
// for more tokens, the same with 8 sums a row, and the weights are read once for 8 tokens; blocks of other 8 tokens come
// next, so that the second reading finds them in the cache that all share, however large the matrix is. `add` is the
// residual stream: one launch less than adding afterwards.

template <int FORMAT, int SHARE, int TOKENS>
__device__ __forceinline__ void linear_rows(const Matrix& m, const float* x_TI, const void* bias_O, int bias_format,
                                            const float* add_TO, float* out_TO, int T, int groups, Sums<TOKENS> (&sums)[1]) {
  constexpr int ROWS = rows_at_once(FORMAT, SHARE);
  int first = blockIdx.x / groups * ROWS;
  multiply_rows<FORMAT, TOKENS, 1, SHARE>({m}, {first}, x_TI, T, sums);
  __syncthreads();
  for (int n = threadIdx.x; n < ROWS * T; n += blockDim.x) {
    int r = n % ROWS, t = n / ROWS, o = first + r;
    if (o >= m.O) continue;
    float y = sum_of<FORMAT, SHARE>(sums[0], r, t);
    if (bias_O) y += number(bias_O, bias_format, o);
    if (add_TO) y += add_TO[(long long)t * m.O + o];
    out_TO[(long long)t * m.O + o] = y;
  }
}

template <int TOKENS, int SHARE>
__device__ __forceinline__ void linear(const float* x_TI, int format, const Matrix& m, const void* bias_O, int bias_format,
                                       const float* add_TO, float* out_TO, int T) {
  __shared__ Sums<TOKENS> sums[1];
  int groups = (T + TOKENS - 1) / TOKENS, first = blockIdx.x % groups * TOKENS;
  x_TI += (long long)first * m.I, out_TO += (long long)first * m.O, T = min(T - first, TOKENS);
  if (add_TO) add_TO += (long long)first * m.O;
  switch (format) {
    case F32: return linear_rows<F32, SHARE>(m, x_TI, bias_O, bias_format, add_TO, out_TO, T, groups, sums);
    case BF16: return linear_rows<BF16, SHARE>(m, x_TI, bias_O, bias_format, add_TO, out_TO, T, groups, sums);
  }
  if constexpr (SHARE == 1) switch (format) {
    case INT8: return linear_rows<INT8, 1>(m, x_TI, bias_O, bias_format, add_TO, out_TO, T, groups, sums);
    case INT4: return linear_rows<INT4, 1>(m, x_TI, bias_O, bias_format, add_TO, out_TO, T, groups, sums);
  }
}

extern "C" __global__ __launch_bounds__(32 * MOST_WARPS) void linear_kernel(
    const float* x_TI, int format, const void* values, const bf16* scales, const void* bias_O, int bias_format,
    const float* add_TO, float* out_TO, int T, int O, int I) {
  linear<1, 1>(x_TI, format, Matrix{values, scales, O, I}, bias_O, bias_format, add_TO, out_TO, T);
}

// the 4 warps of a block share each row; not of quantised matrices, where they always do
extern "C" __global__ __launch_bounds__(THREADS, 6) void linear_few_rows_kernel(
    const float* x_TI, int format, const void* values, const bf16* scales, const void* bias_O, int bias_format,
    const float* add_TO, float* out_TO, int T, int O, int I) {
  linear<1, WARPS>(x_TI, format, Matrix{values, scales, O, I}, bias_O, bias_format, add_TO, out_TO, T);
}

// 3 blocks side by side: left to itself the compiler keeps to 128 registers on sm_80, and a few do not fit
extern "C" __global__ __launch_bounds__(THREADS, 3) void linear_tokens_kernel(
    const float* x_TI, int format, const void* values, const bf16* scales, const void* bias_O, int bias_format,
    const float* add_TO, float* out_TO, int T, int O, int I) {
  linear<8, 1>(x_TI, format, Matrix{values, scales, O, I}, bias_O, bias_format, add_TO, out_TO, T);
}
