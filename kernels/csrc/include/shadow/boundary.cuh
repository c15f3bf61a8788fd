// The boundary between two base layers, for units of up to 8 tokens of one adapter slot: half a tile of segments.py.
//
// A unit's rows are spread over the blocks of a cluster, 64 columns (a "slice") a warp. A block copies its columns of
// all weights to shared memory at the start, before anything else is known but the slot. Then three parts:
//
//     reduce    x @ update_in over the slice, and the norm's moments      -> summed over the cluster
//     update    u = act(...);  s += sigmoid(z_gate) * (z_transform - s);  (h - s) @ down over the slice -> summed
//     inject    hidden += scale * p @ up
//
// Sums cross the cluster twice: each block adds up its warps and sends the result to every block's shared memory, where
// a barrier counts the bytes; then everybody adds the parts in the same order: no atomics, same bits always. A block
// sends the next unit's first sums only after it has all second sums of this one, which the others send after they have
// read the first ones, and the same with first and second exchanged: so one buffer for each is enough.
// On devices without clusters the three parts are three kernels and the sums cross through global scratch.
//
// In prefill a cluster takes a range of units. Decode has no next unit, so there a cluster takes one (kUnit).
// Then nobody needs update_in once its product is done, and what is summed takes its place: with 8 gates three blocks
// share a multiprocessor instead of two.
//
// A kernel that runs for a few microseconds waits for its instructions as much as for its data, so the code is kept
// short: loops that run twice are unrolled in prefill only, and odd rows are left to the separate kernels.
//
// Legend: D hidden size, G gates of a branch (padded: kGates), R rank (padded: kRank), h base hidden, s shadow state,
// u bottleneck, z its output, p projection. Lanes: row = lane / 4 is the token, quad = lane % 4 the octet of columns.
#pragma once

#include "shadow/boundary_params.h"
#include "shadow/cluster.cuh"
#include "shadow/fast_math.cuh"
#include "shadow/mma.cuh"

namespace shadow {

constexpr int kNoAdapter = -1;
constexpr int kTileTokens = 16;
constexpr int kUnitTokens = 8;
constexpr int kSliceColumns = 64;
constexpr int kGroups = kSliceColumns / 32;
constexpr int kPartWarps = 4;          // of a block of the separate kernels
constexpr int kMostShared = 232448;    // bytes of a block where there are clusters
constexpr int kReservedShared = 1024;  // that every block takes besides
constexpr int kSampleColumns = 8;      // two a lane of a quad
constexpr int kPadBytes = 16;          // behind each weight row: rows start in different banks
constexpr int kWeightBarriers = 3, kSumBarriers = 2;  // of three parts' weights, of two sums
constexpr int kBarrierBytes = (8 * (kWeightBarriers + kSumBarriers) + 15) / 16 * 16;
constexpr int kPiledClusters = 6;      // of a launch, the first ones
constexpr float kNormEps = 1e-5f;
constexpr unsigned kAllLanes = 0xffffffffu;

// kFused is the cluster kernel, kUnit the same with one unit a cluster; the others are its parts.
enum class Part { kFused, kUnit, kReduce, kUpdate, kInject };

// Row numbers of a block's weights and sizes of the exchanged sums.
template <int kGateTiles, int kRankTiles>
struct Shape {
  static constexpr int kGates = 8 * kGateTiles;
  static constexpr int kRank = 16 * kRankTiles;
  static constexpr int kNormWeight = 0, kNormBias = 1, kOutBias = 2, kIn = 4;
  static constexpr int kOut = kIn + 2 * kGates;
  static constexpr int kDown = kOut + 2 * kGates;
  static constexpr int kUp = kDown + kRank;
  static constexpr int kRows = kUp + kRank;
  static constexpr int kAffine = 4 * kGates;       // in @ norm_weight, in @ norm_bias
  static constexpr int kReduced = 2 * kGates + 2;  // of a token: x @ in of both branches, two moments
  static constexpr int kItems = kAffine + kUnitTokens * kReduced;
  static constexpr int kProjected = kUnitTokens * kRank;
  static constexpr int kUnitStride = 2 * kGates + 8, kProjectionStride = kRank + 8;  // rows in different banks
  static constexpr int kWarpSums = kItems > kProjected ? kItems : kProjected;
  static_assert(kAffine % 4 == 0 && kItems % 4 == 0 && kProjected % 4 == 0, "sent four at a time");
};

template <typename T>
__host__ __device__ constexpr int row_bytes(int num_warps) {
  return num_warps * kSliceColumns * static_cast<int>(sizeof(T)) + kPadBytes;
}

// Sums of a block's warps and of all blocks, what becomes of them.
template <typename S>
__host__ __device__ constexpr int sum_floats(int num_warps, int num_blocks) {
  return num_warps * S::kWarpSums + num_blocks * (S::kItems + S::kProjected) +
         kUnitTokens * (S::kUnitStride + S::kProjectionStride) + S::kAffine;
}

// Bytes of dynamic shared memory. The separate kernels keep what they receive in global memory: no blocks.
template <typename T, typename S>
__host__ __device__ constexpr int shared_bytes(int num_warps, int num_blocks) {
  return kBarrierBytes + S::kRows * row_bytes<T>(num_warps) + 4 * sum_floats<S>(num_warps, num_blocks);
}

// Warps of a cluster kernel's block, known to the compiler so that rows of weights lie at fixed distances: eight, or four
// where a row of 4096 columns would not fit eight blocks.
template <typename T, typename S>
__host__ __device__ constexpr int cluster_warps() {
  return shared_bytes<T, S>(8, 8) <= kMostShared ? 8 : 4;
}

// Blocks of the range kernel on a multiprocessor; where shared memory takes one only, a thread has twice the registers.
template <typename T, typename S>
constexpr int range_blocks() {
  constexpr int kOfBlock = shared_bytes<T, S>(cluster_warps<T, S>(), 8) + kReservedShared;
  return 2 * kOfBlock <= kMostShared + kReservedShared ? 2 : 1;
}

// Which of update_in's rows hold what while a unit kernel updates and injects. A warp's sums lie in its own columns of
// the first rows, which it alone has read; the rest begins only when all blocks are done with update_in.
template <typename T, typename S>
struct Reuse {
  static constexpr int kRowFloats = kSliceColumns * sizeof(T) / 4;
  static constexpr int kSumRows = (S::kWarpSums + kRowFloats - 1) / kRowFloats;

