// Tensor maps: their element types, and where their numbers come from.
#include "tensor_map.h"

#include <array>

#include "driver/driver.h"

namespace opaq {

int tensor_map_type(const TensorMapRule& rule, DType dtype, const std::string& where) {
  const auto refuse = [&](const std::string& problem) {
    fail(ErrorKind::Launch, where + ": the tensor is " + std::string(name(dtype)) + ", " + problem);
  };
  if (rule.type >= 0) {
    if (dtype != DType::Float32) refuse("but type=\"" + rule.type_name + "\" is for float32");
    return rule.type;
  }
  if (rule.oob_fill != 0 && dtype != DType::Float16 && dtype != DType::BFloat16 &&
      dtype != DType::Float32 && dtype != DType::Float64)
    refuse("but oob_fill=\"nan\" is for float16, bfloat16, float32 and float64");
  switch (dtype) {
    case DType::Bool:
    case DType::UInt8:
    case DType::Int8:
    case DType::Float8E4M3FN:
    case DType::Float8E5M2:
    case DType::Float8E4M3FNUZ:
    case DType::Float8E5M2FNUZ:
    case DType::Float8E8M0FNU:
    case DType::Float4E2M1FNx2:  // as bytes of two
      return CU_TENSOR_MAP_DATA_TYPE_UINT8;
    case DType::UInt16:
    case DType::Int16:
      return CU_TENSOR_MAP_DATA_TYPE_UINT16;
    case DType::UInt32:
      return CU_TENSOR_MAP_DATA_TYPE_UINT32;
    case DType::Int32:
      return CU_TENSOR_MAP_DATA_TYPE_INT32;
    case DType::UInt64:
      return CU_TENSOR_MAP_DATA_TYPE_UINT64;
    case DType::Int64:
      return CU_TENSOR_MAP_DATA_TYPE_INT64;
    case DType::Float16:
      return CU_TENSOR_MAP_DATA_TYPE_FLOAT16;
    case DType::BFloat16:
      return CU_TENSOR_MAP_DATA_TYPE_BFLOAT16;
    case DType::Float32:
      return CU_TENSOR_MAP_DATA_TYPE_FLOAT32;
    case DType::Float64:
      return CU_TENSOR_MAP_DATA_TYPE_FLOAT64;
    case DType::Complex32:
    case DType::Complex64:
    case DType::Complex128:
      break;
  }
  refuse("which tensor maps do not have; pass torch.view_as_real(x)");
  return -1;
}

void check_holds_tensor_map(const PlacedValue& value) {
  using Kind = ParamType::Kind;
  const ParamType& type = value.type;
  const bool sized = type.size == 0 || type.size == static_cast<int>(sizeof(CUtensorMap));
  if ((type.kind == Kind::Struct || type.kind == Kind::Unknown) && sized && type.extents.empty())
    return;
  fail(ErrorKind::Compile, value.text + " is a tensor map, but " + describe(value.target, type) +
                               "; take it by value, as `const __grid_constant__ CUtensorMap`, and "
                               "check the order of args");
}

PreparedTensorMap::PreparedTensorMap(const Argument& argument, std::string where)
    : tensor_(argument.expr),
      rule_(argument.map),
      where_(std::move(where)),
      declared_{where_.c_str(), tensor_.text().c_str(), rule_->interleave,
                rule_->swizzle, rule_->l2_promotion,    rule_->oob_fill} {}

standalone::TensorMapSource PreparedTensorMap::source(const TensorView& tensor) const {
  return {tensor.data,
          tensor.dim,
          tensor.sizes,
          tensor.strides,
          tensor_map_type(*rule_, tensor.dtype, where_),
          itemsize(tensor.dtype)};
}

standalone::TensorMapContent PreparedTensorMap::content(
    const Arg* args, const standalone::TensorMapSource& source) const {
  using Items = std::array<int64_t, standalone::kMostTensorMapDims>;
  Items shape, strides, box, element_strides;
  const auto list = [&](const std::vector<Expr>& exprs, Items& items) {
    for (size_t i = 0; i < exprs.size(); ++i) items[i] = exprs[i].eval_int(args);
    return standalone::TensorMapList{items.data(),
                                     exprs.empty() ? -1 : static_cast<int64_t>(exprs.size())};
  };
  return standalone::tensor_map_content(declared_, source, list(rule_->shape, shape),
                                        list(rule_->strides, strides), list(rule_->box, box),
                                        list(rule_->element_strides, element_strides));
}

void PreparedTensorMap::put(const Arg* args, const TensorView& tensor, Device device,
                            unsigned char* to) {
  kept_.put(to, require_driver(), declared_, content(args, source(tensor)), device.index);
}

void PreparedTensorMap::check(const Arg* args, const TensorView& tensor) const {
  standalone::check_tensor_map(declared_, content(args, source(tensor)));
}

}  // namespace opaq
