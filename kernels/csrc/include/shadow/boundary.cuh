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
// Decode has no next unit, so there a cluster takes one unit (kUnit). Then nobody needs update_in once its product is
// done, and what is summed takes its place: with 8 gates three blocks share a multiprocessor instead of two.
//
// A kernel that runs for a few microseconds waits for its instructions as much as for its data, so the code is kept
// short: loops that run twice are not unrolled, and odd rows are left to the separate kernels.
//
// Legend: D hidden size, G gates of a branch (padded: kGates), R rank (padded: kRank), h base hidden, s shadow state,
// u bottleneck, z its output, p projection. Lanes: row = lane / 4 is the token, quad = lane % 4 the octet of columns.
#pragma once

#include "shadow/boundary_params.h"
#include "shadow/cluster.cuh"
#include "shadow/mma.cuh"

namespace shadow {

constexpr int kNoAdapter = -1;
constexpr int kTileTokens = 16;
constexpr int kUnitTokens = 8;
constexpr int kSliceColumns = 64;
constexpr int kGroups = kSliceColumns / 32;
constexpr int kMaxWarps = 16;
constexpr int kUnitWarps = 8;
constexpr int kSampleColumns = 32;
constexpr int kPadBytes = 16;  // behind each weight row: rows start in different banks
constexpr int kNumBarriers = 5;  // the weights of three parts, the sums of two
constexpr int kBarrierBytes = 48;
constexpr float kNormEps = 1e-5f;
constexpr unsigned kAllLanes = 0xffffffffu;

// kFused is the cluster kernel, kUnit the same for one unit a cluster; the others are its parts.
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
  static constexpr int kWarpSums = kItems > kProjected ? kItems : kProjected;
  static_assert(kAffine % 4 == 0 && kItems % 4 == 0 && kProjected % 4 == 0, "sent four at a time");
};

template <typename T>
__host__ __device__ constexpr int row_bytes(int num_warps) {
  return num_warps * kSliceColumns * static_cast<int>(sizeof(T)) + kPadBytes;
}

// Bytes of dynamic shared memory. The separate kernels keep what they receive in global memory.
template <typename T, typename S>
constexpr int shared_bytes(int num_warps, int num_blocks, bool is_fused) {
  const int received = is_fused ? num_blocks * (S::kItems + S::kProjected) : 0;
  const int inner = kUnitTokens * (2 * S::kGates + S::kRank);
  return kBarrierBytes + S::kRows * row_bytes<T>(num_warps) +
         4 * (num_warps * S::kWarpSums + received + inner);
}

// Which of update_in's rows hold what while a unit kernel updates and injects. A warp's sums lie in its own columns of
// the first rows, which it alone has read; the rest begins only when all blocks are done with update_in.
template <typename T, typename S>
struct Reuse {
  static constexpr int kRowFloats = kSliceColumns * sizeof(T) / 4;
  static constexpr int kSumRows = (S::kWarpSums + kRowFloats - 1) / kRowFloats;

  __host__ __device__ static constexpr int rows_of(int num_floats, int num_warps) {
    return (4 * num_floats + row_bytes<T>(num_warps) - 1) / row_bytes<T>(num_warps);
  }
  __host__ __device__ static constexpr int first_unit_row(int num_warps, int num_blocks) {
    return kSumRows + rows_of(num_blocks * S::kProjected, num_warps);
  }
  __host__ __device__ static constexpr int first_projection_row(int num_warps, int num_blocks) {
    return first_unit_row(num_warps, num_blocks) + rows_of(kUnitTokens * 2 * S::kGates, num_warps);
  }
};

// The same for the unit kernel; 0 where update_in's rows are too few.
template <typename T, typename S>
constexpr int unit_shared_bytes(int num_warps, int num_blocks) {
  const int first = Reuse<T, S>::first_projection_row(num_warps, num_blocks);
  const int used = first + Reuse<T, S>::rows_of(S::kProjected, num_warps);
  if (used > 2 * S::kGates) return 0;
  return kBarrierBytes + S::kRows * row_bytes<T>(num_warps) + 4 * num_blocks * S::kItems;
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
    uint4* words = reinterpret_cast<uint4*>(target);
#pragma unroll
    for (int i = 0; i < static_cast<int>(sizeof(T)) / 2; ++i) {
      words[i] = make_uint4(octet.word[4 * i], octet.word[4 * i + 1], octet.word[4 * i + 2],
                            octet.word[4 * i + 3]);
    }
  } else {
#pragma unroll
    for (int i = 0; i < 8; ++i) {
      if (i < num_columns) target[i] = from_float<T>(columns[i]);
    }
  }
}