  __host__ __device__ static constexpr int rows_of(int num_floats) {
    constexpr int kBytes = row_bytes<T>(cluster_warps<T, S>());
    return (4 * num_floats + kBytes - 1) / kBytes;
  }
  __host__ __device__ static constexpr int first_unit_row(int num_blocks) {
    return kSumRows + rows_of(num_blocks * S::kProjected);
  }
  __host__ __device__ static constexpr int first_projection_row(int num_blocks) {
    return first_unit_row(num_blocks) + rows_of(kUnitTokens * S::kUnitStride);
  }
};

// The same for the unit kernel; 0 where update_in's rows are too few.
template <typename T, typename S>
constexpr int unit_shared_bytes(int num_blocks) {
  using R = Reuse<T, S>;
  const int used = R::first_projection_row(num_blocks) + R::rows_of(kUnitTokens * S::kProjectionStride);
  if (used > 2 * S::kGates) return 0;
  return kBarrierBytes + S::kRows * row_bytes<T>(cluster_warps<T, S>()) + 4 * num_blocks * S::kItems;
}

// Blocks of a unit kernel on a multiprocessor: more would not leave a thread the registers that it needs.
template <typename T, int kGateTiles>
constexpr int unit_blocks() {
  return sizeof(T) == 2 && kGateTiles == 1 ? 3 : sizeof(T) == 2 ? 2 : 1;
}

template <typename T>
__device__ inline Octet<T> read_octet(const T* source) {
  Octet<T> octet;
  const uint4* words = reinterpret_cast<const uint4*>(source);
#pragma unroll
  for (int i = 0; i < static_cast<int>(sizeof(T)) / 2; ++i) {
    const uint4 four = words[i];
    octet.word[4 * i] = four.x, octet.word[4 * i + 1] = four.y;
    octet.word[4 * i + 2] = four.z, octet.word[4 * i + 3] = four.w;
  }
  return octet;
}

// Reads the first num_columns (at most 8, may be negative) of eight columns; the others are zero. With kIsWide rows
// hold whole octets that start on 16 bytes.
template <bool kIsWide, typename T>
__device__ inline Octet<T> load_octet(const T* source, int num_columns) {
  Octet<T> octet{};
  if (num_columns <= 0) return octet;
  if constexpr (kIsWide) {
    octet = read_octet(source);
  } else {
    float columns[8];
#pragma unroll
    for (int i = 0; i < 8; ++i) columns[i] = i < num_columns ? to_float(source[i]) : 0.0f;
    pack(columns, octet);
  }
  return octet;
}

template <bool kIsWide, typename T>
__device__ inline void store_octet(T* target, const float (&columns)[8], int num_columns) {
  if (num_columns <= 0) return;
  if constexpr (kIsWide) {
    Octet<T> octet;
    pack(columns, octet);
#pragma unroll
    for (int i = 0; i < static_cast<int>(sizeof(T)) / 2; ++i) {
      store_words(reinterpret_cast<uint4*>(target) + i, octet.word[4 * i], octet.word[4 * i + 1],
                  octet.word[4 * i + 2], octet.word[4 * i + 3]);
    }
  } else {
#pragma unroll
    for (int i = 0; i < 8; ++i) {
      if (i < num_columns) target[i] = from_float<T>(columns[i]);
    }
  }
}

constexpr float kOfExponent = -1.44269504f;  // exp(-x) = 2 ** (kOfExponent * x)

__device__ inline float sigmoid_of_scaled(float x) { return reciprocal(1.0f + power_of_two(x)); }
__device__ inline float sigmoid(float x) { return sigmoid_of_scaled(kOfExponent * x); }

__device__ inline float activate(float u, bool is_gelu) {
  return is_gelu ? 0.5f * u * (1.0f + erff(u * 0.70710678f)) : u * sigmoid(u);
}

__device__ inline float sum_quads(float x) {
  x += __shfl_xor_sync(kAllLanes, x, 1);
  return x + __shfl_xor_sync(kAllLanes, x, 2);
}

// All flags of a usual number of slots, a slot a lane: asked for beside the slot rather than after it.
__device__ inline int2 read_flags(const BoundaryParams& p, int lane) {
  return {lane < p.num_slots ? p.flags[lane] : 0,
          lane + 32 < p.num_slots ? p.flags[lane + 32] : 0};
}

// Those of `slot`, 0 without one. All lanes have the same slot and flags; said so that the compiler knows it.
__device__ inline int pick_flags(const BoundaryParams& p, int2 all_flags, int& slot) {
  int flags = __shfl_sync(kAllLanes, slot < 32 ? all_flags.x : all_flags.y, slot & 31);
  if (slot >= 64) flags = p.flags[slot];
  if (slot < 0) flags = 0;
  flags = __reduce_or_sync(kAllLanes, flags), slot = __reduce_max_sync(kAllLanes, slot);
  return flags;
}

// The first num_columns of h become (h - centre) * weight, the others 0; the moments of h - centre grow.
__device__ inline void centre_and_weigh(float centre, int num_columns, const float (&weight)[8],
                                        float (&h)[8], float (&moments)[2]) {
#pragma unroll
  for (int i = 0; i < 8; ++i) {
    const float x = i < num_columns ? h[i] - centre : 0.0f;
    moments[0] += x;
    moments[1] += x * x;
    h[i] = x * weight[i];
  }
}

// One thread's view of the work on its block's units.
template <typename T, int kGateTiles, int kRankTiles, Part kPart>
struct Boundary {
  using S = Shape<kGateTiles, kRankTiles>;
  using Weights = uint32_t[Split<T>::kWeightParts][4];
  using Activations = uint32_t[Split<T>::kActivationParts][4];
  using Inner = uint32_t[Split<T>::kActivationParts];
  using R = Reuse<T, S>;
  static constexpr bool kIsUnit = kPart == Part::kUnit;
  static constexpr bool kIsRange = kPart == Part::kFused;
  static constexpr bool kIsFused = kIsRange || kIsUnit;
  static constexpr bool kIsWide = kIsFused;
  static constexpr int num_warps = kIsFused ? cluster_warps<T, S>() : kPartWarps;
  static constexpr int row_stride = row_bytes<T>(num_warps) / sizeof(T);  // of the shared rows
  static constexpr int kInTiles = 2 * kGateTiles, kDownTiles = 2 * kRankTiles;  // of 8 rows
  static constexpr int kChunk = 16 / sizeof(T);  // columns of 16 bytes
  static constexpr int kUnrolled = kIsRange ? kGroups : 1;

