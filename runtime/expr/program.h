// An expression flattened for evaluation: postfix instructions over a small stack, run on the path
// of every launch.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "ast.h"

namespace opaq::syntax {

// Suffix I: 64-bit integers (also bools and dtypes), F: doubles, S: strings, L: lists of integers.
enum class Code : uint8_t {
  Push,
  PushS,
  LoadInt,
  LoadFloat,
  LoadBool,
  LoadDType,
  LoadString,
  LoadInts,
  LoadTensor,
  Numel,
  Size,
  SizeAt,
  Stride,
  StrideAt,
  Dim,
  DTypeOf,
  ItemSize,
  Shape,
  IsContiguous,
  Data,
  Alignment,
  Aligned,
  AlignedTo,
  Fact,
  Defined,  // SizeAt, StrideAt, AlignedTo, Fact: the operand is in the instruction
  NegI,
  AbsI,
  AddI,
  SubI,
  MulI,
  ExactDiv,
  FloorDiv,
  Mod,
  CeilDiv,
  NextPowerOf2,
  MinI,
  MaxI,
  NegF,
  AbsF,
  AddF,
  SubF,
  MulF,
  DivF,
  MinF,
  MaxF,
  EqI,
  NeI,
  LtI,
  LeI,
  GtI,
  GeI,
  EqF,
  NeF,
  LtF,
  LeF,
  GtF,
  GeF,
  EqS,
  NeS,
  EqL,
  NeL,
  Not,
  IntToFloat,
  IntToBool,
  FloatToBool,
  FloatToInt,
  CheckInt32,
  CheckUInt32,
  CheckUInt64,
  CheckFloat32,
  Index,
  Slice,
  Len,
  Jump,
  JumpIfFalse,  // JumpIfFalse pops
  JumpAnd,
  JumpOr,  // jump and keep the operand when it decides; pop it otherwise
};

struct Instruction {
  Code code = Code::Push;
  uint8_t flags = 0;  // Slice: 1 a lower bound is on the stack, 2 an upper bound
  int32_t index = 0;  // symbol, string or jump target
  union {
    int64_t integer = 0;
    double floating;
  };
};

// A value on the stack. Bools and dtypes are integers, so that comparing them is comparing those.
union Slot {
  int64_t integer;
  double floating;
  IntSpan ints;
  std::string_view string;
  const TensorView* tensor;
  Slot() {}
};

inline constexpr int kStackSize = 32;

// Everything an Expr knows. Immutable once built.
struct Program {
  std::vector<Instruction> code;
  Type type = Type::Int;
  std::vector<std::string> strings;
  Tree tree;
  std::string text, what;
  std::shared_ptr<const Program>
      integer;  // of a Float: the same expression as an int, where only `/` of ints made it a Float
};

// Flattens the subtree under `root`; leaves tree, text and what to the caller. Empty when it needs
// more than kStackSize slots or is absurdly long.
std::optional<Program> flatten(const Tree& tree, int32_t root);

// Runs the instructions. `symbols` and the texts serve errors only. Throws Launch.
Slot run(const Program& program, const Arg* args);

}  // namespace opaq::syntax
