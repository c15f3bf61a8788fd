// The boundary for one token a cluster: decode, where most units of boundary.cuh would hold one token and seven empty
// rows. bf16, up to 8 gates a branch and rank 16, rows on 16 bytes.
//
// Each weight is used once, so it goes from global memory to the registers of the lane that multiplies it: no shared
// memory, no copies to wait for. A warp owns a slice of 64 columns, a lane two neighbouring ones of them, so that
// whatever is done column by column is done by all lanes. Between those steps stand matrix products whose operands are
// laid out so that no value moves further than one shuffle:
//
//     contract   sums over the slice (x @ update_in, (h - s) @ down). An instruction takes 8 rows and 32 columns, so that
//                its left operand is the 16 bytes that a lane has read: of the octet's four pairs, the first and third
//                stand in row m and the second and fourth in row m + 8. The right operand's even columns hold the
//                activations of the former, its odd ones of the latter, so half of the result is of use. Column pairs
//                0 and 2 hold the activations' large parts, 1 and 3 the small ones; pairs 0 and 1 are zero for the upper
//                octets, 2 and 3 for the lower ones.
//     spread     values for all columns (u @ update_out, p @ up). The right operand's columns 2 c and 2 c + 1 are chunk
//                c, zero elsewhere, so chunk c's results arrive at the lanes of quad c, which own those columns.
//
// Sums cross the cluster as in boundary.cuh. Legend and lanes: ibid. With rms_weight a token's cluster goes on to the norm
// that follows; then it has something to do for a token without an adapter, too.
#pragma once

#include "shadow/boundary.cuh"
#include "shadow/rms_norm.cuh"

namespace shadow {

constexpr int kTokenGates = 8, kTokenRank = 16;
constexpr int kTokenRegisterWarps = 24;  // on a multiprocessor
constexpr int kTokenSample = 32;        // columns, one a lane, whose mean is the centre of the moments

// What a warp hands to the others: first sums, what the norm's weight and bias add to them, moments; second sums.
struct TokenSums {
  static constexpr int kNormWeight = 2 * kTokenGates, kNormBias = 4 * kTokenGates;
  static constexpr int kMoments = 6 * kTokenGates;
  static constexpr int kItems = kMoments + 4;  // two of them fill up the last four
  static constexpr int kProjected = kTokenRank;
};

constexpr int token_shared_bytes(int num_warps, int num_blocks) {
  const int num_sums = (num_warps + num_blocks) * (TokenSums::kItems + TokenSums::kProjected);
  return kBarrierBytes + 4 * (num_sums + num_warps * num_blocks);
}

// kWarps and kBlocks: the most that a block and a cluster have.
template <int kWarps, int kBlocks>
struct TokenBoundary {
  using T = __nv_bfloat16;
  using Tile = Octet<T>[2][2];  // two rows, 16 columns of them
  using Rows = Octet<T>[4];     // four rows, 8 columns of them
  using Parts = uint32_t[2];    // two columns, or two inner values, cut in two

  const BoundaryParams& p;
  int lane, row, quad, warp, num_warps, block;
  int first_column, own_column;  // of the slice, of the lane's two
  int token, slot, flags;
  bool is_inside;    // whether the lane's columns exist
  uint64_t* barriers;
  float *warp_sums, *warp_projected, *reduced, *projected, *squares;
  float h[2], hidden[2], s[2];
  uint32_t squares_target, squares_barrier;  // the lane's block

  __device__ TokenBoundary(const BoundaryParams& params, char* shared) : p(params) {
    lane = threadIdx.x % 32, row = lane / 4, quad = lane % 4;
    warp = threadIdx.x / 32, num_warps = blockDim.x / 32;
    block = rank_in_cluster(), token = cluster_index();
    first_column = (block * num_warps + warp) * kSliceColumns;
    own_column = first_column + 2 * lane, is_inside = own_column < p.hidden_size;
    barriers = reinterpret_cast<uint64_t*>(shared);
    warp_sums = reinterpret_cast<float*>(shared + kBarrierBytes);
    warp_projected = warp_sums + num_warps * TokenSums::kItems;
    reduced = warp_projected + num_warps * TokenSums::kProjected;
    projected = reduced + p.num_blocks * TokenSums::kItems;
    squares = projected + p.num_blocks * TokenSums::kProjected;
  }

