// Kernels that are wrong on purpose: the checks must find each of them, in this file and at this line.
extern "C" __global__ void missing_barrier_kernel(const float* x, float* y) {
  __shared__ float turned[64];
  turned[threadIdx.x] = x[threadIdx.x];
  y[threadIdx.x] = turned[63 - threadIdx.x];  // nobody waited until it was written
}
extern "C" __global__ void unwritten_kernel(float* y) {
  __shared__ float room[64];
  if (threadIdx.x) room[threadIdx.x] = 0;
  __syncthreads();
  y[threadIdx.x] = room[threadIdx.x];  // what nobody wrote is zero by luck, if at all
}
extern "C" __global__ void divided_barrier_kernel(float* y) {
  if (threadIdx.x % 32 < 16) __syncthreads();  // half of a warp waits for the block,
  else __syncwarp();                           // the other half for the warp
  y[threadIdx.x] = 1;
}
extern "C" __global__ void early_end_kernel(float* y, int n) {
  if (threadIdx.x >= n) return;  // these never come to the barrier
  __syncthreads();
  y[threadIdx.x] = 1;
}
extern "C" __global__ void overrun_kernel(float* y, int n) {
  y[threadIdx.x] = 1;
  if (threadIdx.x == 0) y[n] = 1;  // one past the end
}
extern "C" __global__ void scale_kernel(const float* x, float* y, float factor) { y[threadIdx.x] = x[threadIdx.x] * factor; }
