// Runs a CUDA kernel of thread block clusters on the CPU: every thread is a fiber, and a fiber gives way wherever the
// device could let others go first. Blocks start and warps fall behind each other at random, asynchronous copies arrive late and
// in any order, so a missing barrier shows as a wrong result, and fresh shared memory holds NaN.
//
// Covers what kernels/csrc uses and no more. Force-included before the kernels' headers.
#pragma once

#include <ucontext.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <numeric>
#include <random>
#include <vector>

#define __device__
#define __host__
#define __global__
#define __grid_constant__
#define __launch_bounds__(...)
#define __align__(bytes) alignas(bytes)
#define __CUDA_ARCH__ 900
#define SHADOW_EMULATED
#define shared_memory (emulator::current->block->shared.data())

struct dim3 {
  int x = 1, y = 1, z = 1;
};
struct alignas(8) int2 {
  int x, y;
};
struct alignas(8) uint2 {
  uint32_t x, y;
};
struct alignas(16) uint4 {
  uint32_t x, y, z, w;
};
struct alignas(8) float2 {
  float x, y;
};
struct alignas(16) float4 {
  float x, y, z, w;
};
inline uint4 make_uint4(uint32_t x, uint32_t y, uint32_t z, uint32_t w) { return {x, y, z, w}; }

