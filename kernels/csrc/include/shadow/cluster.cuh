// Hopper's thread block clusters, programmatic dependent launch, and asynchronous copies, as thin names over PTX.
#pragma once

#include <cstdint>

namespace shadow {

__device__ inline uint32_t shared_address(const void* pointer) {
  return static_cast<uint32_t>(__cvta_generic_to_shared(pointer));
}

// The same place in shared memory, in a register: the compiler no longer knows how to find it anew at every use.
template <typename T>
__device__ inline T* keep(T* place) {
  uint32_t address = shared_address(place);
  asm volatile("" : "+r"(address));
  return static_cast<T*>(__cvta_shared_to_generic(address));
}

// The value stays in its register from here on; the compiler would find it anew where it is used.
__device__ inline void hold(uint32_t& value) { asm volatile("" : "+r"(value)); }

// Asks for a line to be brought to the L2 cache.
__device__ inline void prefetch(const void* place) {
  asm volatile("prefetch.global.L2 [%0];" ::"l"(place));
}

// Stores 16 bytes in one instruction; an assignment would become four.
__device__ inline void store_words(uint4* place, uint32_t x, uint32_t y, uint32_t z, uint32_t w) {
  asm volatile("st.global.v4.u32 [%0], {%1, %2, %3, %4};" ::"l"(place), "r"(x), "r"(y), "r"(z), "r"(w)
               : "memory");
}

// Reads 16 bytes that nothing writes and nobody reads again soon, or zeros. Stays where it stands among the waits.
__device__ inline uint4 read_once(const void* place, bool is_used) {
  uint4 words;
  asm volatile(
      "{\n\t.reg .pred used;\n\tsetp.ne.s32 used, %5, 0;\n\t"
      "mov.b32 %0, 0;\n\tmov.b32 %1, 0;\n\tmov.b32 %2, 0;\n\tmov.b32 %3, 0;\n\t"
      "@used ld.global.nc.L1::no_allocate.v4.u32 {%0, %1, %2, %3}, [%4];\n\t}"
      : "=&r"(words.x), "=&r"(words.y), "=&r"(words.z), "=&r"(words.w)
      : "l"(place), "r"(static_cast<int>(is_used)));
  return words;
}

// Starts copying 16 bytes from global to shared memory, or writes zeros; both sides lie on 16 bytes.
__device__ inline void copy_or_zero(void* target, const void* source, bool is_used) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(shared_address(target)), "l"(source),
               "r"(is_used ? 16 : 0)
               : "memory");
}

// What this thread has begun to copy since the last call is a group, an empty one perhaps.
__device__ inline void commit_copies() { asm volatile("cp.async.commit_group;" ::: "memory"); }

// Waits until all groups of this thread but the last kLeft are there.
template <int kLeft>
__device__ inline void wait_copies() {
  asm volatile("cp.async.wait_group %0;" ::"n"(kLeft) : "memory");
}

#if __CUDA_ARCH__ >= 900

__device__ inline void init_barrier(uint64_t* barrier, int num_arrivals) {
  asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(shared_address(barrier)),
               "r"(num_arrivals));
}

// Makes barriers visible to whoever sends to this block.
__device__ inline void fence_barriers() {
  asm volatile("fence.mbarrier_init.release.cluster;\n\tfence.proxy.async.shared::cta;" :::
                   "memory");
}

// One arrival, and num_bytes more to come before the barrier opens.
__device__ inline void expect_bytes(uint64_t* barrier, int num_bytes) {
  asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(
                   shared_address(barrier)),
               "r"(num_bytes)
               : "memory");
}

// Starts copying 16 bytes from global to shared memory; both sides lie on 16 bytes.
__device__ inline void copy_chunk(void* target, const void* source) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(shared_address(target)), "l"(source)
               : "memory");
}

// Arrives at the barrier when all chunks that this thread has begun to copy are there.
__device__ inline void arrive_with_chunks(uint64_t* barrier) {
  asm volatile("cp.async.mbarrier.arrive.noinc.shared::cta.b64 [%0];" ::"r"(shared_address(barrier)) : "memory");
}