  const BoundaryParams& p;
  int lane, row, quad, warp, block;
  int block_column, first_column;  // first of the block, and of this lane's first octet
  uint64_t* barriers;
  int parity, sums_parity;         // of the barriers' current phase
  T* weights;                      // shared rows of the block
  const T *octets, *pairs, *vectors;  // of them this warp's columns, where read_row, read_row_pair and read_vector begin
  float *warp_sums, *units, *projection, *reduced, *projected;
  float* shifts;                   // what the norm's weight and bias add to each bottleneck, of the slot
  // of the tile
  int slot, flags, first_index;
  // of the unit
  int num_tokens, token;           // this lane's token, or kNoAdapter beyond the unit's end
  T *hidden_row, *state_row;
  float centre;
  Octet<T> hidden[kGroups], residual[kGroups], state[kGroups];
  Pair<T> sample[2];               // of hidden and residual, for the centre

  __device__ Boundary(const BoundaryParams& params, char* shared) : p(params) {
    lane = threadIdx.x % 32, row = lane / 4, quad = lane % 4;
    warp = threadIdx.x / 32, block = kIsFused ? rank_in_cluster() : blockIdx.x % p.num_blocks;
    block_column = block * num_warps * kSliceColumns;
    first_column = block_column + warp * kSliceColumns + 8 * quad;
    barriers = reinterpret_cast<uint64_t*>(shared);
    weights = reinterpret_cast<T*>(shared + kBarrierBytes);
    const T* slice = weights + warp * kSliceColumns;
    octets = kept(slice + spread(row) * row_stride + 8 * quad);
    pairs = kept(slice + 2 * quad * row_stride + 4 * row);
    vectors = kept(slice + 8 * quad);
    float* behind_weights = reinterpret_cast<float*>(weights + S::kRows * row_stride);
    if constexpr (kIsUnit) {
      reduced = behind_weights;
      warp_sums = in_place_of(0);
      projected = in_place_of(R::kSumRows);
      units = in_place_of(R::first_unit_row(p.num_blocks));
      projection = in_place_of(R::first_projection_row(p.num_blocks));
    } else {
      warp_sums = behind_weights;
      units = warp_sums + num_warps * S::kWarpSums;
      projection = units + kUnitTokens * S::kUnitStride;
      reduced = projection + kUnitTokens * S::kProjectionStride;
      projected = reduced + p.num_blocks * S::kItems;
      shifts = projected + p.num_blocks * S::kProjected;
    }
    slot = kNoAdapter, parity = 1, sums_parity = 1;
  }

  // In prefill the same few addresses are used again and again. Elsewhere registers are too few.
  __device__ static const T* kept(const T* place) {
    if constexpr (kIsRange) return keep(place);
    return place;
  }

  // A row of update_in, put to another use.
  __device__ float* in_place_of(int in_row) const {
    return reinterpret_cast<float*>(weights + (S::kIn + in_row) * row_stride);
  }

  // Item i of a warp's sums.
  __device__ float& warp_sum(int of_warp, int i) const {
    if constexpr (!kIsUnit) return warp_sums[of_warp * S::kWarpSums + i];
    const int row_floats = row_stride * static_cast<int>(sizeof(T)) / 4;
    return warp_sums[i / R::kRowFloats * row_floats + of_warp * R::kRowFloats + i % R::kRowFloats];
  }

  // ---- the tile and its tokens

  // Takes a tile of segments.py, [slot, start].
  __device__ void take_tile(int2 tile, int2 all_flags) {
    slot = tile.x, first_index = tile.y;
    flags = pick_flags(p, all_flags, slot);
  }

  // Where the slot's tokens end.
  __device__ int slot_end() const { return p.slot_starts[slot + 1]; }

  __device__ int read_token(int index) const { return p.token_order[min(index, p.num_order - 1)]; }

  // Of this lane's row in the unit whose tokens begin at `index` and end before `end`; of_row is what stands there.
  __device__ int pick_token(int index, int end, int of_row) const {
    return row < end - index ? of_row : kNoAdapter;
  }

  __device__ void take_unit(int index, int end, int of_row) {
    num_tokens = min(kUnitTokens, end - index);
    token = pick_token(index, end, of_row);
    hidden_row = row_of(p.hidden, p.hidden_stride, token) + first_column;
    state_row = row_of(p.state, p.state_stride, token) + first_column;
  }

  // A token's row, the first one's for kNoAdapter. Wide rows lie less than 4 GB apart (binding.cpp): one instruction.
  __device__ T* row_of(void* data, int64_t stride, int of_token) const {
    const uint32_t place = max(of_token, 0);
    if constexpr (!kIsWide) return static_cast<T*>(data) + place * stride;
    const uint32_t num_bytes = static_cast<uint32_t>(stride) * static_cast<uint32_t>(sizeof(T));
    return reinterpret_cast<T*>(static_cast<char*>(data) + static_cast<uint64_t>(num_bytes) * place);
  }

  // Takes the tile's half, whose tokens nobody has read yet; returns whether it has any.
  __device__ bool take_half(int half) {
    const int index = first_index + kUnitTokens * half;
    const int of_row = read_token(index + row);  // beside slot_starts, not after it
    take_unit(index, slot_end(), of_row);
    return num_tokens > 0;
  }

  // Where the separate kernels exchange the sums of the tile's half.
  __device__ void take_scratch(int tile, int half) {
    const int64_t part = (2 * static_cast<int64_t>(tile) + half) * p.num_blocks;
    reduced = p.reduced + part * S::kItems;
    projected = p.projected + part * S::kProjected;
  }

  // Columns of a lane's octet that a token has: none without token.
  __device__ int columns_of(int of_token, int group) const {
    const int column = first_column + 32 * group;
    if constexpr (kIsWide) return of_token >= 0 && column < p.hidden_size ? 8 : 0;
    return of_token < 0 ? 0 : min(8, p.hidden_size - column);
  }
  __device__ int columns_left(int group) const { return columns_of(token, group); }

  // ---- weights

  __device__ const T* slot_rows(const Stack& stack) const {
    return static_cast<const T*>(stack.data) + slot * stack.slot_stride;
  }

  // What one warp copies at a time: up to 8 rows that follow each other in memory.
  struct Item {
    const T* rows;      // the block's columns of the first one
    int count, to_row;  // of rows; the shared row of the first one
    int part;           // who waits for it
  };
  static constexpr int kInItems = 2 * S::kGates / 8, kRankItems = S::kRank / 8;
  static constexpr int kNumItems = 2 * kInItems + 2 * kRankItems;

