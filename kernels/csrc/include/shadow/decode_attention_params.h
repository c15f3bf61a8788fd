// What the kernel of decode_attention is told.
#pragma once

#include <cstdint>

namespace shadow {

struct DecodeAttentionParams {
  const void *query, *keys, *values;
  void* out;
  const int *block_table, *lengths;
  float* partial;  // what pieces of one sequence hand over
  int* arrivals;   // of a sequence and head: pieces that have; zero before and after
  int64_t page_stride, token_stride, head_stride;  // of keys and of values, in elements
  int64_t query_stride, out_stride, table_stride;  // between tokens, and between sequences
  int num_sequences, num_kv_heads, group_size;     // group_size: query heads of one of keys
  int page_shift;                                  // a page has 1 << page_shift tokens
  int spare_pieces;  // that there may be besides one a sequence
  int least_piece;   // tokens, whole steps
  float scale_log2;  // of a score, for powers of two
};

}  // namespace shadow
