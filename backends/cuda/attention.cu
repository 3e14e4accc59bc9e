// weights = softmax(q . k / sqrt(K) over the visible keys);  out = weights . v         for R = H / G query heads a KV head
//
// Bytes that must move: K and V of all that is visible, once for the R query heads that share them: 2 K numbers a key.
// What keeps the memory busy with one token: the keys are cut into `splits`, a block each (flash decoding).
//
// Sequences that decode together are one launch: where each one's keys lie, and how many, is a table among the kernel's
// parameters. So nothing is copied to the device beforehand, and a graph remembers it.
// Predicted for a step of 16 sequences of the 0.5B, each behind 1000 tokens, in a graph (1.3 us a launch, 4.3 TB/s), with
// 14 launches a layer that do not look at whose token it is, 1.0 GB of weights and 0.2 of keys and values:
//
//   attention, cache and choice of a token for each    24 (14 + 2 x 16) + 7 + 2 x 16 = 1,143 launches    1.76 ms    9,100 tokens/s
//   one for all                                        24 (14 + 2) + 7 + 3 = 394                         0.79 ms   20,300
//
// A block takes 8 rows (a row is a token and one of the R heads) of one KV head of one sequence, and one split of its
// keys; one with less to do than others leaves early. 8, 16 or 32 lanes hold a key, 8 numbers each, for K up to 64, 128 or
// 256, so that a block looks at 16, 8 or 4 keys at a time. Each such stream of keys has its own softmax (largest score,
// sum, weighted values); in the end streams are merged, then splits: the block that comes last does it, always in the
// same order, so the bits do not depend on who came last. Merging is reading, too, and nobody else works meanwhile: so
// there are only as many splits as have 64 keys each, however large the cache is, and what each weighs is computed once.
//
// On their way in a multiprocessor of sm_90, where 2 blocks run side by side (250 registers): 32 KB of a bfloat16 cache, 16
// of one in int8 or float32, if there are 264 blocks: with 2 KV heads from 8,448 keys on. 25 hide the latency, see matrix.cuh.
//
// Compiled for what is known beforehand: KEY_FORMAT, KEY_LANES of a key, KEY_WHOLE (K is a multiple of 8, and every key
// begins on 16 bytes), see attention.py. All in one kernel would take 20 s to compile.
//
// Query t sees keys past + t - window < s <= past + t. Scores are in units of log 2, where exp is one instruction.

constexpr int ROWS = 8, DIMS = 8;
constexpr int FEWEST_KEYS = 64;  // of a split: with fewer, merging takes longer than reading

struct Keys {  // of one KV head: key s begins at s * stride
  const void *k, *v;
  const float *k_scale, *v_scale;
  long long stride;
};

template <int FORMAT> struct Stored { using type = float; };
template <> struct Stored<BF16> { using type = bf16; };
template <> struct Stored<INT8> { using type = signed char; };

// 8 numbers of a key or value as they are stored; where they do not lie on 16 bytes, one by one and only K of them.
template <int FORMAT, bool WHOLE> struct Piece {
  using W = typename Stored<FORMAT>::type;
  Eight<W> eight;
  __device__ __forceinline__ void read(const void* base, long long place, int) { eight.read(static_cast<const W*>(base) + place); }
  __device__ __forceinline__ void widen(float (&x)[DIMS]) const { eight.widen(x); }
};
template <int FORMAT> struct Piece<FORMAT, false> {
  float one[DIMS];
  __device__ __forceinline__ void read(const void* base, long long place, int count) {
#pragma unroll
    for (int i = 0; i < DIMS; i++) one[i] = i < count ? widened(static_cast<const typename Stored<FORMAT>::type*>(base)[place + i]) : 0.0f;
  }
  __device__ __forceinline__ void widen(float (&x)[DIMS]) const {
#pragma unroll
    for (int i = 0; i < DIMS; i++) x[i] = one[i];
  }
};

struct Sizes { int T, H, R, K, past, window; };

