// out[t] = x[t] @ weight[slot of t].T + bias for steps of up to 8 tokens, where reading weights is the work.
//
// An item is the tokens of one slot and 8 kGroups outputs. A block takes a range of the step's items: as many as there are
// divided by the blocks that run at once, whichever slots have tokens. Its warps share the inputs of every item, a step of
// each in turn, and add their sums up in shared memory.
//
// Every lane copies what it will read itself, so nothing but the copies' own order has to be waited for: a warp has a ring of
// steps on the way, through the ends of items. The first weights are asked for while the kernel in front still runs; x waits
// for it.
//
// An output's sum runs in the same order in any batch. Lanes as in mma.cuh.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstdint>

#include "shadow/cluster.cuh"
#include "shadow/slot_linear_params.h"
#include "shadow/tensor_core.cuh"

namespace shadow::slot_linear {

constexpr int kTokens = 8;        // of a step at most, and rows of a product: the others are zeros
constexpr int kGroup = 8;         // outputs of one tensor-core product
constexpr int kQuad = 32;         // inputs that a quad of lanes reads with one instruction
constexpr int kWarps = 8;
constexpr int kThreads = 32 * kWarps;
constexpr int kBlocksAtOnce = 2;  // of a multiprocessor
constexpr int kBlockBytes = 96 << 10;  // of shared memory: fits the smallest device, and two fit the larger ones
constexpr int kMostDepth = 8;
constexpr int kLaneBytes = 16, kWarpBytes = 32 * kLaneBytes;

// The tokens of one slot.
struct Tile {
  int slot;                     // in the class; -1: of another class
  int first_token, num_tokens;  // in token_order
  int num_inputs;               // of the adapter, up to the end of a quad's
  int used_rows;                // of each chunk
};

// How a kernel is cut: groups of outputs, and a row's octets of inputs that a lane reads in a step.
template <int kGroups_, int kOctets_>
struct Cut {
  static constexpr int kGroups = kGroups_, kOctets = kOctets_;
  static constexpr int kOutputs = kGroup * kGroups;
  static constexpr int kStride = kQuad * kOctets * kWarps;  // inputs from one step of a warp to the next
  static constexpr int kStageBytes = (kGroups + 1) * kOctets * kWarpBytes;
};

// What a block keeps in shared memory beside its rings.
template <typename C>
struct Kept {
  float sums[kWarps][kTokens * C::kOutputs];
  Tile tiles[kTokens];  // a used tile has a token at least
  int tokens[kTokens][kTokens];
};

template <typename C>
struct Shared : Kept<C> {
  static constexpr int kFitting = (kBlockBytes - static_cast<int>(sizeof(Kept<C>))) / kWarps / C::kStageBytes;
  static constexpr int kDepth = kFitting < kMostDepth ? kFitting : kMostDepth;

  alignas(kLaneBytes) char ring[kWarps][kDepth][C::kStageBytes];
};

__device__ inline float to_sum(__nv_bfloat16 x) { return __bfloat162float(x); }
__device__ inline float to_sum(__half x) { return __half2float(x); }
__device__ inline void round_to(float sum, __nv_bfloat16& out) { out = __float2bfloat16_rn(sum); }
__device__ inline void round_to(float sum, __half& out) { out = __float2half_rn(sum); }

// A range of items.
struct Range {
  int tile;    // of the first, among the block's
  int output;  // its first
  int items;
};

// One warp's part.
template <typename T, typename C>
class Warp {
 public:
  __device__ Warp(const SlotLinearParams& p, Shared<C>& shared)
      : params_(p), shared_(shared), quad_(threadIdx.x % 4), row_(threadIdx.x % 32 / 4), warp_(threadIdx.x / 32) {}

  // Computes a range of items. The kernel in front has ended when it returns.
  __device__ void run(const Range& range) {
    copied_ = range;
    begin_copying();
    const Source first = source_;
#pragma unroll
    for (int stage = 0; stage < kDepth - 1; ++stage, go_on()) copy_weights(stage);
    wait_for_previous_kernel();
    release_next_kernel();
    copied_ = range, source_ = first;
#pragma unroll
    for (int stage = 0; stage < kDepth - 1; ++stage, go_on()) {
      copy_tokens(stage);
      commit_copies();
    }
    compute(range);
  }

 private:
  static constexpr int kDepth = Shared<C>::kDepth;

  // Where this lane's next copies come from.
  struct Source {
    const T* weight;  // of the first group
    const T* x;
    int inputs;       // of the item, from there on
    int steps;
    int rows;         // bit g: the adapter has the row of group g
    bool is_token;
  };