__device__ inline float sigmoid(float x) { return __fdividef(1.0f, 1.0f + __expf(-x)); }

__device__ inline float activate(float u, bool is_gelu) {
  return is_gelu ? 0.5f * u * (1.0f + erff(u * 0.70710678f)) : u * sigmoid(u);
}

__device__ inline float sum_quads(float x) {
  x += __shfl_xor_sync(kAllLanes, x, 1);
  return x + __shfl_xor_sync(kAllLanes, x, 2);
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
  static constexpr bool kIsFused = kPart == Part::kFused || kIsUnit;
  static constexpr bool kIsWide = kIsFused;

  const BoundaryParams& p;
  int lane, row, quad, warp, num_warps, block;
  int block_column, first_column;  // first of the block, and of this lane's first octet
  uint64_t* barriers;
  int parity, sums_parity;         // of the barriers' current phase
  T *weights, *slice;              // shared rows of the block, and this warp's columns of them
  int row_stride;
  float *warp_sums, *units, *projection, *reduced, *projected;
  // of the tile
  int tile, slot, flags, first_index, tile_tokens;
  // of the unit
  int num_tokens, token;           // this lane's token, or kNoAdapter beyond the unit's end
  T *hidden_row, *state_row;
  float centre;
  Octet<T> hidden[kGroups], residual[kGroups], state[kGroups];

  __device__ Boundary(const BoundaryParams& params, char* shared) : p(params) {
    lane = threadIdx.x % 32, row = lane / 4, quad = lane % 4;
    warp = threadIdx.x / 32, num_warps = blockDim.x / 32;
    block = blockIdx.x % p.num_blocks;
    block_column = block * num_warps * kSliceColumns;
    first_column = block_column + warp * kSliceColumns + 8 * quad;
    barriers = reinterpret_cast<uint64_t*>(shared);
    weights = reinterpret_cast<T*>(shared + kBarrierBytes);
    slice = weights + warp * kSliceColumns;
    row_stride = row_bytes<T>(num_warps) / sizeof(T);
    float* behind_weights = reinterpret_cast<float*>(weights + S::kRows * row_stride);
    if constexpr (kIsUnit) {
      reduced = behind_weights;
      warp_sums = in_place_of(0);
      projected = in_place_of(R::kSumRows);
      units = in_place_of(R::first_unit_row(num_warps, p.num_blocks));
      projection = in_place_of(R::first_projection_row(num_warps, p.num_blocks));
    } else {
      warp_sums = behind_weights;
      units = warp_sums + num_warps * S::kWarpSums;
      projection = units + kUnitTokens * 2 * S::kGates;
      reduced = projection + S::kProjected;
      projected = reduced + p.num_blocks * S::kItems;
    }
    slot = kNoAdapter, parity = 1, sums_parity = 1;
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

  // Reads the tile's slot and flags; returns whether the slot is another than before.
  __device__ bool take_tile(int index) {
    tile = index;
    // All flags of a usual number of slots at once, beside the slot itself rather than after it.
    const int near_flags = lane < p.num_slots ? p.flags[lane] : 0;
    const int far_flags = lane + 32 < p.num_slots ? p.flags[lane + 32] : 0;
    const int2 entry = reinterpret_cast<const int2*>(p.tiles)[tile];
    const bool is_fresh = entry.x != slot;
    slot = entry.x, first_index = entry.y;
    flags = __shfl_sync(kAllLanes, slot < 32 ? near_flags : far_flags, slot & 31);
    if (slot >= 64) flags = p.flags[slot];
    if (slot < 0) flags = 0;
    return is_fresh;
  }

  // Whether the tile's half has a token; the first one always has.
  __device__ bool has_unit(int half) const {
    return half == 0 || p.slot_starts[slot + 1] - first_index > kUnitTokens;
  }

  // Finds the tokens of the tile's half; returns whether it has any.
  __device__ bool take_unit(int half) {
    const int index = first_index + kUnitTokens * half + row;
    token = p.token_order[min(index, p.num_order - 1)];  // beside slot_starts, not after it
    tile_tokens = min(kTileTokens, p.slot_starts[slot + 1] - first_index);
    num_tokens = min(kUnitTokens, tile_tokens - kUnitTokens * half);
    if (row >= num_tokens) token = kNoAdapter;
    const int64_t place = max(token, 0);
    hidden_row = static_cast<T*>(p.hidden) + place * p.hidden_stride + first_column;
    state_row = static_cast<T*>(p.state) + place * p.state_stride + first_column;
    if constexpr (!kIsFused) {
      const int64_t part = (2 * static_cast<int64_t>(tile) + half) * p.num_blocks;
      reduced = p.reduced + part * S::kItems;
      projected = p.projected + part * S::kProjected;
    }
    return num_tokens > 0;
  }

  __device__ int columns_left(int group) const {
    return token < 0 ? 0 : min(8, p.hidden_size - first_column - 32 * group);
  }

  // ---- weights

  __device__ const T* slot_rows(const Stack& stack) const {
    return static_cast<const T*>(stack.data) + slot * stack.slot_stride;
  }

  // One kind of weight rows: which shared rows they fill, whose they are, the flags without which nothing reads them.
  struct Segment {
    const T* data;
    int to_row, num_rows, part, needed;
  };

  // What one warp copies at a time: up to 8 rows of a segment.
  static constexpr int kInItems = 2 * S::kGates / 8, kRankItems = S::kRank / 8;
  static constexpr int kMainItems = 2 * kInItems + 2 * kRankItems, kNumItems = kMainItems + 3;

  // The segment of an item; first_row is the item's first row in it.
  __device__ Segment find_segment(int item, int& first_row) const {
    first_row = 0;
    if (item < kMainItems) {
      const bool is_update = item < 2 * kInItems;
      const int of_kind = is_update ? item : item - 2 * kInItems;
      const int num_items = is_update ? kInItems : kRankItems;
      const bool is_second = of_kind >= num_items;
      first_row = 8 * (is_second ? of_kind - num_items : of_kind);
      if (is_update) {
        return {slot_rows(is_second ? p.update_out : p.update_in), is_second ? S::kOut : S::kIn,
                2 * S::kGates, is_second, kUpdate};
      }
      return {slot_rows(is_second ? p.up : p.down), is_second ? S::kUp : S::kDown, S::kRank,
              1 + is_second, kInject};
    }
    if (item == kMainItems + 2) {
      return {slot_rows(p.update_out_bias), S::kOutBias, 2, 1, kUpdate | kBias};
    }
    const bool is_bias = item == kMainItems + 1;
    return {slot_rows(is_bias ? p.norm_bias : p.norm_weight), is_bias ? S::kNormBias : S::kNormWeight,
            1, 0, kUpdate | kNorm};
  }

  // The global row behind row r of a segment, or null where that is padding or switched off.
  __device__ const T* find_row(const Segment& segment, int r) const {
    int index = r;
    bool is_inside = r < segment.num_rows && (flags & segment.needed) == segment.needed;
    if (segment.to_row >= S::kDown) {
      is_inside = is_inside && r < p.rank;
    } else if (segment.to_row >= S::kIn) {
      const int branch = r / S::kGates, gate = r % S::kGates;
      is_inside = is_inside && gate < p.gate_size;
      index = branch * p.gate_size + gate;
    }
    return is_inside ? segment.data + static_cast<int64_t>(index) * p.hidden_size + block_column
                     : nullptr;
  }

  __device__ int block_columns() const {
    return max(0, min(num_warps * kSliceColumns, p.hidden_size - block_column));
  }

  // Zeroes what no copy ever writes: rows up to the padded sizes, columns beyond D.
  __device__ void clear_padding() {
    const int columns = block_columns(), end = num_warps * kSliceColumns;
    if (p.gate_size == S::kGates && p.rank == S::kRank && columns == end) return;
    for (int r = warp; r < S::kRows; r += num_warps) {
      const int unit = (r - S::kIn) % S::kGates, index = (r - S::kDown) % S::kRank;
      const bool is_padding = r >= S::kDown  ? index >= p.rank
                              : r >= S::kIn ? unit >= p.gate_size
                                            : false;
      for (int c = lane + (is_padding ? 0 : columns); c < end; c += 32) {
        weights[r * row_stride + c] = from_float<T>(0.0f);
      }
    }
  }

  // To be called once by all threads, before fetch_weights.
  __device__ void prepare() {
    clear_padding();
    if constexpr (kIsFused) {
      if (threadIdx.x == 0) {  // one arrival an item of weights; for sums the block's own
        init_barrier(&barriers[0], kInItems + 2);
        init_barrier(&barriers[1], kInItems + kRankItems + 1);
        init_barrier(&barriers[2], kRankItems);
        init_barrier(&barriers[3], 1);
        init_barrier(&barriers[4], 1);
      }
      fence_copies();
    }
    __syncthreads();
    if constexpr (kIsFused) arrive_at_cluster();
  }

  // Starts copying the slot's weights, a row a lane. Whoever needs them waits with wait_weights.
  __device__ void fetch_weights() {
    parity ^= 1;
    const int num_bytes = block_columns() * sizeof(T);
#pragma unroll 1
    for (int item = warp; item < kNumItems; item += num_warps) {
      int r;
      const Segment segment = find_segment(item, r);
      r += lane;
      const T* source = lane < 8 && num_bytes > 0 ? find_row(segment, r) : nullptr;
      const int num_rows = __popc(__ballot_sync(kAllLanes, source != nullptr));
      if (lane == 0) expect_bytes(&barriers[segment.part], num_rows * num_bytes);
      __syncwarp();
      if (source == nullptr) continue;
      T* target = weights + (segment.to_row + r) * row_stride;
      copy_bytes(target, source, num_bytes, &barriers[segment.part]);
    }
  }

  // The same without the copy engine, for one part: done when it returns.
  __device__ void load_weights(int wanted) {
    const int columns = block_columns();
    for (int item = warp; item < kNumItems; item += num_warps) {
      int first_row;
      const Segment segment = find_segment(item, first_row);
      if (segment.part != wanted) continue;
      for (int r = first_row; r < min(first_row + 8, segment.num_rows); ++r) {
        const T* source = find_row(segment, r);
        T* target = weights + (segment.to_row + r) * row_stride;
        for (int c = lane; source != nullptr && c < columns; c += 32) target[c] = source[c];
      }
    }
    __syncthreads();
  }

  __device__ void wait_weights(int part) {
    if constexpr (kIsFused) wait_barrier(&barriers[part], parity);
  }

  // Rows `row` and `row` + 8 from first_row on, this lane's octet.
  __device__ void read_rows(int first_row, int group, Weights& low, Weights& high) const {
    const T* rows = slice + (first_row + row) * row_stride + 32 * group + 8 * quad;
    split_weights(read_octet(rows), low);
    split_weights(read_octet(rows + 8 * row_stride), high);
  }

  // Row pair 2 quad, 2 quad + 1 from first_row on, four columns of it.
  __device__ void read_row_pair(int first_row, int group, Weights& words) const {
    const T* rows = slice + (first_row + 2 * quad) * row_stride + 32 * group + 4 * row;
    pair_rows(rows, rows + row_stride, words);
  }

  __device__ void read_vector(int weight_row, int group, float (&columns)[8]) const {
    unpack(read_octet(slice + weight_row * row_stride + 32 * group + 8 * quad), columns);
  }

  // ---- activations

  // Rows that the unit lacks become zero, so that nothing of the unit before lives on in registers.
  __device__ void load_activations() {
    const T* residual_row =
        static_cast<const T*>(p.residual) + max(token, 0) * p.residual_stride + first_column;
#pragma unroll
    for (int group = 0; group < kGroups; ++group) {
      const int left = columns_left(group), offset = 32 * group;
      hidden[group] = load_octet<kIsWide>(hidden_row + offset, left);
      residual[group] = load_octet<kIsWide>(residual_row + offset, p.residual == nullptr ? 0 : left);
      if (kPart != Part::kReduce) state[group] = load_octet<kIsWide>(state_row + offset, left);
    }
    centre = 0.0f;
    if ((flags & kUpdate) && (flags & kNorm)) sample_centre();
  }

  // Brings the rows of the unit behind this one to the cache: tiles follow each other in token_order.
  __device__ void prefetch_next(int half) const {
    const int index = first_index + kUnitTokens * half + num_tokens + row;
    const int next = p.token_order[min(index, p.num_order - 1)];
    if (next < 0 || first_column >= p.hidden_size) return;
    const int64_t place = next;
#pragma unroll
    for (int group = 0; group < kGroups; ++group) {
      const int column = first_column + 32 * group;
      prefetch(static_cast<const T*>(p.hidden) + place * p.hidden_stride + column);
      prefetch(static_cast<const T*>(p.state) + place * p.state_stride + column);
      if (p.residual == nullptr) continue;
      prefetch(static_cast<const T*>(p.residual) + place * p.residual_stride + column);
    }
  }

  // A number near the row's mean, the same in all blocks: the mean of its first columns. Moments around it lose no
  // digits to a mean far from zero.
  __device__ void sample_centre() {
    const int64_t place = max(token, 0);
    const int num_columns = token < 0 ? 0 : min(8, p.hidden_size - 8 * quad);
    const T* first = static_cast<const T*>(p.hidden) + place * p.hidden_stride + 8 * quad;
    const T* second = static_cast<const T*>(p.residual) + place * p.residual_stride + 8 * quad;
    float columns[8], more[8], total = 0.0f;
    unpack(load_octet<kIsWide>(first, num_columns), columns);
    unpack(load_octet<kIsWide>(second, p.residual == nullptr ? 0 : num_columns), more);
#pragma unroll
    for (int i = 0; i < 8; ++i) total += columns[i] + more[i];
    centre = sum_quads(total) / min(kSampleColumns, p.hidden_size);
  }

  // Each part's loop over the groups is not unrolled; it works on octet 0, and they change places at its end.
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
    float sums[kGateTiles][4] = {}, affine[kGateTiles][4] = {}, moments[2] = {};
    const bool has_norm = flags & kNorm;
#pragma unroll 1
    for (int group = 0; group < kGroups; ++group, next_group()) {
      float weight[8], h[8];
      Activations x, norm = {};
      read_h(h);
      if (has_norm) {
        read_vector(S::kNormWeight, group, weight);
        centre_and_weigh(columns_left(group), weight, h, moments);
        if (is_fresh) read_norm(group, weight, norm);
      }
      split_columns(h, x);
#pragma unroll
      for (int gate_tile = 0; gate_tile < kGateTiles; ++gate_tile) {
        Weights low, high;
        read_rows(S::kIn + 16 * gate_tile, group, low, high);
        multiply_columns<T>(sums[gate_tile], low, high, x);
        if (has_norm && is_fresh) multiply_columns<T>(affine[gate_tile], low, high, norm);
      }
    }
    store_sums(sums, affine, moments, has_norm && is_fresh);
  }

  // h becomes (h - centre) * weight; the moments of h - centre grow.
  __device__ void centre_and_weigh(int left, const float (&weight)[8], float (&h)[8],
                                   float (&moments)[2]) const {
    const float middle = kIsWide && left <= 0 ? 0.0f : centre;
#pragma unroll
    for (int i = 0; i < 8; ++i) {
      const float x = kIsWide || i < left ? h[i] - middle : 0.0f;
      moments[0] += x;
      moments[1] += x * x;
      h[i] = x * weight[i];
    }
  }

  // The norm's weight and bias as two tokens of their own: what a shift of the mean and the bias add to each row.
  __device__ void read_norm(int group, const float (&weight)[8], Activations& words) const {
    float columns[8];
    read_vector(S::kNormBias, group, columns);
#pragma unroll
    for (int i = 0; i < 8; ++i) columns[i] = row == 0 ? weight[i] : row == 1 ? columns[i] : 0.0f;
    split_columns(columns, words);
  }

  __device__ void store_sums(const float (&sums)[kGateTiles][4],
                             const float (&affine)[kGateTiles][4], const float (&moments)[2],
                             bool has_affine) {
    if constexpr (kIsUnit) __syncwarp();  // the warp's other lanes have read the rows that change hands
#pragma unroll
    for (int gate_tile = 0; gate_tile < kGateTiles; ++gate_tile) {
      store_square(S::kAffine + 2 * quad * S::kReduced + row + 16 * gate_tile, S::kReduced,
                   sums[gate_tile]);
    }
    const float first = sum_quads(moments[0]), second = sum_quads(moments[1]);
    if (quad != 0) return;
    const int item = S::kAffine + row * S::kReduced + 2 * S::kGates;
    warp_sum(warp, item) = first, warp_sum(warp, item + 1) = second;
    if (!has_affine) return;
#pragma unroll
    for (int gate_tile = 0; gate_tile < kGateTiles; ++gate_tile) {
      store_square(16 * gate_tile + row, 2 * S::kGates, affine[gate_tile]);
    }
  }

  // What a lane holds of a product's result: two tokens, `stride` apart, of two rows, 8 apart.
  __device__ void store_square(int item, int stride, const float (&values)[4]) const {
    warp_sum(warp, item) = values[0], warp_sum(warp, item + stride) = values[1];
    warp_sum(warp, item + 8) = values[2], warp_sum(warp, item + stride + 8) = values[3];
  }

  // Adds up items [begin, end) over the warps and gives the sums to all blocks of the tile, four at a time; what fills
  // up the last four nobody reads. Without has_sums it is zeros that nobody reads, which keeps the blocks in step.
  __device__ void publish(float* received, int num_items, int begin, int end, bool has_sums,
                          int barrier) {
    if (!has_sums) begin = 0, end = 1;
    const int num_parts = has_sums ? num_warps : 0, num_sent = (end - begin + 3) / 4;
    __syncthreads();
    if (kIsFused && threadIdx.x == 0) {
      expect_bytes(&barriers[barrier], 16 * num_sent * p.num_blocks);
    }
#pragma unroll 1
    for (int i = threadIdx.x; i < num_sent; i += blockDim.x) {
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
          send(address_at(target, other), totals, address_at(&barriers[barrier], other));
        }
      } else {
#pragma unroll
        for (int j = 0; j < 4; ++j) target[j] = totals[j];
      }
    }
  }

  __device__ void wait_sums(int barrier) {
    if constexpr (kIsFused) wait_barrier(&barriers[barrier], sums_parity);
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

  // One value a thread: u = act(bottleneck), for all tokens and both branches.
  __device__ void find_units() {
    const float part_of_row = 1.0f / p.hidden_size;
#pragma unroll 1
    for (int i = threadIdx.x; i < num_tokens * 2 * S::kGates; i += blockDim.x) {
      const int unit = i % (2 * S::kGates), of_token = S::kAffine + i / (2 * S::kGates) * S::kReduced;
      const int moments = of_token + 2 * S::kGates;
      float totals[5];
      sum_blocks(reduced, S::kItems,
                 {of_token + unit, moments, moments + 1, unit, 2 * S::kGates + unit}, totals);
      float u = totals[0];
      if (flags & kNorm) {
        const float mean = totals[1] * part_of_row;
        const float variance = fmaxf(totals[2] * part_of_row - mean * mean, 0.0f);
        u = (u - mean * totals[3]) * rsqrtf(variance + kNormEps) + totals[4];
      }
      const int branch = unit / S::kGates, gate = unit % S::kGates;
      if ((flags & kBias) && gate < p.gate_size) {
        u += to_float(slot_rows(p.update_in_bias)[branch * p.gate_size + gate]);
      }
      units[i] = activate(u, flags & kGelu);
    }
    __syncthreads();
  }

  // Left operand of a product with row pairs: two inner values of this lane's token.
  __device__ void read_inner(const float* values, int stride, int offset, Inner& words) const {
    const float2 pair =
        *reinterpret_cast<const float2*>(values + row * stride + offset + 2 * quad);
    split(pair.x, pair.y, words);
  }

  // z = u @ update_out + bias of both branches for 32 columns: z[j][0..1] transform, z[j][2..3] gate.
  __device__ void expand(int group, float (&z)[4][4]) const {
    float bias[2][8] = {};
    if (flags & kBias) {
      read_vector(S::kOutBias, group, bias[0]);
      read_vector(S::kOutBias + 1, group, bias[1]);
    }
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      z[j][0] = bias[0][j], z[j][1] = bias[0][4 + j];
      z[j][2] = bias[1][j], z[j][3] = bias[1][4 + j];
    }
#pragma unroll
    for (int gate_tile = 0; gate_tile < kGateTiles; ++gate_tile) {
      Inner transform, gate;
      Weights transform_rows, gate_rows;
      read_inner(units, 2 * S::kGates, 8 * gate_tile, transform);
      read_inner(units, 2 * S::kGates, S::kGates + 8 * gate_tile, gate);
      read_row_pair(S::kOut + 8 * gate_tile, group, transform_rows);
      read_row_pair(S::kOut + S::kGates + 8 * gate_tile, group, gate_rows);
      multiply_branches<T>(z, transform, gate, transform_rows, gate_rows);
    }
  }

  __device__ void update() {
    float sums[kRankTiles][4] = {};
#pragma unroll 1
    for (int group = 0; group < kGroups; ++group, next_group()) {
      float s[8], h[8];
      unpack(state[0], s);
      if (flags & kUpdate) {
        float z[4][4];
        expand(group, z);
#pragma unroll
        for (int i = 0; i < 8; ++i) {
          const float transform = z[i % 4][i / 4], gate = z[i % 4][2 + i / 4];
          s[i] += sigmoid(gate) * (transform - s[i]);
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
      for (int rank_tile = 0; rank_tile < kRankTiles; ++rank_tile) {
        Weights low, high;
        read_rows(S::kDown + 16 * rank_tile, group, low, high);
        multiply_columns<T>(sums[rank_tile], low, high, discrepancy);
      }
    }
    if (flags & kInject) store_projections(sums);
  }

  __device__ void store_projections(const float (&sums)[kRankTiles][4]) {
#pragma unroll
    for (int rank_tile = 0; rank_tile < kRankTiles; ++rank_tile) {
      store_square(2 * quad * S::kRank + row + 16 * rank_tile, S::kRank, sums[rank_tile]);
    }
  }

  // ---- inject

  __device__ void find_projection() {
    const float scale = p.scale[slot];
#pragma unroll 1
    for (int i = threadIdx.x; i < num_tokens * S::kRank; i += blockDim.x) {
      float total[1];
      sum_blocks(projected, S::kProjected, {i}, total);
      projection[i] = scale * total[0];
    }
    __syncthreads();
  }

  __device__ void inject() {
#pragma unroll 1
    for (int group = 0; group < kGroups; ++group, next_group()) {
      float correction[4][4] = {}, h[8];
#pragma unroll
      for (int rank_tile = 0; rank_tile < kRankTiles; ++rank_tile) {
        Inner low, high;
        Weights low_rows, high_rows;
        read_inner(projection, S::kRank, 16 * rank_tile, low);
        read_inner(projection, S::kRank, 16 * rank_tile + 8, high);
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

  // ---- the parts in order

  __device__ void run_reduce(bool is_fresh) {
    if (!(flags & kUpdate)) return;
    wait_weights(0);
    reduce(is_fresh);
  }

  __device__ void publish_reduced(bool is_fresh) {
    const int begin = is_fresh && (flags & kNorm) ? 0 : S::kAffine;
    const int end = S::kAffine + num_tokens * S::kReduced;
    publish(reduced, S::kItems, begin, end, flags & kUpdate, 3);
  }

  __device__ void run_update() {
    if (flags & kUpdate) find_units();
    wait_weights(1);
    update();
    publish(projected, S::kProjected, 0, num_tokens * S::kRank, flags & kInject, 4);
  }

  __device__ void run_inject() {
    if (!(flags & kInject)) return;
    find_projection();
    wait_weights(2);
    inject();
  }
};

// Tiles that the step uses, counted by all threads of the block.
__device__ inline int count_tiles(const BoundaryParams& p) {
  int used = 0;
#pragma unroll 1
  for (int first = 0; first < p.num_tiles; first += blockDim.x) {
    const int tile = first + threadIdx.x;
    used += __syncthreads_count(tile < p.num_tiles && p.tiles[2 * tile] >= 0);
  }
  return used;
}

#ifndef SHADOW_EMULATED
extern __shared__ __align__(16) char shared_memory[];
#endif

template <typename T, int kGateTiles, int kRankTiles>
__global__ void __launch_bounds__(32 * kMaxWarps, 1)
    boundary_fused_kernel(const __grid_constant__ BoundaryParams p) {
#if __CUDA_ARCH__ >= 900  // elsewhere never launched
  Boundary<T, kGateTiles, kRankTiles, Part::kFused> work(p, shared_memory);
  const int cluster = blockIdx.x / p.num_blocks;
  int first = cluster, end = cluster + 1;
  if (p.num_clusters < p.num_tiles) {
    const int used = count_tiles(p), share = (used + p.num_clusters - 1) / p.num_clusters;
    first = cluster * share, end = min(first + share, used);
  }
  bool is_first = true;  // then weights may still be on their way while the previous kernel runs
#pragma unroll 1
  for (int tile = first; tile < end; ++tile) {
    bool is_fresh = work.take_tile(tile);
    if (work.flags == 0) continue;
    if (is_first) {
      work.prepare();
    } else if (is_fresh) {
      __syncthreads();  // all warps have read the previous slot's weights
    }
    if (is_fresh) work.fetch_weights();
#pragma unroll 1
    for (int half = 0; half < 2 && work.take_unit(half); ++half) {
      if (is_first) {
        wait_for_previous_kernel();
        release_next_kernel();  // not before: what comes next may read what this kernel's predecessor wrote
      }
      work.load_activations();
      if (end - first > 1 || work.tile_tokens > kUnitTokens) work.prefetch_next(half);
      work.run_reduce(is_fresh);
      if (is_first) wait_for_cluster();  // all blocks have started, their barriers are ready
      is_first = false;
      work.sums_parity ^= 1;
      work.publish_reduced(is_fresh);
      is_fresh = false;
      work.wait_sums(3);
      work.run_update();
      work.wait_sums(4);
      work.run_inject();
    }
  }
  if (is_first && cluster == 0) wait_for_previous_kernel();  // else this kernel could end before it
#endif
}

// One unit a cluster: all first halves of tiles, then all second ones, which are often empty.
template <typename T, int kGateTiles, int kRankTiles>
__global__ void __launch_bounds__(32 * kUnitWarps, unit_blocks<T, kGateTiles>())
    boundary_unit_kernel(const __grid_constant__ BoundaryParams p) {
#if __CUDA_ARCH__ >= 900
  Boundary<T, kGateTiles, kRankTiles, Part::kUnit> work(p, shared_memory);
  const int cluster = blockIdx.x / p.num_blocks, half = cluster >= p.num_tiles;
  work.take_tile(cluster - half * p.num_tiles);
  if (work.flags == 0 || !work.has_unit(half)) {
    // One block has to, else this kernel could end before that one; the others make room for those with work.
    if (cluster == 0) wait_for_previous_kernel();
    return;
  }
  work.prepare();
  work.fetch_weights();
  work.take_unit(half);
  wait_for_previous_kernel();
  release_next_kernel();
  work.load_activations();
  work.run_reduce(true);
  wait_for_cluster();  // all blocks have started, their barriers are ready
  work.sums_parity = 0;
  work.publish_reduced(true);
  work.wait_sums(3);
  work.run_update();
  work.wait_sums(4);
  work.run_inject();
#endif
}

// One part as a kernel of its own, one block for each tile and piece of columns.
template <typename T, int kGateTiles, int kRankTiles, Part kPart>
__global__ void __launch_bounds__(32 * kMaxWarps, 1)
    boundary_part_kernel(const __grid_constant__ BoundaryParams p) {
  Boundary<T, kGateTiles, kRankTiles, kPart> work(p, shared_memory);
  work.take_tile(blockIdx.x / p.num_blocks);
  if (work.flags == 0) return;
  work.prepare();
  work.load_weights(kPart == Part::kReduce ? 0 : kPart == Part::kUpdate ? 1 : 2);
  for (int half = 0; half < 2 && work.take_unit(half); ++half) {
    work.load_activations();
    if constexpr (kPart == Part::kReduce) {
      work.run_reduce(true);
      work.publish_reduced(true);
    } else if constexpr (kPart == Part::kUpdate) {
      work.run_update();
    } else {
      work.run_inject();
    }
    __syncthreads();  // shared sums are free for the other half
  }
}

}  // namespace shadow
