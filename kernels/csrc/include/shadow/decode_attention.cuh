// Attention of one new token a sequence over its paged keys and values.
//
// A piece of a sequence, for one head of keys and all query heads that share it, is a block's work. Its warps take 16 tokens
// in turn, from global memory straight to the registers that the tensor cores read: nothing is staged, so several small blocks
// share a multiprocessor and their loads are always under way. At the end the warps add up in shared memory.
//
// A sequence of up to one and a half times least_piece tokens is one piece. Longer ones are cut so that further pieces are no
// more than spare_pieces, which is about as many as blocks run at once; every block finds that out by itself, from all lengths.
// Pieces of a sequence meet in global memory; the last one to arrive adds them up, in their order.
//
// Lanes: row = lane / 4, quad = lane % 4. Scores are (query heads, tokens): a lane has head `row`, tokens 2 quad and the next
// of eight. Values are multiplied from the left, (columns, tokens): a lane has the octet `row` of 64 columns, of heads
// 2 quad and the next.
#pragma once

#include "shadow/cluster.cuh"
#include "shadow/decode_attention_params.h"
#include "shadow/fast_math.cuh"
#include "shadow/mma.cuh"

namespace shadow {
namespace decode_attention {

constexpr int kWarps = 4;
constexpr int kThreads = 32 * kWarps;
constexpr int kTileTokens = 16;
constexpr int kStepTokens = kWarps * kTileTokens;
constexpr int kMostGroup = 8;  // query heads of one of keys
constexpr int kBlocks = 3;     // on a multiprocessor: 168 registers a thread, with 128 some would lie in memory
constexpr unsigned kEveryLane = 0xffffffffu;

struct Piece {
  int sequence, first, end;  // tokens
  int number, count;         // of the sequence's pieces
  int further;               // place of its second one among all that are not first ones
};

template <int kHeadSize>
struct Shared {
  int lengths[kWarps], counts[kWarps];
  Piece piece;
  int is_last;
  float highest[kWarps][kMostGroup], total[kWarps][kMostGroup];
  alignas(16) float sums[kWarps][kMostGroup][kHeadSize];
};

// Floats that a piece hands over, whole 16 bytes: of each query head its sums, then of each the highest score and the total.
__host__ __device__ constexpr int partial_floats(int group_size, int head_size) {
  return (group_size * (head_size + 2) + 3) / 4 * 4;
}

// This thread's view of its block's piece.
template <typename T, int kHeadSize>
struct Worker {
  static constexpr int kOctets = kHeadSize / 32;  // of a row of keys, a lane
  static constexpr int kHalves = kHeadSize / 64;

  const DecodeAttentionParams& p;
  Shared<kHeadSize>& shared;
  int lane, row, quad, warp, head, place;
  Piece piece;
  int pages;  // a lane the page of one of 32 tiles
  Octet<T> query[kOctets];
  Octet<T> keys[2][kOctets], values[4][kHalves];
  float highest, total;
  float sums[kHalves][4][4];

  __device__ Worker(const DecodeAttentionParams& params, Shared<kHeadSize>& block) : p(params), shared(block) {
    lane = threadIdx.x % 32, row = lane / 4, quad = lane % 4, warp = threadIdx.x / 32;
    head = blockIdx.x % p.num_kv_heads, place = blockIdx.x / p.num_kv_heads;
  }

  // ---- which piece

  // The first blocks have the sequences' first pieces, in order; `place` is that of the block's, of all sequences or all others.
  // Returns whether the block has one.
  __device__ bool find_piece() {
    const bool is_first = place < p.num_sequences;
    const int length = is_first ? p.lengths[place] : 0;
    piece = {place, 0, length, 0, 1, 0};
    if (is_first && count_further(length, p.least_piece) == 0) return true;
    cut_sequences(is_first);
    return piece.sequence >= 0;
  }

  // Of a sequence's pieces, besides the first one.
  __device__ int count_further(int length, int piece_tokens) const {
    return 2 * length <= 3 * p.least_piece ? 0 : (length - 1) / piece_tokens;
  }

