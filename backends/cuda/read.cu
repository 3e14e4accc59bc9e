// read:  sum of all bits, to know how fast memory can be read at all
//
// Bytes: all of them, once, in pieces of 16, each thread's far apart from its next. Nothing is written, unless every
// bit cancels out against a number that only the host knows; a compiler cannot know that, and so must read.

extern "C" __global__ __launch_bounds__(256) void read_kernel(const uint4* data, u64 count, unsigned unlikely, unsigned* out) {
  const u64 stride = (u64)gridDim.x * blockDim.x;
  unsigned bits = 0;
  u64 i = (u64)blockIdx.x * blockDim.x + threadIdx.x;
  for (; i + 7 * stride < count; i += 8 * stride) {
    uint4 v[8];
#pragma unroll
    for (int n = 0; n < 8; n++) v[n] = load_once(data + i + n * stride);
#pragma unroll
    for (int n = 0; n < 8; n++) bits ^= v[n].x ^ v[n].y ^ v[n].z ^ v[n].w;
  }
  for (; i < count; i += stride) {
    const uint4 v = load_once(data + i);
    bits ^= v.x ^ v.y ^ v.z ^ v.w;
  }
  if (bits == unlikely) *out = bits;
}
