// Host interface of decode_attention; knows CUDA's runtime, no tensor library.
#pragma once

#include <cuda_runtime.h>

#include "shadow/decode_attention_params.h"

namespace shadow {

// Pieces that there may be besides one a sequence: as many as blocks run at once on the current device. 0: no kernel.
int spare_attention_pieces(int head_size, int num_kv_heads, bool is_half);

// Floats of what pieces hand over.
int64_t partial_attention_floats(int spare_pieces, int num_kv_heads, int group_size, int head_size);

// Launches on the current device; params.least_piece is found here. is_half: fp16, else bf16.
// cudaErrorInvalidValue: a head size that has no kernel.
cudaError_t launch_decode_attention(DecodeAttentionParams params, int head_size, bool is_half, cudaStream_t stream);

}  // namespace shadow