namespace emulator {

constexpr int kLanes = 32, kStackBytes = 128 << 10, kWords = 8;
constexpr int kDeadlockRounds = 200000;

struct Gate {  // a barrier that threads pass together, again and again
  int arrived = 0;
  int64_t generation = 0;
};

struct Warp {
  Gate gate;
  uint32_t words[2][kLanes][kWords];
  bool is_late = false;
};

struct Barrier {  // an mbarrier
  int expected = 0, pending = 0, bytes = 0, phase = 0;
};

struct Cluster;

struct Block {
  Cluster* cluster;
  int rank;
  std::vector<char> shared;
  std::vector<Warp> warps;
  Gate gate, first_gate;  // of __syncthreads, and of its first threads
  int starts_at = 0;  // round
  std::map<const void*, Barrier> barriers;
};

struct Thread {
  ucontext_t context;
  std::unique_ptr<char[]> stack;
  Block* block;
  int index;
  bool is_done = false;
  std::vector<std::function<void()>> chunks;  // begun to be copied, with no arrival behind them yet
  std::deque<std::vector<std::function<void()>>> groups;
  int num_cluster_arrivals = 0;
  std::vector<std::function<void()>> products;  // of a warpgroup, begun and not committed
  std::deque<std::vector<std::function<void()>>> product_groups;
};

struct Cluster {
  std::vector<std::unique_ptr<Block>> blocks;
  std::vector<std::unique_ptr<Thread>> threads;
  std::deque<std::function<void()>> in_flight;
  int num_arrivals = 0;
};

inline Thread* current;
inline ucontext_t scheduler;
inline std::mt19937 random_bits;
inline std::function<void()> body;

// The kernel in front, as a cluster sees it: it runs from the cluster's start until its threads have waited for a while.
constexpr int kPreviousWaits = 2000;

struct Previous {
  std::function<void()> start, end;
  bool is_running = false;
  int num_waits = 0;
};
inline Previous previous;
inline int first_block, threads_per_block;
inline int most_delay = 1000;  // rounds, of a block behind its cluster

inline void give_way() { swapcontext(&current->context, &scheduler); }

inline void pass(Gate& gate, int num_threads) {
  const int64_t generation = gate.generation;
  if (++gate.arrived == num_threads) {
    gate.arrived = 0;
    ++gate.generation;
    return;
  }
  while (gate.generation == generation) give_way();
}

inline Warp& warp() { return current->block->warps[current->index / kLanes]; }
inline int lane() { return current->index % kLanes; }

// Hands words to all lanes of the warp; returns everybody's.
inline const uint32_t (*exchange(std::initializer_list<uint32_t> words))[kWords] {
  Warp& own = warp();
  auto& buffer = own.words[own.gate.generation & 1];
  std::copy(words.begin(), words.end(), buffer[lane()]);
  pass(own.gate, kLanes);
  return buffer;
}

inline void complete(Barrier& barrier) {
  if (barrier.pending != 0 || barrier.bytes != 0) return;
  barrier.phase ^= 1;
  barrier.pending = barrier.expected;
}

inline void thread_main() {
  body();
  current->is_done = true;
  give_way();
}

inline void start(Thread& thread) {
  thread.stack.reset(new char[kStackBytes]);
  getcontext(&thread.context);
  thread.context.uc_stack.ss_sp = thread.stack.get();
  thread.context.uc_stack.ss_size = kStackBytes;
  thread.context.uc_link = nullptr;
  makecontext(&thread.context, thread_main, 0);
}

inline bool chance(int one_in) { return random_bits() % one_in == 0; }

inline void deliver(Cluster& cluster) {
  while (!cluster.in_flight.empty() && !chance(4)) {
    const size_t at = random_bits() % cluster.in_flight.size();
    std::swap(cluster.in_flight[at], cluster.in_flight.back());
    cluster.in_flight.back()();
    cluster.in_flight.pop_back();
  }
}

// Returns whether all threads came to their end; false is a deadlock.
inline bool run_cluster(Cluster& cluster) {
  for (auto& thread : cluster.threads) start(*thread);
  for (auto& block : cluster.blocks) block->starts_at = chance(2) ? random_bits() % most_delay : 0;
  size_t num_done = 0;
  for (int round = 0; num_done < cluster.threads.size(); ++round) {
    if (round > kDeadlockRounds) return false;
    deliver(cluster);
    for (auto& block : cluster.blocks) {
      for (Warp& one : block->warps) {
        if (chance(16)) one.is_late = !one.is_late;
      }
    }
    for (auto& thread : cluster.threads) {
      if (thread->is_done || thread->block->starts_at > round) continue;
      current = thread.get();
      if (warp().is_late && !chance(32)) continue;
      swapcontext(&scheduler, &current->context);
      num_done += current->is_done;
    }
  }
  deliver(cluster);
  return cluster.in_flight.empty();  // else something wrote to a block that had ended
}

inline bool shuffles_clusters = false;  // else they run in the order of their numbers

// Runs kernel() for every cluster of the grid, one after the other.
inline bool launch(std::function<void()> kernel, int num_clusters, int num_blocks, int num_warps,
                   int shared_bytes, uint32_t seed) {
  body = std::move(kernel);
  random_bits.seed(seed);
  threads_per_block = num_warps * kLanes;
  std::vector<int> numbers(num_clusters);
  std::iota(numbers.begin(), numbers.end(), 0);
  if (shuffles_clusters) std::shuffle(numbers.begin(), numbers.end(), random_bits);
  for (int number : numbers) {
    Cluster cluster;
    first_block = number * num_blocks;
    for (int rank = 0; rank < num_blocks; ++rank) {
      auto block = std::make_unique<Block>();
      block->cluster = &cluster, block->rank = rank;
      block->shared.assign(shared_bytes, static_cast<char>(0xff));  // NaN in every type
      block->warps.resize(num_warps);
      for (int index = 0; index < threads_per_block; ++index) {
        auto thread = std::make_unique<Thread>();
        thread->block = block.get(), thread->index = index;
        cluster.threads.push_back(std::move(thread));
      }
      cluster.blocks.push_back(std::move(block));
    }
    previous.is_running = static_cast<bool>(previous.start), previous.num_waits = 0;
    if (previous.is_running) previous.start();
    if (!run_cluster(cluster)) return false;
    if (previous.is_running) previous.end();  // nobody waited, so nothing may have been written
  }
  return true;
}

struct ThreadIndex {
  struct X {
    operator int() const { return current->index; }
  } x;
};
struct BlockIndex {
  struct X {
    operator int() const { return first_block + current->block->rank; }
  } x;
};
struct BlockSize {
  struct X {
    operator int() const { return threads_per_block; }
  } x;
};

}  // namespace emulator

