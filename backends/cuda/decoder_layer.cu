// One token through a dense layer in five launches instead of fourteen:
//
//   norm_qkv       h = rms_norm(x);  q, k, v = h Wq + bq, h Wk + bk, h Wv + bv;  q and k turned;  k and v into the cache
//   attention      attention.cu
//   linear         x = x + attended Wo                              linear.cu
//   norm_gate_up   h = rms_norm(x);  hidden = silu(h Wgate) * (h Wup)
//   linear         x = x + hidden Wdown
//
// Bytes that must move: the weights, once, and the cache. A launch costs a microsecond or more in which the memory has
// nothing to do, which is as long as reading 4 MB takes: so every block computes the norm again rather than wait for one
// that does (4 D bytes, from the cache that all share), while its first weights are on their way already.

__device__ __forceinline__ void normalised(const float* x_D, const void* weight_D, int format, float eps, int D, float* h_D, float* room) {
  float squares = 0;
  for (int d = threadIdx.x; d < D; d += blockDim.x) squares += x_D[d] * x_D[d];
  float root = sqrtf(block_sum(squares, room) / D + eps);
  for (int d = threadIdx.x; d < D; d += blockDim.x) h_D[d] = x_D[d] / root * number(weight_D, format, d);
  __syncthreads();
}

struct Biases {
  const void *q, *k, *v;
  int format;
};
struct Position {  // what belongs to this token's place in the text
  const float *cos_Kh, *sin_Kh;
  long long slot;
};
struct Places {  // where q, k and v go; k and v of an int8 cache are rounded afterwards, a whole vector at a time
  float *q_HK, *k_GK, *v_GK;
  void* kv_2GNK;
  int kv_format, N;
};

__device__ __forceinline__ void put(const Places& to, int which, int g, int G, int K, int i, long long slot, float x) {
  long long place = ((long long)(which * G + g) * to.N + slot) * K + i;
  if (to.kv_format == INT8) (which ? to.v_GK : to.k_GK)[g * K + i] = x;
  else if (to.kv_format == BF16) static_cast<bf16*>(to.kv_2GNK)[place] = __float2bfloat16(x);
  else static_cast<float*>(to.kv_2GNK)[place] = x;
}

// A block takes some rows i of one head, and the rows i + K/2 that they are turned with.
template <int FORMAT, class Norm>
__device__ __forceinline__ void qkv_rows(const Norm& norm, const float* h_D, const Matrix& q, const Matrix& k, const Matrix& v,
                                         const Biases& bias_of, const Position& here, const Places& to, int H, int G, int K, Sums<1> (&sums)[2]) {
  constexpr int ROWS = rows_at_once(FORMAT);
  int units = K / 2 / ROWS, head = blockIdx.x / units, i = blockIdx.x % units * ROWS;
  int which = head < H ? 0 : head < H + G ? 1 : 2;
  head -= which == 0 ? 0 : which == 1 ? H : H + G;
  int first = head * K + i;
  const Matrix& m = which == 0 ? q : which == 1 ? k : v;
  const void* bias = which == 0 ? bias_of.q : which == 1 ? bias_of.k : bias_of.v;
  multiply_rows<FORMAT, 1, 2>({m, m}, {first, first + K / 2}, h_D, 1, sums, norm);
  __syncthreads();
  int r = threadIdx.x;
  if (r >= ROWS) return;
  float a = sum_of<FORMAT>(sums[0], r, 0), b = sum_of<FORMAT>(sums[1], r, 0);
  if (bias) a += number(bias, bias_of.format, first + r), b += number(bias, bias_of.format, first + K / 2 + r);
  i += r;
  if (which < 2) {
    float c = here.cos_Kh[i], s = here.sin_Kh[i], turned = a * c - b * s;
    b = b * c + a * s, a = turned;
  }
  if (which == 0) to.q_HK[head * K + i] = a, to.q_HK[head * K + i + K / 2] = b;
  else put(to, which - 1, head, G, K, i, here.slot, a), put(to, which - 1, head, G, K, i + K / 2, here.slot, b);
}

