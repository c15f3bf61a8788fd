// The kernels as torch operators, over PyTorch's stable ABI: one build serves every PyTorch from 2.11 on.
// Arguments arrive checked (shadow_kernels/ops); shapes and strides are read here, nothing is verified again.
#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <optional>
#include <string>

#include "boundary.h"
#include "decode_attention.h"
#include "dense_linear.h"
#include "rms_norm.h"
#include "silu_and_mul.h"
#include "slot_linear.h"

namespace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

shadow::DataType data_type_of(ScalarType type) {
  switch (type) {
    case ScalarType::BFloat16:
      return shadow::DataType::kBFloat16;
    case ScalarType::Half:
      return shadow::DataType::kFloat16;
    case ScalarType::Float:
      return shadow::DataType::kFloat32;
    default:
      STD_TORCH_CHECK(false, "shadow_cuda takes bfloat16, float16 and float32");
  }
}

shadow::Stack stack_of(const Tensor& tensor) { return {tensor.data_ptr(), tensor.stride(0)}; }

const int* integers_of(const Tensor& tensor) { return static_cast<const int*>(tensor.data_ptr()); }

// Whether its rows lie less than 4 GB apart.
bool has_near_rows(const Tensor& tensor) {
  constexpr int64_t kMost = int64_t{1} << 32;
  return 0 <= tensor.stride(0) && tensor.stride(0) * static_cast<int64_t>(tensor.element_size()) < kMost;
}

bool is_wide(const Tensor& tensor) {
  const bool is_wide_address = reinterpret_cast<uintptr_t>(tensor.data_ptr()) % 16 == 0;
  return is_wide_address && tensor.stride(0) % 8 == 0 && tensor.size(tensor.dim() - 1) % 8 == 0;
}

// Whether rows of the residual stream and a norm's weight can be read eight columns at once.
bool takes_norm(const Tensor& hidden, const Tensor& residual, const Tensor& weight) {
  return is_wide(hidden) && is_wide(residual) && reinterpret_cast<uintptr_t>(weight.data_ptr()) % 16 == 0;
}

// Whether the operator has a kernel for these sizes on this device.
bool has_boundary(int64_t type, int64_t hidden_size, int64_t gate_size, int64_t rank,
                  int64_t device) {
  // what the separate kernels, which take any layout, do not hold, nothing holds
  return shadow::plan_boundary(static_cast<shadow::DataType>(type), hidden_size, gate_size, rank,
                               false, device)
      .is_supported;
}

void* stream_of(int device) {
  void* stream = nullptr;
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(device, &stream));
  return stream;
}

