// The boundary for many tokens: a block takes a tile of segments.py, up to 16 tokens of one adapter slot, with all of
// their columns. Prefill, where there are more tiles than the device runs at once.
//
// A block walks over the columns three times, and what stands between two walks is a sum that only the block itself has to
// know: no cluster, no exchange, and nothing but the sums in shared memory.
//
//     reduce    x @ update_in, and the norm's moments
//     update    u = act(...);  s += sigmoid(z_gate) * (z_transform - s);  (h - s) @ down
//     inject    hidden += scale * p @ up
//
// In a step all warps take 32 columns each. Rows and weights go from global memory to registers, those of the next step while
// this one is computed: two sets of registers in turn, as one set would be moved, and a move waits. What a lane has read of
// hidden it keeps in shared memory, of as many steps as fit; the rest and the residual it reads again, from a cache, which is
// why every other walk runs backwards. A tile's tokens are two units of 8 that share what is read of the weights. A
// warp has the same columns in all walks, so that nobody reads what another one writes. Legend and lanes: boundary.cuh.
#pragma once

#include "shadow/boundary.cuh"

namespace shadow {

constexpr int kTileUnits = kTileTokens / kUnitTokens;

// Warps of a block, which has a multiprocessor for itself. With 8 a thread may have all registers, which the sums and
// weights of more than 8 gates, of ranks above 16 and of fp32 models need.
template <typename T, typename S>
__host__ __device__ constexpr int tile_warps() {
  return sizeof(T) == 2 && S::kGates == 8 && S::kRank == 16 ? 16 : 8;
}

// What a block keeps in shared memory, in floats.
template <typename T, typename S>
struct TileSums {
  static constexpr int kWarps = tile_warps<T, S>();
  static constexpr int kItems = S::kAffine + kTileTokens * S::kReduced;  // of a warp, first sums
  static constexpr int kProjected = kTileTokens * S::kRank;              // second sums
  static constexpr int kOfWarp = kItems > kProjected ? kItems : kProjected;
  static constexpr int kUnits = kTileTokens * S::kUnitStride;
  static constexpr int kProjection = kTileTokens * S::kProjectionStride;
  static constexpr int kFloats = kWarps * kOfWarp + kUnits + kProjection;
  static constexpr int kStep = 32 * kWarps;  // columns that all warps take at a time
  static constexpr int kStepBytes = kTileUnits * kStep * static_cast<int>(sizeof(Octet<T>));
  static_assert(kFloats % 4 == 0, "what follows lies on 16 bytes");
};

// Of how many steps a block keeps what it has read of hidden, where it may have so many bytes of shared memory; negative
// where not even the sums fit.
template <typename T, typename S>
constexpr int tile_kept_steps(int hidden_size, int num_bytes) {
  using Sums = TileSums<T, S>;
  const int num_steps = (hidden_size + Sums::kStep - 1) / Sums::kStep;
  const int left = num_bytes - 4 * Sums::kFloats;
  return left < 0 ? -1 : min(num_steps, left / Sums::kStepBytes);
}

template <typename T, typename S>
constexpr int tile_shared_bytes(int kept_steps) {
  return 4 * TileSums<T, S>::kFloats + kept_steps * TileSums<T, S>::kStepBytes;
}

// An octet or a quartet of what no kernel writes, or zeros.
template <typename Columns, typename T>
__device__ inline Columns read_weights(const T* place, bool is_used) {
  Columns columns{};
  if (!is_used) return columns;
  constexpr int kWords = sizeof(Columns) / 4;
  if constexpr (kWords == 2) {
    const uint2 two = __ldg(reinterpret_cast<const uint2*>(place));
    columns.word[0] = two.x, columns.word[1] = two.y;
  } else {
#pragma unroll
    for (int i = 0; i < kWords; i += 4) {
      const uint4 four = __ldg(reinterpret_cast<const uint4*>(place) + i / 4);
      columns.word[i] = four.x, columns.word[i + 1] = four.y;
      columns.word[i + 2] = four.z, columns.word[i + 3] = four.w;
    }
  }
  return columns;
}

template <typename T, int kGateTiles, int kRankTiles>
struct TileBoundary {
  using S = Shape<kGateTiles, kRankTiles>;
  using Sums = TileSums<T, S>;
  using Weights = uint32_t[Split<T>::kWeightParts][4];
  using Activations = uint32_t[Split<T>::kActivationParts][4];
  using Inner = uint32_t[Split<T>::kActivationParts];
  static constexpr int kInTiles = 2 * kGateTiles, kDownTiles = 2 * kRankTiles;  // of 8 rows
  static constexpr int kWarps = Sums::kWarps, kStep = Sums::kStep;