  // Has no rows where they are padding or switched off.
  __device__ Item find_item(int item) const {
    const bool is_update = item < 2 * kInItems;
    const int of_kind = is_update ? item : item - 2 * kInItems;
    const int num_items = is_update ? kInItems : kRankItems;
    const bool is_second = of_kind >= num_items;
    const int to_row = 8 * (is_second ? of_kind - num_items : of_kind);
    int count, index = to_row;
    if (is_update) {
      const int branch = to_row / S::kGates, gate = to_row % S::kGates;
      count = p.gate_size - gate, index = branch * p.gate_size + gate;
    } else {
      count = p.rank - to_row;
    }
    const T* rows = slot_rows(is_update ? (is_second ? p.update_out : p.update_in) : is_second ? p.up : p.down);
    const int first = is_update ? (is_second ? S::kOut : S::kIn) : is_second ? S::kUp : S::kDown;
    return {rows + static_cast<int64_t>(index) * p.hidden_size + block_column,
            flags & (is_update ? kUpdate : kInject) ? min(count, 8) : 0, first + to_row,
            is_update ? is_second : 1 + is_second};
  }

  // The global vector that is copied with an item, null where there is none: the norm's weight and bias with the first
  // rows of update_in, the outputs' two biases with those of update_out.
  __device__ const T* find_vector(int item, int index, int& to_row) const {
    const bool is_norm = item == 0;
    const int needed = kUpdate | (is_norm ? kNorm : kBias);
    to_row = (is_norm ? S::kNormWeight : S::kOutBias) + index;
    if ((!is_norm && item != kInItems) || (flags & needed) != needed) return nullptr;
    const T* data = is_norm ? slot_rows(index ? p.norm_bias : p.norm_weight)
                            : slot_rows(p.update_out_bias) + static_cast<int64_t>(index) * p.hidden_size;
    return data + block_column;
  }

  // Where row `row` of eight that read_row reads stands among them. Lanes that read at the same time have neighbouring
  // rows; four places apart those lie in different banks.
  __device__ static int spread(int of_row) { return of_row % 2 * 4 + of_row / 2; }
  __device__ static int spread_back(int place) { return place % 4 * 2 + place / 4; }

  // Where an item's row r stands behind its first one.
  __device__ static int place_row(const Item& item, int r) {
    const bool is_spread = item.to_row < S::kOut || (item.to_row >= S::kDown && item.to_row < S::kUp);
    return is_spread ? spread(r) : r;
  }

  __device__ int block_columns() const {
    return max(0, min(num_warps * kSliceColumns, p.hidden_size - block_column));
  }

  __device__ bool is_padding_row(int place) const {
    if (place < S::kIn) return false;
    const bool is_rank = place >= S::kDown;
    const int second = is_rank ? S::kUp : S::kOut;
    int r = place - (place >= second ? second : is_rank ? S::kDown : S::kIn);
    if (place < second) r = r / 8 * 8 + spread_back(r % 8);
    return is_rank ? r >= p.rank : r % S::kGates >= p.gate_size;
  }

  // Zeroes what no copy ever writes: rows up to the padded sizes, columns beyond D.
  __device__ void clear_padding() {
    const int columns = block_columns(), end = num_warps * kSliceColumns;
    // Not `columns == end`: nvcc 13.0 took that from the instruction that finds `columns`, wrongly for a block without any.
    const bool has_all_columns = p.hidden_size - block_column >= end;
    if (p.gate_size == S::kGates && p.rank == S::kRank && has_all_columns) return;
    for (int r = warp; r < S::kRows; r += num_warps) {
      const bool is_padding = is_padding_row(r);
      for (int c = lane + (is_padding ? 0 : columns); c < end; c += 32) {
        weights[r * row_stride + c] = from_float<T>(0.0f);
      }
    }
  }

  // Of the first sums with which = 0, of the second with 1.
  __device__ uint64_t* sum_barrier(int which) const { return &barriers[kWeightBarriers + which]; }

  // First of all: the fence waits for every load that its thread has asked for before, and the block for that thread.
  __device__ void init_barriers() const {
    if (threadIdx.x != 0) return;
    init_barrier(&barriers[0], 32 * kInItems);  // an item's lanes
    init_barrier(&barriers[1], 32 * (kInItems + kRankItems));
    init_barrier(&barriers[2], 32 * kRankItems);
    for (int i = 0; i < kSumBarriers; ++i) init_barrier(sum_barrier(i), 1);  // for sums the block's own
    fence_barriers();
  }

  // To be called once by all threads, before fetch_weights.
  __device__ void prepare() {
    clear_padding();
    __syncthreads();
    if constexpr (kIsFused) arrive_at_cluster();
  }

  // Starts copying the slot's weights, an item a warp and 16 bytes a lane. Whoever needs them waits with wait_weights.
  __device__ void fetch_weights() {
    parity ^= 1;
    const int num_columns = block_columns();
#pragma unroll 1
    for (int number = warp; number < kNumItems; number += num_warps) {
      const Item item = find_item(number);
      T* target = weights + item.to_row * row_stride;
#pragma unroll 1
      for (int column = kChunk * lane; column < num_columns; column += 32 * kChunk) {
#pragma unroll
        for (int r = 0; r < 8; ++r) {
          if (r >= item.count) continue;
          copy_chunk(target + place_row(item, r) * row_stride + column, item.rows + r * p.hidden_size + column);
        }
      }
      fetch_vectors(number, num_columns);
      arrive_with_chunks(&barriers[item.part]);
    }
  }

  __device__ void fetch_vectors(int number, int num_columns) const {
    if (number != 0 && number != kInItems) return;
#pragma unroll 1
    for (int index = 0; index < 2; ++index) {
      int place;
      const T* source = find_vector(number, index, place);
      if (source == nullptr) return;
#pragma unroll 1
      for (int column = kChunk * lane; column < num_columns; column += 32 * kChunk) {
        copy_chunk(weights + place * row_stride + column, source + column);
      }
    }
  }

  // By one warp; from null it copies nothing.
  __device__ void copy_row(int place, const T* source) const {
    const int columns = block_columns();
    T* target = weights + place * row_stride;
    for (int c = lane; source != nullptr && c < columns; c += 32) target[c] = source[c];
  }

