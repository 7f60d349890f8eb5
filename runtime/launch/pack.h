// Argument packing: where each kernel parameter's value comes from and how it is written, decided
// once for an instance.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "argument_check.h"
#include "compile/image.h"
#include "subject.h"
#include "tensor_map.h"

namespace opaq {

class Packer {
 public:
  Packer() = default;

  // `params`: one for each item of the argument list. Throws Compile if the encoding of a parameter
  // cannot be known.
  Packer(const Subject& subject, std::vector<ParamType> params);

  size_t size() const { return count_; }
  size_t room() const { return room_; }  // of `values` below

  // Writes the address of every parameter's value into `pointers`, which has room for size(), and
  // values that are not constant into `values`, which is aligned to 64 bytes. Throws Launch if a
  // value does not fit, a parameter does not accept a tensor's dtype, or a tensor is not on
  // `device`.
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
    Bool,
    IntList,
    TensorMap,
    Struct,
    WholeTensor  // a DLTensor
  };
  struct Slot {
    Source source;
    Destination to;
    uint32_t dtypes = 0;  // tensors: accepted
    int symbol = -1;
    uint64_t constant = 0;  // of a tensor map: its index in tensor_maps_; of a WholeTensor: its
                            // place in `values`
    Expr expr;
  };
  struct Field {
    size_t slot;
    int64_t offset, count;
    int width;
  };
  struct Struct {
    std::string bytes;          // with the constants among its fields; the others are zero
    std::vector<Field> fields;  // that are written at each launch
    size_t at = 0;              // in `values`
  };

  Slot slot_of(const Subject& subject, size_t index) const;
  void fold(const Subject& subject, size_t index);
  void add_field(Struct& packed, size_t slot);

  uint64_t value(const Subject& subject, size_t index, const Arg* args, Device device) const;
  void pack_struct(const Subject& subject, const Struct& packed, const Arg* args, Device device,
                   unsigned char* to) const;
  void pack_list(const Field& field, const Arg* args, unsigned char* to) const;
  void pack_tensor_map(size_t slot, const Arg* args, Device device, unsigned char* to) const;
  // nullptr for an absent one. `to`: room for it.
  void* pack_tensor(size_t index, const Arg* args, Device device, void* to) const;
  uint64_t address(size_t index, const TensorView& tensor, Device device) const;
  uint64_t of_int(const Subject& subject, size_t index, int64_t value) const;
  uint64_t of_float(const Subject& subject, size_t index, double value) const;
  uint64_t evaluate(const Subject& subject, size_t index, const Arg* args) const;

  std::vector<Slot> slots_;          // of the parameters, then of fields
  std::vector<PlacedValue> placed_;  // of each slot, for messages
  std::vector<std::string> types_;   // "`int`", for messages
  std::vector<Struct> structs_;
  std::vector<std::unique_ptr<PreparedTensorMap>> tensor_maps_;
  size_t count_ = 0, room_ = 0;
};

}  // namespace opaq
