// weights = softmax(q . k / sqrt(K) over the visible keys);  out = weights . v         for R = H / G query heads a KV head
//
// Bytes that must move: K and V of all that is visible, once for the R query heads that share them: 2 K numbers a key.
// What keeps the memory busy with one token: the keys are cut into `splits`, a block each (flash decoding).
//
// A block takes 8 rows (a row is a token and one of the R heads) of one KV head, and one split. 8, 16 or 32 lanes hold a
// key, 8 numbers each, for K up to 64, 128 or 256, so that a block looks at 16, 8 or 4 keys at a time. Each such stream of
// keys has its own softmax (largest score, sum, weighted values); in the end streams are merged, then splits: the block
// that comes last does it, always in the same order, so the bits do not depend on who came last.
//
// Query t sees keys past + t - window < s <= past + t. Scores are in units of log 2, where exp is one instruction.

constexpr int ROWS = 8, DIMS = 8;

struct Keys {  // of one KV head: key s begins at s * stride
  const void *k, *v;
  const float *k_scale, *v_scale;
  long long stride;
  bool whole;  // K is a multiple of 8 and everything lies on 16 bytes
};

template <int FORMAT>
__device__ __forceinline__ void load_dims(const void* base, const float* scale, const Keys& keys, int s, int first, int K, float (&x)[DIMS]) {
  long long place = s * keys.stride + first;
  if (keys.whole && first < K) {
    if constexpr (FORMAT == F32) load8(static_cast<const float*>(base) + place, x);
    if constexpr (FORMAT == BF16) load8(static_cast<const bf16*>(base) + place, x);
    if constexpr (FORMAT == INT8) {
      uint2 v = __ldg(reinterpret_cast<const uint2*>(static_cast<const signed char*>(base) + place));
#pragma unroll
      for (int i = 0; i < DIMS; i++) x[i] = (float)(signed char)((i < 4 ? v.x : v.y) >> i % 4 * 8) * scale[s];
    }
    return;
  }
#pragma unroll
  for (int i = 0; i < DIMS; i++) {
    x[i] = 0;
    if (first + i >= K) continue;
    if constexpr (FORMAT == F32) x[i] = static_cast<const float*>(base)[place + i];
    if constexpr (FORMAT == BF16) x[i] = widened(static_cast<const bf16*>(base)[place + i]);
    if constexpr (FORMAT == INT8) x[i] = (float)static_cast<const signed char*>(base)[place + i] * scale[s];
  }
}

struct Sizes { int T, H, R, K, past, window; };

