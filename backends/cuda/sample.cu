// sample() of tinyqwen/sampling.py as a whole, and nobody waits for it: penalty, temperature, top-k, top-p, min-p, a draw.
//
// Bytes that must move: the logits, 4 V (600 KB). Sequences that decode together have blocks of their own, side by side,
// and how each chooses is a table among the parameters.
//
// How the k likeliest are found without sorting 150,000: the logits are cut into 1024 columns, and a warp finds the
// largest of each, many blocks at once: one alone would need 13 us to read that much (16 KB on their way, 340 ns), and
// twice. Among these 1024 the k-th largest is a bar: whoever is among the k likeliest is not below it. So one block looks
// again at those k columns that reach the bar, collects all in them that do, a few more than k, and sorts those. Of equals,
// the lower id comes first, as in the definition.

constexpr int COLUMNS = 1024, MOST = 2048;  // candidates; if more than that tie, the likeliest is taken

// A whole number in the order of the floats, as backends/cpu/by_likelihood.py has it: NaN is above all, -0 not below 0.
__device__ __forceinline__ unsigned key_of(float x) {
  if (x != x) return 0xffffffffu;
  unsigned bits = __float_as_uint(x);
  return x < 0 ? ~bits : bits | 0x80000000u;
}
__device__ __forceinline__ float logit_of(unsigned key) {
  return __uint_as_float(key & 0x80000000u ? (key == 0x80000000u ? 0u : key & 0x7fffffffu) : ~key);
}

// ascending, in shared memory; `size` is a power of two (Batcher's bitonic sort: what is compared depends on no data)
__device__ __forceinline__ void sort(u64* item, int size) {
  for (int run = 2; run <= size; run *= 2)
    for (int step = run / 2; step; step /= 2) {
      __syncthreads();
      for (int i = threadIdx.x; i < size; i += blockDim.x) {
        int j = i ^ step;
        if (j > i && (item[i] > item[j]) == ((i & run) == 0)) {
          u64 other = item[i];
          item[i] = item[j], item[j] = other;
        }
      }
    }
  __syncthreads();
}

__device__ __forceinline__ u64 warp_largest(u64 x) {
  for (int mask = 16; mask; mask /= 2) x = max(x, __shfl_xor_sync(0xffffffffu, x, mask));
  return x;
}

__device__ __forceinline__ int power_of_two(int n) {
  int size = 1;
  while (size < n) size *= 2;
  return size;
}

// What top-p and min-p leave of n candidates, ascending by likelihood: exp(logit - largest), or 0 for what they remove.
__device__ __forceinline__ void narrow(const u64* candidate, float* mass, int n, float top_p, float min_p) {
  float largest = logit_of(candidate[n - 1] >> 32), total = 0, below = 0, kept = 0;
  for (int i = 0; i < n; i++) total += mass[i] = expf(logit_of(candidate[i] >> 32) - largest);
  for (int i = 0; i < n && top_p < 1; i++) {
    below += mass[i] / total;
    if (below <= 1 - top_p && i < n - 1) mass[i] = 0;  // the likeliest always stays
  }
  for (int i = 0; i < n; i++) kept += mass[i];
  for (int i = 0; i < n && min_p > 0; i++)
    if (mass[i] / kept < min_p * (1 / kept)) mass[i] = 0;
}

struct Choice {  // how a sequence chooses; draws 0: it takes the likeliest
  const long long* seen_S;
  int S, draws, top_k;
  float penalty, temperature, top_p, min_p;
};
struct Choices { Choice of[SEQUENCES]; };

// logits_NV less what the penalty takes, divided by the temperature; ids may be given several times
extern "C" __global__ __launch_bounds__(256) void temper_kernel(
    const float* logits_NV, long long stride, float* out_NV, int V, const __grid_constant__ Choices choices) {
  const float* logits_V = logits_NV + blockIdx.y * stride;
  float *out_V = out_NV + (long long)blockIdx.y * V, temperature = choices.of[blockIdx.y].temperature;
  for (int v = blockIdx.x * blockDim.x + threadIdx.x; v < V; v += gridDim.x * blockDim.x) out_V[v] = logits_V[v] / temperature;
}
extern "C" __global__ __launch_bounds__(256) void penalise_kernel(
    const float* logits_NV, long long stride, float* out_NV, int V, const __grid_constant__ Choices choices) {
  const Choice& own = choices.of[blockIdx.y];
  int s = blockIdx.x * blockDim.x + threadIdx.x;
  if (s >= own.S) return;
  float logit = logits_NV[blockIdx.y * stride + own.seen_S[s]];
  out_NV[(long long)blockIdx.y * V + own.seen_S[s]] = (logit < 0 ? logit * own.penalty : logit / own.penalty) / own.temperature;
}