__device__ inline void wait_barrier(uint64_t* barrier, int parity) {
  asm volatile(
      "{\n\t.reg .pred done;\n\t"
      "again%=: mbarrier.try_wait.parity.shared::cta.b64 done, [%0], %1;\n\t"
      "@!done bra again%=;\n\t}" ::"r"(shared_address(barrier)),
      "r"(parity)
      : "memory");
}

// The block has started and its barriers are ready; fence_barriers comes first. Relaxed: a release would wait for all of
// the block's global memory traffic.
__device__ inline void arrive_at_cluster() {
  asm volatile("barrier.cluster.arrive.relaxed.aligned;" ::: "memory");
}

__device__ inline void wait_for_cluster() {
  asm volatile("barrier.cluster.wait.aligned;" ::: "memory");
}

__device__ inline int rank_in_cluster() {
  int rank;
  asm("mov.u32 %0, %%cluster_ctarank;" : "=r"(rank));
  return rank;
}

__device__ inline int cluster_index() {
  int index;
  asm("mov.u32 %0, %%clusterid.x;" : "=r"(index));
  return index;
}

// The address that a place in this block's shared memory has in block `rank` of the cluster.
__device__ inline uint32_t address_at(const void* place, int rank) {
  uint32_t address;
  asm("mapa.shared::cluster.u32 %0, %1, %2;"
      : "=r"(address)
      : "r"(shared_address(place)), "r"(rank));
  return address;
}

// Stores to another block's shared memory and counts 16 bytes down on that block's barrier. Whoever waits there sees the
// values: no barrier of the whole cluster, no fence. Both sides lie on 16 bytes.
__device__ inline void send(uint32_t target, const float (&values)[4], uint32_t barrier) {
  asm volatile(
      "st.async.shared::cluster.mbarrier::complete_tx::bytes.v4.b32 [%0], {%1, %2, %3, %4}, [%5];" ::"r"(
          target),
      "r"(__float_as_uint(values[0])), "r"(__float_as_uint(values[1])),
      "r"(__float_as_uint(values[2])), "r"(__float_as_uint(values[3])), "r"(barrier)
      : "memory");
}

// The same with one value, which lies on 4 bytes.
__device__ inline void send(uint32_t target, float value, uint32_t barrier) {
  asm volatile("st.async.shared::cluster.mbarrier::complete_tx::bytes.b32 [%0], %1, [%2];" ::"r"(target),
               "r"(__float_as_uint(value)), "r"(barrier)
               : "memory");
}

// Waits for the kernel before this one in the stream; returns at once unless launched as its dependent.
__device__ inline void wait_for_previous_kernel() {
  asm volatile("griddepcontrol.wait;" ::: "memory");
}

// The next kernel may start its own prologue; it still waits for this one's results.
__device__ inline void release_next_kernel() { asm volatile("griddepcontrol.launch_dependents;"); }

#else  // below compute capability 9.0 nothing is launched with clusters or as a dependent

__device__ inline void init_barrier(uint64_t*, int) {}
__device__ inline void fence_barriers() {}
__device__ inline void expect_bytes(uint64_t*, int) {}
__device__ inline void copy_chunk(void*, const void*) {}
__device__ inline void arrive_with_chunks(uint64_t*) {}
__device__ inline void wait_barrier(uint64_t*, int) {}
__device__ inline void arrive_at_cluster() {}
__device__ inline void wait_for_cluster() {}
__device__ inline int rank_in_cluster() { return 0; }
__device__ inline int cluster_index() { return 0; }
__device__ inline uint32_t address_at(const void*, int) { return 0; }
__device__ inline void send(uint32_t, const float (&)[4], uint32_t) {}
__device__ inline void send(uint32_t, float, uint32_t) {}
__device__ inline void wait_for_previous_kernel() {}
__device__ inline void release_next_kernel() {}

#endif

}  // namespace shadow
