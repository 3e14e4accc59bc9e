// out_TNK[:, :, i]      = x[i] * cos_TKh[i] - x[i + Kh] * sin_TKh[i]           Kh = K / 2
// out_TNK[:, :, i + Kh] = x[i + Kh] * cos_TKh[i] + x[i] * sin_TKh[i]
//
// Bytes that must move: 8 a number; the angles of a token serve all its heads. A thread turns a pair.
extern "C" __global__ __launch_bounds__(256) void rope_kernel(
    const float* x_TNK, const float* cos_TKh, const float* sin_TKh, float* out_TNK, int T, int N, int Kh) {
  long long pairs = (long long)T * N * Kh, step = (long long)gridDim.x * blockDim.x;
  for (long long n = (long long)blockIdx.x * blockDim.x + threadIdx.x; n < pairs; n += step) {
    long long vector = n / Kh, a = vector * 2 * Kh + n % Kh, angle = vector / N * Kh + n % Kh;
    float c = cos_TKh[angle], s = sin_TKh[angle], x = x_TNK[a], y = x_TNK[a + Kh];
    out_TNK[a] = x * c - y * s;
    out_TNK[a + Kh] = y * c + x * s;
  }
}