// The softmax of 8 rows over keys begin .. end - 1, by streams: each leaves its part in shared memory.
template <int FORMAT, int LANES, bool WHOLE>
__device__ __forceinline__ void attend_keys(const float* q_THK, const Keys& keys, const Sizes& n, int head, int first_row,
                                            int begin, int end, float* mixed, float* top_of, float* total_of) {
  constexpr int STREAMS = THREADS / LANES, STEPS = WHOLE && FORMAT != F32 ? 4 : 1;  // keys whose reads are on their way
  int stream = threadIdx.x / LANES, first = threadIdx.x % LANES * DIMS;
  float q[ROWS][DIMS], mix[ROWS][DIMS], top[ROWS], total[ROWS], scale = rsqrtf((float)n.K) * 1.44269504f;
#pragma unroll
  for (int r = 0; r < ROWS; r++) {
    int row = first_row + r, t = row / n.R, h = head * n.R + row % n.R;
    top[r] = LOWEST, total[r] = 0;
#pragma unroll
    for (int i = 0; i < DIMS; i++) {
      q[r][i] = t < n.T && first + i < n.K ? q_THK[((long long)t * n.H + h) * n.K + first + i] * scale : 0.0f;
      mix[r][i] = 0;
    }
  }
  for (int base = begin; base < end; base += STREAMS * STEPS) {  // all streams go on together: lanes must meet
    Piece<FORMAT, WHOLE> k_of[STEPS], v_of[STEPS];
    float k_scale[STEPS], v_scale[STEPS];
#pragma unroll
    for (int step = 0; step < STEPS; step++) {
      int s = base + step * STREAMS + stream;
      if (s >= end || first >= n.K) continue;
      k_of[step].read(keys.k, s * keys.stride + first, n.K - first);
      v_of[step].read(keys.v, s * keys.stride + first, n.K - first);
      if constexpr (FORMAT == INT8) k_scale[step] = keys.k_scale[s], v_scale[step] = keys.v_scale[s];
    }
#pragma unroll
    for (int step = 0; step < STEPS; step++) {
      int s = base + step * STREAMS + stream;
      float k[DIMS] = {}, v[DIMS] = {};
      if (s < end && first < n.K) {
        k_of[step].widen(k), v_of[step].widen(v);
#pragma unroll
        for (int i = 0; i < DIMS && FORMAT == INT8; i++) k[i] *= k_scale[step], v[i] *= v_scale[step];
      }
#pragma unroll
      for (int r = 0; r < ROWS; r++) {
        float score = 0;
#pragma unroll
        for (int i = 0; i < DIMS; i++) score += q[r][i] * k[i];
#pragma unroll
        for (int mask = LANES / 2; mask; mask /= 2) score += __shfl_xor_sync(0xffffffffu, score, mask);
        int place = n.past + (first_row + r) / n.R;  // of this query among the keys
        if (s >= end || s > place || s <= place - n.window) continue;
        if (score > top[r]) {
          float shrink = exp2f(top[r] - score);
          top[r] = score, total[r] *= shrink;
#pragma unroll
          for (int i = 0; i < DIMS; i++) mix[r][i] *= shrink;
        }
        float weight = exp2f(score - top[r]);
        total[r] += weight;
#pragma unroll
        for (int i = 0; i < DIMS; i++) mix[r][i] += weight * v[i];
      }
    }
  }
#pragma unroll
  for (int r = 0; r < ROWS; r++) {
#pragma unroll
    for (int i = 0; i < DIMS; i++) mixed[(stream * ROWS + r) * LANES * DIMS + first + i] = mix[r][i];
    if (first == 0) top_of[stream * ROWS + r] = top[r], total_of[stream * ROWS + r] = total[r];
  }
}

// Of parts p of each row: what each weighs, where its largest score was; and the row's largest score and sum. A warp
// takes a row, so that nobody computes a weight twice.
__device__ __forceinline__ void weigh(float* top_of, const float* total_of, int parts, int rows, float* top, float* total) {
  int lane = threadIdx.x % 32;
  for (int r = threadIdx.x / 32; r < rows; r += WARPS) {
    float highest = LOWEST, sum = 0;
    for (int p = lane; p < parts; p += 32) highest = fmaxf(highest, top_of[p * ROWS + r]);
    highest = warp_max(highest);
    for (int p = lane; p < parts; p += 32) {
      float share = exp2f(top_of[p * ROWS + r] - highest);
      top_of[p * ROWS + r] = share, sum += share * total_of[p * ROWS + r];
    }
    sum = warp_sum(sum);
    if (lane == 0) top[r] = highest, total[r] = sum;
  }
}

// WIDE numbers side by side: 4 where they lie on 16 bytes, else 1
template <int WIDE> __device__ __forceinline__ void take(float (&x)[WIDE], const float* from) {
  if constexpr (WIDE == 4) {
    float4 v = *reinterpret_cast<const float4*>(from);
    x[0] = v.x, x[1] = v.y, x[2] = v.z, x[3] = v.w;
  } else x[0] = *from;
}
template <int WIDE> __device__ __forceinline__ void put(float* to, const float (&x)[WIDE]) {
  if constexpr (WIDE == 4) *reinterpret_cast<float4*>(to) = make_float4(x[0], x[1], x[2], x[3]);
  else *to = x[0];
}

// sum over parts p, in this order, of share[p] * from[p]
template <int WIDE>
__device__ __forceinline__ void mix_parts(float (&x)[WIDE], int parts, const float* share, const float* from, int stride) {
#pragma unroll
  for (int j = 0; j < WIDE; j++) x[j] = 0;
#pragma unroll 8
  for (int p = 0; p < parts; p++) {
    float part[WIDE];
    take(part, from + (long long)p * stride);
#pragma unroll
    for (int j = 0; j < WIDE; j++) x[j] += share[p * ROWS] * part[j];
  }
}

struct Sequence {  // its rows first .. first + T - 1 of q, and a stretch of its keys
  const void *k_GSK, *v_GSK;
  const float *k_scale_GS, *v_scale_GS;
  const long long* past_1;  // how many keys lie before its first query, where a recorded step finds it; else `past`
  long long stride_G, stride_S, scale_stride_G;
  int first, T, S, past;
};
struct Sequences { Sequence of[SEQUENCES]; };

