// out_TD = x_TD / (1 + exp(-gate_T1))
//
// Bytes that must move: 8 a number. A block takes a token.
extern "C" __global__ __launch_bounds__(256) void sigmoid_gate_kernel(const float* gate_T1, const float* x_TD, float* out_TD, int D) {
  float divisor = 1.0f + expf(-gate_T1[blockIdx.x]);
  for (long long d = threadIdx.x; d < D; d += blockDim.x)
    out_TD[(long long)blockIdx.x * D + d] = x_TD[(long long)blockIdx.x * D + d] / divisor;
}
