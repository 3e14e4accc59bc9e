// out_TD = x_TD / sqrt(mean(x_TD * x_TD, axis=-1) + eps) * weight_D
//
// Bytes that must move: 8 a number (x once, out once), and the weights. A block takes a token and looks at it twice; the
// second time it comes from the nearest cache.
extern "C" __global__ __launch_bounds__(1024) void rms_norm_kernel(
    const float* x_TD, const void* weight_D, int format, float* out_TD, int D, float eps) {
  __shared__ float room[32];
  const float* x_D = x_TD + (long long)blockIdx.x * D;
  float squares = 0;
  for (int d = threadIdx.x; d < D; d += blockDim.x) squares += x_D[d] * x_D[d];
  float root = sqrtf(block_sum(squares, room) / D + eps);
  for (int d = threadIdx.x; d < D; d += blockDim.x)
    out_TD[(long long)blockIdx.x * D + d] = x_D[d] / root * number(weight_D, format, d);
}