// With rms_weight, rms_norm(hidden + residual) follows: hidden becomes it and residual the sum; see add_rms_norm_.
void boundary_(Tensor hidden, std::optional<Tensor> residual, Tensor state, Tensor adapter_slots,
               Tensor token_order, Tensor slot_starts, Tensor tiles, Tensor flags, Tensor scale, Tensor norm_weight,
               Tensor norm_bias, Tensor update_in, Tensor update_in_bias, Tensor update_out,
               Tensor update_out_bias, Tensor down, Tensor up, int64_t num_tiles, std::optional<Tensor> rms_weight,
               double rms_eps) {
  bool has_wide_rows = has_near_rows(hidden) && has_near_rows(state) &&
                       (!residual || (is_wide(*residual) && has_near_rows(*residual)));
  for (const Tensor& tensor : {hidden, state, norm_weight, norm_bias, update_in, update_out,
                               update_out_bias, down, up}) {
    has_wide_rows = has_wide_rows && is_wide(tensor);
  }
  const shadow::DataType type = data_type_of(hidden.scalar_type());
  const int device = hidden.get_device_index();
  const torch::stable::accelerator::DeviceGuard guard(device);
  const shadow::BoundaryPlan plan = shadow::plan_boundary(
      type, hidden.size(1), update_in.size(2), down.size(1), has_wide_rows, device);
  STD_TORCH_CHECK(plan.is_supported, "shadow_cuda::boundary_ has no kernel for these sizes");

  shadow::BoundaryParams params = {};
  params.hidden = hidden.data_ptr(), params.hidden_stride = hidden.stride(0);
  if (residual) {
    params.residual = residual->data_ptr(), params.residual_stride = residual->stride(0);
  }
  params.state = state.data_ptr(), params.state_stride = state.stride(0);
  params.num_tokens = hidden.size(0), params.adapter_slots = integers_of(adapter_slots);
  params.token_order = integers_of(token_order), params.num_order = token_order.size(0);
  params.slot_starts = integers_of(slot_starts);
  params.tiles = integers_of(tiles), params.num_tiles = num_tiles;
  params.flags = integers_of(flags), params.num_slots = flags.size(0);
  params.scale = static_cast<const float*>(scale.data_ptr());
  params.norm_weight = stack_of(norm_weight), params.norm_bias = stack_of(norm_bias);
  params.update_in = stack_of(update_in), params.update_in_bias = stack_of(update_in_bias);
  params.update_out = stack_of(update_out), params.update_out_bias = stack_of(update_out_bias);
  params.down = stack_of(down), params.up = stack_of(up);
  if (rms_weight) {
    STD_TORCH_CHECK(residual && takes_norm(hidden, *residual, *rms_weight),
                    "shadow_cuda::boundary_ takes a norm for rows on 16 bytes with a residual");
    params.rms_weight = rms_weight->data_ptr(), params.rms_eps = static_cast<float>(rms_eps);
  }
  params.hidden_size = hidden.size(1);
  params.gate_size = update_in.size(2), params.rank = down.size(1);
  Tensor scratch;
  if (!plan.is_fused) {
    const int64_t num_reduced = num_tiles * shadow::reduced_floats(plan);
    scratch = torch::stable::new_empty(
        hidden, {num_reduced + num_tiles * shadow::projected_floats(plan)}, ScalarType::Float);
    params.reduced = static_cast<float*>(scratch.data_ptr());
    params.projected = params.reduced + num_reduced;
  }
  const cudaError_t error =
      shadow::launch_boundary(params, plan, type, static_cast<cudaStream_t>(stream_of(device)));
  STD_TORCH_CHECK(error == cudaSuccess, "shadow_cuda::boundary_: ", cudaGetErrorString(error));
}

// residual = hidden + residual; hidden = rms_norm(residual) * weight. Rows on 16 bytes, columns in whole groups of eight.
void add_rms_norm_(Tensor hidden, Tensor residual, Tensor weight, double eps) {
  STD_TORCH_CHECK(takes_norm(hidden, residual, weight),
                  "shadow_cuda::add_rms_norm_ takes rows on 16 bytes");
  const int device = hidden.get_device_index();
  const torch::stable::accelerator::DeviceGuard guard(device);
  shadow::RmsNormParams params = {};
  params.hidden = hidden.data_ptr(), params.hidden_stride = hidden.stride(0);
  params.residual = residual.data_ptr(), params.residual_stride = residual.stride(0);
  params.weight = weight.data_ptr(), params.eps = static_cast<float>(eps);
  params.num_tokens = hidden.size(0), params.hidden_size = hidden.size(1);
  const cudaError_t error = shadow::launch_add_rms_norm(params, data_type_of(hidden.scalar_type()),
                                                        static_cast<cudaStream_t>(stream_of(device)));
  STD_TORCH_CHECK(error == cudaSuccess, "shadow_cuda::add_rms_norm_: ", cudaGetErrorString(error));
}

int64_t most_rms_columns() { return shadow::most_rms_columns(); }

// out is written whole. num_groups, num_octets: as SlotLinearCut has them. Up to 8 tokens, bf16 and fp16, rows and slots of x and weight on 16
// bytes, inputs in whole groups of eight.
void slot_linear(Tensor out, Tensor x, Tensor weight, std::optional<Tensor> bias, std::optional<Tensor> extents,
                 int64_t num_chunks, Tensor adapter_slots, Tensor token_order, Tensor slot_starts, Tensor tiles,
                 int64_t first_slot, int64_t num_tiles, int64_t num_groups, int64_t num_octets) {
  const shadow::DataType type = data_type_of(x.scalar_type());
  STD_TORCH_CHECK(type != shadow::DataType::kFloat32 && is_wide(x) && is_wide(weight),
                  "shadow_cuda::slot_linear takes rows of bfloat16 and float16 on 16 bytes");
  const int device = x.get_device_index();
  const torch::stable::accelerator::DeviceGuard guard(device);
  shadow::SlotLinearParams params = {};
  params.x = x.data_ptr(), params.x_stride = x.stride(0);
  params.weight = weight.data_ptr(), params.weight_stride = weight.stride(0);
  if (bias) params.bias = bias->data_ptr(), params.bias_stride = bias->stride(0);
  if (extents) params.extents = integers_of(*extents), params.extents_stride = extents->stride(0);
  params.out = out.data_ptr();
  params.adapter_slots = integers_of(adapter_slots), params.token_order = integers_of(token_order);
  params.slot_starts = integers_of(slot_starts);
  params.tiles = integers_of(tiles), params.num_tiles = num_tiles;
  params.num_tokens = x.size(0), params.num_inputs = x.size(1), params.num_outputs = weight.size(1);
  params.first_slot = first_slot, params.num_class_slots = weight.size(0);
  params.chunk_rows = params.num_outputs / num_chunks;
  const shadow::SlotLinearCut cut = {static_cast<int>(num_groups), static_cast<int>(num_octets)};
  const cudaError_t error = shadow::launch_slot_linear(params, type == shadow::DataType::kFloat16, cut,
                                                       static_cast<cudaStream_t>(stream_of(device)));
  STD_TORCH_CHECK(error == cudaSuccess, "shadow_cuda::slot_linear: ", cudaGetErrorString(error));
}