// The softmax of 8 rows over keys begin .. end - 1, by streams: each leaves its part in shared memory.
template <int FORMAT, int LANES>
__device__ __forceinline__ void attend_keys(const float* q_THK, const Keys& keys, const Sizes& n, int head, int first_row,
                                            int begin, int end, float* mixed, float* top_of, float* total_of) {
  constexpr int STREAMS = THREADS / LANES;
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
  for (int base = begin; base < end; base += STREAMS) {  // all streams go on together: lanes must meet
    int s = base + stream;
    float k[DIMS] = {}, v[DIMS] = {};
    if (s < end) {
      load_dims<FORMAT>(keys.k, keys.k_scale, keys, s, first, n.K, k);
      load_dims<FORMAT>(keys.v, keys.v_scale, keys, s, first, n.K, v);
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
#pragma unroll
  for (int r = 0; r < ROWS; r++) {
#pragma unroll
    for (int i = 0; i < DIMS; i++) mixed[(stream * ROWS + r) * LANES * DIMS + first + i] = mix[r][i];
    if (first == 0) top_of[stream * ROWS + r] = top[r], total_of[stream * ROWS + r] = total[r];
  }
}

struct Merged { float mixed, top, total; };

// parts p = 0 .. parts - 1 of one number of one row, in this order
template <class Part> __device__ __forceinline__ Merged merged(int parts, Part part) {
  Merged all{0, LOWEST, 0};
  for (int p = 0; p < parts; p++) all.top = fmaxf(all.top, part(p).top);
  for (int p = 0; p < parts; p++) {
    Merged one = part(p);
    float share = exp2f(one.top - all.top);
    all.mixed += share * one.mixed, all.total += share * one.total;
  }
  return all;
}

extern "C" __global__ __launch_bounds__(THREADS) void attention_kernel(
    const float* q_THK, int format, const void* k_GSK, const void* v_GSK, const float* k_scale_GS, const float* v_scale_GS,
    float* out_THK, float* lse_TH, float* parts, unsigned* finished, const long long* past_1,
    int T, int H, int G, int K, int S, int past, int window, long long stride_G, long long stride_S, long long scale_stride_G) {
  __shared__ float mixed[THREADS * DIMS * ROWS], top_of[16 * ROWS], total_of[16 * ROWS];
  __shared__ bool last;
  int split = blockIdx.x, splits = gridDim.x, first_row = blockIdx.y * ROWS, head = blockIdx.z;
  Sizes n{T, H, H / G, K, past_1 ? (int)*past_1 : past, window ? window : 0x40000000};
  int rows = min(ROWS, T * n.R - first_row);
  int lowest = max(0, n.past + first_row / n.R + 1 - n.window), highest = min(S, n.past + (first_row + rows - 1) / n.R + 1);
  int each = (max(0, highest - lowest) + splits - 1) / splits, begin = lowest + split * each, end = min(highest, begin + each);

  int bytes = format == F32 ? 4 : format == BF16 ? 2 : 1;
  Keys keys{static_cast<const char*>(k_GSK) + head * stride_G * bytes, static_cast<const char*>(v_GSK) + head * stride_G * bytes,
            k_scale_GS + head * scale_stride_G, v_scale_GS + head * scale_stride_G, stride_S, false};
  keys.whole = K % 8 == 0 && stride_S % 16 == 0 && on_16_bytes(keys.k) && on_16_bytes(keys.v);
  int lanes = K <= 64 ? 8 : K <= 128 ? 16 : 32;
#define ATTEND(FORMAT, LANES) attend_keys<FORMAT, LANES>(q_THK, keys, n, head, first_row, begin, end, mixed, top_of, total_of)
#define ATTEND_ALL(FORMAT) lanes == 8 ? ATTEND(FORMAT, 8) : lanes == 16 ? ATTEND(FORMAT, 16) : ATTEND(FORMAT, 32)
  if (format == F32) ATTEND_ALL(F32);
  else if (format == BF16) ATTEND_ALL(BF16);
  else ATTEND_ALL(INT8);
  __syncthreads();

  auto finish = [&](int r, int i, const Merged& all) {
    int t = (first_row + r) / n.R, h = head * n.R + (first_row + r) % n.R;
    out_THK[((long long)t * H + h) * K + i] = all.total == 0 ? 0.0f : all.mixed / all.total;
    if (lse_TH && i == 0) lse_TH[(long long)t * H + h] = all.total == 0 ? -infinite() : (all.top + log2f(all.total)) * 0.693147181f;
  };
  int width = K + 2;  // of a part: the values, the largest score, the sum
  float* mine = parts + ((long long)(head * gridDim.y + blockIdx.y) * splits) * ROWS * width;
  for (int item = threadIdx.x; item < rows * K; item += THREADS) {
    int r = item / K, i = item % K;
    Merged all = merged(THREADS / lanes, [&](int p) {
      int row = p * ROWS + r;
      return Merged{mixed[row * lanes * DIMS + i], top_of[row], total_of[row]};
    });
    if (splits == 1) { finish(r, i, all); continue; }
    float* part = mine + (split * ROWS + r) * width;
    part[i] = all.mixed;
    if (i == 0) part[K] = all.top, part[K + 1] = all.total;
  }
  if (splits == 1) return;

  __threadfence();  // all that this thread wrote can be read by every block ...
  __syncthreads();  // ... and so all that this block wrote, before it is counted
  unsigned* count = finished + head * gridDim.y + blockIdx.y;
  if (threadIdx.x == 0) last = atomicAdd(count, 1u) == (unsigned)splits - 1;
  __syncthreads();
  if (!last) return;
  __threadfence();
  for (int item = threadIdx.x; item < rows * K; item += THREADS) {
    int r = item / K, i = item % K;
    finish(r, i, merged(splits, [&](int p) {
      const float* part = mine + (p * ROWS + r) * width;
      return Merged{part[i], part[K], part[K + 1]};
    }));
  }
  if (threadIdx.x == 0) *count = 0;  // for the next launch
}
