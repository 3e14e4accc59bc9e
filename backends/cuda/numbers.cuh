// Numbers as they are stored, and sums over the threads of a warp or a block.

enum Format { F32, BF16, INT8, INT4 };  // as `arrays.FORMATS`; of a cache, a weight or a vector
constexpr float LOWEST = -3.0e38f;      // below every score; minus infinity less itself would be NaN
constexpr int SEQUENCES = 32;           // of a launch: where each lies is a parameter, and a kernel has 4,096 bytes of those

__device__ __forceinline__ float infinite() { return __uint_as_float(0x7f800000u); }

__device__ __forceinline__ float widened(float x) { return x; }
__device__ __forceinline__ float widened(bf16 x) { return __bfloat162float(x); }
__device__ __forceinline__ float low_half(unsigned pair) { return __uint_as_float(pair << 16); }
__device__ __forceinline__ float high_half(unsigned pair) { return __uint_as_float(pair & 0xffff0000u); }

// one number of a vector in either format
__device__ __forceinline__ float number(const void* x, int format, long long i) {
  return format == BF16 ? widened(static_cast<const bf16*>(x)[i]) : static_cast<const float*>(x)[i];
}

__device__ __forceinline__ bool on_16_bytes(const void* p) { return (reinterpret_cast<u64>(p) & 15) == 0; }

// 8 numbers that lie side by side, as they were read. Several are read before the first is used: then the memory works
// on all of them at once, and one waits 700 ns for all and not for each.
template <class W> struct Eight;
template <> struct Eight<bf16> {
  uint4 v;
  __device__ __forceinline__ void read(const bf16* p) { v = load_once(p); }
  __device__ __forceinline__ void widen(float (&x)[8]) const {
    x[0] = low_half(v.x), x[1] = high_half(v.x), x[2] = low_half(v.y), x[3] = high_half(v.y);
    x[4] = low_half(v.z), x[5] = high_half(v.z), x[6] = low_half(v.w), x[7] = high_half(v.w);
  }
};
template <> struct Eight<float> {
  uint4 a, b;
  __device__ __forceinline__ void read(const float* p) { a = load_once(p), b = load_once(p + 4); }
  __device__ __forceinline__ void widen(float (&x)[8]) const {
    x[0] = __uint_as_float(a.x), x[1] = __uint_as_float(a.y), x[2] = __uint_as_float(a.z), x[3] = __uint_as_float(a.w);
    x[4] = __uint_as_float(b.x), x[5] = __uint_as_float(b.y), x[6] = __uint_as_float(b.z), x[7] = __uint_as_float(b.w);
  }
};
template <> struct Eight<signed char> {
  uint2 v;
  __device__ __forceinline__ void read(const signed char* p) { v = __ldg(reinterpret_cast<const uint2*>(p)); }
  __device__ __forceinline__ void widen(float (&x)[8]) const {
#pragma unroll
    for (int i = 0; i < 8; i++) x[i] = (float)(signed char)((i < 4 ? v.x : v.y) >> i % 4 * 8);
  }
};

// the sum over the lanes of a warp, in the same order whoever comes first; every lane gets it
__device__ __forceinline__ float warp_sum(float x) {
  for (int mask = 16; mask; mask /= 2) x += __shfl_xor_sync(0xffffffffu, x, mask);
  return x;
}
__device__ __forceinline__ float warp_max(float x) {
  for (int mask = 16; mask; mask /= 2) x = fmaxf(x, __shfl_xor_sync(0xffffffffu, x, mask));
  return x;
}

// the sum over a block of whole warps; every thread gets it. `room` is 32 floats of shared memory.
__device__ __forceinline__ float block_sum(float x, float* room) {
  int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  x = warp_sum(x);
  __syncthreads();  // room may still be read from the time before
  if (lane == 0) room[warp] = x;
  __syncthreads();
  return warp_sum(lane < blockDim.x / 32 ? room[lane] : 0.0f);
}

__device__ __forceinline__ float silu(float x) { return x / (1.0f + expf(-x)); }