  const BoundaryParams& p;
  int lane, row, quad, warp;
  int slot, flags;
  int token[kTileUnits];  // this lane's, the first of all beyond the tile's end
  int end[kTileUnits];    // columns that it has: none beyond the tile's end
  float *warp_sums, *units, *projection;
  Octet<T>* kept;  // this lane's first

  __device__ TileBoundary(const BoundaryParams& params, char* shared) : p(params) {
    lane = threadIdx.x % 32, row = lane / 4, quad = lane % 4, warp = threadIdx.x / 32;
    float* floats = reinterpret_cast<float*>(shared);
    warp_sums = floats + warp * Sums::kOfWarp;
    units = floats + kWarps * Sums::kOfWarp;
    projection = units + Sums::kUnits;
    kept = reinterpret_cast<Octet<T>*>(floats + Sums::kFloats) + threadIdx.x;
  }

  // ---- the tile and its tokens

  // False where there is nothing to do.
  __device__ bool take_tile(int index) {
    const int2 all_flags = read_flags(p, lane), tile = read_tile(p, index);
    slot = tile.x;
    flags = pick_flags(p, all_flags, slot);
    if (!(flags & (kUpdate | kInject))) return false;
    int of_row[kTileUnits];
#pragma unroll
    for (int unit = 0; unit < kTileUnits; ++unit) {
      of_row[unit] = p.token_order[min(tile.y + kUnitTokens * unit + row, p.num_order - 1)];
    }
    const int num_tokens = p.slot_starts[slot + 1] - tile.y;
#pragma unroll
    for (int unit = 0; unit < kTileUnits; ++unit) {
      const bool is_inside = kUnitTokens * unit + row < num_tokens;
      token[unit] = is_inside ? of_row[unit] : 0, end[unit] = is_inside ? p.hidden_size : 0;
    }
    return true;
  }

  __device__ T* row_of(const void* data, int64_t stride, int unit) const {
    const uint32_t num_bytes = static_cast<uint32_t>(stride) * static_cast<uint32_t>(sizeof(T));
    char* rows = static_cast<char*>(const_cast<void*>(data));
    return reinterpret_cast<T*>(rows + static_cast<uint64_t>(num_bytes) * static_cast<uint32_t>(token[unit]));
  }
  __device__ T* hidden_row(int unit) const { return row_of(p.hidden, p.hidden_stride, unit); }
  __device__ T* state_row(int unit) const { return row_of(p.state, p.state_stride, unit); }
  __device__ T* residual_row(int unit) const { return row_of(p.residual, p.residual_stride, unit); }

  // Whether a column lies in front of `end` and not in front of the first one.
  __device__ static bool is_inside(int column, int end) {
    return static_cast<unsigned>(column) < static_cast<unsigned>(end);
  }

  __device__ static Octet<T> load(const T* place, bool is_used) { return load_octet<true>(place, is_used ? 8 : 0); }

  // ---- what a step reads: 32 columns of the tokens and of the weights that they meet