  // Finds how sequences are cut, and the block's piece among them.
  __device__ void cut_sequences(bool is_first) {
    const int run = (p.num_sequences + kThreads - 1) / kThreads;
    const int first = min(static_cast<int>(threadIdx.x) * run, p.num_sequences);
    const int end = min(first + run, p.num_sequences);
    int sum = 0;
    for (int i = first; i < end; ++i) sum += p.lengths[i];
    const int share = (sum_block(sum) + p.spare_pieces - 1) / p.spare_pieces;
    const int piece_tokens = max(p.least_piece, (share + kStepTokens - 1) / kStepTokens * kStepTokens);
    int count = 0;
    for (int i = first; i < end; ++i) count += count_further(p.lengths[i], piece_tokens);
    int before = sum_before(count);
    const int wanted = place - p.num_sequences;
    for (int i = first; i < end; ++i) {
      const int length = p.lengths[i], further = count_further(length, piece_tokens);
      const bool is_here = is_first ? i == place : before <= wanted && wanted < before + further;
      if (is_here) {
        const int number = is_first ? 0 : wanted - before + 1, begin = number * piece_tokens;
        shared.piece = {i, begin, min(begin + piece_tokens, length), number, further + 1, before};
      }
      before += further;
    }
    __syncthreads();
    piece = shared.piece;
  }

  __device__ int sum_block(int value) {
    if (threadIdx.x == 0) shared.piece.sequence = -1;
    value = __reduce_add_sync(kEveryLane, value);
    if (lane == 0) shared.lengths[warp] = value;
    __syncthreads();
    int sum = 0;
#pragma unroll
    for (int w = 0; w < kWarps; ++w) sum += shared.lengths[w];
    return sum;
  }

  // Of the threads before this one.
  __device__ int sum_before(int value) {
    int sum = value;
#pragma unroll
    for (int distance = 1; distance < 32; distance *= 2) {
      const int other = __shfl_up_sync(kEveryLane, sum, distance);
      if (lane >= distance) sum += other;
    }
    if (lane == 31) shared.counts[warp] = sum;
    __syncthreads();
    sum -= value;
#pragma unroll
    for (int w = 0; w < kWarps; ++w) sum += w < warp ? shared.counts[w] : 0;
    return sum;
  }

  // ---- loads

  // The first of a tile's tokens; the warp has tiles warp, warp + kWarps and so on.
  __device__ int tile_begin(int tile) const { return piece.first + kTileTokens * (warp + kWarps * tile); }

  // Of the warp's tiles from `first` on, whose pages a lane each keeps.
  __device__ void load_pages(int first) {
    const int token = tile_begin(first + lane);
    const int* table = p.block_table + piece.sequence * p.table_stride;
    pages = token < piece.end ? table[token >> p.page_shift] : 0;
  }

  __device__ void load_query() {
    const T* rows = static_cast<const T*>(p.query) + piece.sequence * p.query_stride;
    const T* columns = rows + (head * p.group_size + row) * kHeadSize + 8 * quad;
#pragma unroll
    for (int i = 0; i < kOctets; ++i) {
      const uint4 words = read(columns + 32 * i, row < p.group_size);
      query[i] = *reinterpret_cast<const Octet<T>*>(&words);
    }
  }

  __device__ static uint4 read(const T* place, bool is_used) {
    return is_used ? *reinterpret_cast<const uint4*>(place) : uint4{0, 0, 0, 0};
  }

  // Where the tile's first token has its row of the head.
  __device__ int64_t tile_offset(int tile, int token) const {
    const int64_t page = __shfl_sync(kEveryLane, pages, tile % 32);
    const int in_page = token & ((1 << p.page_shift) - 1);
    return page * p.page_stride + in_page * p.token_stride + head * p.head_stride;
  }

