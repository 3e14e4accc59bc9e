// share_N = exp(lse_N) / sum of exp(lse_N);  out_THK = sum over parts n of share_N[n] * outs[n]_THK     for each t and h
//
// Bytes that must move: 4 a number of each part, and 4 written; the lses, one for K numbers, come from the nearest cache.
// A thread takes a number. Where the parts lie is a table among the parameters, see attention.cu.
//
// A part that saw nothing (lse minus infinity) has no share; where none saw anything, the result is 0.

struct Part { const float *out_THK, *lse_TH; };
struct Parts { Part of[SEQUENCES]; };

extern "C" __global__ __launch_bounds__(256) void merge_parts_kernel(
    const __grid_constant__ Parts parts, int N, float* out_THK, long long size, int K) {
  long long step = (long long)gridDim.x * blockDim.x;
  for (long long i = (long long)blockIdx.x * blockDim.x + threadIdx.x; i < size; i += step) {
    float top = -infinite(), total = 0, out = 0;
    for (int n = 0; n < N; n++) top = fmaxf(top, parts.of[n].lse_TH[i / K]);
    if (top == -infinite()) top = 0;  // else minus infinity less itself
    for (int n = 0; n < N; n++) total += expf(parts.of[n].lse_TH[i / K] - top);
    for (int n = 0; n < N; n++) out += expf(parts.of[n].lse_TH[i / K] - top) / (total == 0 ? 1 : total) * parts.of[n].out_THK[i];
    out_THK[i] = out;
  }
}