  // Finds the token's slot and what its adapter does; false where that is nothing.
  __device__ bool take_token() {
    const int2 all_flags = read_flags(p, lane);
    slot = p.adapter_slots[token];
    flags = pick_flags(p, all_flags, slot);
    return flags & (kUpdate | kInject);
  }

  // First of all: the fence waits for every load that its thread has asked for before, and the block for that thread.
  __device__ void init_barriers() const {
    if (threadIdx.x != 0) return;
    init_barrier(&barriers[0], 1), init_barrier(&barriers[1], 1), init_barrier(&barriers[2], 1);
    fence_barriers();
  }

  // What is sent to this block may come before it expects it.
  __device__ void prepare() {
    if (threadIdx.x == 0) {
      const int num_reduced = flags & kNorm ? TokenSums::kItems : TokenSums::kNormWeight;
      expect_bytes(&barriers[0], 4 * num_reduced * p.num_blocks);
      expect_bytes(&barriers[1], 4 * TokenSums::kProjected * p.num_blocks);
      expect_bytes(&barriers[2], 4 * num_warps * p.num_blocks);
    }
    const int other = min(lane, p.num_blocks - 1);
    squares_target = address_at(squares + block * num_warps + warp, other);
    squares_barrier = address_at(&barriers[2], other);
    hold(squares_target), hold(squares_barrier);
    squares = keep(squares);
    __syncthreads();
    arrive_at_cluster();
  }

  // ---- weights

  // The row or slot `index` behind `data`, so many elements further. A stride's bytes fit 32 bits, which makes this two
  // instructions; launch_boundary and binding.cpp see to it.
  static __device__ const T* place_at(const void* data, int index, int64_t stride, uint32_t offset) {
    const uint32_t num_bytes = static_cast<uint32_t>(stride) * static_cast<uint32_t>(sizeof(T));
    const char* place = static_cast<const char*>(data) + static_cast<uint64_t>(num_bytes) * static_cast<uint32_t>(index);
    return reinterpret_cast<const T*>(place) + offset;
  }

  __device__ const T* slot_rows(const Stack& stack, uint32_t offset) const {
    return place_at(stack.data, slot, stack.slot_stride, offset);
  }

  // Eight columns.
  __device__ static Octet<T> read_row(const T* row, bool is_used) {
    const uint4 words = read_once(row, is_used);
    return {{words.x, words.y, words.z, words.w}};
  }

  // Row `row` of two blocks of rows, the second one `offset` elements behind, which have so many rows.
  __device__ void read_tile(const Stack& stack, uint32_t offset, int num_low, int num_high,
                            Tile& tile) const {
    const int column = first_column + 16 * quad;
    const T* rows = slot_rows(stack, row * p.hidden_size + column);
#pragma unroll
    for (int half = 0; half < 2; ++half) {
#pragma unroll
      for (int part = 0; part < 2; ++part) {
        const bool is_used = column + 8 * part < p.hidden_size && row < (half ? num_high : num_low);
        tile[half][part] = read_row(rows + half * offset + 8 * part, is_used);
      }
    }
  }

  // Rows 2 quad and 2 quad + 1 of two blocks of rows, as above.
  __device__ void read_inner(const Stack& stack, uint32_t offset, int num_low, int num_high,
                             Rows& inner) const {
    const int column = first_column + 8 * row;
    const T* rows = slot_rows(stack, 2 * quad * p.hidden_size + column);
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const bool is_used = column < p.hidden_size && 2 * quad + i % 2 < (i < 2 ? num_low : num_high);
      inner[i] = read_row(rows + i / 2 * offset + i % 2 * p.hidden_size, is_used);
    }
  }

  // The transform's gates, then the gate's.
  __device__ void read_in(Tile& tile) const {
    const int num_rows = flags & kUpdate ? p.gate_size : 0;
    read_tile(p.update_in, p.gate_size * p.hidden_size, num_rows, num_rows, tile);
  }

