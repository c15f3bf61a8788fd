// out = x @ weight.T + bias for steps of up to 64 tokens, which are bound by reading the weight.
//
// Clusters have some outputs, and each of their blocks a part of the inputs. One warp only asks for copies, the weight's
// before the kernel in front has ended; a warpgroup multiplies: tokens are the instruction's 64 rows, however many there
// are, weight rows its columns. At the end the blocks of a cluster hand one another's tokens over and each adds up, in
// the cluster's order, what it was handed: a token's sums are cut by N and K alone, so its bits are the same in every step.
//
// Compute capability 9.0 alone has these instructions; see warpgroup.cuh.
#pragma once

#include "shadow/dense_linear_params.h"
#include "shadow/mma.cuh"
#include "shadow/warpgroup.cuh"

namespace shadow::dense_linear {

constexpr int kStepInputs = 64, kRowBytes = 128, kMostTokens = 64;

// kTokens_: that a step may have. kOutputs_: of a cluster, whole eights. kSplit_: blocks that share the inputs.
template <int kTokens_, int kOutputs_, int kSplit_>
struct Cut {
  static constexpr int kTokens = kTokens_, kOutputs = kOutputs_, kSplit = kSplit_;
  static constexpr int kWeightBytes = kOutputs * kRowBytes, kStepBytes = kWeightBytes + kTokens * kRowBytes;
  // A token's sums lie 8 banks behind those of the one in front, so that a half warp's stores meet in no bank.
  static constexpr int kSumStride = kOutputs + (40 - kOutputs % 32) % 32;
  static constexpr int kOwnTokens = kTokens / kSplit, kOwnSums = kOwnTokens * kSumStride;
  static constexpr int kSumBytes = kTokens * kSumStride * static_cast<int>(sizeof(float));
  static constexpr int kReceivedBytes = (kSplit - 1) * kOwnSums * static_cast<int>(sizeof(float));
  // What is asked for at once of the weight: less leaves the memory idle, more keeps x waiting behind it.
  static constexpr int kBytesAhead = (kSplit == 1 ? 160 : 96) << 10, kBudget = 225 << 10;
  // Products read the rows of 64 tokens, also where a step has fewer: whatever lies there.
  static constexpr int kReadBeyond = (kMostTokens - kTokens) * kRowBytes;
  static constexpr int kFit = (kBudget - kReceivedBytes - kReadBeyond) / kStepBytes;
  static constexpr int kEnough = (kBytesAhead + kWeightBytes - 1) / kWeightBytes;
  static constexpr int kStages = kFit < kEnough ? kFit : kEnough;
  static constexpr int kRingBytes = kStages * kStepBytes > kSumBytes ? kStages * kStepBytes : kSumBytes;
  // More than half of a multiprocessor's, so that blocks do not share one while others are idle.
  static constexpr int kSpreadBytes = 117 << 10;
};

constexpr int kThreads = kWarpgroup + 32;

template <typename C>
struct Barriers {
  uint64_t filled[C::kStages], freed[C::kStages], received;
};

template <typename C>
constexpr int shared_bytes() {
  constexpr int kUsed = C::kRingBytes + C::kReceivedBytes + static_cast<int>(sizeof(Barriers<C>));
  constexpr int kRead = C::kRingBytes + C::kReadBeyond;
  constexpr int kBytes = kUsed > kRead ? kUsed : kRead;
  return kBytes > C::kSpreadBytes ? kBytes : C::kSpreadBytes;
}

#ifndef SHADOW_EMULATED
extern __shared__ __align__(1024) char shared_memory[];
#endif

#if defined(__CUDA_ARCH_FEAT_SM90_ALL) || defined(SHADOW_EMULATED)

template <typename T, typename C>
class Block {
 public:
  __device__ Block(const TensorMap& weight, const TensorMap& x, const DenseLinearParams& params)
      : weight_(weight), x_(x), params_(params), rank_(C::kSplit > 1 ? rank_in_cluster() : 0),
        first_output_(static_cast<int>(blockIdx.x) / C::kSplit * C::kOutputs),
        first_step_(params.num_steps * rank_ / C::kSplit),
        num_steps_(params.num_steps * (rank_ + 1) / C::kSplit - first_step_) {}

