// The same as attention.cu for many tokens and a bfloat16 cache, on the tensor cores: a prompt is bound by arithmetic.
//
// Bytes that must move: K and V once for every 64 rows, from the cache that all share; 4 K T S H / 2 operations a layer.
//
// A block takes 64 rows of one KV head (a row is a token and one of its R query heads, so those share K and V), a warp 16
// of them. Keys come 64 at a time, the next ones while these are multiplied. Scores never leave the registers: what the
// first product leaves in a lane is what the second one wants there. Queries and weights are rounded to bfloat16, as
// the cache is already; sums are float32.
//
// Source: Dao 2023, "FlashAttention-2"; the layout of a lane's numbers: PTX ISA, mma.m16n8k16.

constexpr int ROWS = 64, KEYS = 64, PAD = 8;  // 16 bytes more a row: else 8 rows would lie in the same banks

__device__ __forceinline__ unsigned pair_of(float low, float high) {
  __nv_bfloat162 both = __floats2bfloat162_rn(low, high);
  return *reinterpret_cast<unsigned*>(&both);
}

template <int K> __device__ __forceinline__ void fetch(bf16* tile, const bf16* from_GSK, long long stride, int first, int end) {
  constexpr int CHUNKS = K / 8;  // of 16 bytes
  for (int n = threadIdx.x; n < KEYS * CHUNKS; n += THREADS) {
    int key = n / CHUNKS, chunk = n % CHUNKS;
    bool there = first + key < end;
    copy_async(tile + key * (K + PAD) + chunk * 8, from_GSK + (there ? first + key : 0) * stride + chunk * 8, there);
  }
}

