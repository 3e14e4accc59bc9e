// hidden_NM = silu(x @ gate[e].T) * (x @ up[e].T)         for each choice n = (token t, its a-th expert e)
// out_TD    = sum over a of weight_TA[t, a] * (hidden @ down[e].T)
//
// Bytes that must move: the matrices of every expert that somebody chose (3 M D weights each), and nothing of the others:
// 8 of 64 for one token. A block takes some rows of one choice's matrices. Where two tokens chose the same expert its rows
// are read twice, the second time from the cache that all multiprocessors share; that is for few tokens.
// Where the matrices lie, a table on the device says: which expert it will be, nobody else knows in a recorded step.

struct Expert { const void* gate; const bf16* gate_scales; const void* up; const bf16* up_scales; const void* down; const bf16* down_scales; };

template <int FORMAT>
__device__ __forceinline__ void gate_up(const Expert& expert, const float* x, float* hidden, int D, int M, Sums<1> (&sums)[2]) {
  int first = blockIdx.x * rows_at_once(FORMAT), row = first + threadIdx.x;
  Matrix m[2] = {{expert.gate, expert.gate_scales, M, D}, {expert.up, expert.up_scales, M, D}};
  multiply_rows<FORMAT>(m, {first, first}, x, 1, sums);
  __syncthreads();
  if (threadIdx.x < rows_at_once(FORMAT) && row < M)
    hidden[row] = silu(sum_of<FORMAT>(sums[0], threadIdx.x, 0)) * sum_of<FORMAT>(sums[1], threadIdx.x, 0);
}

extern "C" __global__ __launch_bounds__(THREADS) void experts_gate_up_kernel(
    const float* x_TD, const long long* expert_TA, const Expert* table_E, int format, float* hidden_NM, int A, int D, int M) {
  __shared__ Sums<1> sums[2];
  int n = blockIdx.y;
  const Expert& expert = table_E[expert_TA[n]];
  const float* x = x_TD + (long long)(n / A) * D;
  float* hidden = hidden_NM + (long long)n * M;
  switch (format) {
    case F32: return gate_up<F32>(expert, x, hidden, D, M, sums);
    case BF16: return gate_up<BF16>(expert, x, hidden, D, M, sums);
    case INT8: return gate_up<INT8>(expert, x, hidden, D, M, sums);
    case INT4: return gate_up<INT4>(expert, x, hidden, D, M, sums);
  }
}

template <int FORMAT>
__device__ __forceinline__ void down(const long long* expert_A, const float* weight_A, const Expert* table_E, const float* hidden_AM,
                                     float* out_D, int A, int D, int M, Sums<1> (&sums)[1]) {
  int first = blockIdx.x * rows_at_once(FORMAT), row = first + threadIdx.x;
  float y = 0;
  for (int a = 0; a < A; a++) {
    const Expert* expert = table_E + expert_A[a];
    Matrix m[1] = {{expert->down, expert->down_scales, D, M}};
    multiply_rows<FORMAT, 1, 1>(m, {first}, hidden_AM + (long long)a * M, 1, sums);
    __syncthreads();
    if (threadIdx.x < rows_at_once(FORMAT)) y += weight_A[a] * sum_of<FORMAT>(sums[0], threadIdx.x, 0);
    __syncthreads();  // before sums are written again
  }
  if (threadIdx.x < rows_at_once(FORMAT) && row < D) out_D[row] = y;
}

// 4 blocks side by side: left to itself the compiler takes 64 registers on sm_120, and 6 do not fit
extern "C" __global__ __launch_bounds__(THREADS, 4) void experts_down_kernel(
    const float* hidden_NM, const long long* expert_TA, const float* weight_TA, const Expert* table_E, int format, float* out_TD,
    int A, int D, int M) {
  __shared__ Sums<1> sums[1];
  long long t = blockIdx.y;
  expert_TA += t * A, weight_TA += t * A, hidden_NM += t * A * M, out_TD += t * D;
  switch (format) {
    case F32: return down<F32>(expert_TA, weight_TA, table_E, hidden_NM, out_TD, A, D, M, sums);
    case BF16: return down<BF16>(expert_TA, weight_TA, table_E, hidden_NM, out_TD, A, D, M, sums);
    case INT8: return down<INT8>(expert_TA, weight_TA, table_E, hidden_NM, out_TD, A, D, M, sums);
    case INT4: return down<INT4>(expert_TA, weight_TA, table_E, hidden_NM, out_TD, A, D, M, sums);
  }
}