  // All warps take as many steps, and one where there is nothing to multiply: the item still has to be written.
  __device__ static int count_steps(const Tile& tile) { return max(1, (tile.num_inputs + C::kStride - 1) / C::kStride); }

  __device__ void next_item(Range& range) const {
    --range.items, range.output += C::kOutputs;
    if (range.output >= params_.num_outputs) range.output = 0, ++range.tile;
  }

  __device__ void begin_copying() {
    if (copied_.items == 0) return;
    const Tile& tile = shared_.tiles[copied_.tile];
    const int output = copied_.output + row_, token = shared_.tokens[copied_.tile][row_];
    const int input = 8 * quad_ + kQuad * C::kOctets * warp_;
    source_.weight = static_cast<const T*>(params_.weight) + tile.slot * params_.weight_stride +
                     static_cast<int64_t>(output) * params_.num_inputs + input;
    source_.x = static_cast<const T*>(params_.x) + token * params_.x_stride + input;
    source_.inputs = tile.num_inputs - input, source_.steps = count_steps(tile);
    source_.is_token = token >= 0, source_.rows = 0;
#pragma unroll
    for (int group = 0; group < C::kGroups; ++group) {
      const int row = output + kGroup * group;
      const bool is_used = row < params_.num_outputs && row % params_.chunk_rows < tile.used_rows;
      source_.rows |= static_cast<int>(is_used) << group;
    }
  }

  __device__ void go_on() {
    if (copied_.items == 0) return;
    source_.weight += C::kStride, source_.x += C::kStride, source_.inputs -= C::kStride;
    if (--source_.steps > 0) return;
    next_item(copied_);
    begin_copying();
  }

  // Of x: group kGroups.
  __device__ char* place_of(int stage, int group, int octet) {
    return shared_.ring[warp_][stage] + (group * C::kOctets + octet) * kWarpBytes + threadIdx.x % 32 * kLaneBytes;
  }

  __device__ void copy_weights(int stage) {
    if (copied_.items == 0) return;
    const int64_t group_stride = static_cast<int64_t>(kGroup) * params_.num_inputs;
#pragma unroll
    for (int group = 0; group < C::kGroups; ++group) {
#pragma unroll
      for (int octet = 0; octet < C::kOctets; ++octet) {
        copy_or_zero(place_of(stage, group, octet), source_.weight + group * group_stride + kQuad * octet,
                     source_.rows >> group & 1 && kQuad * octet < source_.inputs);
      }
    }
  }

  __device__ void copy_tokens(int stage) {
    if (copied_.items == 0) return;
#pragma unroll
    for (int octet = 0; octet < C::kOctets; ++octet) {
      copy_or_zero(place_of(stage, C::kGroups, octet), source_.x + kQuad * octet,
                   source_.is_token && kQuad * octet < source_.inputs);
    }
  }

  __device__ void compute(Range range) {
    int steps = count_steps(shared_.tiles[range.tile]);
    for (int stage = 0, free = kDepth - 1; range.items > 0;) {
      wait_copies<kDepth - 2>();
      multiply(stage);
      copy_weights(free);
      copy_tokens(free);
      commit_copies();
      go_on();
      free = stage, stage = stage + 1 == kDepth ? 0 : stage + 1;
      if (--steps > 0) continue;
      store(range);
      next_item(range);
      if (range.items > 0) steps = count_steps(shared_.tiles[range.tile]);
    }
  }

  __device__ void multiply(int stage) {
#pragma unroll
    for (int octet = 0; octet < C::kOctets; ++octet) {
      const uint4 x = *reinterpret_cast<const uint4*>(place_of(stage, C::kGroups, octet));
#pragma unroll
      for (int group = 0; group < C::kGroups; ++group) {
        const uint4 weight = *reinterpret_cast<const uint4*>(place_of(stage, group, octet));
        multiply_as(T{}, sums_[group], x.x, 0, x.y, 0, weight.x, weight.y);
        multiply_as(T{}, sums_[group], x.z, 0, x.w, 0, weight.z, weight.w);
      }
    }
  }