  __device__ void load_keys(int64_t offset, int num_tokens) {
    const T* rows = static_cast<const T*>(p.keys) + offset + 8 * quad;
#pragma unroll
    for (int n = 0; n < 2; ++n) {
      const int token = 8 * n + row;
#pragma unroll
      for (int i = 0; i < kOctets; ++i) {
        const uint4 words = read(rows + token * p.token_stride + 32 * i, token < num_tokens);
        keys[n][i] = *reinterpret_cast<const Octet<T>*>(&words);
      }
    }
  }

  __device__ void load_values(int64_t offset, int num_tokens) {
    const T* rows = static_cast<const T*>(p.values) + offset + 8 * row;
#pragma unroll
    for (int n = 0; n < 4; ++n) {
      const int token = n / 2 * 8 + 2 * quad + n % 2;
#pragma unroll
      for (int half = 0; half < kHalves; ++half) {
        const uint4 words = read(rows + token * p.token_stride + 64 * half, token < num_tokens);
        values[n][half] = *reinterpret_cast<const Octet<T>*>(&words);
      }
    }
  }

  // ---- the products

  // scores[2 n + i]: of head `row` with token 8 n + 2 quad + i.
  __device__ void find_scores(int num_tokens, float (&scores)[4]) const {
#pragma unroll
    for (int n = 0; n < 2; ++n) {
      float products[4] = {};
#pragma unroll
      for (int i = 0; i < kOctets; ++i) {
#pragma unroll
        for (int s = 0; s < 4; s += 2) {
          multiply_as(T(), products, query[i].word[s], 0, query[i].word[s + 1], 0, keys[n][i].word[s],
                      keys[n][i].word[s + 1]);
        }
      }
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        const bool is_token = 8 * n + 2 * quad + i < num_tokens;
        scores[2 * n + i] = is_token ? products[i] * p.scale_log2 : -INFINITY;
      }
    }
  }

  // Turns scores into weights relative to the highest one so far, to which the sums so far are made relative, too.
  __device__ void weigh(float (&scores)[4]) {
    float most = fmaxf(fmaxf(scores[0], scores[1]), fmaxf(scores[2], scores[3]));
    most = fmaxf(most, __shfl_xor_sync(kEveryLane, most, 1));
    most = fmaxf(most, __shfl_xor_sync(kEveryLane, most, 2));
    most = fmaxf(most, highest);
    const float kept = power_of_two(highest - most);
    highest = most, total *= kept;
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      scores[i] = power_of_two(scores[i] - most);
      total += scores[i];
    }
    const float first = __shfl_sync(kEveryLane, kept, 8 * quad), second = __shfl_sync(kEveryLane, kept, 8 * quad + 4);
#pragma unroll
    for (int half = 0; half < kHalves; ++half) {
#pragma unroll
      for (int t = 0; t < 4; ++t) {
        sums[half][t][0] *= first, sums[half][t][1] *= second;
        sums[half][t][2] *= first, sums[half][t][3] *= second;
      }
    }
  }

  __device__ static uint32_t pack_pair(float first, float second) {
    const Pair<T> pair = {from_float<T>(first), from_float<T>(second)};
    return *reinterpret_cast<const uint32_t*>(&pair);
  }

  // Column `of_octet` of tokens n and n + 1, as the instruction wants them.
  __device__ uint32_t value_pair(int n, int half, int of_octet) const {
    const uint32_t first = values[n][half].word[of_octet / 2], second = values[n + 1][half].word[of_octet / 2];
    return __byte_perm(first, second, of_octet % 2 ? 0x7632 : 0x5410);
  }

  __device__ void add_values(const float (&weights)[4]) {
    const uint32_t low = pack_pair(weights[0], weights[1]), high = pack_pair(weights[2], weights[3]);
#pragma unroll
    for (int half = 0; half < kHalves; ++half) {
#pragma unroll
      for (int t = 0; t < 4; ++t) {
        multiply_as(T(), sums[half][t], value_pair(0, half, t), value_pair(0, half, 4 + t), value_pair(2, half, t),
                    value_pair(2, half, 4 + t), low, high);
      }
    }
  }