  // What the lane has read of hidden for a step and will need again.
  __device__ Octet<T>& kept_hidden(int unit, int first) const {
    return kept[(first / kStep * kTileUnits + unit) * 32 * kWarps];
  }

  __device__ bool is_kept(int first) const { return first < p.kept_steps * kStep; }
  __device__ Octet<T> take_hidden(int unit, int first) const {
    const int column = first + 8 * quad;
    return is_kept(first) ? kept_hidden(unit, first) : load(hidden_row(unit) + column, is_inside(column, end[unit]));
  }

  __device__ static void add(const Octet<T>& hidden, const Octet<T>& residual, float (&h)[8]) {
    float more[8];
    unpack(hidden, h);
    unpack(residual, more);
#pragma unroll
    for (int i = 0; i < 8; ++i) h[i] += more[i];
  }

  __device__ const T* slot_rows(const Stack& stack) const {
    return static_cast<const T*>(stack.data) + slot * stack.slot_stride;
  }

  // Rows 2 quad and 2 quad + 1 of eight at this lane's four columns.
  struct RowPair {
    Quartet<T> low, high;
  };
  // `place` is in row 2 quad; of the rows `num_rows` are used.
  __device__ RowPair read_row_pair(const T* place, int column, int num_rows) const {
    const bool is_used = is_inside(column, p.hidden_size);
    return {read_weights<Quartet<T>>(place, is_used && 2 * quad < num_rows),
            read_weights<Quartet<T>>(place + p.hidden_size, is_used && 2 * quad + 1 < num_rows)};
  }

  // ---- reduce

  // A number near the row's mean: the mean of its first columns, see boundary.cuh.
  __device__ float find_centre(int unit) const {
    float total = 0.0f;
    if (end[unit] > 0) {
      const Pair<T> h = reinterpret_cast<const Pair<T>*>(hidden_row(unit))[quad];
      total = to_float(h.column[0]) + to_float(h.column[1]);
      if (p.residual != nullptr) {
        const Pair<T> more = reinterpret_cast<const Pair<T>*>(residual_row(unit))[quad];
        total += to_float(more.column[0]) + to_float(more.column[1]);
      }
    }
    return sum_quads(total) * reciprocal(min(kSampleColumns, p.hidden_size));
  }

  struct ReducePlaces {
    const T *hidden[kTileUnits], *residual[kTileUnits], *in, *norm_weight, *norm;

    __device__ void move(int columns) {
#pragma unroll
      for (int unit = 0; unit < kTileUnits; ++unit) hidden[unit] += columns, residual[unit] += columns;
      in += columns, norm_weight += columns, norm += columns;
    }
  };
  struct ReduceStep {
    Octet<T> hidden[kTileUnits], residual[kTileUnits], in[kInTiles], norm_weight, norm;
  };
  struct ReduceSums {
    float in[kTileUnits][kInTiles][4], affine[kGateTiles][4], moments[kTileUnits][2], centre[kTileUnits];
  };

  __device__ void find(ReducePlaces& places, int first) const {
    const int column = first + 8 * quad;
#pragma unroll
    for (int unit = 0; unit < kTileUnits; ++unit) {
      places.hidden[unit] = hidden_row(unit) + column;
      places.residual[unit] = (p.residual == nullptr ? hidden_row(unit) : residual_row(unit)) + column;
    }
    places.in = slot_rows(p.update_in) + row * p.hidden_size + column;
    places.norm_weight = slot_rows(p.norm_weight) + column;
    places.norm = (row == 0 ? slot_rows(p.norm_weight) : slot_rows(p.norm_bias)) + column;
  }

