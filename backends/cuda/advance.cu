// advance:  token_N = chosen_N;  position_N += 1;  seen[n][position_N[n]] = chosen_N[n]      the end of a recorded step
//
//     said_N = chosen_N if all logits were numbers, else -1
//
// A thread for each sequence, 40 bytes: what the host would do between two steps, so that it need not be asked.

struct Text { long long *seen_S, S; };
struct Texts { Text of[SEQUENCES]; };

extern "C" __global__ void advance_kernel(const long long* chosen_N, const bool* sound_N, long long* token_N,
                                          long long* position_N, long long* said_N, const __grid_constant__ Texts texts) {
  const int n = threadIdx.x;
  const long long next = position_N[n] + 1;
  token_N[n] = chosen_N[n];
  position_N[n] = next;
  said_N[n] = sound_N[n] ? chosen_N[n] : -1;
  if (next < texts.of[n].S) texts.of[n].seen_S[next] = chosen_N[n];
}
