// out[row] = sum over columns of matrix[row, column] * x[column], for a few rows a block, in every format of weights.
//
// Decoding reads each weight once and multiplies it once, so all that counts is that every lane always has 16 bytes on
// their way. x is read from the nearest cache: it is small, and the same for all rows.
//
//   f32, bf16    a warp takes a row; a lane 8 columns at a time, every 256th
//   int8, int4   16 rows lie side by side (backends/quantised.py), so a warp takes 512 bytes: 4 bytes of each of 16 rows,
//                8 times. A lane holds 4 of the rows; the warps of a block share out the columns of these 16

constexpr int THREADS = 128, WARPS = THREADS / 32;
constexpr int AHEAD = 4;  // reads of a lane that are on their way together

template <int FORMAT> struct Plain { using type = float; };
template <> struct Plain<BF16> { using type = bf16; };

struct Matrix {  // O x I
  const void* values;
  const bf16* scales;
  int O, I;
};

// rows that a block takes at a time
__device__ __forceinline__ constexpr int rows_at_once(int format) { return format == F32 || format == BF16 ? WARPS : 16; }

template <int TOKENS> struct Sums {  // in shared memory: of 16 rows at most, and of each warp that shares them
  float part[WARPS][16][TOKENS];
};

// ROWS rows, each times T <= TOKENS tokens, which lie `I` apart; every lane gets the sums
template <int ROWS, int TOKENS, class W>
__device__ __forceinline__ void dot_rows(const W* const (&row)[ROWS], const float* x, int I, int T, float (&sum)[ROWS][TOKENS]) {
  int lane = threadIdx.x % 32;
  bool whole = I % 8 == 0 && on_16_bytes(x);
#pragma unroll
  for (int n = 0; n < ROWS; n++) {
    whole &= on_16_bytes(row[n]);
#pragma unroll
    for (int t = 0; t < TOKENS; t++) sum[n][t] = 0;
  }
  if (whole) {
    for (int first = 8 * lane; first < I; first += 256 * AHEAD) {
      Eight<W> read[AHEAD][ROWS];
#pragma unroll
      for (int a = 0; a < AHEAD; a++)
#pragma unroll
        for (int n = 0; n < ROWS; n++)
          if (first + 256 * a < I) read[a][n].read(row[n] + first + 256 * a);
#pragma unroll
      for (int a = 0; a < AHEAD; a++) {
        int i = first + 256 * a;
        if (i >= I) break;
        float w[ROWS][8];
#pragma unroll
        for (int n = 0; n < ROWS; n++) read[a][n].widen(w[n]);
#pragma unroll
        for (int t = 0; t < TOKENS; t++) {
          if (t >= T) break;
          const float4* four = reinterpret_cast<const float4*>(x + (long long)t * I + i);
          float4 x0 = four[0], x4 = four[1];
#pragma unroll
          for (int n = 0; n < ROWS; n++)
            sum[n][t] += w[n][0] * x0.x + w[n][1] * x0.y + w[n][2] * x0.z + w[n][3] * x0.w + w[n][4] * x4.x +
                         w[n][5] * x4.y + w[n][6] * x4.z + w[n][7] * x4.w;
        }
      }
    }
  } else {
    for (int i = lane; i < I; i += 32)
#pragma unroll
      for (int t = 0; t < TOKENS; t++)
#pragma unroll
        for (int n = 0; n < ROWS; n++)
          if (t < T) sum[n][t] += widened(row[n][i]) * x[(long long)t * I + i];
  }
#pragma unroll
  for (int n = 0; n < ROWS; n++)
#pragma unroll
    for (int t = 0; t < TOKENS; t++)
      if (t < T) sum[n][t] = warp_sum(sum[n][t]);
}

// A byte as a float, less 128; a half byte, less 8: 8388608 is 2^23, whose last bits count whole numbers.
__device__ __forceinline__ float byte_of(unsigned word, int b) {
  return __uint_as_float(__byte_perm(word, 0x4b000000u, 0x7440u | b)) - (8388608.0f + 128.0f);
}
__device__ __forceinline__ float half_byte_of(unsigned word, int n) {
  return __uint_as_float((word >> 4 * n & 15u) | 0x4b000000u) - (8388608.0f + 8.0f);
}

// One number of a matrix in any format: for looking up, not for multiplying.
__device__ __forceinline__ float value_at(const Matrix& m, int format, long long row, int column) {
  if (format == F32 || format == BF16) return number(m.values, format, row * m.I + column);
  int groups = (m.I + 31) / 32;
  long long tile = row / 16, r = row % 16;
  float scale = widened(m.scales[(tile * groups + column / 32) * 16 + r]);
  const unsigned* words = static_cast<const unsigned*>(m.values);
  if (format == INT8) return scale * byte_of(words[(tile * groups * 8 + column / 4) * 16 + r], column % 4);
  return scale * half_byte_of(words[(tile * groups * 4 + column / 8) * 16 + r], column % 4 * 2 + column % 8 / 4);
}

