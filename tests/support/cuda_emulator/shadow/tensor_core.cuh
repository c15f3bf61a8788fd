// The tensor-core instruction on the CPU, in place of kernels/csrc/include/shadow/tensor_core.cuh.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

namespace shadow {

inline float half_of(__nv_bfloat16, uint32_t word, int which) {
  return __bfloat162float({static_cast<uint16_t>(which ? word >> 16 : word)});
}

inline float half_of(__half, uint32_t word, int which) {
  const uint16_t bits = static_cast<uint16_t>(which ? word >> 16 : word);
  __half half;
  std::memcpy(&half, &bits, sizeof(half));
  return __half2float(half);
}

// Lane 4 g + t holds of a: rows g and g + 8, columns 2 t and 2 t + 1, then 8 columns on; of b the same with rows and
// columns exchanged; of the sum: rows g and g + 8, columns 2 t and 2 t + 1.
template <typename T>
void multiply_as(T type, float (&sum)[4], uint32_t a0, uint32_t a1, uint32_t a2, uint32_t a3, uint32_t b0, uint32_t b1) {
  const int lane = emulator::lane(), group = lane / 4, pair = lane % 4;
  const auto words = emulator::exchange({a0, a1, a2, a3, b0, b1});
  for (int i = 0; i < 4; ++i) {
    const int is_low_row = i / 2, column = 2 * pair + i % 2;
    for (int k = 0; k < 16; ++k) {
      const uint32_t* row = words[4 * group + k % 8 / 2];
      const uint32_t* other = words[4 * column + k % 8 / 2];
      sum[i] += half_of(type, row[is_low_row + 2 * (k / 8)], k % 2) * half_of(type, other[4 + k / 8], k % 2);
    }
  }
}

inline void multiply(float (&sum)[4], uint32_t a0, uint32_t a1, uint32_t a2, uint32_t a3, uint32_t b0,
                     uint32_t b1) {
  multiply_as(__nv_bfloat16{}, sum, a0, a1, a2, a3, b0, b1);
}

inline void multiply_anew(float (&sum)[4], uint32_t a0, uint32_t a1, uint32_t a2, uint32_t a3, uint32_t b0,
                          uint32_t b1) {
  for (float& one : sum) one = 0.0f;
  multiply(sum, a0, a1, a2, a3, b0, b1);
}

}  // namespace shadow
