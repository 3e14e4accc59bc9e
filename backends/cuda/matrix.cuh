// out[row] = sum over columns of matrix[row, column] * x[column], for a few rows a block, in every format of weights.
//
// Decoding reads each weight once and multiplies it once, so all that counts is that every lane always has 16 bytes on
// their way. x is read from the nearest cache: it is small, and the same for all rows.
//
//   f32, bf16    a warp takes a row; a lane 8 columns at a time, every 256th. Of a matrix with few rows, 4 warps take one
//   int8, int4   16 rows lie side by side (backends/quantised.py), so a warp takes 512 bytes: 4 bytes of each of 16 rows,
//                8 times. A lane holds 4 of the rows; the warps of a block share out the columns of these 16
//
// The first reads are on their way before the block does what must be done before x can be looked at (`ready`: the norm).
//
// 4.8 TB/s that take 700 ns to come are 3.4 MB on their way, 25 KB for each of 132 multiprocessors; what is on its way at
// best, with the registers that sm_90 takes, for the matrices of the 0.5B (D 896, F 4864) in bfloat16 and in int8:
//
//                    blocks   threads   registers   blocks of a multiprocessor   its KB on their way
//   q, k, v  bf16       144       128         114                          1.1     16, all there is
//            int8        36       224         114                          0.3     14, on 36 multiprocessors
//   output   bf16       896       128          80                            6     12, all there is
//            int8        56       224          57                          0.4     14, on 56
//   gate, up bf16     1,216       128          98                            4     57
//            int8       304       224          98                          2.3     33
//   down     bf16       896       128          80                            6     49
//            int8        56       512          57                          0.4     32, on 56
//   head     bf16    37,984       128          57                            8     57
//            int8     9,496       128          57                            8     64
//   of 8 tokens at a time: head bf16, 37,984 blocks for each 8, 3 of a multiprocessor, 22 KB
//
// So with bfloat16 latency is hidden wherever there is enough to read. In int8 the 0.5B is too small for it: 36 or 56 blocks
// of 16 rows do not reach all multiprocessors; the 7B has 144 and 224.

constexpr int THREADS = 128, WARPS = THREADS / 32;
constexpr int MOST_WARPS = 16;  // of a block that takes quantised rows of one token
constexpr int AHEAD = 4;        // reads of a lane that are on their way together

struct Nothing {
  __device__ __forceinline__ void operator()() const {}
};

template <int FORMAT> struct Plain { using type = float; };
template <> struct Plain<BF16> { using type = bf16; };

struct Matrix {  // O x I
  const void* values;
  const bf16* scales;
  int O, I;
};

// rows that a block takes at a time; SHARE warps share one, if it is not quantised
__device__ __forceinline__ constexpr int rows_at_once(int format, int share = 1) {
  return format == F32 || format == BF16 ? WARPS / share : 16;
}

template <int TOKENS> struct Sums {  // in shared memory: of 16 rows at most, and of each warp that shares them
  float part[TOKENS == 1 ? MOST_WARPS : WARPS][16][TOKENS];
};

