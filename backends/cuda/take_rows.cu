// out_TD = table_ND[row_T]         in float32, from any format
//
// Bytes that must move: a row of the table and 4 D written, for each token. A block takes a token. The rows' numbers are
// read on the device: in a recorded step nobody else knows them.
extern "C" __global__ __launch_bounds__(256) void take_rows_kernel(
    int format, const void* values, const bf16* scales, const long long* row_T, float* out_TD, int N, int D) {
  Matrix table{values, scales, N, D};
  long long row = row_T[blockIdx.x];
  for (int d = threadIdx.x; d < D; d += blockDim.x)
    out_TD[(long long)blockIdx.x * D + d] = value_at(table, format, row, d);
}