  // The same at once, for one part: done when it returns.
  __device__ void load_weights(int wanted) {
    for (int number = warp; number < kNumItems; number += num_warps) {
      const Item item = find_item(number);
      if (item.part != wanted) continue;
      for (int r = 0; r < item.count; ++r) {
        copy_row(item.to_row + place_row(item, r), item.rows + static_cast<int64_t>(r) * p.hidden_size);
      }
      for (int index = 0; index < 2; ++index) {
        int place;
        const T* source = find_vector(number, index, place);
        copy_row(place, source);
      }
    }
    __syncthreads();
  }

  __device__ void wait_weights(int part) {
    if constexpr (kIsFused) wait_barrier(&barriers[part], parity);
  }

  // Row `row` from first_row on, this lane's octet.
  __device__ void read_row(int first_row, int group, Weights& words) const {
    split_weights(read_octet(octets + first_row * row_stride + 32 * group), words);
  }

  // Row pair 2 quad, 2 quad + 1 from first_row on, four columns of it.
  __device__ void read_row_pair(int first_row, int group, Weights& words) const {
    const T* rows = pairs + first_row * row_stride + 32 * group;
    pair_rows(rows, rows + row_stride, words);
  }

  __device__ void read_vector(int weight_row, int group, float (&columns)[8]) const {
    unpack(read_octet(vectors + weight_row * row_stride + 32 * group), columns);
  }

  // ---- activations

  // Rows that a unit lacks become zero, so that nothing of the unit before lives on in registers.
  __device__ void load_hidden() {
#pragma unroll
    for (int group = 0; group < kGroups; ++group) {
      hidden[group] = load_octet<kIsWide>(hidden_row + 32 * group, columns_left(group));
    }
  }

  // The rest of a token's row, and what its centre is found from. There is room for it as soon as the unit before is updated.
  __device__ void load_rest(int of_token) {
    const T* residuals = row_of(const_cast<void*>(p.residual), p.residual_stride, of_token);
    const T* states = row_of(p.state, p.state_stride, of_token);
    if ((flags & kUpdate) && (flags & kNorm)) {
      load_samples(row_of(p.hidden, p.hidden_stride, of_token), residuals);
    }
#pragma unroll
    for (int group = 0; group < kGroups; ++group) {
      const int left = columns_of(of_token, group), column = first_column + 32 * group;
      residual[group] = load_octet<kIsWide>(residuals + column, p.residual == nullptr ? 0 : left);
      if (kPart != Part::kReduce) state[group] = load_octet<kIsWide>(states + column, left);
    }
  }

  // Of kSampleColumns columns, two a lane of a quad. Wide rows have at least so many.
  __device__ void load_samples(const T* hiddens, const T* residuals) {
    static_assert(kSampleColumns == 8);
    const T* const rows[2] = {hiddens, residuals};
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      sample[i] = {};
      if (i == 1 && p.residual == nullptr) continue;
      if constexpr (kIsWide) {
        sample[i] = *reinterpret_cast<const Pair<T>*>(rows[i] + 2 * quad);
      } else {
#pragma unroll
        for (int j = 0; j < 2; ++j) {
          if (2 * quad + j < p.hidden_size) sample[i].column[j] = rows[i][2 * quad + j];
        }
      }
    }
  }

  // A number near the row's mean, the same in all blocks: the mean of its first columns. Moments around it lose no
  // digits to a mean far from zero.
  __device__ void find_centre() {
    float total = 0.0f;
#pragma unroll
    for (int i = 0; i < 2; ++i) total += to_float(sample[i].column[0]) + to_float(sample[i].column[1]);
    centre = sum_quads(total) * reciprocal(min(kSampleColumns, p.hidden_size));
  }

  // Each part's loop over the groups works on octet 0, and they change places at its end: it need not be unrolled.
  __device__ void next_group() { swap(hidden), swap(residual), swap(state); }

  __device__ static void swap(Octet<T> (&octets)[kGroups]) {
    const Octet<T> first = octets[0];
    octets[0] = octets[1], octets[1] = first;
  }

  __device__ void read_h(float (&h)[8]) const {
    float more[8];
    unpack(hidden[0], h);
    unpack(residual[0], more);
#pragma unroll
    for (int i = 0; i < 8; ++i) h[i] += more[i];
  }

  // ---- reduce: x @ update_in over the slice

  __device__ void reduce(bool is_fresh) {
    float sums[kInTiles][4] = {}, affine[kGateTiles][4] = {}, moments[2] = {};
    const bool has_norm = flags & kNorm;
    if (has_norm) find_centre();
#pragma unroll kUnrolled
    for (int group = 0; group < kGroups; ++group, next_group()) {
      float h[8];
      Activations x;
      Weights norm;
      read_h(h);
      if (has_norm) {
        float weight[8];
        read_vector(S::kNormWeight, group, weight);
        const int left = columns_left(group);
        centre_and_weigh(kIsWide && left <= 0 ? 0.0f : centre, kIsWide ? 8 : left, weight, h, moments);
        if (is_fresh) read_norm(group, norm);
      }
      split_columns(h, x);
#pragma unroll
      for (int tile = 0; tile < kInTiles; ++tile) {
        Weights rows;
        read_row(S::kIn + 8 * tile, group, rows);
        multiply_columns<T>(sums[tile], rows, x);
        if (has_norm && is_fresh) multiply_rows<T>(affine[tile / 2], rows, norm, tile % 2);
      }
    }
    store_sums(sums, affine, moments, has_norm && is_fresh);
  }

  // The norm's weight and bias as two tokens of their own: what a shift of the mean and the bias add to each row.
  __device__ void read_norm(int group, Weights& words) const {
    Octet<T> octet{};
    if (row < 2) octet = read_octet(vectors + (S::kNormWeight + row) * row_stride + 32 * group);
    split_weights(octet, words);
  }

  __device__ void store_sums(const float (&sums)[kInTiles][4],
                             const float (&affine)[kGateTiles][4], const float (&moments)[2],
                             bool has_affine) {
    if constexpr (kIsUnit) __syncwarp();  // the warp's other lanes have read the rows that change hands
    const int of_token = S::kAffine + row * S::kReduced;
    store_tiles(of_token, sums);
#pragma unroll
    for (int gate_tile = 0; gate_tile < kGateTiles && has_affine && row < 2; ++gate_tile) {
      const int item = 2 * S::kGates * row + 16 * gate_tile + 2 * quad;
      store_pair(item, affine[gate_tile][0], affine[gate_tile][1]);
      store_pair(item + 8, affine[gate_tile][2], affine[gate_tile][3]);
    }
    const float first = sum_quads(moments[0]), second = sum_quads(moments[1]);
    if (quad == 0) store_pair(of_token + 2 * S::kGates, first, second);
  }