// The largest of each column, above its id turned round: of equals, the lower id is the larger. A warp takes a column.
extern "C" __global__ __launch_bounds__(256) void columns_kernel(const float* logits_NV, long long stride, u64* best_NC, int V) {
  const float* logits_V = logits_NV + blockIdx.y * stride;
  int column = blockIdx.x * (blockDim.x / 32) + threadIdx.x / 32, width = (V + COLUMNS - 1) / COLUMNS;
  u64 best = 0;
  for (int v = column * width + threadIdx.x % 32; v < min(V, (column + 1) * width); v += 32)
    best = max(best, (u64)key_of(logits_V[v]) << 32 | ~(unsigned)v);
  best = warp_largest(best);
  if (threadIdx.x % 32 == 0) best_NC[(long long)blockIdx.y * COLUMNS + column] = best;
}

extern "C" __global__ __launch_bounds__(COLUMNS) void sample_kernel(
    const float* logits_NV, long long stride, const u64* best_NC, const double* uniform_N, long long* token_N, int V,
    const __grid_constant__ Choices choices) {
  __shared__ u64 candidate[MOST];
  __shared__ float mass[MOST];
  __shared__ unsigned count;
  const Choice& own = choices.of[blockIdx.x];
  const float *logits_V = logits_NV + blockIdx.x * stride, top_p = own.top_p, min_p = own.min_p;
  long long* token_1 = token_N + blockIdx.x;
  int top_k = own.top_k, warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  u64 best = best_NC[(long long)blockIdx.x * COLUMNS + threadIdx.x], largest = warp_largest(best);
  if (lane == 0) candidate[warp] = largest;
  __syncthreads();
  if (warp == 0) largest = warp_largest(candidate[lane]);
  if (threadIdx.x == 0) *token_1 = ~(unsigned)largest;
  if (!own.draws) return;

  __syncthreads();
  candidate[threadIdx.x] = best;
  if (threadIdx.x == 0) count = 0;
  sort(candidate, COLUMNS);
  unsigned bar = candidate[COLUMNS - top_k] >> 32;
  __syncthreads();
  int reaches = best && best >> 32 >= bar, width = (V + COLUMNS - 1) / COLUMNS;
  for (int n = 0; n < 32; n++) {  // each of the warp's 32 columns that has somebody
    if (!__shfl_sync(0xffffffffu, reaches, n)) continue;
    int first = (32 * warp + n) * width;
    for (int v = first + lane; v < min(V, first + width); v += 32) {
      unsigned key = key_of(logits_V[v]);
      if (key < bar) continue;
      unsigned place = atomicAdd(&count, 1u);
      if (place < MOST) candidate[place] = (u64)key << 32 | (unsigned)v;
    }
  }
  __syncthreads();
  int n = count;
  if (n > MOST) return;
  for (int i = n + threadIdx.x; i < MOST; i += COLUMNS) candidate[i] = ~0ull;
  sort(candidate, power_of_two(n));  // by logit, of equals by id

  int first = max(0, n - top_k);  // ... and all ties with the k-th
  while (first > 0 && candidate[first - 1] >> 32 == candidate[first] >> 32) first--;
  n -= first;
  if (threadIdx.x == 0) narrow(candidate + first, mass, n, top_p, min_p);
  __syncthreads();
  u64 mine[MOST / COLUMNS];
  for (int i = threadIdx.x, m = 0; i < MOST; i += COLUMNS, m++)
    mine[m] = i < n && mass[i] > 0 ? (candidate[first + i] & 0xffffffffull) << 32 | __float_as_uint(mass[i]) : ~0ull;
  __syncthreads();
  for (int i = threadIdx.x, m = 0; i < MOST; i += COLUMNS, m++) candidate[i] = mine[m];
  sort(candidate, power_of_two(n));  // by id; what was removed comes last
  if (threadIdx.x) return;

  float total = 0, sum = 0;
  int last = 0;
  for (int i = 0; i < n && candidate[i] != ~0ull; i++) total += __uint_as_float((unsigned)candidate[i]), last = i;
  float all = 0;
  for (int i = 0; i <= last; i++) all += __uint_as_float((unsigned)candidate[i]) / total;
  float dice = (float)uniform_N[blockIdx.x] * all;
  int chosen = 0;
  for (; chosen < last; chosen++) {
    sum += __uint_as_float((unsigned)candidate[chosen]) / total;
    if (sum > dice) break;
  }
  *token_1 = candidate[chosen] >> 32;
}