  // `ahead` columns from there, where `column` is this lane's first. The norm's weight comes as a vector and, with the bias
  // below it, as two rows: what a shift of the mean and the bias add to each bottleneck.
  __device__ void load_weights(ReduceStep& step, const ReducePlaces& places, int ahead, int column) const {
    const int norm_end = flags & kNorm ? p.hidden_size : 0;
#pragma unroll
    for (int tile = 0; tile < kInTiles; ++tile) {
      const int gate = 8 * (tile % kGateTiles);
      const T* place = places.in + (tile / kGateTiles * p.gate_size + gate) * p.hidden_size + ahead;
      const bool is_used = gate + row < p.gate_size && is_inside(column, p.hidden_size);
      step.in[tile] = read_weights<Octet<T>>(place, is_used);
    }
    step.norm_weight = read_weights<Octet<T>>(places.norm_weight + ahead, is_inside(column, norm_end));
    step.norm = read_weights<Octet<T>>(places.norm + ahead, row < 2 && is_inside(column, norm_end));
  }
  __device__ void load_rows(ReduceStep& step, const ReducePlaces& places, int ahead, int column) const {
#pragma unroll
    for (int unit = 0; unit < kTileUnits; ++unit) {
      const bool is_used = is_inside(column, end[unit]);
      step.hidden[unit] = load(places.hidden[unit] + ahead, is_used);
      step.residual[unit] = load(places.residual[unit] + ahead, is_used && p.residual != nullptr);
    }
  }

  __device__ void reduce(const ReduceStep& step, int first, ReduceSums& sums) const {
    const int column = first + 8 * quad;
    const bool has_norm = flags & kNorm;
    Weights in[kInTiles];
#pragma unroll
    for (int tile = 0; tile < kInTiles; ++tile) split_weights(step.in[tile], in[tile]);
    float weight[8];
    unpack(step.norm_weight, weight);
    if (has_norm) {
      Weights norm;
      split_weights(step.norm, norm);
#pragma unroll
      for (int tile = 0; tile < kInTiles; ++tile) {
        multiply_rows<T>(sums.affine[tile / 2], in[tile], norm, tile % 2);
      }
    }
#pragma unroll
    for (int unit = 0; unit < kTileUnits; ++unit) {
      float h[8];
      Activations x;
      if (is_kept(first)) kept_hidden(unit, first) = step.hidden[unit];
      add(step.hidden[unit], step.residual[unit], h);
      if (has_norm) {
        const float centre = is_inside(column, end[unit]) ? sums.centre[unit] : 0.0f;
        centre_and_weigh(centre, 8, weight, h, sums.moments[unit]);
      }
      split_columns(h, x);
#pragma unroll
      for (int tile = 0; tile < kInTiles; ++tile) multiply_columns<T>(sums.in[unit][tile], in[tile], x);
    }
  }

  __device__ void reduce() {
    ReducePlaces places;
    ReduceStep one, other;
    ReduceSums sums = {};
    const int begin = 32 * warp;
    int column = begin + 8 * quad;
    find(places, begin);
    load_weights(one, places, 0, column);
    wait_for_previous_kernel();
    release_next_kernel();
    load_rows(one, places, 0, column);
    if (flags & kNorm) {
#pragma unroll
      for (int unit = 0; unit < kTileUnits; ++unit) sums.centre[unit] = find_centre(unit);
    }
#pragma unroll 1
    for (int first = begin; first < p.hidden_size; first += 2 * kStep, column += 2 * kStep) {
      load_rows(other, places, kStep, column + kStep);
      load_weights(other, places, kStep, column + kStep);
      reduce(one, first, sums);
      if (first + kStep >= p.hidden_size) break;
      places.move(2 * kStep);
      load_rows(one, places, 0, column + 2 * kStep);
      load_weights(one, places, 0, column + 2 * kStep);
      reduce(other, first + kStep, sums);
    }
    if ((flags & kNorm) && row < 2) store_affine(sums.affine);
#pragma unroll
    for (int unit = 0; unit < kTileUnits; ++unit) {
      const int item = S::kAffine + (kUnitTokens * unit + row) * S::kReduced;
      store_tiles(item, sums.in[unit]);
      const float first = sum_quads(sums.moments[unit][0]), second = sum_quads(sums.moments[unit][1]);
      if (quad == 0) store_pair(item + 2 * S::kGates, first, second);
    }
  }