  // What a lane holds of products with 8 rows each: two neighbouring ones of its token, `item` the first of all.
  template <int kTiles>
  __device__ void store_tiles(int item, const float (&values)[kTiles][4]) const {
#pragma unroll
    for (int tile = 0; tile < kTiles; ++tile) {
      store_pair(item + 8 * tile + 2 * quad, values[tile][0] + values[tile][2],
                 values[tile][1] + values[tile][3]);
    }
  }

  __device__ void store_pair(int item, float first, float second) const {
    *reinterpret_cast<float2*>(&warp_sum(warp, item)) = {first, second};
  }

  // Adds up items [begin, end) over the warps and gives the sums to all blocks of the tile, four at a time; what fills
  // up the last four nobody reads. Without has_sums it is zeros that nobody reads, which keeps the blocks in step.
  __device__ void publish(float* received, int num_items, int begin, int end, bool has_sums,
                          int which) {
    if (!has_sums) begin = 0, end = 1;
    const int num_parts = has_sums ? num_warps : 0, num_sent = (end - begin + 3) / 4;
    __syncthreads();
    if (kIsFused && threadIdx.x == 0) expect_bytes(sum_barrier(which), 16 * num_sent * p.num_blocks);
#pragma unroll 1
    for (int i = threadIdx.x; i < num_sent; i += 32 * num_warps) {
      const int item = begin + 4 * i;
      float totals[4] = {};
#pragma unroll 4
      for (int w = 0; w < num_parts; ++w) {
        const float4 four = *reinterpret_cast<const float4*>(&warp_sum(w, item));
        totals[0] += four.x, totals[1] += four.y, totals[2] += four.z, totals[3] += four.w;
      }
      float* target = received + block * num_items + item;
      if constexpr (kIsFused) {
#pragma unroll 1
        for (int other = 0; other < p.num_blocks; ++other) {
          send(address_at(target, other), totals, address_at(sum_barrier(which), other));
        }
      } else {
#pragma unroll
        for (int j = 0; j < 4; ++j) target[j] = totals[j];
      }
    }
  }

  __device__ void wait_sums(int which) {
    if constexpr (kIsFused) wait_barrier(sum_barrier(which), sums_parity);
  }

  // Adds up some items over the tile's blocks.
  template <int kCount>
  __device__ void sum_blocks(const float* received, int num_items, const int (&items)[kCount],
                             float (&totals)[kCount]) const {
#pragma unroll
    for (int i = 0; i < kCount; ++i) totals[i] = 0.0f;
#pragma unroll 2
    for (int b = 0; b < p.num_blocks; ++b, received += num_items) {
#pragma unroll
      for (int i = 0; i < kCount; ++i) totals[i] += received[items[i]];
    }
  }

  // ---- update: the new state, and its discrepancy's projection over the slice

  // One value a thread: u = act(bottleneck), for all tokens and both branches, the gate's times kOfExponent: once a token
  // instead of once a column.
  __device__ void find_units(bool is_fresh) {
    constexpr int kUnits = 2 * S::kGates;
#pragma unroll 1
    for (int i = threadIdx.x; i < kUnits * num_tokens; i += 32 * num_warps) {
      const int unit = i % kUnits, of_token = i / kUnits;
      const int first = S::kAffine + of_token * S::kReduced, moments = first + kUnits;
      float sums[3], shift[2];
      if (!kIsRange || is_fresh) {
        float all[5];
        sum_blocks(reduced, S::kItems, {first + unit, moments, moments + 1, unit, kUnits + unit}, all);
        sums[0] = all[0], sums[1] = all[1], sums[2] = all[2], shift[0] = all[3], shift[1] = all[4];
        if (kIsRange) reinterpret_cast<float2*>(shifts)[unit] = {shift[0], shift[1]};
      } else {
        sum_blocks(reduced, S::kItems, {first + unit, moments, moments + 1}, sums);
        const float2 kept_shift = reinterpret_cast<const float2*>(shifts)[unit];
        shift[0] = kept_shift.x, shift[1] = kept_shift.y;
      }
      const float u = activate(find_bottleneck(unit, sums, shift), flags & kGelu);
      units[of_token * S::kUnitStride + unit] = unit < S::kGates ? u : kOfExponent * u;
    }
    __syncthreads();
  }

  // From a token's sum and moments, and what the norm's weight and bias add.
  __device__ float find_bottleneck(int unit, const float (&sums)[3], const float (&shift)[2]) const {
    float u = sums[0];
    if (flags & kNorm) {
      const float part_of_row = reciprocal(p.hidden_size);
      const float mean = sums[1] * part_of_row;
      const float variance = fmaxf(sums[2] * part_of_row - mean * mean, 0.0f);
      u = (u - mean * shift[0]) * rsqrtf(variance + kNormEps) + shift[1];
    }
    const int branch = unit / S::kGates, gate = unit % S::kGates;
    if (!(flags & kBias) || gate >= p.gate_size) return u;
    return u + to_float(slot_rows(p.update_in_bias)[branch * p.gate_size + gate]);
  }

  // Left operand of a product with row pairs: two inner values of this lane's token.
  __device__ void read_inner(const float* values, int stride, int offset, Inner& words) const {
    const float2 pair =
        *reinterpret_cast<const float2*>(values + row * stride + offset + 2 * quad);
    split(pair.x, pair.y, words);
  }

