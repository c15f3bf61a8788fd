// Arguments of the boundary kernels, plain enough for any host compiler.
#pragma once

#include <cstdint>

namespace shadow {

enum Flag { kInject = 1, kUpdate = 2, kNorm = 4, kGelu = 8, kBias = 16 };

// A weight stack (num_adapter_slots, ...), contiguous but for its first dimension; the stride counts elements.
struct Stack {
  const void* data;
  int64_t slot_stride;
};

struct BoundaryParams {
  void* hidden;            // (T, D)
  void* residual;          // (T, D) or null; written with rms_weight alone
  void* state;             // (>= T, D)
  int64_t hidden_stride, residual_stride, state_stride;
  const int* adapter_slots;  // as in segments.py
  const int* token_order;
  const int* slot_starts;
  const int* tiles;        // (num_tiles, 2), on 8 bytes
  const int* flags;        // (A,)
  const float* scale;      // (A,)
  Stack norm_weight, norm_bias, update_in, update_in_bias, update_out, update_out_bias, down, up;
  const void* rms_weight;  // (D,) of the norm behind the boundary, or null: none
  float rms_eps;
  float* reduced;          // (2 tiles, blocks, kItems): scratch of the separate kernels
  float* projected;        // (2 tiles, blocks, kProjected)
  int num_tokens;          // T
  int num_order;           // length of token_order
  int num_slots, num_tiles, hidden_size, gate_size, rank;
  int num_blocks;          // blocks that share a tile
  int num_clusters;        // fewer than num_tiles: each takes a range of tiles
  int kept_steps;          // of the tile kernel, see boundary_tile.cuh
};

}  // namespace shadow
