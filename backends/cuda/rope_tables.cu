// angle_TKh = position_T[:, None] * frequency_Kh;  cos_TKh, sin_TKh = cos(angle_TKh), sin(angle_TKh)
//
// Bytes that must move: next to none. The positions are read on the device: a recorded step finds the next one there.
extern "C" __global__ __launch_bounds__(128) void rope_tables_kernel(
    const long long* position_T, const float* frequency_Kh, float* cos_TKh, float* sin_TKh, int T, int Kh) {
  int n = blockIdx.x * blockDim.x + threadIdx.x;
  if (n >= T * Kh) return;
  float angle = (float)position_T[n / Kh] * frequency_Kh[n % Kh];
  cos_TKh[n] = cosf(angle);
  sin_TKh[n] = sinf(angle);
}
