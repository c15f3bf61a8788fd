// Warpgroup products and tensor copies on the CPU, in place of kernels/csrc/include/shadow/warpgroup.cuh. Products read
// their operands as late as they may, when their group is waited for.
#pragma once

#include "shadow/cluster.cuh"
#include "shadow/tensor_core.cuh"

namespace shadow {

// A matrix of 2-byte numbers and the size of the boxes that are copied from it, 64 columns wide.
struct TensorMap {
  const uint16_t* data;
  int64_t num_rows, num_columns, stride;
  int box_rows;
};

constexpr int kWarpgroup = 128;

enum class Reuse { kNone, kAll };

inline int64_t offset_of(const void* place) {
  return static_cast<const char*>(place) - emulator::current->block->shared.data();
}

// Where byte `byte` of row `row` lies in a tile that begins at `offset`.
inline int64_t swizzled(int64_t offset, int row, int byte) {
  const int64_t place = offset + row * 128 + byte;
  return place ^ (place >> 7 & 7) << 4;
}

inline void copy_box(void* target, const TensorMap& map, int row, int column, uint64_t* place, Reuse) {
  emulator::Barrier* barrier = &barrier_at(place);
  emulator::Block* block = emulator::current->block;
  const int64_t offset = offset_of(target);
  if (offset % 1024) {
    std::fprintf(stderr, "copy_box: not on 1024 bytes\n");
    std::abort();
  }
  block->cluster->in_flight.push_back([=, &map] {
    for (int i = 0; i < map.box_rows; ++i) {
      for (int j = 0; j < 64; ++j) {
        const bool is_inside = row + i < map.num_rows && column + j < map.num_columns;
        const uint16_t number = is_inside ? map.data[(row + i) * map.stride + column + j] : 0;
        std::memcpy(block->shared.data() + swizzled(offset, i, 2 * j), &number, 2);
      }
    }
    barrier->bytes -= map.box_rows * 128;
    emulator::complete(*barrier);
  });
}

inline void send_bytes(uint32_t target, const void* source, int num_bytes, uint32_t place) {
  emulator::Cluster* cluster = emulator::current->block->cluster;
  emulator::Block* block = cluster->blocks[target >> 24].get();
  char* shared = block->shared.data();
  char* written = shared + (target & 0xffffff);
  if (reinterpret_cast<uintptr_t>(source) % 16 || (target & 15) || num_bytes % 16) {
    std::fprintf(stderr, "send_bytes: not on 16 bytes\n");
    std::abort();
  }
  emulator::Barrier* barrier = &block->barriers[shared + (place & 0xffffff)];
  // shared memory of a block that has ended belongs to somebody else
  const emulator::Block* sender = emulator::current->block;
  cluster->in_flight.push_back([=] {
    bool has_ended = true;
    for (const auto& thread : cluster->threads) has_ended = has_ended && (thread->block != sender || thread->is_done);
    has_ended ? std::memset(written, 0xff, num_bytes) : std::memcpy(written, source, num_bytes);
    barrier->bytes -= num_bytes;
    emulator::complete(*barrier);
  });
}

inline void publish_stores() {}

inline void arrive(uint64_t* place) {
  emulator::Barrier& barrier = barrier_at(place);
  --barrier.pending;
  emulator::complete(barrier);
}

inline void sync_first_threads(int num_threads) { emulator::pass(emulator::current->block->first_gate, num_threads); }

// The offset of the operand's first number; like the device's, its swizzle goes by the address.
inline uint64_t operand_of(const void* tile, int step) { return offset_of(tile) + 32 * step; }

inline void begin_products() {}

template <typename T, int kCount>
void multiply_tiles(T type, float (&sums)[kCount], uint64_t rows, uint64_t columns) {
  float* own = sums;
  const char* shared = emulator::current->block->shared.data();
  const int warp = emulator::current->index / emulator::kLanes % 4, lane = emulator::lane();
  emulator::current->products.push_back([=] {
    for (int i = 0; i < kCount; ++i) {
      const int row = 16 * warp + lane / 4 + i / 2 % 2 * 8, column = i / 4 * 8 + lane % 4 * 2 + i % 2;
      for (int k = 0; k < 16; ++k) {
        uint16_t numbers[2];
        std::memcpy(numbers, shared + swizzled(rows, row, 2 * k), 2);
        std::memcpy(numbers + 1, shared + swizzled(columns, column, 2 * k), 2);
        own[i] += half_of(type, numbers[0], 0) * half_of(type, numbers[1], 0);
      }
    }
  });
}

inline void commit_products() {
  emulator::current->product_groups.push_back(std::move(emulator::current->products));
  emulator::current->products.clear();
}

template <int kLeft>
void wait_products() {
  emulator::give_way();
  auto& groups = emulator::current->product_groups;
  for (; groups.size() > kLeft; groups.pop_front()) {
    for (const auto& product : groups.front()) product();
  }
  emulator::exchange({});  // the warp waits as one
}

template <int kCount>
void hold_sums(float (&)[kCount]) {}

}  // namespace shadow
