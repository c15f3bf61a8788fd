// Clusters, barriers and asynchronous copies on the CPU, in place of kernels/csrc/include/shadow/cluster.cuh.
#pragma once

namespace shadow {

inline emulator::Barrier& barrier_at(void* place) {
  return emulator::current->block->barriers[place];
}

template <typename T>
T* keep(T* place) {
  return place;
}

inline void hold(uint32_t&) {}

inline void prefetch(const void*) {}

inline void store_words(uint4* place, uint32_t x, uint32_t y, uint32_t z, uint32_t w) {
  *place = {x, y, z, w};
}

inline uint4 read_once(const void* place, bool is_used) {
  return is_used ? *static_cast<const uint4*>(place) : uint4{0, 0, 0, 0};
}

inline void init_barrier(uint64_t* place, int num_arrivals) {
  barrier_at(place) = {num_arrivals, num_arrivals, 0, 0};
}

inline void fence_barriers() {}

inline void expect_bytes(uint64_t* place, int num_bytes) {
  emulator::Barrier& barrier = barrier_at(place);
  barrier.bytes += num_bytes;
  --barrier.pending;
  emulator::complete(barrier);
}

inline void copy_chunk(void* target, const void* source) {
  if (reinterpret_cast<uintptr_t>(target) % 16 || reinterpret_cast<uintptr_t>(source) % 16) {
    std::fprintf(stderr, "copy_chunk: not on 16 bytes\n");
    std::abort();
  }
  emulator::current->chunks.push_back([=] { std::memcpy(target, source, 16); });
}

inline void copy_or_zero(void* target, const void* source, bool is_used) {
  if (reinterpret_cast<uintptr_t>(target) % 16 || (is_used && reinterpret_cast<uintptr_t>(source) % 16)) {
    std::fprintf(stderr, "copy_or_zero: not on 16 bytes\n");
    std::abort();
  }
  emulator::current->chunks.push_back([=] {
    is_used ? std::memcpy(target, source, 16) : std::memset(target, 0, 16);
  });
}

inline void commit_copies() {
  emulator::current->groups.push_back(std::move(emulator::current->chunks));
  emulator::current->chunks.clear();
}

// Copies come as late as they may.
template <int kLeft>
void wait_copies() {
  auto& groups = emulator::current->groups;
  for (; groups.size() > kLeft; groups.pop_front()) {
    for (const auto& copy : groups.front()) copy();
  }
}

// The thread's chunks may come at any time before its arrival: here with it.
inline void arrive_with_chunks(uint64_t* place) {
  emulator::Barrier* barrier = &barrier_at(place);
  emulator::current->block->cluster->in_flight.push_back([barrier, chunks = std::move(emulator::current->chunks)] {
    for (const auto& copy : chunks) copy();
    --barrier->pending;
    emulator::complete(*barrier);
  });
  emulator::current->chunks.clear();
}

inline void wait_barrier(uint64_t* place, int parity) {
  while (barrier_at(place).phase == parity) emulator::give_way();
}

inline void arrive_at_cluster() {
  ++emulator::current->num_cluster_arrivals;
  ++emulator::current->block->cluster->num_arrivals;
}

// Until all threads have arrived as often as this one.
inline void wait_for_cluster() {
  const emulator::Cluster& cluster = *emulator::current->block->cluster;
  const int num_threads = cluster.threads.size();
  while (cluster.num_arrivals < emulator::current->num_cluster_arrivals * num_threads) emulator::give_way();
}

inline int rank_in_cluster() { return emulator::current->block->rank; }
inline int cluster_index() {
  return blockIdx.x / static_cast<int>(emulator::current->block->cluster->blocks.size());
}

// A block's number in the cluster above its shared memory's offset.
inline uint32_t address_at(const void* place, int rank) {
  const char* shared = emulator::current->block->shared.data();
  return static_cast<uint32_t>(rank << 24 | (static_cast<const char*>(place) - shared));
}

template <size_t kCount>
void send_values(uint32_t target, std::array<float, kCount> values, uint32_t place) {
  emulator::Cluster* cluster = emulator::current->block->cluster;
  emulator::Block* block = cluster->blocks[target >> 24].get();
  char* shared = block->shared.data();
  char* written = shared + (target & 0xffffff);
  if (reinterpret_cast<uintptr_t>(written) % sizeof(values)) {
    std::fprintf(stderr, "send: not on %zu bytes\n", sizeof(values));
    std::abort();
  }
  emulator::Barrier* barrier = &block->barriers[shared + (place & 0xffffff)];
  cluster->in_flight.push_back([=] {
    std::memcpy(written, values.data(), sizeof(values));
    barrier->bytes -= sizeof(values);
    emulator::complete(*barrier);
  });
}

inline void send(uint32_t target, const float (&values)[4], uint32_t place) {
  send_values<4>(target, {values[0], values[1], values[2], values[3]}, place);
}

inline void send(uint32_t target, float value, uint32_t place) { send_values<1>(target, {value}, place); }

inline void wait_for_previous_kernel() {
  emulator::Previous& previous = emulator::previous;
  while (previous.is_running && ++previous.num_waits < emulator::kPreviousWaits) emulator::give_way();
  if (!previous.is_running) return;
  previous.is_running = false;
  previous.end();
}

inline void release_next_kernel() {}

}  // namespace shadow
