// advance:  token = chosen;  position += 1;  seen[position] = chosen          the end of a recorded step
//
//     said[n] = chosen if all logits were numbers, else -1
//
// One thread, 40 bytes: what the host would do between two steps, so that it need not be asked.

extern "C" __global__ void advance_kernel(const long long* chosen, const bool* sound, long long* token,
                                          long long* position, long long* said, long long* seen_S, int S) {
  const long long next = *position + 1;
  *token = *chosen;
  *position = next;
  *said = *sound ? *chosen : -1;
  if (next < S) seen_S[next] = *chosen;
}
