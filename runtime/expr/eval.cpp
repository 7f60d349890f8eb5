// The evaluator. Allocates nothing and takes no lock. Errors are reported by the functions in
// eval_errors.cpp.
#include <algorithm>
#include <cmath>
#include <cstring>

#include "arithmetic.h"
#include "base/device_facts.h"
#include "base/error.h"
#include "eval_errors.h"
#include "program.h"

namespace opaq::syntax {
namespace {

constexpr int64_t kLargestAlignment = 4096;

// The symbol's value; throws if it is not of this kind.
inline const Arg& checked(const Program& p, const Instruction& i, const Arg* args, Arg::Kind kind) {
  const Arg& arg = args[i.index];
  if (arg.kind != kind) [[unlikely]]
    wrong_argument(p, i.index, arg);
  return arg;
}
inline const TensorView& tensor(const Program& p, const Instruction& i, const Arg* args) {
  return checked(p, i, args, Arg::Kind::Tensor).tensor;
}

// Index into a list of `length`; negative ones count from the end, as in Python. -1: out of range.
inline int64_t position(int64_t index, int64_t length) {
  const int64_t wrapped = index < 0 ? index + length : index;
  return wrapped >= 0 && wrapped < length ? wrapped : -1;
}

inline int64_t dimension(const Program& p, const Instruction& i, const TensorView& t,
                         int64_t index) {
  const int64_t found = position(index, t.dim);
  if (found < 0) [[unlikely]]
    dimension_out_of_range(p, index, t.dim);
  return found;
}

inline int64_t bound(int64_t index, int64_t length) {  // of a slice: clamped, as in Python
  return std::clamp(index < 0 ? index + length : index, int64_t{0}, length);
}

inline bool is_aligned(const Program& p, const TensorView& t, int64_t bytes) {
  if (bytes < 1) [[unlikely]]
    bad_alignment(p, bytes);
  return reinterpret_cast<uintptr_t>(t.data) % static_cast<uintptr_t>(bytes) == 0;
}

inline int64_t alignment(const TensorView& t) {
  const auto address = static_cast<int64_t>(reinterpret_cast<uintptr_t>(t.data));
  return address == 0 ? kLargestAlignment : std::min(address & -address, kLargestAlignment);
}

int64_t fact(const Program& p, const Instruction& i, const TensorView& t) {
  try {
    return device_fact(static_cast<DeviceFact>(i.integer), t.device);
  } catch (const Error& error) {
    no_fact(p, error);
  }
}

inline bool same(const IntSpan& a, const IntSpan& b) {
  return a.size == b.size && std::equal(a.data, a.data + a.size, b.data);
}

int64_t float_to_int(const Program& p, double value) {
  // 2^63 is a double, INT64_MAX is not
  if (!(value >= -0x1p63 && value < 0x1p63) || value != std::trunc(value))
    does_not_fit(p, value, "int64");
  return static_cast<int64_t>(value);
}

double to_float32(const Program& p, double value) {
  const auto narrow = static_cast<float>(value);
  if (std::isinf(narrow) && !std::isinf(value)) does_not_fit(p, value, "float32");
  return narrow;
}

}  // namespace

Slot run(const Program& p, const Arg* args) {
  Slot stack[kStackSize + 1];
  Slot* top = stack;  // the last value; the operands of a binary operation are top[0] and top[1]
                      // once it is popped
  const Instruction* const begin = p.code.data();
  const Instruction* const end = begin + p.code.size();

  for (const Instruction* next = begin; next != end;) {
    const Instruction& i = *next++;
    switch (i.code) {
      case Code::Push:
        (++top)->integer = i.integer;
        break;
      case Code::PushS:
        (++top)->string = p.strings[static_cast<size_t>(i.index)];
        break;

      case Code::LoadInt:
        (++top)->integer = checked(p, i, args, Arg::Kind::Int).integer;
        break;
      case Code::LoadFloat: {
        const Arg& arg = args[i.index];
        (++top)->floating = arg.kind == Arg::Kind::Int
                                ? static_cast<double>(arg.integer)
                                : checked(p, i, args, Arg::Kind::Float).floating;
        break;
      }
      case Code::LoadBool:
        (++top)->integer = checked(p, i, args, Arg::Kind::Bool).boolean;
        break;
      case Code::LoadDType:
        (++top)->integer = static_cast<int64_t>(checked(p, i, args, Arg::Kind::DType).dtype);
        break;
      case Code::LoadString:
        (++top)->string = checked(p, i, args, Arg::Kind::String).string;
        break;
      case Code::LoadInts:
        (++top)->ints = checked(p, i, args, Arg::Kind::IntList).ints;
        break;
      case Code::LoadTensor: {  // an absent optional tensor is passed as a null address
        const Arg& arg = args[i.index];
        const bool absent =
            arg.kind == Arg::Kind::None && (*p.tree.symbols)[static_cast<size_t>(i.index)].optional;
        (++top)->tensor = absent ? nullptr : &tensor(p, i, args);
        break;
      }

      case Code::Numel:
        (++top)->integer = tensor(p, i, args).numel();
        break;
      case Code::SizeAt: {
        const TensorView& t = tensor(p, i, args);
        (++top)->integer = t.sizes[dimension(p, i, t, i.integer)];
        break;
      }
      case Code::Size: {
        const TensorView& t = tensor(p, i, args);
        top->integer = t.sizes[dimension(p, i, t, top->integer)];
        break;
      }
      case Code::StrideAt: {
        const TensorView& t = tensor(p, i, args);
        (++top)->integer = t.strides[dimension(p, i, t, i.integer)];
        break;
      }
      case Code::Stride: {
        const TensorView& t = tensor(p, i, args);
        top->integer = t.strides[dimension(p, i, t, top->integer)];
        break;
      }
      case Code::Dim:
        (++top)->integer = tensor(p, i, args).dim;
        break;
      case Code::DTypeOf:
        (++top)->integer = static_cast<int64_t>(tensor(p, i, args).dtype);
        break;
      case Code::ItemSize:
        (++top)->integer = itemsize(tensor(p, i, args).dtype);
        break;
      case Code::Shape: {
        const TensorView& t = tensor(p, i, args);
        (++top)->ints = {t.sizes, t.dim};
        break;
      }
      case Code::IsContiguous:
        (++top)->integer = tensor(p, i, args).is_contiguous();
        break;
      case Code::Data:
        (++top)->integer =
            static_cast<int64_t>(reinterpret_cast<uintptr_t>(tensor(p, i, args).data));
        break;
      case Code::Alignment:
        (++top)->integer = alignment(tensor(p, i, args));
        break;
      case Code::Fact:
        (++top)->integer = fact(p, i, tensor(p, i, args));
        break;
      case Code::AlignedTo:
        (++top)->integer = is_aligned(p, tensor(p, i, args), i.integer);
        break;
      case Code::Aligned:
        top->integer = is_aligned(p, tensor(p, i, args), top->integer);
        break;
      case Code::Defined:
        (++top)->integer = args[i.index].kind != Arg::Kind::None;
        break;

      case Code::NegI:
        if (__builtin_sub_overflow(int64_t{0}, top->integer, &top->integer)) [[unlikely]]
          overflow(p, "-", INT64_MIN);
        break;
      case Code::AbsI:
        if (top->integer < 0 && __builtin_sub_overflow(int64_t{0}, top->integer, &top->integer))
            [[unlikely]]
          overflow(p, "abs", INT64_MIN);
        break;
      case Code::AddI: {
        --top;
        const int64_t a = top[0].integer, b = top[1].integer;
        if (__builtin_add_overflow(a, b, &top->integer)) [[unlikely]]
          overflow(p, "+", a, b);
        break;
      }
      case Code::SubI: {
        --top;
        const int64_t a = top[0].integer, b = top[1].integer;
        if (__builtin_sub_overflow(a, b, &top->integer)) [[unlikely]]
          overflow(p, "-", a, b);
        break;
      }
      case Code::MulI: {
        --top;
        const int64_t a = top[0].integer, b = top[1].integer;
        if (__builtin_mul_overflow(a, b, &top->integer)) [[unlikely]]
          overflow(p, "*", a, b);
        break;
      }
      case Code::ExactDiv: {
        --top;
        const int64_t a = top[0].integer, b = top[1].integer;
        if (b == 0) [[unlikely]]
          division_by_zero(p, a, "/");
        if (!exact_div(a, b, &top->integer)) [[unlikely]]
          no_whole_number(p, a, b);
        break;
      }
      case Code::FloorDiv: {
        --top;
        const int64_t a = top[0].integer, b = top[1].integer;
        if (b == 0) [[unlikely]]
          division_by_zero(p, a, "//");
        if (!floor_div(a, b, &top->integer)) [[unlikely]]
          overflow(p, "//", a, b);
        break;
      }
      case Code::Mod: {
        --top;
        const int64_t a = top[0].integer, b = top[1].integer;
        if (b == 0) [[unlikely]]
          division_by_zero(p, a, "%");
        top->integer = floor_mod(a, b);
        break;
      }
      case Code::CeilDiv: {
        --top;
        const int64_t a = top[0].integer, b = top[1].integer;
        if (b == 0) [[unlikely]]
          division_by_zero(p, a, "ceil_div");
        if (!ceil_div(a, b, &top->integer)) [[unlikely]]
          overflow(p, "ceil_div", a, b);
        break;
      }
      case Code::NextPowerOf2: {
        const int64_t a = top->integer;
        if (!next_power_of_2(a, &top->integer)) [[unlikely]]
          overflow(p, "next_power_of_2", a);
        break;
      }
      case Code::MinI:
        --top;
        top->integer = std::min(top[0].integer, top[1].integer);
        break;
      case Code::MaxI:
        --top;
        top->integer = std::max(top[0].integer, top[1].integer);
        break;

      case Code::NegF:
        top->floating = -top->floating;
        break;
      case Code::AbsF:
        top->floating = std::fabs(top->floating);
        break;
      case Code::AddF:
        --top;
        top->floating = top[0].floating + top[1].floating;
        break;
      case Code::SubF:
        --top;
        top->floating = top[0].floating - top[1].floating;
        break;
      case Code::MulF:
        --top;
        top->floating = top[0].floating * top[1].floating;
        break;
      case Code::DivF:
        --top;
        if (top[1].floating == 0) [[unlikely]]
          division_by_zero(p, top[0].floating);
        top->floating = top[0].floating / top[1].floating;
        break;
      case Code::MinF:
        --top;
        top->floating = std::min(top[0].floating, top[1].floating);
        break;
      case Code::MaxF:
        --top;
        top->floating = std::max(top[0].floating, top[1].floating);
        break;

      case Code::EqI:
        --top;
        top->integer = top[0].integer == top[1].integer;
        break;
      case Code::NeI:
        --top;
        top->integer = top[0].integer != top[1].integer;
        break;
      case Code::LtI:
        --top;
        top->integer = top[0].integer < top[1].integer;
        break;
      case Code::LeI:
        --top;
        top->integer = top[0].integer <= top[1].integer;
        break;
      case Code::GtI:
        --top;
        top->integer = top[0].integer > top[1].integer;
        break;
      case Code::GeI:
        --top;
        top->integer = top[0].integer >= top[1].integer;
        break;
      case Code::EqF:
        --top;
        top->integer = top[0].floating == top[1].floating;
        break;
      case Code::NeF:
        --top;
        top->integer = top[0].floating != top[1].floating;
        break;
      case Code::LtF:
        --top;
        top->integer = top[0].floating < top[1].floating;
        break;
      case Code::LeF:
        --top;
        top->integer = top[0].floating <= top[1].floating;
        break;
      case Code::GtF:
        --top;
        top->integer = top[0].floating > top[1].floating;
        break;
      case Code::GeF:
        --top;
        top->integer = top[0].floating >= top[1].floating;
        break;
      case Code::EqS:
        --top;
        top->integer = top[0].string == top[1].string;
        break;
      case Code::NeS:
        --top;
        top->integer = top[0].string != top[1].string;
        break;
      case Code::EqL:
        --top;
        top->integer = same(top[0].ints, top[1].ints);
        break;
      case Code::NeL:
        --top;
        top->integer = !same(top[0].ints, top[1].ints);
        break;

      case Code::Not:
        top->integer = !top->integer;
        break;
      case Code::IntToFloat:
        top->floating = static_cast<double>(top->integer);
        break;
      case Code::IntToBool:
        top->integer = top->integer != 0;
        break;
      case Code::FloatToBool:
        top->integer = top->floating != 0;
        break;
      case Code::FloatToInt:
        top->integer = float_to_int(p, top->floating);
        break;
      case Code::CheckInt32:
        if (top->integer != static_cast<int32_t>(top->integer)) [[unlikely]]
          does_not_fit(p, top->integer, "int32");
        break;
      case Code::CheckUInt32:
        if (top->integer != static_cast<uint32_t>(top->integer)) [[unlikely]]
          does_not_fit(p, top->integer, "uint32");
        break;
      case Code::CheckUInt64:
        if (top->integer < 0) [[unlikely]]
          does_not_fit(p, top->integer, "uint64");
        break;
      case Code::CheckFloat32:
        top->floating = to_float32(p, top->floating);
        break;

      case Code::Index: {
        --top;
        const IntSpan list = top[0].ints;
        const int64_t index = top[1].integer, found = position(index, list.size);
        if (found < 0) [[unlikely]]
          index_out_of_range(p, index, list.size);
        top->integer = list.data[found];
        break;
      }
      case Code::Slice: {
        const Slot* bounds = top - ((i.flags & 1) + (i.flags >> 1)) + 1;
        top -= (i.flags & 1) + (i.flags >> 1);
        const IntSpan list = top->ints;
        const int64_t low = i.flags & 1 ? bound(bounds->integer, list.size) : 0;
        const int64_t high =
            i.flags & 2 ? bound(bounds[i.flags & 1].integer, list.size) : list.size;
        top->ints = {list.data + low, std::max(high - low, int64_t{0})};
        break;
      }
      case Code::Len:
        top->integer = top->ints.size;
        break;

      case Code::Jump:
        next = begin + i.index;
        break;
      case Code::JumpIfFalse:
        if (!(top--)->integer) next = begin + i.index;
        break;
      case Code::JumpAnd:
        if (!top->integer)
          next = begin + i.index;
        else
          --top;
        break;
      case Code::JumpOr:
        if (top->integer)
          next = begin + i.index;
        else
          --top;
        break;
    }
  }
  return *top;
}

}  // namespace opaq::syntax