  __device__ void store_affine(const float (&affine)[kGateTiles][4]) const {
#pragma unroll
    for (int gate_tile = 0; gate_tile < kGateTiles; ++gate_tile) {
      const int item = 2 * S::kGates * row + 16 * gate_tile + 2 * quad;
      store_pair(item, affine[gate_tile][0], affine[gate_tile][1]);
      store_pair(item + 8, affine[gate_tile][2], affine[gate_tile][3]);
    }
  }

  template <int kTiles>
  __device__ void store_tiles(int item, const float (&values)[kTiles][4]) const {
#pragma unroll
    for (int tile = 0; tile < kTiles; ++tile) {
      store_pair(item + 8 * tile + 2 * quad, values[tile][0] + values[tile][2],
                 values[tile][1] + values[tile][3]);
    }
  }

  __device__ void store_pair(int item, float first, float second) const {
    *reinterpret_cast<float2*>(warp_sums + item) = {first, second};
  }

  // An item's sum over the warps.
  __device__ float sum_warps(int item) const {
    const float* first = units - kWarps * Sums::kOfWarp + item;
    float total = 0.0f;
#pragma unroll
    for (int w = 0; w < kWarps; ++w) total += first[w * Sums::kOfWarp];
    return total;
  }

  // ---- update

  // One value a thread: u = act(bottleneck), for all tokens and both branches, the gate's times kOfExponent.
  __device__ void find_units() {
    constexpr int kOfToken = 2 * S::kGates;
#pragma unroll 1
    for (int i = threadIdx.x; i < kOfToken * kTileTokens; i += 32 * kWarps) {
      const int unit = i % kOfToken, first = S::kAffine + i / kOfToken * S::kReduced;
      float u = sum_warps(first + unit);
      if (flags & kNorm) {
        const float part_of_row = reciprocal(p.hidden_size);
        const float mean = sum_warps(first + kOfToken) * part_of_row;
        const float square = sum_warps(first + kOfToken + 1) * part_of_row;
        const float variance = fmaxf(square - mean * mean, 0.0f);
        u = (u - mean * sum_warps(unit)) * rsqrtf(variance + kNormEps) + sum_warps(kOfToken + unit);
      }
      const int branch = unit / S::kGates, gate = unit % S::kGates;
      if ((flags & kBias) && gate < p.gate_size) {
        u += to_float(slot_rows(p.update_in_bias)[branch * p.gate_size + gate]);
      }
      u = activate(u, flags & kGelu);
      units[i / kOfToken * S::kUnitStride + unit] = unit < S::kGates ? u : kOfExponent * u;
    }
    __syncthreads();
  }

  // Left operand of a product with row pairs: two inner values of this lane's token.
  __device__ void read_inner(const float* values, int stride, int unit, int offset, Inner& words) const {
    const float2 pair =
        *reinterpret_cast<const float2*>(values + (kUnitTokens * unit + row) * stride + offset + 2 * quad);
    split(pair.x, pair.y, words);
  }

  __device__ void add_bias(int column, float (&z)[4][4]) const {
    float bias[2][8];
    const T* biases = slot_rows(p.update_out_bias) + column;
#pragma unroll
    for (int branch = 0; branch < 2; ++branch) {
      unpack(read_weights<Octet<T>>(biases + branch * p.hidden_size, is_inside(column, p.hidden_size)), bias[branch]);
    }
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      z[j][0] += bias[0][j], z[j][1] += bias[0][4 + j];
      z[j][2] += kOfExponent * bias[1][j], z[j][3] += kOfExponent * bias[1][4 + j];
    }
  }

  using OutRows = RowPair[2][kGateTiles];
  using DownRows = Octet<T>[kDownTiles];
  struct UpdatePlaces {
    T* state[kTileUnits];
    const T *residual[kTileUnits], *out, *down;

