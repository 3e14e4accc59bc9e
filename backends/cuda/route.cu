// p = softmax(logits_TE);  expert_TA = the A largest of each row, of equals the lower number;  weight_TA = their p
//
// Bytes that must move: next to none, E logits a token. A warp takes a token; lane l looks at experts l, l + 32, ...
extern "C" __global__ __launch_bounds__(128) void route_kernel(
    const float* logits_TE, long long* expert_TA, float* weight_TA, int T, int E, int A, int normalise) {
  extern __shared__ __align__(128) unsigned char smem[];
  int warp = threadIdx.x / 32, lane = threadIdx.x % 32, t = blockIdx.x * (blockDim.x / 32) + warp;
  if (t >= T) return;
  float *p_E = reinterpret_cast<float*>(smem) + warp * E, largest = LOWEST, total = 0;  // each lane reads its own only
  for (int e = lane; e < E; e += 32) largest = fmaxf(largest, logits_TE[(long long)t * E + e]);
  largest = warp_max(largest);
  for (int e = lane; e < E; e += 32) total += p_E[e] = expf(logits_TE[(long long)t * E + e] - largest);
  total = warp_sum(total);
  for (int e = lane; e < E; e += 32) p_E[e] /= total;

  float chosen = 0;
  for (int a = 0; a < A; a++) {
    int best = -1;
    float p = -1;
    for (int e = lane; e < E; e += 32)
      if (p_E[e] != -1 && (best < 0 || p_E[e] > p)) best = e, p = p_E[e];
    for (int mask = 16; mask; mask /= 2) {
      int other = __shfl_xor_sync(0xffffffffu, best, mask);
      float other_p = __shfl_xor_sync(0xffffffffu, p, mask);
      if (other >= 0 && (best < 0 || other_p > p || (other_p == p && other < best))) best = other, p = other_p;
    }
    best = __shfl_sync(0xffffffffu, best, 0), p = __shfl_sync(0xffffffffu, p, 0);  // with NaN, lanes may disagree
    if (lane == best % 32) p_E[best] = -1;  // taken
    if (lane == 0) expert_TA[(long long)t * A + a] = best, weight_TA[(long long)t * A + a] = p;
    chosen += p;
  }
  if (normalise && lane == 0)
    for (int a = 0; a < A; a++) weight_TA[(long long)t * A + a] /= chosen;
}