  // z = u @ update_out + bias of both branches for 32 columns: z[j][0..1] transform, z[j][2..3] gate times kOfExponent.
  __device__ void expand(int group, const Inner (&transform)[kGateTiles],
                         const Inner (&gate)[kGateTiles], float (&z)[4][4]) const {
#pragma unroll
    for (int gate_tile = 0; gate_tile < kGateTiles; ++gate_tile) {
      Weights transform_rows, gate_rows;
      read_row_pair(S::kOut + 8 * gate_tile, group, transform_rows);
      read_row_pair(S::kOut + S::kGates + 8 * gate_tile, group, gate_rows);
      multiply_branches<T>(z, transform[gate_tile], gate[gate_tile], transform_rows, gate_rows);
    }
    if (!(flags & kBias)) return;
    float bias[2][8];
    read_vector(S::kOutBias, group, bias[0]);
    read_vector(S::kOutBias + 1, group, bias[1]);
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      z[j][0] += bias[0][j], z[j][1] += bias[0][4 + j];
      z[j][2] += kOfExponent * bias[1][j], z[j][3] += kOfExponent * bias[1][4 + j];
    }
  }

  __device__ void update() {
    float sums[kDownTiles][4] = {};
    Inner transform[kGateTiles], gate[kGateTiles];
    if (flags & kUpdate) {
#pragma unroll
      for (int gate_tile = 0; gate_tile < kGateTiles; ++gate_tile) {
        read_inner(units, S::kUnitStride, 8 * gate_tile, transform[gate_tile]);
        read_inner(units, S::kUnitStride, S::kGates + 8 * gate_tile, gate[gate_tile]);
      }
    }
#pragma unroll kUnrolled
    for (int group = 0; group < kGroups; ++group, next_group()) {
      float s[8], h[8];
      unpack(state[0], s);
      if (flags & kUpdate) {
        float z[4][4] = {};
        expand(group, transform, gate, z);
#pragma unroll
        for (int i = 0; i < 8; ++i) {
          s[i] += sigmoid_of_scaled(z[i % 4][2 + i / 4]) * (z[i % 4][i / 4] - s[i]);
        }
        store_octet<kIsWide>(state_row + 32 * group, s, columns_left(group));
      }
      if (!(flags & kInject)) continue;
      read_h(h);
#pragma unroll
      for (int i = 0; i < 8; ++i) h[i] -= s[i];
      Activations discrepancy;
      split_columns(h, discrepancy);
#pragma unroll
      for (int tile = 0; tile < kDownTiles; ++tile) {
        Weights rows;
        read_row(S::kDown + 8 * tile, group, rows);
        multiply_columns<T>(sums[tile], rows, discrepancy);
      }
    }
    if (flags & kInject) store_tiles(row * S::kRank, sums);
  }

  // ---- inject

  __device__ void find_projection() {
    const float scale = p.scale[slot];
#pragma unroll 1
    for (int i = threadIdx.x; i < num_tokens * S::kRank; i += 32 * num_warps) {
      float total[1];
      sum_blocks(projected, S::kProjected, {i}, total);
      projection[i / S::kRank * S::kProjectionStride + i % S::kRank] = scale * total[0];
    }
    __syncthreads();
  }

  __device__ void inject() {
#pragma unroll kUnrolled
    for (int group = 0; group < kGroups; ++group, next_group()) {
      float correction[4][4] = {}, h[8];
#pragma unroll
      for (int rank_tile = 0; rank_tile < kRankTiles; ++rank_tile) {
        Inner low, high;
        Weights low_rows, high_rows;
        read_inner(projection, S::kProjectionStride, 16 * rank_tile, low);
        read_inner(projection, S::kProjectionStride, 16 * rank_tile + 8, high);
        read_row_pair(S::kUp + 16 * rank_tile, group, low_rows);
        read_row_pair(S::kUp + 16 * rank_tile + 8, group, high_rows);
        multiply_inner<T>(correction, low, high, low_rows, high_rows);
      }
      unpack(hidden[0], h);
#pragma unroll
      for (int i = 0; i < 8; ++i) h[i] += correction[i % 4][i / 4] + correction[i % 4][2 + i / 4];
      store_octet<kIsWide>(hidden_row + 32 * group, h, columns_left(group));
    }
  }

  // What the two steps behind the exchanges read, so that it is near by then.
  __device__ void prefetch_scalars() const {
    prefetch(p.scale + slot);
    if (flags & kBias) prefetch(slot_rows(p.update_in_bias));
  }

  // ---- the parts in order

  __device__ void run_reduce(bool is_fresh) {
    if (!(flags & kUpdate)) return;
    wait_weights(0);
    reduce(is_fresh);
  }

  __device__ void publish_reduced(bool is_fresh) {
    const int begin = is_fresh && (flags & kNorm) ? 0 : S::kAffine;
    const int end = S::kAffine + num_tokens * S::kReduced;
    publish(reduced, S::kItems, begin, end, flags & kUpdate, 0);
  }

  __device__ void run_update(bool is_fresh) {
    if (flags & kUpdate) find_units(is_fresh);
    wait_weights(1);
    update();
    publish(projected, S::kProjected, 0, num_tokens * S::kRank, flags & kInject, 1);
  }

  __device__ void run_inject() {
    if (!(flags & kInject)) return;
    find_projection();
    wait_weights(2);
    inject();
  }
};

__device__ inline int2 read_tile(const BoundaryParams& p, int index) {
  return reinterpret_cast<const int2*>(p.tiles)[index];
}

// Tiles that the step uses; the ones behind them say it.
__device__ inline int count_tiles(const BoundaryParams& p, int2 unused_or_last) {
  return unused_or_last.x < 0 ? unused_or_last.y : p.num_tiles;
}

#ifndef SHADOW_EMULATED
extern __shared__ __align__(16) char shared_memory[];
#endif

// The units of a cluster, two a tile: a range, or one tile's.
__device__ inline int2 find_range(const BoundaryParams& p) {
  const int cluster = cluster_index();
  if (p.num_clusters >= p.num_tiles) return {2 * cluster, 2 * cluster + 2};
  const int num_units = 2 * count_tiles(p, read_tile(p, p.num_tiles - 1));
  const int share = (num_units + p.num_clusters - 1) / p.num_clusters;
  return {cluster * share, min((cluster + 1) * share, num_units)};
}

// Brings the rows of a unit to the cache before it is their turn: a line of one tensor a lane.
template <typename T>
struct Prefetcher {
  const char* columns;  // of the first row, or null
  uint32_t num_bytes;   // between rows

  // Lanes that differ by kUnitTokens have the same token.
  __device__ Prefetcher(const BoundaryParams& p, int lane, int column) {
    const int which = lane / kUnitTokens;
    const void* data = which == 0 ? p.hidden : which == 1 ? p.state : which == 2 ? p.residual : nullptr;
    const int64_t stride = which == 0 ? p.hidden_stride : which == 1 ? p.state_stride : p.residual_stride;
    const bool is_inside = data != nullptr && column < p.hidden_size;
    columns = is_inside ? static_cast<const char*>(data) + column * sizeof(T) : nullptr;
    num_bytes = static_cast<uint32_t>(stride) * static_cast<uint32_t>(sizeof(T));
  }

  __device__ void ask(int token) const {
    if (token < 0 || columns == nullptr) return;
    const char* place = columns + static_cast<uint64_t>(num_bytes) * static_cast<uint32_t>(token);
#pragma unroll
    for (int line = 0; line < kSliceColumns * static_cast<int>(sizeof(T)); line += 128) {
      prefetch(place + line);
    }
  }
};