    __device__ void move(int columns) {
#pragma unroll
      for (int unit = 0; unit < kTileUnits; ++unit) state[unit] += columns, residual[unit] += columns;
      out += columns, down += columns;
    }
  };
  struct UpdateStep {
    Octet<T> residual[kTileUnits], state[kTileUnits];
    OutRows out;
  };
  struct ProjectionSums {
    float down[kTileUnits][kDownTiles][4];
  };

  // The last step's first column, negative where this warp has none.
  __device__ int last_step() const {
    const int num_behind = p.hidden_size - 1 - 32 * warp;
    return num_behind < 0 ? -kStep : 32 * warp + num_behind / kStep * kStep;
  }

  __device__ void find(UpdatePlaces& places, int first) const {
    const int column = first + 8 * quad;
#pragma unroll
    for (int unit = 0; unit < kTileUnits; ++unit) {
      places.state[unit] = state_row(unit) + column;
      places.residual[unit] = (p.residual == nullptr ? state_row(unit) : residual_row(unit)) + column;
    }
    places.out = slot_rows(p.update_out) + 2 * quad * p.hidden_size + first + 4 * row;
    places.down = slot_rows(p.down) + row * p.hidden_size + column;
  }

  // `ahead` columns from there, where the step begins at `first`.
  __device__ void load(UpdateStep& step, const UpdatePlaces& places, int ahead, int first) const {
    const int num_rows = flags & kUpdate ? p.gate_size : 0;
#pragma unroll
    for (int gate_tile = 0; gate_tile < kGateTiles; ++gate_tile) {
#pragma unroll
      for (int branch = 0; branch < 2; ++branch) {
        const T* place = places.out + (branch * p.gate_size + 8 * gate_tile) * p.hidden_size + ahead;
        step.out[branch][gate_tile] = read_row_pair(place, first + 4 * row, num_rows - 8 * gate_tile);
      }
    }
#pragma unroll
    for (int unit = 0; unit < kTileUnits; ++unit) {
      const bool is_used = is_inside(first + 8 * quad, end[unit]);
      step.state[unit] = load(places.state[unit] + ahead, is_used);
      step.residual[unit] = load(places.residual[unit] + ahead, is_used && p.residual != nullptr);
    }
  }
  __device__ void load(DownRows& rows, const UpdatePlaces& places, int ahead, int first) const {
    const int num_rows = flags & kInject ? p.rank : 0;
#pragma unroll
    for (int tile = 0; tile < kDownTiles; ++tile) {
      const bool is_used = 8 * tile + row < num_rows && is_inside(first + 8 * quad, p.hidden_size);
      rows[tile] = read_weights<Octet<T>>(places.down + 8 * tile * p.hidden_size + ahead, is_used);
    }
  }

  // At `first`, `ahead` columns from the places. down_rows becomes those of the step in front of it.
  __device__ void update(const UpdateStep& step, DownRows& down_rows, const UpdatePlaces& places, int ahead, int first,
                         ProjectionSums& sums) const {
    const int column = first + 8 * quad;
    Weights out[2][kGateTiles], down[kDownTiles];
#pragma unroll
    for (int gate_tile = 0; gate_tile < kGateTiles; ++gate_tile) {
#pragma unroll
      for (int branch = 0; branch < 2; ++branch) {
        const RowPair& pair = step.out[branch][gate_tile];
        pair_quartets(pair.low, pair.high, out[branch][gate_tile]);
      }
    }
#pragma unroll
    for (int tile = 0; tile < kDownTiles; ++tile) split_weights(down_rows[tile], down[tile]);
#pragma unroll
    for (int unit = 0; unit < kTileUnits; ++unit) {
      float h[8], s[8];
      unpack(step.state[unit], s);
      if (flags & kUpdate) {
        float z[4][4];
        expand(unit, out, z);
        if (flags & kBias) add_bias(column, z);
#pragma unroll
        for (int i = 0; i < 8; ++i) {
          s[i] += sigmoid_of_scaled(z[i % 4][2 + i / 4]) * (z[i % 4][i / 4] - s[i]);
        }
        store_octet<true>(places.state[unit] + ahead, s, is_inside(column, end[unit]) ? 8 : 0);
      }
      if (!(flags & kInject)) continue;
      add(take_hidden(unit, first), step.residual[unit], h);
#pragma unroll
      for (int i = 0; i < 8; ++i) h[i] -= s[i];
      Activations discrepancy;
      split_columns(h, discrepancy);
#pragma unroll
      for (int tile = 0; tile < kDownTiles; ++tile) multiply_columns<T>(sums.down[unit][tile], down[tile], discrepancy);
    }
    load(down_rows, places, ahead - kStep, first - kStep);
  }

