// Host interface of the boundary kernels; knows CUDA's runtime, no tensor library.
#pragma once

#include <cuda_runtime.h>

#include "shadow/boundary_params.h"

namespace shadow {

enum class DataType { kBFloat16, kFloat16, kFloat32 };

// How the kernel for single tokens is cut.
struct TokenPlan {
  int num_warps, num_blocks, shared_bytes;
  int resident_clusters;  // 0: there is none
};

// How one call is cut.
struct BoundaryPlan {
  bool is_supported;
  bool is_fused;                 // one cluster kernel; otherwise three kernels with scratch
  int num_warps, num_blocks;     // of a tile
  int shared_bytes;              // of a block
  int num_items, num_projected;  // floats that a block of the separate kernels hands to the others of its tile
  int resident_clusters;         // that run at the same time
  int unit_bytes;                // shared memory of a block of the kernel that takes one unit a cluster
  int resident_units;            // clusters of it that run at the same time; 0: there is none
  TokenPlan few_tokens, tokens;  // the same of the kernel that takes one token a cluster, for few tokens and for more
};

// Depends on the sizes and the device alone, so a token's sums run in the same order alone and in any batch.
// Found once for each and kept; `device` is the current one.
// `is_wide`: all rows start on 16 bytes and hold whole groups of eight columns; others take the separate kernels.
BoundaryPlan plan_boundary(DataType type, int hidden_size, int gate_size, int rank, bool is_wide,
                           int device);

// Floats of scratch that `params.reduced` and `params.projected` need for each tile, 0 with a fused plan.
int64_t reduced_floats(const BoundaryPlan& plan);
int64_t projected_floats(const BoundaryPlan& plan);

// Launches on the current device; fills in what the plan decides.
cudaError_t launch_boundary(BoundaryParams params, const BoundaryPlan& plan, DataType type,
                            cudaStream_t stream);

}  // namespace shadow
