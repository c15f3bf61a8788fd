// Arguments of the kernel of silu_and_mul, plain enough for any host compiler.
#pragma once

#include <cstdint>

namespace shadow {

struct SiluAndMulParams {
  const void* x;  // (T, 2 M), the gate's columns first, rows on 16 bytes
  void* out;      // (T, M), rows on 16 bytes
  int64_t x_stride, out_stride;  // elements
  int num_octets;                // of a row of out: M / 8
  int row_blocks;                // that a row is shared by
};

}  // namespace shadow