  // Adds up what all warps have, writes it and begins anew.
  __device__ void store(const Range& range) {
    __syncthreads();  // all have read those of the item before
#pragma unroll
    for (int group = 0; group < C::kGroups; ++group) {
      float(&own)[4] = sums_[group];
      float* place = shared_.sums[warp_] + (group * kTokens + row_) * kGroup + 2 * quad_;
      *reinterpret_cast<float2*>(place) = float2{own[0], own[1]};
      own[0] = own[1] = 0.0f;
    }
    __syncthreads();
    const Tile& tile = shared_.tiles[range.tile];
    for (int index = threadIdx.x; index < kTokens * C::kOutputs; index += kThreads) {
      const int64_t token = shared_.tokens[range.tile][index / kGroup % kTokens];
      const int output = range.output + index / (kTokens * kGroup) * kGroup + index % kGroup;
      if (token < 0 || output >= params_.num_outputs) continue;
      float sum = 0.0f;
#pragma unroll
      for (int warp = 0; warp < kWarps; ++warp) sum += shared_.sums[warp][index];
      if (params_.bias) sum += to_sum(static_cast<const T*>(params_.bias)[tile.slot * params_.bias_stride + output]);
      round_to(sum, static_cast<T*>(params_.out)[token * params_.num_outputs + output]);
    }
  }

  const SlotLinearParams& params_;
  Shared<C>& shared_;
  const int quad_, row_, warp_;
  Range copied_;  // what is still to be copied
  Source source_;
  float sums_[C::kGroups][4] = {};
};

// Writes zeros for tokens of no or another class.
template <typename T>
__device__ void clear_others(const SlotLinearParams& p) {
  wait_for_previous_kernel();  // which may still read what lay here before
  release_next_kernel();
  for (int token = 0; token < p.num_tokens; ++token) {
    const int slot = __ldg(p.adapter_slots + token) - p.first_slot;
    if (0 <= slot && slot < p.num_class_slots) continue;
    T* row = static_cast<T*>(p.out) + static_cast<int64_t>(token) * p.num_outputs;
    for (int output = threadIdx.x; output < p.num_outputs; output += kThreads) round_to(0.0f, row[output]);
  }
}

__device__ inline int count_used_tiles(const SlotLinearParams& p) {
  const int2 last = __ldg(reinterpret_cast<const int2*>(p.tiles) + p.num_tiles - 1);
  return last.x < 0 ? last.y : p.num_tiles;
}

__device__ inline Tile find_tile(const SlotLinearParams& p, int number) {
  const int2 place = __ldg(reinterpret_cast<const int2*>(p.tiles) + number);
  Tile tile = {place.x - p.first_slot, place.y, 0, 0, 0};
  if (tile.slot < 0 || tile.slot >= p.num_class_slots) return tile.slot = -1, tile;
  tile.num_tokens = min(__ldg(p.slot_starts + place.x + 1) - place.y, kTokens);
  tile.used_rows = p.chunk_rows;
  int used_columns = p.num_inputs;
  if (p.extents) {
    const int* extent = p.extents + tile.slot * p.extents_stride;
    tile.used_rows = __ldg(extent), used_columns = __ldg(extent + 1);
  }
  if (tile.used_rows > 0) tile.num_inputs = min(p.num_inputs, (used_columns + kQuad - 1) / kQuad * kQuad);
  return tile;
}

// Reads what the block's items say of their tiles, all at once.
template <typename C>
__device__ void read_tiles(const SlotLinearParams& p, int first, int count, Shared<C>& shared) {
  for (int index = threadIdx.x; index < count * kTokens; index += kThreads) {
    const int number = index / kTokens, row = index % kTokens;
    const Tile tile = find_tile(p, first + number);
    const bool is_used = row < tile.num_tokens;
    shared.tokens[number][row] = is_used ? __ldg(p.token_order + tile.first_token + row) : -1;
    if (row == 0) shared.tiles[number] = tile;
  }
  __syncthreads();
}

#ifndef SHADOW_EMULATED
extern __shared__ __align__(16) char shared_memory[];
#endif

template <typename T, typename C>
__global__ void __launch_bounds__(kThreads, kBlocksAtOnce) slot_linear_kernel(const __grid_constant__ SlotLinearParams p) {
  if (blockIdx.x == 0) return clear_others<T>(p);
  const int block = blockIdx.x - 1;
  const int tile_items = (p.num_outputs + C::kOutputs - 1) / C::kOutputs, num_items = count_used_tiles(p) * tile_items;
  const int first = block * num_items / p.num_blocks, last = (block + 1) * num_items / p.num_blocks;
  if (first == last) return;
  const int first_tile = first / tile_items;
  auto& shared = *reinterpret_cast<Shared<C>*>(shared_memory);
  read_tiles(p, first_tile, (last - 1) / tile_items - first_tile + 1, shared);
  Warp<T, C>(p, shared).run({0, first % tile_items * C::kOutputs, last - first});
}

}  // namespace shadow::slot_linear