inline emulator::ThreadIndex threadIdx;
inline emulator::BlockIndex blockIdx;
inline emulator::BlockSize blockDim;

template <typename A, typename B>
inline auto min(A a, B b) { return b < a ? b : a; }
template <typename A, typename B>
inline auto max(A a, B b) { return a < b ? b : a; }

inline void __syncwarp() { emulator::exchange({}); }
inline void __syncthreads() { emulator::pass(emulator::current->block->gate, blockDim.x); }

inline uint32_t __float_as_uint(float x) {
  uint32_t word;
  std::memcpy(&word, &x, 4);
  return word;
}

inline float __uint_as_float(uint32_t word) {
  float x;
  std::memcpy(&x, &word, 4);
  return x;
}

inline float __shfl_xor_sync(unsigned, float x, int mask) {
  return __uint_as_float(emulator::exchange({__float_as_uint(x)})[emulator::lane() ^ mask][0]);
}

inline uint32_t __shfl_sync(unsigned, uint32_t word, int from) {
  return emulator::exchange({word})[from][0];
}

inline int __shfl_sync(unsigned, int x, int from) {
  return static_cast<int>(__shfl_sync(0, static_cast<uint32_t>(x), from));
}

inline float __shfl_sync(unsigned, float x, int from) {
  return __uint_as_float(__shfl_sync(0, __float_as_uint(x), from));
}

inline int __shfl_up_sync(unsigned, int x, int distance) {
  const auto words = emulator::exchange({static_cast<uint32_t>(x)});
  return static_cast<int>(words[max(0, emulator::lane() - distance)][0]);
}

inline int __reduce_add_sync(unsigned, int x) {
  const auto words = emulator::exchange({static_cast<uint32_t>(x)});
  int sum = 0;
  for (int lane = 0; lane < emulator::kLanes; ++lane) sum += static_cast<int>(words[lane][0]);
  return sum;
}

inline int __reduce_max_sync(unsigned, int x) {
  const auto words = emulator::exchange({static_cast<uint32_t>(x)});
  int most = x;
  for (int lane = 0; lane < emulator::kLanes; ++lane) {
    most = static_cast<int>(words[lane][0]) > most ? static_cast<int>(words[lane][0]) : most;
  }
  return most;
}

inline int __reduce_or_sync(unsigned, int x) {
  const auto words = emulator::exchange({static_cast<uint32_t>(x)});
  uint32_t all = 0;
  for (int lane = 0; lane < emulator::kLanes; ++lane) all |= words[lane][0];
  return static_cast<int>(all);
}

inline unsigned __ballot_sync(unsigned, bool is_true) {
  const auto words = emulator::exchange({is_true});
  unsigned mask = 0;
  for (int lane = 0; lane < emulator::kLanes; ++lane) mask |= words[lane][0] << lane;
  return mask;
}

template <typename T>
inline T __ldg(const T* place) {
  return *place;
}

template <typename T>
inline T __ldcg(const T* place) {
  return *place;
}

// A fiber goes on until it gives way, so this is one step, and writes come in order.
inline int atomicAdd(int* place, int value) {
  const int old = *place;
  *place += value;
  return old;
}

inline void __threadfence() {}

inline int __popc(unsigned x) { return __builtin_popcount(x); }

inline uint32_t __byte_perm(uint32_t x, uint32_t y, uint32_t selector) {
  const uint64_t bytes = static_cast<uint64_t>(y) << 32 | x;
  uint32_t word = 0;
  for (int i = 0; i < 4; ++i) {
    word |= static_cast<uint32_t>(bytes >> (8 * (selector >> (4 * i) & 7)) & 0xff) << (8 * i);
  }
  return word;
}

inline float rsqrtf(float x) { return 1.0f / std::sqrt(x); }
