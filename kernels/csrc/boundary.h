// Host interface of the boundary kernels; knows CUDA's runtime, no tensor library.
#pragma once

#include <cuda_runtime.h>

#include <array>

#include "shadow/boundary_params.h"

namespace shadow {

enum class DataType { kBFloat16, kFloat16, kFloat32 };

// How one cluster kernel is cut. resident: clusters that run at the same time; 0: there is none.
struct ClusterPlan {
  int num_warps, num_blocks, shared_bytes;  // of a block, of a cluster, of a block
  int resident;
};

// The first with one block at most on a multiprocessor, the next with two; the last with as many as fit.
constexpr int kDensities = 3;
using TokenPlans = std::array<ClusterPlan, kDensities>;

// The same of the kernel for whole tiles, which has no clusters. num_warps 0: there is none.
struct TilePlan {
  int num_warps, kept_steps, shared_bytes;
  int fewest_tokens;  // of a launch; below, the others are faster
};

// The same of the separate kernels, with what a block hands to the others of its tile in floats.
struct PartPlan {
  int num_blocks, shared_bytes;
  int num_items, num_projected;
};

// How one call is cut.
struct BoundaryPlan {
  bool is_supported;
  bool is_fused;                  // one cluster kernel; otherwise three kernels with scratch
  TokenPlans few_tokens, tokens;  // a token a cluster, for few tokens and for more
  ClusterPlan units;              // up to 8 tokens of one slot a cluster
  ClusterPlan fused;              // a range of units a cluster
  TilePlan tiles;                 // a tile a block, with any of the others
  PartPlan parts;
};

// Depends on the sizes and the device alone, so a token's sums run in the same order alone and in any batch.
// Found once for each and kept; `device` is the current one.
// `is_wide`: all rows start on 16 bytes and hold whole groups of eight columns; others take the separate kernels.
BoundaryPlan plan_boundary(DataType type, int hidden_size, int gate_size, int rank, bool is_wide,
                           int device);

// Floats of scratch that `params.reduced` and `params.projected` need for each tile, 0 with a fused plan.
int64_t reduced_floats(const BoundaryPlan& plan);
int64_t projected_floats(const BoundaryPlan& plan);

// Launches on the current device; fills in what the plan decides. With rms_weight the norm follows, in the same launch
// where that is a kernel for single tokens; rows are wide then.
cudaError_t launch_boundary(BoundaryParams params, const BoundaryPlan& plan, DataType type,
                            cudaStream_t stream);

}  // namespace shadow
