// Arguments of the dense_linear kernels, plain enough for any host compiler; x and weight come as tensor maps.
#pragma once

#include <cstdint>

namespace shadow {

struct DenseLinearParams {
  const void* bias;    // (N,) or null
  void* out;           // (T, N), rows on 8 bytes
  int64_t out_stride;  // elements
  int num_tokens;      // T, up to 64
  int num_outputs;     // N, a multiple of 8
  int num_steps;       // of 64 inputs, the last of which may hold less
};

}  // namespace shadow
