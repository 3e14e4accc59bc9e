// out_TF = gate_TF / (1 + exp(-gate_TF)) * up_TF
//
// Bytes that must move: 12 a number.
extern "C" __global__ __launch_bounds__(256) void swiglu_kernel(const float* gate, const float* up, float* out, long long size) {
  long long step = (long long)gridDim.x * blockDim.x;
  for (long long n = (long long)blockIdx.x * blockDim.x + threadIdx.x; n < size; n += step) out[n] = silu(gate[n]) * up[n];
}