  // z = u @ update_out of both branches for 32 columns, as in boundary.cuh.
  __device__ void expand(int unit, const Weights (&out)[2][kGateTiles], float (&z)[4][4]) const {
#pragma unroll
    for (int gate_tile = 0; gate_tile < kGateTiles; ++gate_tile) {
      Inner transform, gate;
      read_inner(units, S::kUnitStride, unit, 8 * gate_tile, transform);
      read_inner(units, S::kUnitStride, unit, S::kGates + 8 * gate_tile, gate);
      if (gate_tile == 0) {
        multiply_branches<T, true>(z, transform, gate, out[0][0], out[1][0]);
      } else {
        multiply_branches<T>(z, transform, gate, out[0][gate_tile], out[1][gate_tile]);
      }
    }
  }

  // `one` and `down` hold what the last step reads, which `places` point to.
  __device__ void update(UpdateStep& one, DownRows& down, UpdatePlaces& places) const {
    UpdateStep other;
    ProjectionSums sums = {};
#pragma unroll 1
    for (int first = last_step(); first >= 0; first -= 2 * kStep) {
      load(other, places, -kStep, first - kStep);
      update(one, down, places, 0, first, sums);
      if (first < kStep) break;
      places.move(-2 * kStep);
      load(one, places, 0, first - 2 * kStep);
      update(other, down, places, kStep, first - kStep, sums);
    }
    if (!(flags & kInject)) return;
#pragma unroll
    for (int unit = 0; unit < kTileUnits; ++unit) store_tiles((kUnitTokens * unit + row) * S::kRank, sums.down[unit]);
  }

  // ---- inject

  __device__ void find_projection() {
    const float scale = p.scale[slot];
#pragma unroll 1
    for (int i = threadIdx.x; i < kTileTokens * S::kRank; i += 32 * kWarps) {
      projection[i / S::kRank * S::kProjectionStride + i % S::kRank] = scale * sum_warps(i);
    }
    __syncthreads();
  }

  using UpRows = RowPair[2 * kRankTiles];
  struct InjectPlaces {
    T* hidden[kTileUnits];
    const T* up;

    __device__ void move(int columns) {
#pragma unroll
      for (int unit = 0; unit < kTileUnits; ++unit) hidden[unit] += columns;
      up += columns;
    }
  };

  __device__ void find(InjectPlaces& places, int first) const {
#pragma unroll
    for (int unit = 0; unit < kTileUnits; ++unit) places.hidden[unit] = hidden_row(unit) + first + 8 * quad;
    places.up = slot_rows(p.up) + 2 * quad * p.hidden_size + first + 4 * row;
  }

  __device__ void load(UpRows& rows, const InjectPlaces& places, int ahead, int first) const {
#pragma unroll
    for (int tile = 0; tile < 2 * kRankTiles; ++tile) {
      rows[tile] = read_row_pair(places.up + 8 * tile * p.hidden_size + ahead, first + 4 * row, p.rank - 8 * tile);
    }
  }

