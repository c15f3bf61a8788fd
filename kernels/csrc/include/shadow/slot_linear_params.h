// Arguments of the slot_linear kernels, plain enough for any host compiler.
#pragma once

#include <cstdint>

namespace shadow {

struct SlotLinearParams {
  const void* x;        // (T, K), rows on 16 bytes
  const void* weight;   // (slots of the class, N, K), slots on 16 bytes
  const void* bias;     // (slots of the class, N) or null
  const int* extents;   // (slots of the class, 2) or null: [rows of a chunk, columns] that are not padding
  void* out;            // (T, N), contiguous
  int64_t x_stride, weight_stride, bias_stride, extents_stride;  // elements
  const int* adapter_slots;                                      // as in segments.py
  const int* token_order;
  const int* slot_starts;
  const int* tiles;      // (num_tiles, 2), on 8 bytes
  int num_tokens;        // T, up to 8
  int num_tiles;
  int first_slot, num_class_slots;
  int num_inputs;        // K, a multiple of 8
  int num_outputs;       // N
  int chunk_rows;        // rows of a chunk: N, or a part of it
  int num_blocks;        // that share the work, behind one that writes the zeros of other tokens
};

}  // namespace shadow