template <typename T, int kGateTiles, int kRankTiles>
__global__ void __launch_bounds__(32 * cluster_warps<T, Shape<kGateTiles, kRankTiles>>(),
                                  range_blocks<T, Shape<kGateTiles, kRankTiles>>())
    boundary_fused_kernel(const __grid_constant__ BoundaryParams p) {
#if __CUDA_ARCH__ >= 900  // elsewhere never launched
  Boundary<T, kGateTiles, kRankTiles, Part::kFused> work(p, shared_memory);
  work.init_barriers();
  const Prefetcher<T> prefetcher(p, work.lane, work.first_column - 8 * work.quad);
  const int2 range = find_range(p);
  bool is_prepared = false, is_first = true;  // weights may be on their way while the previous kernel runs
  int unit = range.x;
#pragma unroll 1
  while (unit < range.y) {
    const int2 all_flags = read_flags(p, work.lane);
    work.take_tile(read_tile(p, unit / 2), all_flags);
    if (work.slot < 0) break;  // the step has no more tiles
    // The slot's tiles follow each other, and their tokens.
    const int first = work.first_index + kUnitTokens * (unit % 2);
    const int end = min(work.slot_end(), first + kUnitTokens * (range.y - unit));
    unit = 2 * (unit / 2 + (end - work.first_index + kTileTokens - 1) / kTileTokens);
    if (work.flags == 0 || first >= end) continue;
    if (is_prepared) {
      __syncthreads();  // all warps have read the previous slot's weights
    } else {
      work.prepare();
    }
    is_prepared = true;
    work.fetch_weights();
    const int ahead = work.lane % kUnitTokens;
    int now = work.read_token(first + ahead), next = work.read_token(first + kUnitTokens + ahead);
#pragma unroll 1
    for (int index = first; index < end; index += kUnitTokens) {
      const bool is_fresh = index == first;
      work.take_unit(index, end, __shfl_sync(kAllLanes, now, work.row));
      if (is_first) {
        wait_for_previous_kernel();
        release_next_kernel();  // not before: what comes next may read what this kernel's predecessor wrote
      }
      if (is_fresh) work.load_rest(work.token);
      work.load_hidden();
      prefetcher.ask(next);
      now = next, next = work.read_token(index + 2 * kUnitTokens + ahead);
      work.run_reduce(is_fresh);
      if (is_first) wait_for_cluster();  // all blocks have started, their barriers are ready
      is_first = false;
      work.sums_parity ^= 1;
      work.publish_reduced(is_fresh);
      work.wait_sums(0);
      work.run_update(is_fresh);
      // The next unit's rows come while this one's sums do.
      if (index + kUnitTokens < end) {
        const int of_row = __shfl_sync(kAllLanes, now, work.row);
        work.load_rest(work.pick_token(index + kUnitTokens, end, of_row));
      }
      work.wait_sums(1);
      work.run_inject();
    }
  }
  if (is_first && blockIdx.x < p.num_blocks) wait_for_previous_kernel();  // else this kernel could end before it
#endif
}

// One unit a cluster: all used tiles' first halves, then their second ones, which are often empty. What a step can have
// and has not comes last: those clusters have nothing to do, and nobody waits for a place that they take. The very last ones
// begin first: a device piles the first clusters up on the multiprocessors that are free first.
template <typename T, int kGateTiles, int kRankTiles>
__global__ void __launch_bounds__(32 * cluster_warps<T, Shape<kGateTiles, kRankTiles>>(),
                                  unit_blocks<T, kGateTiles>())
    boundary_unit_kernel(const __grid_constant__ BoundaryParams p) {
#if __CUDA_ARCH__ >= 900
  Boundary<T, kGateTiles, kRankTiles, Part::kUnit> work(p, shared_memory);
  work.init_barriers();
  const int place = cluster_index() - min(kPiledClusters, p.num_clusters - 1);
  const int cluster = place < 0 ? place + p.num_clusters : place;
  const int2 all_flags = read_flags(p, work.lane);
  int2 tile = read_tile(p, min(cluster, p.num_tiles - 1));
  const int half = cluster >= p.num_tiles || tile.x < 0;
  bool is_used = true;
  if (half) {
    const int used = count_tiles(p, tile), number = cluster - used;
    is_used = number < used;
    if (is_used) tile = read_tile(p, number);
  }
  work.take_tile(tile, all_flags);
  // Asked for before the weights are, not behind them.
  const int index = work.first_index + kUnitTokens * half, end = work.slot_end();
  const int of_row = work.read_token(index + work.row);
  if (!is_used || work.flags == 0 || (half != 0 && index >= end)) {
    // One block has to, else this kernel could end before that one; the others make room for those with work.
    if (cluster == 0) wait_for_previous_kernel();
    return;
  }
  work.prepare();
  work.fetch_weights();
  work.prefetch_scalars();
  work.take_unit(index, end, of_row);
  wait_for_previous_kernel();
  release_next_kernel();
  work.load_rest(work.token);
  work.load_hidden();
  work.run_reduce(true);
  wait_for_cluster();  // all blocks have started, their barriers are ready
  work.sums_parity = 0;
  work.publish_reduced(true);
  work.wait_sums(0);
  work.run_update(true);
  work.wait_sums(1);
  work.run_inject();
#endif
}

// One part as a kernel of its own, one block for each tile and piece of columns.
template <typename T, int kGateTiles, int kRankTiles, Part kPart>
__global__ void __launch_bounds__(32 * kPartWarps)
    boundary_part_kernel(const __grid_constant__ BoundaryParams p) {
  Boundary<T, kGateTiles, kRankTiles, kPart> work(p, shared_memory);
  const int tile = blockIdx.x / p.num_blocks;
  work.take_tile(read_tile(p, tile), read_flags(p, work.lane));
  if (work.flags == 0) return;
  work.prepare();
  work.load_weights(kPart == Part::kReduce ? 0 : kPart == Part::kUpdate ? 1 : 2);
  for (int half = 0; half < 2 && work.take_half(half); ++half) {
    work.take_scratch(tile, half);
    work.load_rest(work.token);
    work.load_hidden();
    if constexpr (kPart == Part::kReduce) {
      work.run_reduce(true);
      work.publish_reduced(true);
    } else if constexpr (kPart == Part::kUpdate) {
      work.run_update(true);
    } else {
      work.run_inject();
    }
    __syncthreads();  // shared sums are free for the other half
  }
}

}  // namespace shadow