extern "C" __global__ __launch_bounds__(32 * MOST_WARPS) void norm_qkv_kernel(
    const float* x_D, const void* norm_D, int norm_format, float eps, int format, const void* q, const bf16* q_scales,
    const void* k, const bf16* k_scales, const void* v, const bf16* v_scales, const void* q_bias, const void* k_bias,
    const void* v_bias, int bias_format, const float* cos_Kh, const float* sin_Kh, float* q_HK, float* k_GK, float* v_GK,
    void* kv_2GNK, int kv_format, const long long* past_1, int past, int D, int H, int G, int N, int K) {
  extern __shared__ __align__(128) unsigned char smem[];
  __shared__ Sums<1> sums[2];
  __shared__ float room[32];
  float* h_D = reinterpret_cast<float*>(smem);
  auto norm = [&] { normalised(x_D, norm_D, norm_format, eps, D, h_D, room); };
  Matrix to_q{q, q_scales, H * K, D}, to_k{k, k_scales, G * K, D}, to_v{v, v_scales, G * K, D};
  Biases bias{q_bias, k_bias, v_bias, bias_format};
  Position here{cos_Kh, sin_Kh, (past_1 ? *past_1 : past) % N};
  Places to{q_HK, k_GK, v_GK, kv_2GNK, kv_format, N};
  switch (format) {
    case F32: return qkv_rows<F32>(norm, h_D, to_q, to_k, to_v, bias, here, to, H, G, K, sums);
    case BF16: return qkv_rows<BF16>(norm, h_D, to_q, to_k, to_v, bias, here, to, H, G, K, sums);
    case INT8: return qkv_rows<INT8>(norm, h_D, to_q, to_k, to_v, bias, here, to, H, G, K, sums);
    case INT4: return qkv_rows<INT4>(norm, h_D, to_q, to_k, to_v, bias, here, to, H, G, K, sums);
  }
}

template <int FORMAT, class Norm>
__device__ __forceinline__ void gate_up_rows(const Norm& norm, const float* h_D, const Matrix (&m)[2], float* hidden_F, Sums<1> (&sums)[2]) {
  int first = blockIdx.x * rows_at_once(FORMAT), row = first + threadIdx.x;
  multiply_rows<FORMAT>(m, {first, first}, h_D, 1, sums, norm);
  __syncthreads();
  if (threadIdx.x < rows_at_once(FORMAT) && row < m[0].O)
    hidden_F[row] = silu(sum_of<FORMAT>(sums[0], threadIdx.x, 0)) * sum_of<FORMAT>(sums[1], threadIdx.x, 0);
}

extern "C" __global__ __launch_bounds__(32 * MOST_WARPS) void norm_gate_up_kernel(
    const float* x_D, const void* norm_D, int norm_format, float eps, int format, const void* gate, const bf16* gate_scales,
    const void* up, const bf16* up_scales, float* hidden_F, int D, int F) {
  extern __shared__ __align__(128) unsigned char smem[];
  __shared__ Sums<1> sums[2];
  __shared__ float room[32];
  float* h_D = reinterpret_cast<float*>(smem);
  auto norm = [&] { normalised(x_D, norm_D, norm_format, eps, D, h_D, room); };
  const Matrix m[2] = {{gate, gate_scales, F, D}, {up, up_scales, F, D}};
  switch (format) {
    case F32: return gate_up_rows<F32>(norm, h_D, m, hidden_F, sums);
    case BF16: return gate_up_rows<BF16>(norm, h_D, m, hidden_F, sums);
    case INT8: return gate_up_rows<INT8>(norm, h_D, m, hidden_F, sums);
    case INT4: return gate_up_rows<INT4>(norm, h_D, m, hidden_F, sums);
  }
}