extern "C" __global__ __launch_bounds__(THREADS) void attention_kernel(
    const float* q_THK, float* out_THK, float* lse_TH, float* partial, unsigned* finished, int H, int G, int K, int window,
    const __grid_constant__ Sequences sequences) {
  __shared__ __align__(16) float mixed[THREADS * DIMS * ROWS];
  __shared__ float top_of[16 * ROWS], total_of[16 * ROWS], top[ROWS], total[ROWS];
  __shared__ bool last;
  const Sequence& own = sequences.of[blockIdx.z / G];
  int split = blockIdx.y, splits = gridDim.y, first_row = blockIdx.x * ROWS, head = blockIdx.z % G;
  Sizes n{own.T, H, H / G, K, own.past_1 ? (int)*own.past_1 : own.past, window ? window : 0x40000000};
  int rows = min(ROWS, n.T * n.R - first_row);
  if (rows <= 0) return;  // another sequence has more tokens
  int lowest = max(0, n.past + first_row / n.R + 1 - n.window), highest = min(own.S, n.past + (first_row + rows - 1) / n.R + 1);
  int seen = max(0, highest - lowest), fair = (seen + splits - 1) / splits;
  int each = max(1, (fair + FEWEST_KEYS - 1) / FEWEST_KEYS) * FEWEST_KEYS;
  int parts = max(1, (seen + each - 1) / each), begin = lowest + split * each, end = min(highest, begin + each);
  if (split >= parts) return;  // another sequence is longer, or this one has room for more
  q_THK += (long long)own.first * H * K, out_THK += (long long)own.first * H * K;
  if (lse_TH) lse_TH += (long long)own.first * H;

  constexpr int lanes = KEY_LANES, bytes = KEY_FORMAT == F32 ? 4 : KEY_FORMAT == BF16 ? 2 : 1;
  long long place = head * own.stride_G * bytes, scale_place = head * own.scale_stride_G;
  Keys keys{static_cast<const char*>(own.k_GSK) + place, static_cast<const char*>(own.v_GSK) + place, own.k_scale_GS + scale_place,
            own.v_scale_GS + scale_place, own.stride_S};
  attend_keys<KEY_FORMAT, KEY_LANES, KEY_WHOLE>(q_THK, keys, n, head, first_row, begin, end, mixed, top_of, total_of);
  __syncthreads();
  weigh(top_of, total_of, THREADS / lanes, rows, top, total);
  __syncthreads();

  constexpr int WIDE = KEY_WHOLE ? 4 : 1;
  auto finish = [&](int r, int i, float (&x)[WIDE]) {
    long long vector = (long long)((first_row + r) / n.R) * H + head * n.R + (first_row + r) % n.R;
    float share = total[r] == 0 ? 0.0f : 1.0f / total[r];
#pragma unroll
    for (int j = 0; j < WIDE; j++) x[j] *= share;
    put(out_THK + vector * K + i, x);
    if (lse_TH && i == 0) lse_TH[vector] = total[r] == 0 ? -infinite() : (top[r] + log2f(total[r])) * 0.693147181f;
  };
  int block = blockIdx.z * gridDim.x + blockIdx.x;
  float* values = partial + (long long)block * splits * ROWS * (K + 2);  // of each part: ROWS times K values ...
  float* sums = values + (long long)splits * ROWS * K;                // ... and ROWS largest scores and sums
  for (int item = threadIdx.x * WIDE; item < rows * K; item += THREADS * WIDE) {
    int r = item / K, i = item % K;
    float x[WIDE];
    mix_parts(x, THREADS / lanes, top_of + r, mixed + r * lanes * DIMS + i, ROWS * lanes * DIMS);
    if (parts == 1) finish(r, i, x);
    else put(values + (split * ROWS + r) * K + i, x);
  }
  if (parts == 1) return;
  float* own_sums = sums + 2 * (split * ROWS + threadIdx.x);
  if (threadIdx.x < rows) own_sums[0] = top[threadIdx.x], own_sums[1] = total[threadIdx.x];

  __threadfence();  // all that this thread wrote can be read by every block ...
  __syncthreads();  // ... and so all that this block wrote, before it is counted
  unsigned* count = finished + block;
  if (threadIdx.x == 0) last = atomicAdd(count, 1u) == (unsigned)parts - 1;
  __syncthreads();
  if (!last) return;
  __threadfence();
  float *tops = mixed, *totals = mixed + parts * ROWS;
  for (int n = threadIdx.x; n < parts * ROWS; n += THREADS)
    if (n % ROWS < rows) tops[n] = sums[2 * n], totals[n] = sums[2 * n + 1];
  __syncthreads();
  weigh(tops, totals, parts, rows, top, total);
  __syncthreads();
  for (int item = threadIdx.x * WIDE; item < rows * K; item += THREADS * WIDE) {
    int r = item / K, i = item % K;
    float x[WIDE];
    mix_parts(x, parts, tops + r, values + r * K + i, ROWS * K);
    finish(r, i, x);
  }
  if (threadIdx.x == 0) *count = 0;  // for the next launch
}