  __device__ void read_out(Rows& inner) const {
    const int num_rows = flags & kUpdate ? p.gate_size : 0;
    read_inner(p.update_out, p.gate_size * p.hidden_size, num_rows, num_rows, inner);
  }

  // The lower ranks, then the upper.
  __device__ void read_down(Tile& tile) const {
    const int num_rows = flags & kInject ? p.rank : 0;
    read_tile(p.down, 8 * p.hidden_size, num_rows, num_rows - 8, tile);
  }

  __device__ void read_up(Rows& inner) const {
    const int num_rows = flags & kInject ? p.rank : 0;
    read_inner(p.up, 8 * p.hidden_size, num_rows, num_rows - 8, inner);
  }

  // The rows that are read later, a line a lane, so that they are in the cache by then.
  __device__ void prefetch_projection() const {
    const int index = lane % 16;
    if (!(flags & kInject) || index >= p.rank || first_column >= p.hidden_size) return;
    prefetch(slot_rows(lane < 16 ? p.down : p.up, index * p.hidden_size + first_column));
  }

  // What the kernel in front of this one does not write comes to the cache while it runs: a line a tensor and warp.
  __device__ void prefetch_activations() const {
    if (first_column >= p.hidden_size) return;
    if (lane == 0) prefetch(state_row(first_column));
    if (lane == 1 && p.residual != nullptr) prefetch(residual_row(first_column));
  }

  // The lane's two columns of a row, as they lie in memory, or zeros.
  __device__ uint32_t read_pair(const T* row_columns, bool is_used) const {
    return is_used && is_inside ? *reinterpret_cast<const uint32_t*>(row_columns) : 0;
  }

  __device__ uint32_t read_vector(const Stack& stack, int index, bool is_used) const {
    return read_pair(slot_rows(stack, index * p.hidden_size + own_column), is_used);
  }

  static __device__ void unpack_pair(uint32_t word, float (&values)[2]) {
    values[0] = __uint_as_float(word << 16), values[1] = __uint_as_float(word & 0xffff0000u);
  }

  __device__ void write_pair(const T* row_columns, const float (&columns)[2]) const {
    uint32_t word[1];
    split(columns[0], columns[1], word);
    if (is_inside) *reinterpret_cast<uint32_t*>(const_cast<T*>(row_columns)) = word[0];
  }

  // ---- products

  // shares[i] is the tile's row i times one of two vectors over some columns: of quads 0 and 2 the first one's over the
  // lower and the upper octets, of quads 1 and 3 the second one's. Both vectors come as the lane's own two columns.
  __device__ void contract(const Tile& tile, uint32_t first, uint32_t second,
                           float (&shares)[2]) const {
    const int source = 8 * quad + 4 * (row / 4) + row % 2;
    const bool is_second = row / 2 % 2;
    float sums[2][4] = {};
    uint32_t pairs[2];
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const uint32_t one = __shfl_sync(kAllLanes, first, source + 2 * i);
      const uint32_t other = __shfl_sync(kAllLanes, second, source + 2 * i);
      pairs[i] = is_second ? other : one;
    }
#pragma unroll
    for (int part = 0; part < 2; ++part) {
      const bool is_own = row / 4 == part;
      const uint32_t low = is_own ? pairs[0] : 0, high = is_own ? pairs[1] : 0;
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const uint32_t(&word)[4] = tile[half][part].word;
        multiply(sums[half], word[0], word[1], word[2], word[3], low, high);
      }
    }