template <int K>
__device__ __forceinline__ void attend_prompt(const float* q_THK, const bf16* k_SK, const bf16* v_SK, float* out_THK, float* lse_TH,
                                              bf16* shared, int T, int H, int R, int S, int past, int window, long long stride) {
  constexpr int TILE = KEYS * (K + PAD);
  int warp = threadIdx.x / 32, lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
  int first_row = blockIdx.x * ROWS, head = blockIdx.y, last_row = min(first_row + ROWS, T * R) - 1;
  int begin = max(0, past + first_row / R + 1 - window) / KEYS * KEYS, end = min(S, past + last_row / R + 1);

  // This lane's two rows, g and g + 8 of its warp's 16: where their queries lie, and which place they have among the keys.
  const float* query[2];
  int place[2];
  unsigned q[K / 16][4];
  for (int half = 0; half < 2; half++) {
    int row = first_row + 16 * warp + g + 8 * half, token = min(row, T * R - 1) / R, h = head * R + min(row, T * R - 1) % R;
    query[half] = q_THK + ((long long)token * H + h) * K;
    place[half] = past + token;
  }
  float scale = rsqrtf((float)K) * 1.44269504f;  // scores in units of log 2
#pragma unroll
  for (int step = 0; step < K / 16; step++)
#pragma unroll
    for (int i = 0; i < 4; i++) {
      const float* two = query[i % 2] + 16 * step + 8 * (i / 2) + 2 * t;
      q[step][i] = pair_of(two[0] * scale, two[1] * scale);
    }

  float mixed[K / 8][4] = {}, top[2] = {LOWEST, LOWEST}, total[2] = {0, 0};
  bf16 *k_tile = shared, *v_tile = shared + 2 * TILE;
  fetch<K>(k_tile, k_SK, stride, begin, end);
  fetch<K>(v_tile, v_SK, stride, begin, end);
  end_group();
  for (int first = begin, turn = 0; first < end; first += KEYS, turn ^= 1) {
    if (first + KEYS < end) {
      fetch<K>(k_tile + (turn ^ 1) * TILE, k_SK, stride, first + KEYS, end);
      fetch<K>(v_tile + (turn ^ 1) * TILE, v_SK, stride, first + KEYS, end);
    }
    end_group();
    wait_for_groups<1>();  // all but the latest: these tiles are here
    __syncthreads();
    const bf16 *k = k_tile + turn * TILE, *v = v_tile + turn * TILE;

    float score[KEYS / 8][4] = {};
#pragma unroll
    for (int n = 0; n < KEYS / 8; n++)
#pragma unroll
      for (int step = 0; step < K / 16; step += 2) {  // 8 keys, 32 of their numbers
        unsigned tile[4];
        load_tiles<false>(tile, k + (8 * n + lane % 8) * (K + PAD) + 16 * step + lane / 8 * 8);
        multiply_tiles(score[n], q[step], tile[0], tile[1]);
        multiply_tiles(score[n], q[step + 1], tile[2], tile[3]);
      }

    float highest[2] = {top[0], top[1]};
#pragma unroll
    for (int n = 0; n < KEYS / 8; n++)
#pragma unroll
      for (int i = 0; i < 4; i++) {
        int s = first + 8 * n + 2 * t + i % 2, own = place[i / 2];
        if (s > own || s <= own - window || s >= end) score[n][i] = -infinite();
        highest[i / 2] = fmaxf(highest[i / 2], score[n][i]);
      }
#pragma unroll
    for (int half = 0; half < 2; half++) {  // a row's scores lie in four lanes
      highest[half] = fmaxf(highest[half], __shfl_xor_sync(0xffffffffu, highest[half], 1));
      highest[half] = fmaxf(highest[half], __shfl_xor_sync(0xffffffffu, highest[half], 2));
      float shrink = exp2f(top[half] - highest[half]);
      top[half] = highest[half], total[half] *= shrink;
#pragma unroll
      for (int n = 0; n < K / 8; n++) mixed[n][2 * half] *= shrink, mixed[n][2 * half + 1] *= shrink;
    }
#pragma unroll
    for (int n = 0; n < KEYS / 8; n++)
#pragma unroll
      for (int i = 0; i < 4; i++) {
        score[n][i] = exp2f(score[n][i] - top[i / 2]);
        total[i / 2] += score[n][i];
      }

#pragma unroll
    for (int step = 0; step < KEYS / 16; step++) {  // 16 keys
      const float(&a)[4] = score[2 * step], (&b)[4] = score[2 * step + 1];
      unsigned weights[4] = {pair_of(a[0], a[1]), pair_of(a[2], a[3]), pair_of(b[0], b[1]), pair_of(b[2], b[3])};
#pragma unroll
      for (int n = 0; n < K / 8; n += 2) {
        unsigned tile[4];
        load_tiles<true>(tile, v + (16 * step + lane % 16) * (K + PAD) + 8 * n + lane / 16 * 8);
        multiply_tiles(mixed[n], weights, tile[0], tile[1]);
        multiply_tiles(mixed[n + 1], weights, tile[2], tile[3]);
      }
    }
    __syncthreads();  // before the tiles are written again
  }

  for (int half = 0; half < 2; half++) {
    float sum = total[half];
    sum += __shfl_xor_sync(0xffffffffu, sum, 1);
    sum += __shfl_xor_sync(0xffffffffu, sum, 2);
    int row = first_row + 16 * warp + g + 8 * half;
    if (row > last_row) continue;
    long long vector = (long long)(row / R) * H + head * R + row % R;
    float share = sum == 0 ? 0.0f : 1.0f / sum;
#pragma unroll
    for (int n = 0; n < K / 8; n++) {
      out_THK[vector * K + 8 * n + 2 * t] = mixed[n][2 * half] * share;
      out_THK[vector * K + 8 * n + 2 * t + 1] = mixed[n][2 * half + 1] * share;
    }
    if (lse_TH && t == 0) lse_TH[vector] = sum == 0 ? -infinite() : (top[half] + log2f(sum)) * 0.693147181f;
  }
}

extern "C" __global__ __launch_bounds__(THREADS) void attention_prompt_kernel(
    const float* q_THK, const bf16* k_GSK, const bf16* v_GSK, float* out_THK, float* lse_TH, int T, int H, int G, int K, int S,
    int past, int window, long long stride_G, long long stride_S) {
  extern __shared__ __align__(128) unsigned char smem[];
  bf16* shared = reinterpret_cast<bf16*>(smem);
  k_GSK += blockIdx.y * stride_G, v_GSK += blockIdx.y * stride_G;
  if (!window) window = 0x40000000;
  if (K == 64) attend_prompt<64>(q_THK, k_GSK, v_GSK, out_THK, lse_TH, shared, T, H, H / G, S, past, window, stride_S);
  else attend_prompt<128>(q_THK, k_GSK, v_GSK, out_THK, lse_TH, shared, T, H, H / G, S, past, window, stride_S);
}
