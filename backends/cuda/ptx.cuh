// Every instruction that C++ has no word for, in PTX, beside what it means: the only file that knows whether it runs on
// a GPU. On the host (tests/cuda_host) the C++ runs, and says what the PTX must do.
#ifndef CUDA_ON_HOST
#include <cuda_bf16.h>
#endif
typedef __nv_bfloat16 bf16;
typedef unsigned long long u64;

// 16 bytes that are read once and should not drive others out of the nearest cache: weights
__device__ __forceinline__ uint4 load_once(const void* p) {
#ifndef CUDA_ON_HOST
  uint4 v;
  asm("ld.global.nc.L1::no_allocate.v4.u32 {%0, %1, %2, %3}, [%4];"
      : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w) : "l"(__cvta_generic_to_global(p)));
  return v;
#else
  return *static_cast<const uint4*>(p);
#endif
}

// Copy 16 bytes to shared memory without waiting for them; zeros instead where `there` is false.
__device__ __forceinline__ void copy_async(void* shared, const void* global, bool there) {
#ifndef CUDA_ON_HOST
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;"
      :: "r"((unsigned)__cvta_generic_to_shared(shared)), "l"(__cvta_generic_to_global(global)), "r"(there ? 16 : 0) : "memory");
#else
  if (there) memcpy(shared, global, 16);
  else memset(shared, 0, 16);
#endif
}

// What was copied since the last call of this is a group.
__device__ __forceinline__ void end_group() {
#ifndef CUDA_ON_HOST
  asm volatile("cp.async.commit_group;" ::: "memory");
#endif
}

// Wait until at most so many groups of this thread's copies are on their way; a barrier then shows them to the others.
template <int GROUPS> __device__ __forceinline__ void wait_for_groups() {
#ifndef CUDA_ON_HOST
  asm volatile("cp.async.wait_group %0;" :: "n"(GROUPS) : "memory");
#endif
}

// Four 8 x 8 tiles of bf16 from shared memory. Lane 8 m + r says where row r of tile m begins (16 bytes);
// lane 4 r + c gets columns 2c, 2c+1 of row r of each, or, transposed, rows 2c, 2c+1 of column r.
template <bool TRANSPOSED> __device__ __forceinline__ void load_tiles(unsigned (&tile)[4], const bf16* row) {
#ifndef CUDA_ON_HOST
  unsigned address = (unsigned)__cvta_generic_to_shared(row);
  if (TRANSPOSED)
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
        : "=r"(tile[0]), "=r"(tile[1]), "=r"(tile[2]), "=r"(tile[3]) : "r"(address) : "memory");
  else
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
        : "=r"(tile[0]), "=r"(tile[1]), "=r"(tile[2]), "=r"(tile[3]) : "r"(address) : "memory");
#else
  int lane = threadIdx.x % 32, r = lane / 4, c = lane % 4;
  for (int m = 0; m < 4; m++) {
    const unsigned short* one = (const unsigned short*)__shfl_sync(~0u, row, 8 * m + (TRANSPOSED ? 2 * c : r));
    const unsigned short* two = (const unsigned short*)__shfl_sync(~0u, row, 8 * m + (TRANSPOSED ? 2 * c + 1 : r));
    tile[m] = TRANSPOSED ? one[r] | two[r] << 16 : one[2 * c] | one[2 * c + 1] << 16;
  }
#endif
}

// d += a b on the tensor cores, for a warp together: a is 16 x 16 (rows x sum), b 16 x 8 (sum x columns), bf16; d float32.
// Lane 4 g + t holds  a[g][2t..] a[g+8][2t..] a[g][2t+8..] a[g+8][2t+8..]   b[2t..][g] b[2t+8..][g]   d[g][2t..] d[g+8][2t..]
__device__ __forceinline__ void multiply_tiles(float (&d)[4], const unsigned (&a)[4], unsigned b0, unsigned b1) {
#ifndef CUDA_ON_HOST
  asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3]) : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
#else
  int lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
  auto half = [](unsigned pair, int k) { return __uint_as_float(k % 2 ? pair & 0xffff0000u : pair << 16); };
  for (int k = 0; k < 16; k++) {  // ask the lane that holds a[row][k], and the one that holds b[k][column]
    int holder = k % 8 / 2, upper = k / 8;
    unsigned low = __shfl_sync(~0u, a[2 * upper], 4 * g + holder), high = __shfl_sync(~0u, a[2 * upper + 1], 4 * g + holder);
    for (int column = 0; column < 2; column++) {
      unsigned from0 = __shfl_sync(~0u, b0, 4 * (2 * t + column) + holder), from1 = __shfl_sync(~0u, b1, 4 * (2 * t + column) + holder);
      float b = half(upper ? from1 : from0, k);
      d[column] += half(low, k) * b;
      d[2 + column] += half(high, k) * b;
    }
  }
#endif
}