  __device__ void run() {
    if (threadIdx.x == 0) init_barriers();
    __syncthreads();
    if constexpr (C::kSplit > 1) arrive_at_cluster();
    if (threadIdx.x < kWarpgroup) {
      multiply();
      if constexpr (C::kSplit > 1) hand_over();
      store();
    } else {
      if (threadIdx.x == kWarpgroup) copy();
      __syncwarp();
      if constexpr (C::kSplit > 1) wait_for_cluster();
    }
    if constexpr (C::kSplit > 1) {
      // shared memory stays until the others have read from it
      arrive_at_cluster();
      wait_for_cluster();
    }
  }

 private:
  __device__ char* stage(int step) const { return shared_memory + step % C::kStages * C::kStepBytes; }
  __device__ float* sums() const { return reinterpret_cast<float*>(shared_memory); }
  __device__ float* received() const { return reinterpret_cast<float*>(shared_memory + C::kRingBytes); }
  __device__ Barriers<C>& barriers() const {
    return *reinterpret_cast<Barriers<C>*>(shared_memory + C::kRingBytes + C::kReceivedBytes);
  }

  __device__ void init_barriers() const {
    for (int i = 0; i < C::kStages; ++i) {
      init_barrier(barriers().filled + i, 1);
      init_barrier(barriers().freed + i, kWarpgroup / 32);
    }
    init_barrier(&barriers().received, 1);
    fence_barriers();
    if constexpr (C::kSplit > 1) expect_bytes(&barriers().received, C::kReceivedBytes);
  }

  __device__ void copy_weight(int step) const {
    uint64_t* barrier = barriers().filled + step % C::kStages;
    expect_bytes(barrier, C::kStepBytes);
    copy_box(stage(step), weight_, first_output_, (first_step_ + step) * kStepInputs, barrier, Reuse::kNone);
  }

  __device__ void copy_tokens(int step) const {
    copy_box(stage(step) + C::kWeightBytes, x_, 0, (first_step_ + step) * kStepInputs,
             barriers().filled + step % C::kStages, Reuse::kAll);
  }

  // Of one thread. Nothing in the graph writes the weight, so it is asked for before the kernel in front has ended.
  __device__ void copy() const {
    const int num_ahead = min(num_steps_, C::kStages);
    for (int step = 0; step < num_ahead; ++step) copy_weight(step);
    wait_for_previous_kernel();
    for (int step = 0; step < num_ahead; ++step) copy_tokens(step);
    for (int step = num_ahead; step < num_steps_; ++step) {
      wait_barrier(barriers().freed + step % C::kStages, (step / C::kStages - 1) & 1);
      copy_weight(step);
      copy_tokens(step);
    }
    // Any earlier the next kernel's clusters would begin on what multiprocessors are through first, one upon the other.
    release_next_kernel();
  }

  // Leaves all sums of the block, a token a row, where the ring was.
  __device__ void multiply() const {
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    float own[C::kOutputs / 2];
#pragma unroll
    for (float& one : own) one = 0.0f;
    for (int step = 0; step < num_steps_; ++step) {
      wait_barrier(barriers().filled + step % C::kStages, step / C::kStages & 1);
      begin_products();
#pragma unroll
      for (int part = 0; part < 4; ++part) {
        multiply_step<0>(own, operand_of(stage(step) + C::kWeightBytes, part), stage(step), part);
      }
      commit_products();
      wait_products<1>();
      if (step > 0 && lane == 0) arrive(barriers().freed + (step - 1) % C::kStages);
    }
    wait_products<0>();
    hold_sums(own);
    sync_first_threads(kWarpgroup);  // nobody reads the ring any more
    const int token = warp * 16 + lane / 4;
#pragma unroll
    for (int i = 0; i < C::kOutputs / 2; i += 2) {
      const int row = token + i / 2 % 2 * 8;
      float* place = sums() + row * C::kSumStride + i / 4 * 8 + lane % 4 * 2;
      if (row < C::kTokens) *reinterpret_cast<float2*>(place) = {own[i], own[i + 1]};
    }
    if constexpr (C::kSplit > 1) publish_stores();
    sync_first_threads(kWarpgroup);
  }