#pragma unroll
    for (int half = 0; half < 2; ++half) shares[half] = sums[half][0] + sums[half][3];
  }

  // values[0] and [2] grow by inner @ rows at the lane's columns for the right operand's even columns, [1] and [3] for
  // its odd ones. `low` belongs to the first two rows, `high` to the others.
  __device__ void spread(const Rows& rows, uint32_t low, uint32_t high, float (&values)[4]) const {
#pragma unroll
    for (int chunk = 0; chunk < 4; ++chunk) {
      const bool is_own = row / 2 == chunk;
      const uint32_t first = rows[0].word[chunk], second = rows[1].word[chunk];
      const uint32_t third = rows[2].word[chunk], fourth = rows[3].word[chunk];
      multiply(values, __byte_perm(first, second, 0x5410), __byte_perm(first, second, 0x7632),
               __byte_perm(third, fourth, 0x5410), __byte_perm(third, fourth, 0x7632),
               is_own ? low : 0, is_own ? high : 0);
    }
  }

  // ---- activations

  __device__ const T* hidden_row(uint32_t column) const {
    return place_at(p.hidden, token, p.hidden_stride, column);
  }
  __device__ const T* residual_row(uint32_t column) const {
    return place_at(p.residual, token, p.residual_stride, column);
  }
  __device__ const T* state_row(uint32_t column) const {
    return place_at(p.state, token, p.state_stride, column);
  }

  // One of the columns whose mean is the centre of the moments, see boundary.cuh.
  __device__ float read_sample() const {
    if (!(flags & kUpdate) || !(flags & kNorm) || lane >= p.hidden_size) return 0.0f;
    const float x = to_float(*hidden_row(lane));
    return p.residual == nullptr ? x : x + to_float(*residual_row(lane));
  }

  __device__ void load_activations() {
    const uint32_t hidden_word = read_pair(hidden_row(own_column), true);
    const uint32_t residual_word = read_pair(residual_row(own_column), p.residual != nullptr);
    const uint32_t state_word = read_pair(state_row(own_column), true);
    float more[2];
    unpack_pair(hidden_word, hidden);
    unpack_pair(residual_word, more);
    unpack_pair(state_word, s);
    h[0] = hidden[0] + more[0], h[1] = hidden[1] + more[1];
  }

  // ---- sums over the slices

  static __device__ float sum_lanes(float x) {
#pragma unroll
    for (int mask = 16; mask > 0; mask /= 2) x += __shfl_xor_sync(kAllLanes, x, mask);
    return x;
  }

  // Adds up the block's warps and hands the sums to all blocks, a block half a warp at a time and four sums a lane.
  template <int kItems>
  __device__ void publish(const float* of_warps, float* received, int count, int barrier) const {
    static_assert(kItems <= 4 * 16, "half a warp holds all sums");
    const int first = 4 * (lane % 16), half = lane / 16;
    const bool is_sender = first < count;
    float totals[4] = {};
    __syncthreads();
#pragma unroll
    for (int w = 0; w < kWarps; ++w) {
      if (w >= num_warps || !is_sender) continue;
      const float4 four = *reinterpret_cast<const float4*>(of_warps + w * kItems + first);
      totals[0] += four.x, totals[1] += four.y, totals[2] += four.z, totals[3] += four.w;
    }
#pragma unroll 1
    for (int other = 2 * warp + half; other < p.num_blocks; other += 2 * num_warps) {
      float* target = received + block * kItems + first;
      if (is_sender) {
        send(address_at(target, other), totals, address_at(&barriers[barrier], other));
      }
    }
  }

  // ---- reduce

  __device__ void reduce(const Tile& in, uint32_t norm_weight, uint32_t norm_bias, float sample) {
    float moments[2] = {}, x[2] = {h[0], h[1]}, shares[2];
    float* own = warp_sums + warp * TokenSums::kItems;
    if (flags & kNorm) {
      const float centre = sum_lanes(sample) * reciprocal(min(kTokenSample, p.hidden_size));
      float weight[2];
      unpack_pair(norm_weight, weight);
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        const float shifted = is_inside ? x[i] - centre : 0.0f;
        moments[0] += shifted, moments[1] += shifted * shifted;
        x[i] = shifted * weight[i];
      }
      contract(in, norm_weight, norm_bias, shares);
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const float sum = shares[half] + __shfl_xor_sync(kAllLanes, shares[half], 2);
        if (quad < 2) own[TokenSums::kNormWeight * (1 + quad) + 8 * half + row] = sum;
        moments[half] = sum_lanes(moments[half]);
        if (lane == 0) own[TokenSums::kMoments + half] = moments[half];
      }
    }
    Parts parts;
    split(x[0], x[1], parts);
    contract(in, parts[0], parts[1], shares);
    store_sums(own, shares);
  }

  // Of rows `row` and `row` + 8, added up over the quads.
  __device__ void store_sums(float* target, const float (&shares)[2]) const {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const float sum = sum_quads(shares[half]);
      if (quad == 0) target[8 * half + row] = sum;
    }
  }

  // u = act(bottleneck) of unit `lane` % 16: a branch's gate.
  __device__ float find_unit(float bias) const {
    const float part_of_row = reciprocal(p.hidden_size);
    const bool has_norm = flags & kNorm;
    float low = 0.0f, high = 0.0f;
    const int count = has_norm ? TokenSums::kItems : TokenSums::kNormWeight;
#pragma unroll
    for (int b = 0; b < kBlocks; ++b) {
      const float* from = reduced + b * TokenSums::kItems;
      if (b < p.num_blocks && lane < count) low += from[lane];
      if (b < p.num_blocks && lane + 32 < count) high += from[lane + 32];
    }
    float u = low;
    if (has_norm) {
      const float of_weight = __shfl_sync(kAllLanes, low, TokenSums::kNormWeight + lane % 16);
      const float mean = __shfl_sync(kAllLanes, high, TokenSums::kMoments - 32) * part_of_row;
      const float square = __shfl_sync(kAllLanes, high, TokenSums::kMoments - 31) * part_of_row;
      const float variance = fmaxf(square - mean * mean, 0.0f);
      u = (u - mean * of_weight) * rsqrtf(variance + kNormEps) + high;
    }
    return activate(u + bias, flags & kGelu);
  }

  __device__ float read_in_bias() const {
    const int branch = lane / kTokenGates, gate = lane % kTokenGates;
    if (!(flags & kUpdate) || !(flags & kBias) || branch > 1 || gate >= p.gate_size) return 0.0f;
    return to_float(*slot_rows(p.update_in_bias, branch * p.gate_size + gate));
  }

  // ---- update and inject

  __device__ void update(const Rows& out, float unit, const uint32_t (&biases)[2]) {
    const int source = row % 2 * kTokenGates + 2 * quad;  // even rows take the transform, odd ones the gate
    const float first = __shfl_sync(kAllLanes, unit, source);
    const float second = __shfl_sync(kAllLanes, unit, source + 1);
    Parts parts;
    split(first, second, parts);
    float z[4] = {}, small[4] = {}, transform[2], gate[2];
    const bool is_gate = row % 2;
    spread(out, is_gate ? 0 : parts[0], is_gate ? parts[0] : 0, z);
    spread(out, is_gate ? 0 : parts[1], is_gate ? parts[1] : 0, small);
    unpack_pair(biases[0], transform);
    unpack_pair(biases[1], gate);
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const float transformed = transform[i] + (small[2 * i] + z[2 * i]);
      s[i] += sigmoid(gate[i] + (small[2 * i + 1] + z[2 * i + 1])) * (transformed - s[i]);
    }
    write_pair(state_row(own_column), s);
  }

  __device__ void project(const Tile& down) {
    float shares[2];
    Parts parts;
    split(h[0] - s[0], h[1] - s[1], parts);
    contract(down, parts[0], parts[1], shares);
    store_sums(warp_projected + warp * TokenSums::kProjected, shares);
  }

  __device__ void inject(const Rows& up, float scale) {
    float total = 0.0f, correction[4] = {};
#pragma unroll
    for (int b = 0; b < kBlocks; ++b) {
      const float* from = projected + b * TokenSums::kProjected;
      if (b < p.num_blocks) total += from[lane % TokenSums::kProjected];
    }
    total *= scale;
    uint32_t words[2];
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const float first = __shfl_sync(kAllLanes, total, 8 * half + 2 * quad);
      const float second = __shfl_sync(kAllLanes, total, 8 * half + 2 * quad + 1);
      Parts parts;
      split(first, second, parts);
      words[half] = row % 2 ? parts[1] : parts[0];  // the small parts' results come beside the large ones'
    }
    spread(up, words[0], words[1], correction);
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const float added = correction[2 * i + 1] + correction[2 * i];
      hidden[i] += added, h[i] += added;
    }
  }

  __device__ void write_hidden() const { write_pair(hidden_row(own_column), hidden); }

  // ---- the norm behind the boundary

  __device__ uint32_t read_rms_weight() const {
    return read_pair(static_cast<const T*>(p.rms_weight) + own_column, p.rms_weight != nullptr);
  }

  // Of h, which no rounding has met. A warp has a slice and sends its squares to all blocks, one a lane.
  __device__ void normalize(uint32_t weight_word) {
    const float of_slice = sum_neighbours<0, 5>(is_inside ? square_of(h[0], h[1]) : 0.0f);
    if (lane < p.num_blocks) send(squares_target, of_slice, squares_barrier);
    write_pair(residual_row(own_column), h);
    wait_barrier(&barriers[2], 0);
    const float factor = rms_factor<kWarps * kBlocks>(squares, p.num_blocks * num_warps, p.hidden_size, p.rms_eps);
    float weight[2];
    unpack_pair(weight_word, weight);
    const float x[2] = {h[0] * factor * weight[0], h[1] * factor * weight[1]};
    write_pair(hidden_row(own_column), x);
  }
};

