// PTX as nvcc writes it: which symbol a variable holds, and which kernels can go.
#include "../../runtime/compile/ptx_symbols.h"

#include <gtest/gtest.h>

using opaq::is_kernel;
using opaq::keep_kernel;
using opaq::take_address;

namespace {

constexpr const char* kPtx = R"(.version 9.0
.target sm_90a
.address_size 64

	// .weak	_Z1kIfEvPT_
.weak .global .align 1 .u8 parameters;
.global .align 8 .u64 opaq_entry_0 = _Z1kIfEvPT_;
.global .align 8 .u64 opaq_signature_0 = generic(parameters);

.visible .entry _Z1kIfEvPT_(
	.param .u64 .ptr .align 1 _Z1kIfEvPT__param_0
)
.maxntid 256
{
	.reg .b32 	%r<2>;
	// begin inline asm
	{
 .reg .pred p; // a } in a comment
 /* and { here */
}
	// end inline asm
	ret;

}
	// .globl	other
.visible .entry other(
	.param .u64 other_param_0
)
{
	ret;
}
.entry launched()
{
	ret;
}
.global .align 8 .u64 table = launched;
.func (.param .b32 func_retval0) _Z6helperv()
{
	ret;
}
)";

TEST(PtxSymbols, AnAddressIsReadAndItsVariableGoes) {
  std::string ptx = kPtx;
  EXPECT_EQ(take_address(ptx, "opaq_entry_0"), "_Z1kIfEvPT_");
  EXPECT_EQ(take_address(ptx, "opaq_signature_0"), "parameters");
  EXPECT_EQ(ptx.find("opaq_"), std::string::npos);
  EXPECT_NE(ptx.find("\n.weak .global .align 1 .u8 parameters;\n"), std::string::npos);
  EXPECT_EQ(take_address(ptx, "opaq_entry_0"), "");
}

TEST(PtxSymbols, AVariableThatDebugInformationNamesStays) {
  std::string ptx = std::string(kPtx) + ".section .debug_info { .b64 opaq_entry_0 }\n";
  EXPECT_EQ(take_address(ptx, "opaq_entry_0"), "_Z1kIfEvPT_");
  EXPECT_NE(ptx.find("opaq_entry_0 = "), std::string::npos);
}

TEST(PtxSymbols, OnlyEntriesAreKernels) {
  EXPECT_TRUE(is_kernel(kPtx, "_Z1kIfEvPT_"));
  EXPECT_TRUE(is_kernel(kPtx, "launched"));
  EXPECT_FALSE(is_kernel(kPtx, "_Z6helperv"));
  EXPECT_FALSE(is_kernel(kPtx, "_Z1kIfEvPT"));
  EXPECT_FALSE(is_kernel(kPtx, ""));
}

TEST(PtxSymbols, KernelsThatNothingUsesGo) {
  std::string ptx = kPtx;
  keep_kernel(ptx, "_Z1kIfEvPT_");
  EXPECT_TRUE(is_kernel(ptx, "_Z1kIfEvPT_"));
  EXPECT_TRUE(is_kernel(ptx, "launched"));  // by `table`
  EXPECT_FALSE(is_kernel(ptx, "other"));
  EXPECT_NE(ptx.find("// end inline asm\n\tret;\n\n}\n"), std::string::npos);
  EXPECT_NE(ptx.find("_Z6helperv()"), std::string::npos);
}

TEST(PtxSymbols, WhatIsCutShortIsLeftAlone) {
  std::string ptx = ".visible .entry k(\n)\n{\n\tret;\n";
  EXPECT_FALSE(is_kernel(ptx, "k"));
  keep_kernel(ptx, "other");
  EXPECT_EQ(ptx, ".visible .entry k(\n)\n{\n\tret;\n");
}

}  // namespace
