// out_TD = x_TD + y_TD
//
// Bytes that must move: 12 a number.
extern "C" __global__ __launch_bounds__(256) void add_kernel(const float* x, const float* y, float* out, long long size) {
  long long step = (long long)gridDim.x * blockDim.x;
  for (long long n = (long long)blockIdx.x * blockDim.x + threadIdx.x; n < size; n += step) out[n] = x[n] + y[n];
}
