// kv_2GNK[:, :, (past + t) % N] = k_TGK[t], v_TGK[t]         rounded as the cache's format is
//
// Bytes that must move: next to none, a token's keys and values. A warp takes a vector. int8 has one scale a vector:
// the largest magnitude in it / 127; a vector with NaN or infinity in it gets the scale NaN, and is read as NaN.
// Sequences go in one launch, see attention.cu. How many tokens a cache holds is read on the device in a recorded step
// (`past_1`), and else given.

// what is stored for x[k]; `steps` is 127 / the largest magnitude, or 0 where all is 0 or something is not finite
__device__ __forceinline__ void store(void* kv, int format, long long place, float x, float steps) {
  if (format == BF16) static_cast<bf16*>(kv)[place] = __float2bfloat16(x);
  else if (format == INT8) static_cast<signed char*>(kv)[place] = steps == 0 ? 0 : (signed char)rintf(x * steps);
  else static_cast<float*>(kv)[place] = x;
}

struct Room {  // a sequence's cache, and its tokens first .. first + T - 1
  void* kv_2GNK;
  float* scale_2GN;
  const long long* past_1;
  int first, T, past, N;
};
struct Rooms { Room of[SEQUENCES]; };

extern "C" __global__ __launch_bounds__(128) void update_cache_kernel(
    const float* k_TGK, const float* v_TGK, int format, int G, int K, const __grid_constant__ Rooms rooms) {
  const Room& own = rooms.of[blockIdx.y];
  int vector = blockIdx.x * (blockDim.x / 32) + threadIdx.x / 32, lane = threadIdx.x % 32;  // of 2 x G x T
  if (vector >= 2 * G * own.T) return;
  int which = vector / (G * own.T), g = vector / own.T % G, t = vector % own.T;
  const float* x_K = (which ? v_TGK : k_TGK) + ((long long)(own.first + t) * G + g) * K;
  long long slot = ((long long)which * G + g) * own.N + ((own.past_1 ? *own.past_1 : own.past) + t) % own.N;
  float largest = 0, steps = 0;
  if (format == INT8) {
    bool sound = true;
    for (int k = lane; k < K; k += 32) sound &= isfinite(x_K[k]), largest = fmaxf(largest, fabsf(x_K[k]));
    largest = warp_max(sound ? largest : infinite());
    steps = largest > 1e-36f && isfinite(largest) ? 127.0f / largest : 0.0f;
    if (lane == 0) own.scale_2GN[slot] = isfinite(largest) ? largest * (1.0f / 127.0f) : infinite() - infinite();
  }
  for (int k = lane; k < K; k += 32) store(own.kv_2GNK, format, slot * K + k, x_K[k], steps);
}
