// Argument packing: where each kernel parameter's value comes from and how it is written, decided
// once for an instance.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "argument_check.h"
#include "compile/image.h"
#include "subject.h"

namespace opaq {

class Packer {
 public:
  Packer() = default;

  // `params`: one for each item of the argument list. Throws Compile if the encoding of a parameter
  // cannot be known.
  Packer(const Subject& subject, std::vector<ParamType> params);

  size_t size() const { return slots_.size(); }

  // Writes the address of every parameter's value into `pointers`; values that are not constant go
  // to `values`. Both have room for size(). Throws Launch: a value does not fit, a tensor is of a
  // dtype the parameter does not take, or not on `device`.
  void pack(const Subject& subject, const Arg* args, Device device, uint64_t* values,
            void** pointers) const;

 private:
  enum class Source : uint8_t {
    Constant,
    TensorSymbol,
    Tensor,
    IntSymbol,
    Int,
    FloatSymbol,
    Float,
    Bool
  };
  struct Slot {
    Source source;
    Destination to;
    uint32_t dtypes = 0;  // tensors: accepted
    int symbol = -1;
    uint64_t constant = 0;
    Expr expr;
  };

  uint64_t address(const Subject& subject, size_t index, const TensorView& tensor,
                   Device device) const;
  uint64_t of_int(const Subject& subject, size_t index, int64_t value) const;
  uint64_t of_float(const Subject& subject, size_t index, double value) const;
  uint64_t evaluate(const Subject& subject, size_t index, const Arg* args) const;

  struct Texts {  // for messages
    std::string argument, parameter;
  };

  std::vector<Slot> slots_;
  std::vector<ParamType> params_;
  std::vector<Texts> texts_;
};

}  // namespace opaq
