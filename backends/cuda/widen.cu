// out_OI = the numbers of a matrix in 8 or 4 bits, in bfloat16: what cuBLAS multiplies
//
// Bytes that must move: 1.06 or 0.56 read and 2 written a number. A warp takes 512 bytes of a tile, as matrix.cuh does;
// each lane has 4 bytes of each of 4 rows, and writes 8 or 16 bytes of each.
template <int FORMAT>
__device__ __forceinline__ void widen(const Matrix& m, bf16* out_OI) {
  constexpr int WORDS = FORMAT == INT8 ? 8 : 4, COLUMNS = FORMAT == INT8 ? 4 : 8;  // as in dot_tile
  int warp = threadIdx.x / 32, lane = threadIdx.x % 32, groups = (m.I + 31) / 32, words = groups * WORDS, tile = blockIdx.x;
  const uint4* values = static_cast<const uint4*>(m.values) + (long long)tile * words * 4;
  const uint2* scales = reinterpret_cast<const uint2*>(m.scales) + (long long)tile * groups * 4;
  for (int q = 8 * (blockIdx.y * WARPS + warp) + lane / 4; q < words; q += 8 * WARPS * gridDim.y) {
    uint4 four = load_once(values + q * 4 + lane % 4);
    uint2 two = __ldg(scales + q / WORDS * 4 + lane % 4);
    unsigned word[4] = {four.x, four.y, four.z, four.w};
    float scale[4] = {low_half(two.x), high_half(two.x), low_half(two.y), high_half(two.y)};
#pragma unroll
    for (int i = 0; i < 4; i++) {
      int row = tile * 16 + lane % 4 * 4 + i;
      if (row >= m.O) continue;
#pragma unroll
      for (int c = 0; c < COLUMNS; c++) {
        float x = FORMAT == INT8 ? byte_of(word[i], c) : half_byte_of(word[i], c % 4 * 2 + c / 4);
        if (q * COLUMNS + c < m.I) out_OI[(long long)row * m.I + q * COLUMNS + c] = __float2bfloat16(scale[i] * x);
      }
    }
  }
}

extern "C" __global__ __launch_bounds__(THREADS) void widen_kernel(
    int format, const void* values, const bf16* scales, bf16* out_OI, int O, int I) {
  Matrix m{values, scales, O, I};
  if (format == INT8) widen<INT8>(m, out_OI);
  else widen<INT4>(m, out_OI);
}