template <int kWarps, int kBlocks>
__global__ void __launch_bounds__(32 * kWarps, kTokenRegisterWarps / kWarps)
    boundary_token_kernel(const __grid_constant__ BoundaryParams p) {
#if __CUDA_ARCH__ >= 900
  using Work = TokenBoundary<kWarps, kBlocks>;
  Work work(p, shared_memory);
  work.init_barriers();
  work.prefetch_activations();
  const bool has_rms = p.rms_weight != nullptr;
  if (!work.take_token() && !has_rms) {
    if (work.token == 0) wait_for_previous_kernel();  // else this kernel could end before that one
    return;
  }
  const bool has_update = work.flags & kUpdate, has_norm = has_update && (work.flags & kNorm);
  const bool has_bias = has_update && (work.flags & kBias), has_inject = work.flags & kInject;
  typename Work::Tile in, down;
  typename Work::Rows out, up;
  work.read_in(in);
  work.read_out(out);
  const uint32_t norm_weight = work.read_vector(p.norm_weight, 0, has_norm);
  const uint32_t norm_bias = work.read_vector(p.norm_bias, 0, has_norm);
  const uint32_t biases[2] = {work.read_vector(p.update_out_bias, 0, has_bias),
                              work.read_vector(p.update_out_bias, 1, has_bias)};
  const float in_bias = work.read_in_bias();
  const float scale = has_inject ? p.scale[work.slot] : 0.0f;
  const uint32_t rms_weight = work.read_rms_weight();
  work.prefetch_projection();
  work.prepare();
  wait_for_previous_kernel();
  release_next_kernel();
  const float sample = work.read_sample();
  work.load_activations();
  if (has_update) {
    work.reduce(in, norm_weight, norm_bias, sample);
    wait_for_cluster();  // all blocks have started, their barriers are ready
    const int num_sums = has_norm ? TokenSums::kItems : TokenSums::kNormWeight;
    work.template publish<TokenSums::kItems>(work.warp_sums, work.reduced, num_sums, 0);
    work.read_down(down);
    wait_barrier(&work.barriers[0], 0);
    work.update(out, work.find_unit(in_bias), biases);
  } else {
    work.read_down(down);
    wait_for_cluster();
  }
  if (has_inject) {
    work.project(down);
    work.template publish<TokenSums::kProjected>(work.warp_projected, work.projected, TokenSums::kProjected, 1);
    work.read_up(up);
    wait_barrier(&work.barriers[1], 0);
    work.inject(up, scale);
    if (!has_rms) work.write_hidden();
  }
  if (has_rms) work.normalize(rms_weight);
#endif
}

}  // namespace shadow