// out = silu(x[:, :M]) * x[:, M:], M whole groups of eight; rows on 16 bytes.
void silu_and_mul(Tensor out, Tensor x) {
  STD_TORCH_CHECK(is_wide(x) && is_wide(out), "shadow_cuda::silu_and_mul takes rows on 16 bytes");
  const int device = x.get_device_index();
  const torch::stable::accelerator::DeviceGuard guard(device);
  shadow::SiluAndMulParams params = {};
  params.x = x.data_ptr(), params.x_stride = x.stride(0);
  params.out = out.data_ptr(), params.out_stride = out.stride(0);
  params.num_octets = out.size(1) / 8;
  const cudaError_t error = shadow::launch_silu_and_mul(params, x.size(0), data_type_of(x.scalar_type()),
                                                        static_cast<cudaStream_t>(stream_of(device)));
  STD_TORCH_CHECK(error == cudaSuccess, "shadow_cuda::silu_and_mul: ", cudaGetErrorString(error));
}

shadow::Matrix matrix_of(const Tensor& tensor) {
  return {tensor.data_ptr(), tensor.size(0), tensor.size(1), tensor.stride(0)};
}

int64_t most_dense_tokens(int64_t num_outputs, int64_t num_inputs, int64_t device) {
  const torch::stable::accelerator::DeviceGuard guard(device);
  return shadow::most_dense_tokens(num_outputs, num_inputs, device);
}

// out = x @ weight.T + bias, for up to most_dense_tokens tokens; bf16 and fp16, rows on 16 bytes.
void dense_linear(Tensor out, Tensor x, Tensor weight, std::optional<Tensor> bias) {
  const shadow::DataType type = data_type_of(x.scalar_type());
  STD_TORCH_CHECK(type != shadow::DataType::kFloat32 && is_wide(x) && is_wide(weight) && is_wide(out),
                  "shadow_cuda::dense_linear takes rows of bfloat16 and float16 on 16 bytes");
  const int device = x.get_device_index();
  const torch::stable::accelerator::DeviceGuard guard(device);
  shadow::DenseLinearParams params = {};
  if (bias) params.bias = bias->data_ptr();
  params.out = out.data_ptr(), params.out_stride = out.stride(0);
  params.num_tokens = x.size(0), params.num_outputs = weight.size(0);
  const cudaError_t error =
      shadow::launch_dense_linear(matrix_of(x), matrix_of(weight), params, type == shadow::DataType::kFloat16,
                                  static_cast<cudaStream_t>(stream_of(device)));
  STD_TORCH_CHECK(error == cudaSuccess, "shadow_cuda::dense_linear: ", cudaGetErrorString(error));
}