  __device__ void inject(const UpRows& rows, const InjectPlaces& places, int ahead, int first) const {
    Weights up[2 * kRankTiles];
#pragma unroll
    for (int tile = 0; tile < 2 * kRankTiles; ++tile) pair_quartets(rows[tile].low, rows[tile].high, up[tile]);
#pragma unroll
    for (int unit = 0; unit < kTileUnits; ++unit) {
      float correction[4][4], h[8];
      unpack(take_hidden(unit, first), h);
#pragma unroll
      for (int rank_tile = 0; rank_tile < kRankTiles; ++rank_tile) {
        Inner low, high;
        read_inner(projection, S::kProjectionStride, unit, 16 * rank_tile, low);
        read_inner(projection, S::kProjectionStride, unit, 16 * rank_tile + 8, high);
        if (rank_tile == 0) {
          multiply_inner<T, true>(correction, low, high, up[0], up[1]);
        } else {
          multiply_inner<T>(correction, low, high, up[2 * rank_tile], up[2 * rank_tile + 1]);
        }
      }
#pragma unroll
      for (int i = 0; i < 8; ++i) h[i] += correction[i % 4][i / 4] + correction[i % 4][2 + i / 4];
      store_octet<true>(places.hidden[unit] + ahead, h, is_inside(first + 8 * quad, end[unit]) ? 8 : 0);
    }
  }

  // `one` holds what the first step reads.
  __device__ void inject(UpRows& one, InjectPlaces& places) const {
    UpRows other;
#pragma unroll 1
    for (int first = 32 * warp; first < p.hidden_size; first += 2 * kStep) {
      load(other, places, kStep, first + kStep);
      inject(one, places, 0, first);
      if (first + kStep >= p.hidden_size) break;
      load(one, places, 2 * kStep, first + 2 * kStep);
      inject(other, places, kStep, first + kStep);
      places.move(2 * kStep);
    }
  }

  // ---- the walks in order, each one's first rows asked for before the sums of the one before it are added up

  // Where no reduce has.
  __device__ void keep_hidden() const {
#pragma unroll 1
    for (int first = 32 * warp; first < p.hidden_size && is_kept(first); first += kStep) {
      const int column = first + 8 * quad;
#pragma unroll
      for (int unit = 0; unit < kTileUnits; ++unit) {
        kept_hidden(unit, first) = load(hidden_row(unit) + column, is_inside(column, end[unit]));
      }
    }
  }

  __device__ void run() {
    const bool has_update = flags & kUpdate;
    if (has_update) {
      reduce();
    } else {
      wait_for_previous_kernel();
      release_next_kernel();
      keep_hidden();
    }
    UpdatePlaces places;
    UpdateStep last;
    DownRows down;
    find(places, last_step());
    load(last, places, 0, last_step());
    load(down, places, 0, last_step());
    __syncthreads();
    if (has_update) find_units();
    update(last, down, places);
    if (!(flags & kInject)) return;
    InjectPlaces inject_places;
    UpRows up;
    find(inject_places, 32 * warp);
    load(up, inject_places, 0, 32 * warp);
    __syncthreads();
    find_projection();
    inject(up, inject_places);
  }
};

template <typename T, int kGateTiles, int kRankTiles>
__global__ void __launch_bounds__(32 * tile_warps<T, Shape<kGateTiles, kRankTiles>>(), 1)
    boundary_tile_kernel(const __grid_constant__ BoundaryParams p) {
#if __CUDA_ARCH__ >= 900  // elsewhere never launched
  TileBoundary<T, kGateTiles, kRankTiles> work(p, shared_memory);
  if (work.take_tile(blockIdx.x)) {
    work.run();
  } else if (blockIdx.x == 0) {
    wait_for_previous_kernel();  // else this kernel could end before that one
  }
#endif
}

}  // namespace shadow
