// Arguments of the kernel for the RMS norm, plain enough for any host compiler.
#pragma once

#include <cstdint>

namespace shadow {

struct RmsNormParams {
  void* hidden;        // (T, D), rows on 16 bytes
  void* residual;      // the same
  const void* weight;  // (D,), on 16 bytes
  int64_t hidden_stride, residual_stride;
  float eps;
  int num_tokens;      // T
  int hidden_size;     // D, a multiple of 8
};

}  // namespace shadow
