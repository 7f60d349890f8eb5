// Tensor maps among the values of an argument list: from the rule and a tensor to the bytes that a
// launch passes.
#pragma once

#include <string>

#include "expr/arg.h"
#include "placement.h"
#include "standalone/tensor_map.h"
#include "subject.h"

namespace opaq {

// The element type of a tensor map, as CUtensorMapDataType. Throws Launch, beginning with `where`,
// for a dtype that has none, or with which the rule's options do not go.
int tensor_map_type(const TensorMapRule& rule, DType dtype, const std::string& where);

// Where the map may go. Throws Compile if the parameter or field cannot hold one.
void check_holds_tensor_map(const PlacedValue& value);

// One tensor map of a prepared launch. Thread-safe.
class PreparedTensorMap {
 public:
  // where: PlacedValue::text, for messages.
  PreparedTensorMap(const Argument& argument, std::string where);

  // Writes the map's 128 bytes.
  void put(const Arg* args, const TensorView& tensor, Device device, unsigned char* to);

  // Throws Launch for what `put` would refuse whatever the device.
  void check(const Arg* args, const TensorView& tensor) const;

 private:
  standalone::TensorMapSource source(const TensorView& tensor) const;
  standalone::TensorMapContent content(const Arg* args,
                                       const standalone::TensorMapSource& source) const;

  const Expr tensor_;
  const std::shared_ptr<const TensorMapRule> rule_;
  const std::string where_;
  const standalone::DeclaredTensorMap declared_;
  standalone::KeptTensorMap kept_;
};

}  // namespace opaq