// ROWS rows, each times T <= TOKENS tokens, which lie `I` apart: the columns of this of SHARE warps. Every lane gets the sums
template <int SHARE, int ROWS, int TOKENS, class W, class Ready>
__device__ __forceinline__ void dot_rows(const W* const (&row)[ROWS], const float* x, int I, int T, float (&sum)[ROWS][TOKENS],
                                         const Ready& ready) {
  static_assert(SHARE == 1 || TOKENS == 1);
  constexpr int STRIDE = 256 * SHARE;
  int lane = threadIdx.x % 32, own = threadIdx.x / 32 % SHARE, begin = 256 * own + 8 * lane;
  bool whole = I % 8 == 0 && on_16_bytes(x);
#pragma unroll
  for (int n = 0; n < ROWS; n++) {
    whole &= on_16_bytes(row[n]);
#pragma unroll
    for (int t = 0; t < TOKENS; t++) sum[n][t] = 0;
  }
  if (whole) {
    Eight<W> read[AHEAD][ROWS];
    auto fetch = [&](int first) {
#pragma unroll
      for (int a = 0; a < AHEAD; a++)
#pragma unroll
        for (int n = 0; n < ROWS; n++)
          if (first + STRIDE * a < I) read[a][n].read(row[n] + first + STRIDE * a);
    };
    fetch(begin);
    ready();
    for (int first = begin; first < I; first += STRIDE * AHEAD) {
      if (first > begin) fetch(first);
      float4 x_of[AHEAD][2];  // where one row is all that a warp has, x is on its way as early as the row
#pragma unroll
      for (int a = 0; a < AHEAD && SHARE > 1; a++) {
        const float4* four = reinterpret_cast<const float4*>(x + first + STRIDE * a);
        if (first + STRIDE * a < I) x_of[a][0] = four[0], x_of[a][1] = four[1];
      }
#pragma unroll
      for (int a = 0; a < AHEAD; a++) {
        int i = first + STRIDE * a;
        if (i >= I) break;
        float w[ROWS][8];
#pragma unroll
        for (int n = 0; n < ROWS; n++) read[a][n].widen(w[n]);
#pragma unroll
        for (int t = 0; t < TOKENS; t++) {
          if (t >= T) break;
          const float4* four = reinterpret_cast<const float4*>(x + (long long)t * I + i);
          float4 x0 = SHARE > 1 ? x_of[a][0] : four[0], x4 = SHARE > 1 ? x_of[a][1] : four[1];
#pragma unroll
          for (int n = 0; n < ROWS; n++)
            sum[n][t] += w[n][0] * x0.x + w[n][1] * x0.y + w[n][2] * x0.z + w[n][3] * x0.w + w[n][4] * x4.x +
                         w[n][5] * x4.y + w[n][6] * x4.z + w[n][7] * x4.w;
        }
      }
    }
  } else {
    ready();
    for (int i = lane + 32 * own; i < I; i += 32 * SHARE)
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

// four numbers, of which `count` are there; zeros instead of the others
__device__ __forceinline__ float4 four_of(const float* x, int count) {
  return {count > 0 ? x[0] : 0.0f, count > 1 ? x[1] : 0.0f, count > 2 ? x[2] : 0.0f, count > 3 ? x[3] : 0.0f};
}

// The 16 rows of a tile times T tokens: this warp's share of the columns, in `part[warp]`.
template <int FORMAT, int TOKENS, class Ready>
__device__ __forceinline__ void dot_tile(const Matrix& m, int tile, const float* x, int T, float (*part)[TOKENS], const Ready& ready) {
  constexpr int WORDS = FORMAT == INT8 ? 8 : 4;      // words of 4 bytes in a group of 32 columns, of each row
  constexpr int COLUMNS = FORMAT == INT8 ? 4 : 8;    // of a word
  int warp = threadIdx.x / 32, lane = threadIdx.x % 32, r = lane % 4 * 4;
  int groups = (m.I + 31) / 32, words = groups * WORDS, stride = blockDim.x / 4, begin = 8 * warp + lane / 4;
  bool whole = m.I % COLUMNS == 0 && on_16_bytes(x);
  const uint4* values = static_cast<const uint4*>(m.values) + (long long)tile * words * 4;  // 64 bytes: a word of 16 rows
  const uint2* scales = reinterpret_cast<const uint2*>(m.scales) + (long long)tile * groups * 4;
  float sum[4][TOKENS];
#pragma unroll
  for (int i = 0; i < 4; i++)
#pragma unroll
    for (int t = 0; t < TOKENS; t++) sum[i][t] = 0;
  uint4 four[AHEAD];
  uint2 two[AHEAD];
  auto fetch = [&](int start) {
#pragma unroll
    for (int a = 0; a < AHEAD; a++) {
      int q = start + stride * a;
      if (q < words) four[a] = load_once(values + q * 4 + lane % 4), two[a] = __ldg(scales + q / WORDS * 4 + lane % 4);
    }
  };
  fetch(begin);
  ready();
  for (int start = begin; start < words; start += stride * AHEAD) {
    if (start > begin) fetch(start);
#pragma unroll
    for (int a = 0; a < AHEAD; a++) {
      int q = start + stride * a, first = q * COLUMNS;
      if (q >= words) break;
      unsigned word[4] = {four[a].x, four[a].y, four[a].z, four[a].w};
      float scale[4] = {low_half(two[a].x), high_half(two[a].x), low_half(two[a].y), high_half(two[a].y)};
#pragma unroll
      for (int t = 0; t < TOKENS; t++) {
        if (t >= T) break;
        float x_of[COLUMNS];
        const float* x_t = x + (long long)t * m.I + first;
#pragma unroll
        for (int c = 0; c < COLUMNS; c += 4) {
          float4 some = {0, 0, 0, 0};
          if (whole && first < m.I) some = *reinterpret_cast<const float4*>(x_t + c);
          else if (!whole) some = four_of(x_t + c, m.I - first - c);
          x_of[c] = some.x, x_of[c + 1] = some.y, x_of[c + 2] = some.z, x_of[c + 3] = some.w;
        }
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
// `ready` is called once by every thread, before x is read.
template <int FORMAT, int TOKENS, int N, int SHARE = 1, class Ready = Nothing>
__device__ __forceinline__ void multiply_rows(const Matrix (&m)[N], const int (&first)[N], const float* x, int T, Sums<TOKENS> (&sums)[N],
                                              const Ready& ready = {}) {
  int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  if constexpr (FORMAT == INT8 || FORMAT == INT4) {
    dot_tile<FORMAT, TOKENS>(m[0], first[0] / 16, x, T, sums[0].part[warp], ready);
#pragma unroll
    for (int n = 1; n < N; n++) dot_tile<FORMAT, TOKENS>(m[n], first[n] / 16, x, T, sums[n].part[warp], Nothing{});
  } else {
    using W = typename Plain<FORMAT>::type;
    int own = warp / SHARE;
    if (first[0] + own >= m[0].O) return ready();  // all N end together
    const W* row[N];
    float sum[N][TOKENS];
#pragma unroll
    for (int n = 0; n < N; n++) row[n] = static_cast<const W*>(m[n].values) + (long long)(first[n] + own) * m[n].I;
    dot_rows<SHARE>(row, x, m[0].I, T, sum, ready);
    if (lane) return;
#pragma unroll
    for (int n = 0; n < N; n++)
#pragma unroll
      for (int t = 0; t < TOKENS; t++) sums[n].part[warp % SHARE][own][t] = sum[n][t];
  }
}

template <int FORMAT, int SHARE = 1, int TOKENS> __device__ __forceinline__ float sum_of(const Sums<TOKENS>& sums, int r, int t) {
  int parts = FORMAT == F32 || FORMAT == BF16 ? SHARE : blockDim.x / 32;
  float sum = 0;
  for (int part = 0; part < parts; part++) sum += sums.part[part][r][t];
  return sum;
}