  // For the weight rows from kFirst on, in as few instructions as their number has binary digits.
  template <int kFirst>
  __device__ void multiply_step(float (&own)[C::kOutputs / 2], uint64_t tokens, const char* weight, int part) const {
    constexpr int kLeft = C::kOutputs - kFirst;
    constexpr int kColumns = kLeft >= 128 ? 128 : kLeft >= 64 ? 64 : kLeft >= 32 ? 32 : kLeft >= 16 ? 16 : 8;
    auto& sums = *reinterpret_cast<float(*)[kColumns / 2]>(own + kFirst / 2);
    multiply_tiles(T{}, sums, tokens, operand_of(weight + kFirst * kRowBytes, part));
    if constexpr (kLeft > kColumns) multiply_step<kFirst + kColumns>(own, tokens, weight, part);
  }

  // Sends every other block its tokens' sums and waits for those of this block's.
  __device__ void hand_over() const {
    wait_for_cluster();  // all have made their barriers
    const int to = threadIdx.x;
    if (to < C::kSplit && to != rank_) {
      float* place = received() + (rank_ < to ? rank_ : rank_ - 1) * C::kOwnSums;
      send_bytes(address_at(place, to), sums() + to * C::kOwnSums, C::kOwnSums * sizeof(float),
                 address_at(&barriers().received, to));
    }
    wait_barrier(&barriers().received, 0);
  }

  __device__ void store() const {
    constexpr int kQuads = C::kOutputs / 4;
    for (int i = threadIdx.x; i < C::kOwnTokens * kQuads; i += kWarpgroup) {
      const int own = i / kQuads, token = rank_ * C::kOwnTokens + own, quad = i % kQuads * 4;
      const int output = first_output_ + quad;
      if (token >= params_.num_tokens || output >= params_.num_outputs) continue;
      float total[4] = {};
#pragma unroll
      for (int from = 0; from < C::kSplit; ++from) {
        const float* source = from == rank_ ? sums() + rank_ * C::kOwnSums
                                            : received() + (from < rank_ ? from : from - 1) * C::kOwnSums;
        const float4 part = *reinterpret_cast<const float4*>(source + own * C::kSumStride + quad);
        total[0] += part.x, total[1] += part.y, total[2] += part.z, total[3] += part.w;
      }
      T rounded[4];
#pragma unroll
      for (int k = 0; k < 4; ++k) {
        if (params_.bias) total[k] += to_float(static_cast<const T*>(params_.bias)[output + k]);
        rounded[k] = from_float<T>(total[k]);
      }
      T* place = static_cast<T*>(params_.out) + token * params_.out_stride + output;
      *reinterpret_cast<uint2*>(place) = *reinterpret_cast<const uint2*>(rounded);
    }
  }

  const TensorMap& weight_;
  const TensorMap& x_;
  const DenseLinearParams& params_;
  const int rank_, first_output_, first_step_, num_steps_;
};

#endif

template <typename T, typename C>
__global__ void __launch_bounds__(kThreads)
    dense_linear_kernel(const __grid_constant__ TensorMap weight, const __grid_constant__ TensorMap x,
                        const __grid_constant__ DenseLinearParams params) {
#if defined(__CUDA_ARCH_FEAT_SM90_ALL) || defined(SHADOW_EMULATED)
  Block<T, C>(weight, x, params).run();
#endif
}

}  // namespace shadow::dense_linear