  __device__ void run() {
    highest = -INFINITY, total = 0.0f;
#pragma unroll
    for (int half = 0; half < kHalves; ++half) {
#pragma unroll
      for (int i = 0; i < 16; ++i) sums[half][i / 4][i % 4] = 0.0f;
    }
    int token = tile_begin(0);
    if (token >= piece.end) return;
    int64_t offset = tile_offset(0, token);
    int num_tokens = piece.end - token;
    load_keys(offset, num_tokens);
    load_values(offset, num_tokens);
#pragma unroll 1
    for (int tile = 0; num_tokens > 0; ++tile) {
      if ((tile + 1) % 32 == 0) load_pages(tile + 1);
      const int next = num_tokens - kStepTokens;
      offset = tile_offset(tile + 1, tile_begin(tile + 1));
      float scores[4];
      find_scores(num_tokens, scores);
      load_keys(offset, next);
      weigh(scores);
      add_values(scores);
      load_values(offset, next);
      num_tokens = next;
    }
  }

  // ---- the end

  __device__ void share_sums() {
    total += __shfl_xor_sync(kEveryLane, total, 1);
    total += __shfl_xor_sync(kEveryLane, total, 2);
    if (quad == 0) shared.highest[warp][row] = highest, shared.total[warp][row] = total;
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const int of_head = 2 * quad + i;
      if (of_head >= p.group_size) continue;
#pragma unroll
      for (int half = 0; half < kHalves; ++half) {
        float4* octet = reinterpret_cast<float4*>(&shared.sums[warp][of_head][64 * half + 8 * row]);
        octet[0] = {sums[half][0][i], sums[half][1][i], sums[half][2][i], sums[half][3][i]};
        octet[1] = {sums[half][0][2 + i], sums[half][1][2 + i], sums[half][2][2 + i], sums[half][3][2 + i]};
      }
    }
    __syncthreads();
  }

  // Adds what has been found relative to another highest score.
  struct Sum {
    float highest = -INFINITY, total = 0.0f;
    float columns[8] = {};

    __device__ void add(float other_highest, float other_total, const float4* octet) {
      const float most = fmaxf(highest, other_highest);
      if (most == -INFINITY) return;
      const float kept = power_of_two(highest - most), added = power_of_two(other_highest - most);
      const float4 low = octet[0], high = octet[1];
      const float other[8] = {low.x, low.y, low.z, low.w, high.x, high.y, high.z, high.w};
      highest = most, total = total * kept + other_total * added;
#pragma unroll
      for (int i = 0; i < 8; ++i) columns[i] = columns[i] * kept + other[i] * added;
    }

    __device__ void store_columns(float* place) const {
      float4* target = reinterpret_cast<float4*>(place);
      target[0] = {columns[0], columns[1], columns[2], columns[3]};
      target[1] = {columns[4], columns[5], columns[6], columns[7]};
    }
  };

  // What the sequence's piece `number` hands over: those that are not first ones, then the first ones of cut sequences.
  __device__ float* partial_of(int number) const {
    const int of_all = number == 0 ? p.spare_pieces + piece.further : piece.further + number - 1;
    return p.partial + (of_all * p.num_kv_heads + head) * partial_floats(p.group_size, kHeadSize);
  }

  __device__ void store(int of_head, int octet, const Sum& sum) const {
    float columns[8];
    const float scale = sum.total > 0.0f ? 1.0f / sum.total : 0.0f;
#pragma unroll
    for (int i = 0; i < 8; ++i) columns[i] = sum.columns[i] * scale;
    Octet<T> packed;
    pack(columns, packed);
    T* rows = static_cast<T*>(p.out) + piece.sequence * p.out_stride;
    reinterpret_cast<Octet<T>*>(rows + (head * p.group_size + of_head) * kHeadSize)[octet] = packed;
  }

  __device__ void hand_over(int of_head, int octet, const Sum& sum) const {
    float* partial = partial_of(piece.number);
    sum.store_columns(partial + of_head * kHeadSize + 8 * octet);
    if (octet != 0) return;
    float2* scalars = reinterpret_cast<float2*>(partial + p.group_size * kHeadSize);
    scalars[of_head] = {sum.highest, sum.total};
  }

  __device__ Sum sum_warps(int of_head, int octet) const {
    Sum sum;
#pragma unroll
    for (int w = 0; w < kWarps; ++w) {
      const float4* columns = reinterpret_cast<const float4*>(&shared.sums[w][of_head][8 * octet]);
      sum.add(shared.highest[w][of_head], shared.total[w][of_head], columns);
    }
    return sum;
  }

  // A warp's share of the pieces, in the place of its own sums.
  __device__ void sum_pieces(int of_head, int octet) {
    Sum sum;
#pragma unroll 8
    for (int i = warp; i < piece.count; i += kWarps) {
      const float* partial = partial_of(i);
      const float4* columns = reinterpret_cast<const float4*>(partial + of_head * kHeadSize + 8 * octet);
      const float2 scalars = __ldcg(reinterpret_cast<const float2*>(partial + p.group_size * kHeadSize) + of_head);
      const float4 read[2] = {__ldcg(columns), __ldcg(columns + 1)};
      sum.add(scalars.x, scalars.y, read);
    }
    sum.store_columns(&shared.sums[warp][of_head][8 * octet]);
    if (octet == 0) shared.highest[warp][of_head] = sum.highest, shared.total[warp][of_head] = sum.total;
  }

  // Whether all other pieces of the sequence have handed over.
  __device__ bool is_last_to_arrive() {
    __threadfence();
    __syncthreads();
    if (threadIdx.x == 0) {
      int* arrivals = p.arrivals + piece.further * p.num_kv_heads + head;
      shared.is_last = atomicAdd(arrivals, 1) == piece.count - 1;
      if (shared.is_last) *arrivals = 0;
    }
    __syncthreads();
    if (shared.is_last) __threadfence();
    return shared.is_last;
  }

  __device__ void finish() {
    share_sums();
    const int num_octets = p.group_size * kHeadSize / 8;
    const bool is_whole = piece.count == 1;
    for (int i = threadIdx.x; i < num_octets; i += kThreads) {
      const int of_head = i / (kHeadSize / 8), octet = i % (kHeadSize / 8);
      const Sum sum = sum_warps(of_head, octet);
      if (is_whole) store(of_head, octet, sum);
      else hand_over(of_head, octet, sum);
    }
    if (is_whole || !is_last_to_arrive()) return;
    for (int i = lane; i < num_octets; i += 32) sum_pieces(i / (kHeadSize / 8), i % (kHeadSize / 8));
    __syncthreads();
    for (int i = threadIdx.x; i < num_octets; i += kThreads) {
      const int of_head = i / (kHeadSize / 8), octet = i % (kHeadSize / 8);
      store(of_head, octet, sum_warps(of_head, octet));
    }
  }
};

}  // namespace decode_attention

#ifndef SHADOW_EMULATED
extern __shared__ __align__(16) char shared_memory[];
#endif

template <typename T, int kHeadSize>
__global__ void __launch_bounds__(decode_attention::kThreads, decode_attention::kBlocks)
    decode_attention_kernel(const __grid_constant__ DecodeAttentionParams p) {
  auto& shared = *reinterpret_cast<decode_attention::Shared<kHeadSize>*>(shared_memory);
  decode_attention::Worker<T, kHeadSize> work(p, shared);
  // Lengths and pages are the step's: nothing in front writes them.
  const bool has_piece = work.find_piece();
  if (has_piece) work.load_pages(0);
  wait_for_previous_kernel();
  release_next_kernel();  // not before: what comes next may read what this kernel's predecessor wrote
  if (!has_piece) return;
  work.load_query();
  work.run();
  work.finish();
}

}  // namespace shadow