// The 16 rows of a tile times T tokens: this warp's share of the columns, in `part[warp]`.
template <int FORMAT, int TOKENS>
__device__ __forceinline__ void dot_tile(const Matrix& m, int tile, const float* x, int T, float (*part)[TOKENS]) {
  constexpr int WORDS = FORMAT == INT8 ? 8 : 4;      // words of 4 bytes in a group of 32 columns, of each row
  constexpr int COLUMNS = FORMAT == INT8 ? 4 : 8;    // of a word
  int warp = threadIdx.x / 32, lane = threadIdx.x % 32, r = lane % 4 * 4;
  int groups = (m.I + 31) / 32, words = groups * WORDS;
  const uint4* values = static_cast<const uint4*>(m.values) + (long long)tile * words * 4;  // 64 bytes: a word of 16 rows
  const uint2* scales = reinterpret_cast<const uint2*>(m.scales) + (long long)tile * groups * 4;
  float sum[4][TOKENS];
#pragma unroll
  for (int i = 0; i < 4; i++)
#pragma unroll
    for (int t = 0; t < TOKENS; t++) sum[i][t] = 0;
  for (int start = 8 * warp + lane / 4; start < words; start += 8 * WARPS * AHEAD) {
    uint4 four[AHEAD];
    uint2 two[AHEAD];
#pragma unroll
    for (int a = 0; a < AHEAD; a++) {
      int q = start + 8 * WARPS * a;
      if (q < words) four[a] = load_once(values + q * 4 + lane % 4), two[a] = __ldg(scales + q / WORDS * 4 + lane % 4);
    }
#pragma unroll
    for (int a = 0; a < AHEAD; a++) {
      int q = start + 8 * WARPS * a, first = q * COLUMNS;
      if (q >= words) break;
      unsigned word[4] = {four[a].x, four[a].y, four[a].z, four[a].w};
      float scale[4] = {low_half(two[a].x), high_half(two[a].x), low_half(two[a].y), high_half(two[a].y)};
#pragma unroll
      for (int t = 0; t < TOKENS; t++) {
        if (t >= T) break;
        float x_of[COLUMNS];
#pragma unroll
        for (int c = 0; c < COLUMNS; c++) x_of[c] = first + c < m.I ? x[(long long)t * m.I + first + c] : 0.0f;
#pragma unroll
        for (int i = 0; i < 4; i++) {
          float dot = 0;
#pragma unroll
          for (int c = 0; c < COLUMNS; c++)  // int4: columns 0 1 2 3 are low halves, 4 5 6 7 the high ones
            dot += x_of[c] * (FORMAT == INT8 ? byte_of(word[i], c) : half_byte_of(word[i], c % 4 * 2 + c / 4));
          sum[i][t] += scale[i] * dot;
        }
      }
    }
  }
#pragma unroll
  for (int i = 0; i < 4; i++)
#pragma unroll
    for (int t = 0; t < TOKENS; t++) {
      if (t >= T) break;
      for (int mask = 4; mask < 32; mask *= 2) sum[i][t] += __shfl_xor_sync(0xffffffffu, sum[i][t], mask);
      if (lane < 4) part[r + i][t] = sum[i][t];
    }
}

// Of each of N matrices (of one format, with I columns) the rows first .. first + rows_at_once - 1, times T <= TOKENS
// tokens. After a barrier every thread may ask for them by `sum_of`. Several at once have more loads on their way.
template <int FORMAT, int TOKENS, int N>
__device__ __forceinline__ void multiply_rows(const Matrix (&m)[N], const int (&first)[N], const float* x, int T, Sums<TOKENS> (&sums)[N]) {
  int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  if constexpr (FORMAT == INT8 || FORMAT == INT4) {
#pragma unroll
    for (int n = 0; n < N; n++) dot_tile<FORMAT, TOKENS>(m[n], first[n] / 16, x, T, sums[n].part[warp]);
  } else {
    using W = typename Plain<FORMAT>::type;
    if (first[0] + warp >= m[0].O) return;  // all N end together
    const W* row[N];
    float sum[N][TOKENS];
#pragma unroll
    for (int n = 0; n < N; n++) row[n] = static_cast<const W*>(m[n].values) + (long long)(first[n] + warp) * m[n].I;
    dot_rows(row, x, m[0].I, T, sum);
    if (lane) return;
#pragma unroll
    for (int n = 0; n < N; n++)
#pragma unroll
      for (int t = 0; t < TOKENS; t++) sums[n].part[0][warp][t] = sum[n][t];
  }
}

template <int FORMAT, int TOKENS> __device__ __forceinline__ float sum_of(const Sums<TOKENS>& sums, int r, int t) {
  if constexpr (FORMAT == F32 || FORMAT == BF16) return sums.part[0][r][t];
  float sum = 0;
#pragma unroll
  for (int warp = 0; warp < WARPS; warp++) sum += sums.part[warp][r][t];
  return sum;
}