// out (T, H, D) = attention of query (T, H, D), one token a sequence. keys, values (pages, page_size, H_kv, D), both with the same
// strides; block_table (at least T, pages of a sequence), lengths (at least T). arrivals are zero and stay so; no other launch
// that may run at the same time has them.
void decode_attention(Tensor out, Tensor query, Tensor keys, Tensor values, Tensor block_table, Tensor lengths,
                      double scale, Tensor arrivals) {
  const bool is_half = data_type_of(query.scalar_type()) == shadow::DataType::kFloat16;
  const int device = query.get_device_index();
  const torch::stable::accelerator::DeviceGuard guard(device);
  const int head_size = query.size(2), num_kv_heads = keys.size(2);
  shadow::DecodeAttentionParams params = {};
  params.query = query.data_ptr(), params.query_stride = query.stride(0);
  params.out = out.data_ptr(), params.out_stride = out.stride(0);
  params.keys = keys.data_ptr(), params.values = values.data_ptr();
  params.page_stride = keys.stride(0), params.token_stride = keys.stride(1), params.head_stride = keys.stride(2);
  params.page_shift = std::countr_zero(static_cast<uint64_t>(keys.size(1)));
  params.block_table = integers_of(block_table), params.table_stride = block_table.stride(0);
  params.lengths = integers_of(lengths);
  params.num_sequences = query.size(0), params.num_kv_heads = num_kv_heads;
  params.group_size = query.size(1) / num_kv_heads;
  params.scale_log2 = static_cast<float>(scale * std::log2(std::exp(1.0)));
  const int64_t places = arrivals.size(0) / num_kv_heads;
  params.spare_pieces =
      std::min<int64_t>(places, shadow::spare_attention_pieces(head_size, num_kv_heads, is_half));
  STD_TORCH_CHECK(params.spare_pieces > 0, "shadow_cuda::decode_attention has no kernel for these sizes");
  params.arrivals = static_cast<int*>(arrivals.data_ptr());
  Tensor partial = torch::stable::new_empty(
      query, {shadow::partial_attention_floats(params.spare_pieces, num_kv_heads, params.group_size, head_size)},
      ScalarType::Float);
  params.partial = static_cast<float*>(partial.data_ptr());
  const cudaError_t error =
      shadow::launch_decode_attention(params, head_size, is_half, static_cast<cudaStream_t>(stream_of(device)));
  STD_TORCH_CHECK(error == cudaSuccess, "shadow_cuda::decode_attention: ", cudaGetErrorString(error));
}

}  // namespace

STABLE_TORCH_LIBRARY(shadow_cuda, m) {
  m.def(
      "has_boundary(int data_type, int hidden_size, int gate_size, int rank, int device) "
      "-> bool");
  m.def(
      "boundary_(Tensor(a!) hidden, Tensor(b!)? residual, Tensor(c!) state, Tensor adapter_slots, "
      "Tensor token_order, Tensor slot_starts, Tensor tiles, Tensor flags, Tensor scale, Tensor norm_weight, "
      "Tensor norm_bias, Tensor update_in, Tensor update_in_bias, Tensor update_out, "
      "Tensor update_out_bias, Tensor down, Tensor up, int num_tiles, Tensor? rms_weight, float rms_eps) -> ()");
  m.def("add_rms_norm_(Tensor(a!) hidden, Tensor(b!) residual, Tensor weight, float eps) -> ()");
  m.def("most_rms_columns() -> int");
  m.def(
      "slot_linear(Tensor(a!) out, Tensor x, Tensor weight, Tensor? bias, Tensor? extents, int num_chunks, "
      "Tensor adapter_slots, Tensor token_order, Tensor slot_starts, Tensor tiles, int first_slot, int num_tiles, "
      "int num_groups, int num_octets) -> ()");
  m.def("silu_and_mul(Tensor(a!) out, Tensor x) -> ()");
  m.def("dense_linear(Tensor(a!) out, Tensor x, Tensor weight, Tensor? bias) -> ()");
  m.def(
      "decode_attention(Tensor(a!) out, Tensor query, Tensor keys, Tensor values, Tensor block_table, Tensor lengths, "
      "float scale, Tensor(b!) arrivals) -> ()");
  m.def("most_dense_tokens(int num_outputs, int num_inputs, int device) -> int");
}

STABLE_TORCH_LIBRARY_IMPL(shadow_cuda, CUDA, m) {
  m.impl("boundary_", TORCH_BOX(&boundary_));
  m.impl("add_rms_norm_", TORCH_BOX(&add_rms_norm_));
  m.impl("slot_linear", TORCH_BOX(&slot_linear));
  m.impl("silu_and_mul", TORCH_BOX(&silu_and_mul));
  m.impl("dense_linear", TORCH_BOX(&dense_linear));
  m.impl("decode_attention", TORCH_BOX(&decode_attention));
}

STABLE_TORCH_LIBRARY_IMPL(shadow_cuda, CompositeExplicitAutograd, m) {
  m.impl("has_boundary", TORCH_BOX(&has_boundary));
  m.impl("most_rms_columns", TORCH_BOX(&most_rms_columns));
  m.impl("most_dense_tokens", TORCH_BOX(&most_dense_tokens));
}
