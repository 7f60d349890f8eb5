// Implementations: what a declaration of each kind says, and what is refused with which words.
#include "kinds/kind.h"
#include "refusal.h"

namespace opaq {
namespace {

// ---- declarations -------------------------------------------------------------------------------

const OpSpec& op() {
  static const OpSpec spec = make_op(kSchema, {{.like = "x"}});
  return spec;
}

ImplementationText cuda_text() {
  ImplementationText text;
  text.device = "cuda";
  text.kind = "source";
  text.code = "template <class T, int N> __global__ void f(T* y, const T* x, float eps) {}";
  text.file = "/home/a/f.cu";
  text.entry = "f<{x.dtype}, {x.size(-1)}>";
  text.grid = "x.numel() // x.size(-1)";
  text.block = "256";
  text.args = "y, x, eps";
  return text;
}

template <class Edit>
Implementation cuda_with(Edit edit) {
  ImplementationText text = cuda_text();
  edit(text);
  return make_implementation(op(), text);
}

TEST(Implementation, HoldsTheLaunchRule) {
  const Implementation cuda = cuda_with([](ImplementationText& t) {
    t.name = "cuda:vec4";
    t.block = "32, 4";
    t.cluster = "2";
    t.shared = "4 * x.size(-1)";
    t.requires_ = {"x.stride(-1) == 1", "aligned(x, 16)"};
    t.priority = 3;
    t.cooperative = true;
  });
  EXPECT_EQ(cuda.name, "cuda:vec4");
  EXPECT_EQ(cuda.target, DeviceType::CUDA);
  EXPECT_EQ(cuda.kind->name, "source");
  EXPECT_EQ(texts(cuda.launch.grid), (Texts{"x.numel() // x.size(-1)", "1", "1"}));
  EXPECT_EQ(texts(cuda.launch.block), (Texts{"32", "4", "1"}));
  EXPECT_EQ(texts(cuda.launch.cluster), (Texts{"2", "1", "1"}));
  EXPECT_EQ(cuda.launch.shared.text(), "4 * x.size(-1)");
  EXPECT_EQ(texts(exprs_of(cuda.launch.args)), (Texts{"y", "x", "eps"}));
  EXPECT_EQ(texts(cuda.requires_), (Texts{"x.stride(-1) == 1", "aligned(x, 16)"}));
  EXPECT_EQ(cuda.priority, 3);
  EXPECT_TRUE(cuda.launch.cooperative);
  EXPECT_FALSE(cuda.launch.programmatic);
}

TEST(Implementation, OfABinaryIsLinkedWhereTheBytesSayIt) {
  const auto kind_of = [](const std::string& code) {
    return cuda_with([&](ImplementationText& t) {
             t.kind = "binary";
             t.code = code;
             t.entry = "f";
           })
        .kind;
  };
  EXPECT_EQ(kind_of("\x7F"
                    "ELF")
                ->name,
            "binary");
  EXPECT_EQ(kind_of("\xED\x43\x4E\x7F")->name, "linked");
  EXPECT_TRUE(kind_of(write_link_inputs({{"k.ltoir", "\xED\x43\x4E\x7F"}}))->compiled);
}

TEST(Implementation, IsNamedAfterItsDeviceUnlessNamed) {
  EXPECT_EQ(make_implementation(op(), cuda_text()).name, "cuda");
  EXPECT_TRUE(make_implementation(op(), cuda_text()).launch.cluster.empty());
  EXPECT_REFUSED(
      cuda_with([](auto& t) { t.name = "my kernel"; }),
      "mylib::f: implementation name 'my kernel' is not accepted; use letters, digits and _ - . :");
}

TEST(Implementation, EachKindHasItsCode) {
  const auto make = [](const char* device, const char* kind) {
    ImplementationText text;
    text.device = device;
    text.kind = kind;
    text.code = "code";
    if (std::string_view(kind) != "python") text.entry = "f", text.args = "y, x";
    return make_implementation(op(), text);
  };
  const auto kind = [&](const char* device, const char* name) {
    const Implementation made = make(device, name);
    EXPECT_EQ(made.target, *device_type_from_name(device));
    EXPECT_EQ(made.kind->name, name);
    EXPECT_TRUE(made.kind->runs_on(made.target));
    return made.kind;
  };
  EXPECT_TRUE(kind("cuda", "source")->kernel);
  EXPECT_TRUE(kind("cuda", "source")->compiled);
  EXPECT_TRUE(kind("cuda", "binary")->kernel);
  EXPECT_FALSE(kind("cuda", "binary")->compiled);
  EXPECT_FALSE(kind("cpu", "source")->kernel);
  EXPECT_TRUE(kind("cpu", "source")->compiled);
  EXPECT_FALSE(kind("cuda", "library")->kernel);
  EXPECT_EQ(kind("cuda", "library"), kind("cpu", "library"));
  EXPECT_TRUE(kind("cpu", "library")->native);
  EXPECT_EQ(kind("cuda", "tvm_ffi"), kind("cpu", "tvm_ffi"));
  EXPECT_TRUE(kind("cpu", "tvm_ffi")->takes_tensors);
  EXPECT_FALSE(kind("cpu", "python")->native);
  EXPECT_EQ(kind("cuda", "python"), kind("cpu", "python"));
  EXPECT_REFUSED(
      make("gpu", "source"),
      "mylib::f: implementation on device 'gpu' is not supported; expected one of cuda, cpu");
  EXPECT_REFUSED(make("CUDA", "source"), "did you mean 'cuda'?");
  EXPECT_REFUSED(make("cuda", "sorce"),
                 "mylib::f: implementation of kind 'sorce' is not supported on device 'cuda'; "
                 "expected one of source, binary, library, tvm_ffi, python, function, cublaslt; "
                 "did you mean 'source'?");
  EXPECT_REFUSED(
      make("cpu", "binary"),
      "expected one of source, library, tvm_ffi, python, function; 'binary' (cubin, fatbin, PTX or "
      "LTO-IR bytes) is for "
      "cuda");
}

TEST(Implementation, RefusesWhatItsKindDoesNotUse) {
  ImplementationText cpu;
  cpu.device = "cpu";
  cpu.kind = "source";
  cpu.code = "void f(float*) {}";
  cpu.entry = "f";
  cpu.args = "y";
  ASSERT_NO_THROW(make_implementation(op(), cpu));
  const auto with = [&](auto edit) {
    ImplementationText text = cpu;
    edit(text);
    make_implementation(op(), text);
  };
  EXPECT_REFUSED(with([](auto& t) { t.grid = "2"; }),
                 "grid of mylib::f, implementation 'cpu': kind 'source' on device 'cpu' takes no "
                 "grid, got '2'; leave it out");
  EXPECT_REFUSED(with([](auto& t) { t.block = "256"; }), "takes no block, got '256'");
  EXPECT_REFUSED(with([](auto& t) { t.cluster = "2"; }), "takes no cluster, got '2'");
  EXPECT_REFUSED(with([](auto& t) { t.shared = "16"; }), "takes no shared, got '16'");
  EXPECT_REFUSED(with([](auto& t) { t.cooperative = true; }), "takes no cooperative");
  EXPECT_REFUSED(with([](auto& t) { t.kind = "library", t.options = {"-O3"}; }),
                 "kind 'library' on device 'cpu' takes no options, got '-O3'");
  EXPECT_REFUSED(with([](auto& t) { t.signature = "void(float*)"; }),
                 "kind 'source' on device 'cpu' takes no signature, got 'void(float*)'");
  EXPECT_REFUSED(with([](auto& t) { t.kind = "python"; }),
                 "kind 'python' on device 'cpu' takes no entry, got 'f'");
  EXPECT_REFUSED(with([](auto& t) { t.kind = "python", t.entry = ""; }), "takes no args, got 'y'");
  EXPECT_NO_THROW(
      with([](auto& t) { t.kind = "python", t.entry = "", t.args = "", t.requires_ = {"n > 1"}; }));
}

TEST(Implementation, RefusesWhatIsMissing) {
  EXPECT_REFUSED(cuda_with([](auto& t) { t.code = ""; }),
                 "code of mylib::f, implementation 'cuda': empty; kind 'source' on device 'cuda' "
                 "takes CUDA C++ source");
  EXPECT_REFUSED(
      cuda_with([](auto& t) { t.entry = " "; }),
      "entry of mylib::f, implementation 'cuda': not given; name the function that is called");
  EXPECT_REFUSED(
      cuda_with([](auto& t) { t.args = ""; }),
      "args of mylib::f, implementation 'cuda': empty; list the arguments of the "
      "function, in order; available are x, bias, cache, n, eps, mode, dtype, device, pad, y");
  EXPECT_REFUSED(cuda_with([](auto& t) { t.args = "x, eps"; }),
                 "output 'y' is not among them, so that nothing would write it; pass it");
  EXPECT_REFUSED(cuda_with([](auto& t) { t.args = "x, y.numel()"; }),
                 "output 'y' is not among them");
  EXPECT_NO_THROW(cuda_with([](auto& t) { t.args = "x, y.data"; }));
  EXPECT_REFUSED(cuda_with([](auto& t) { t.requires_ = {""}; }),
                 "requires of mylib::f, implementation 'cuda'");
}

TEST(Implementation, ChecksTheTypesOfItsExpressions) {
  EXPECT_REFUSED(cuda_with([](auto& t) { t.grid = "x.numel() * 1.5"; }),
                 "grid of mylib::f, implementation 'cuda': 'x.numel() * 1.5' has type float, "
                 "expected int; ints stay ints under + - * // % and ceil_div(a, b); "
                 "int64(...) takes a float that is a whole number");
  EXPECT_REFUSED(cuda_with([](auto& t) { t.shared = "x"; }),
                 "shared of mylib::f, implementation 'cuda': 'x' has type Tensor, expected int");
  EXPECT_REFUSED(cuda_with([](auto& t) { t.requires_ = {"x.size(0)"}; }),
                 "'x.size(0)' has type int, expected bool");
  EXPECT_REFUSED(cuda_with([](auto& t) { t.args = "y, pad"; }),
                 "'pad' has type int[], expected Tensor or int or float or bool; take one of its "
                 "items: pad[0]");
  EXPECT_REFUSED(
      cuda_with([](auto& t) { t.args = "y, mode"; }),
      "'mode' has type str, expected Tensor or int or float or bool; compare it: mode == 'mean'");
  EXPECT_REFUSED(cuda_with([](auto& t) { t.args = "y, x.dtype"; }),
                 "dtypes belong in the entry: f<{x.dtype}>");
  EXPECT_REFUSED(cuda_with([](auto& t) { t.args = "y, device"; }),
                 "'device' is a Device, which expressions cannot read and kernels cannot take");
  EXPECT_REFUSED(cuda_with([](auto& t) { t.args = "y, wieght"; }),
                 "args of mylib::f, implementation 'cuda': unknown name 'wieght'");
}

TEST(Implementation, ChecksConstantGeometry) {
  EXPECT_REFUSED(cuda_with([](auto& t) { t.grid = "1, 2, 3, 4"; }),
                 "grid of mylib::f, implementation 'cuda': '1, 2, 3, 4' has 4 items; expected 1 to "
                 "3: x, y, z");
  EXPECT_REFUSED(cuda_with([](auto& t) { t.grid = ""; }), "'' has 0 items");
  EXPECT_REFUSED(cuda_with([](auto& t) { t.grid = "0"; }),
                 "'0' is less than 1: nothing would ever run");
  EXPECT_REFUSED(
      cuda_with([](auto& t) { t.block = "2048"; }),
      "block of mylib::f, implementation 'cuda': 2048 threads; a block has at most 1024");
  EXPECT_REFUSED(cuda_with([](auto& t) { t.block = "64, n, 32"; }),
                 "2048 threads; a block has at most 1024");
  EXPECT_REFUSED(cuda_with([](auto& t) { t.block = "1, 1, 128"; }),
                 "dimension z is 128; the most is 64");
  EXPECT_REFUSED(cuda_with([](auto& t) { t.cluster = "32"; }),
                 "32 blocks; a cluster has at most 16");
  EXPECT_REFUSED(cuda_with([](auto& t) { t.shared = "-1"; }), "'-1' is negative");
  EXPECT_NO_THROW(cuda_with([](auto& t) { t.block = "min(1024, next_power_of_2(n))"; }));
}

TEST(Implementation, AsksForContiguityWhereNoStrideIsRead) {
  const auto needs = [](auto edit) {
    const Implementation implementation = cuda_with(edit);
    Texts names;
    const std::vector<Symbol> symbols = op().all_symbols();
    EXPECT_EQ(implementation.needs_contiguous.size(), symbols.size());
    for (size_t i = 0; i < symbols.size(); ++i) {
      if (implementation.needs_contiguous[i]) names.push_back(symbols[i].name);
    }
    return names;
  };
  EXPECT_EQ(needs([](auto&) {}), (Texts{"x", "bias", "cache"}));  // not y: its rule lays it out
  EXPECT_EQ(needs([](auto& t) { t.args = "y, x, x.stride(0)"; }), (Texts{"bias", "cache"}));
  EXPECT_EQ(needs([](auto& t) { t.requires_ = {"x.stride(-1) == 1 and cache.is_contiguous()"}; }),
            Texts{"bias"});
  EXPECT_EQ(needs([](auto& t) { t.entry = "f<{bias.stride(0) == 1}>"; }), (Texts{"x", "cache"}));
  EXPECT_EQ(needs([](auto& t) { t.grid = "x.stride(0)", t.shared = "cache.stride(0)"; }),
            Texts{"bias"});

  ImplementationText python;  // a Python function reads strides by itself
  python.device = "cpu";
  python.kind = "python";
  EXPECT_EQ(make_implementation(op(), python).needs_contiguous, std::vector<bool>(10, false));
}

TEST(Implementation, HashCoversEveryFieldButTheFolder) {
  const std::string base = make_implementation(op(), cuda_text()).hash;
  EXPECT_EQ(base.size(), 64u);
  EXPECT_EQ(cuda_with([](auto&) {}).hash, base);
  EXPECT_EQ(cuda_with([](auto& t) { t.file = "/srv/b/f.cu"; }).hash, base);
  EXPECT_EQ(cuda_with([](auto& t) { t.args = "y,x,eps"; }).hash, base);

  std::vector<std::string> hashes = {base};
  const auto differs = [&](auto edit) {
    const std::string hash = cuda_with(edit).hash;
    EXPECT_EQ(std::count(hashes.begin(), hashes.end(), hash), 0) << "change " << hashes.size();
    hashes.push_back(hash);
  };
  differs([](auto& t) { t.name = "cuda:2"; });
  differs([](auto& t) { t.kind = "binary"; });
  differs([](auto& t) { t.code += "\n"; });
  differs([](auto& t) { t.code += '\0'; });
  differs([](auto& t) { t.file = "/home/a/g.cu"; });
  differs([](auto& t) { t.options = {"-DA", "-DB"}; });
  differs([](auto& t) { t.options = {"-DA-DB"}; });
  differs([](auto& t) { t.include_dirs = {"-DA", "-DB"}; });
  differs([](auto& t) { t.entry = "f<{x.dtype}, 8>"; });
  differs([](auto& t) { t.grid = "n"; });
  differs([](auto& t) { t.block = "128"; });
  differs([](auto& t) { t.cluster = "2"; });
  differs([](auto& t) { t.shared = "128"; });
  differs([](auto& t) { t.args = "y, x"; });
  differs([](auto& t) { t.requires_ = {"n > 1"}; });
  differs([](auto& t) { t.priority = 1; });
  differs([](auto& t) { t.cooperative = true; });
  differs([](auto& t) { t.programmatic = true; });
}

// ---- kinds --------------------------------------------------------------------------------------

TEST(Kind, SaysWhatItIsAndHowItsCodeIsShown) {
  std::vector<std::string> names;
  for (const Kind* kind : kinds()) {
    names.push_back(std::string(kind->name) + " on " +
                    std::string(device_type_name(kind->devices.front())));
    EXPECT_FALSE(kind->article.empty());
  }
  EXPECT_EQ(names,
            (Texts{"source on cuda", "binary on cuda", "source on cpu", "library on cuda",
                   "tvm_ffi on cuda", "python on cuda", "function on cuda", "cublaslt on cuda"}));
  EXPECT_EQ(kinds()[0]->code_in_messages("abc"), "3 bytes, SHA-256 ba7816bf8f01...");
  EXPECT_EQ(kinds()[3]->code_in_messages("/lib/k.so"), "/lib/k.so");
}

TEST(Kind, ALibraryIsHeldToItsSignature) {
  ImplementationText text;
  text.device = "cpu";
  text.kind = "library";
  text.code = "libk.so";
  text.entry = "f";
  text.args = "y, x, n, eps";
  const auto with = [&](const char* signature, const char* device = "cpu") {
    ImplementationText changed = text;
    changed.signature = signature;
    changed.device = device;
    return make_implementation(op(), changed);
  };
  EXPECT_NO_THROW(with("void(float*, const float *, std::int64_t, double)"));
  EXPECT_NO_THROW(with(" void (float* , const struct mine*, unsigned short, float) "));
  EXPECT_NO_THROW(with("void(__half*, const __half*, size_t, double, cudaStream_t)", "cuda"));
  EXPECT_NE(with("void(float*, const float*, int, double)").hash, with("").hash);
  EXPECT_REFUSED(with("int(float*, const float*, int, double)"),
                 "signature of mylib::f, implementation 'cpu': 'int(float*, const float*, int, "
                 "double)' is not of the form void(types of the parameters), such as "
                 "void(const float*, float*, int64_t)");
  EXPECT_REFUSED(with("float*, float*"), "is not of the form void(");
  EXPECT_REFUSED(
      with("void(float*, const float*, int n, double)"),
      "parameter 3, 'int n', is neither a pointer nor an integer, float, double or bool; "
      "give types without the names of parameters");
  EXPECT_REFUSED(with("void(float*, const float*, __int128, double)"), "parameter 3, '__int128',");
  EXPECT_REFUSED(with("void(float*, const float*, int)"), "has 3 parameters; args lists 4");
  EXPECT_REFUSED(with("void()"), "'void()' has 0 parameters; args lists 4");
  EXPECT_REFUSED(with("void(float*, const float*, int, double)", "cuda"),
                 "on CUDA the function is called with the stream last, as cudaStream_t or void*");
  EXPECT_REFUSED(with("void(float*, const float*, double, void*)", "cuda"),
                 "has 4 parameters; args lists 4, and the stream comes last");
}

TEST(Kind, OnlyCompiledKindsHaveSources) {
  Implementation made = cuda_with([](auto&) {});
  EXPECT_FALSE(made.kind->sources(made).digest.empty());
  const std::string before = made.kind->sources(made).digest;
  made.code += " // more";
  EXPECT_NE(made.kind->sources(made).digest, before);
  made = cuda_with([](auto& t) { t.kind = "binary"; });
  EXPECT_EQ(made.kind->sources(made).digest, "");
}

TEST(Kind, AskedForCodeItDoesNotHaveIsOurBug) {
  const Implementation made = cuda_with([](auto&) {});
  try {
    made.kind->host_code("mylib::f", made, "f");
    FAIL() << "no error";
  } catch (const Error& error) {
    EXPECT_EQ(error.kind, ErrorKind::Internal);
    EXPECT_STREQ(error.what(),
                 "mylib::f: implementation `cuda` is CUDA C++ source, which has no host code");
  }
}

// ---- entry templates ----------------------------------------------------------------------------

EntryTemplate entry(const char* text) {
  return cuda_with([&](auto& t) { t.entry = text; }).launch.entry;
}

TEST(EntryTemplate, FillsInItsExpressions) {
  const EntryTemplate filled = entry(" f<{x.dtype}, { x.size(-1) }, {n > 1}> ");
  ASSERT_EQ(filled.template_args.size(), 3u);
  ASSERT_EQ(filled.pieces.size(), 4u);
  EXPECT_EQ(filled.text(), "f<{x.dtype}, {x.size(-1)}, {n > 1}>");
  const auto half = static_cast<int64_t>(DType::Float16);
  EXPECT_EQ(filled.fill({half, 4096, 1}, DeviceType::CUDA), "f<__half, 4096, true>");
  EXPECT_EQ(filled.fill({half, -1, 0}, DeviceType::CPU), "f<opaq::float16, -1, false>");
}

TEST(EntryTemplate, TakesPlainNamesAndEscapedBraces) {
  EXPECT_EQ(entry("ns::f").fill({}, DeviceType::CUDA), "ns::f");
  const EntryTemplate braces = entry("f<S{{{n}}}>");
  EXPECT_EQ(braces.fill({7}, DeviceType::CUDA), "f<S{7}>");
  EXPECT_EQ(braces.text(), "f<S{{{n}}}>");
  EXPECT_EQ(entry("f<{mode == '}'}>").template_args.size(), 1u);
}

TEST(EntryTemplate, RefusesBrokenExpressions) {
  EXPECT_REFUSED(entry("f<{x.dtype>"),
                 "entry of mylib::f, implementation 'cuda': '{' is not closed in 'f<{x.dtype>'; a "
                 "brace itself is written '{{'");
  EXPECT_REFUSED(entry("f<x.dtype}>"),
                 "'}' closes nothing in 'f<x.dtype}>'; a brace itself is written '}}'");
  EXPECT_REFUSED(entry("f<{ }>"),
                 "'{}' holds no expression in 'f<{ }>'; write one, such as {x.dtype}");
  EXPECT_REFUSED(entry("f<{eps}>"), "'eps' has type float, expected int or bool or dtype");
  EXPECT_REFUSED(entry("f<{x}>"), "'x' has type Tensor, expected int or bool or dtype");
  EXPECT_REFUSED(entry("f<{x.sixe(0)}>"), "did you mean 'size'?");
}

TEST(EntryTemplate, WrongValuesAreOurBug) {
  const EntryTemplate one = entry("f<{x.dtype}>");
  for (const std::vector<int64_t>& values : {std::vector<int64_t>{}, {1, 2}, {kDTypeCount}, {-1}}) {
    try {
      one.fill(values, DeviceType::CUDA);
      FAIL() << "no error";
    } catch (const Error& error) {
      EXPECT_EQ(error.kind, ErrorKind::Internal);
    }
  }
}

TEST(Values, StandForThemselvesInEveryExpression) {
  const OpSpec op = make_op("m::f(Tensor x) -> (Tensor y)", {OutputText{.like = "x"}});
  ImplementationText text;
  text.device = "cuda";
  text.kind = "source";
  text.code = "template <int B> __global__ void f(const float*, float*, int) {}";
  text.entry = "f<{BLOCK}>";
  text.grid = "ceil_div(x.numel(), BLOCK * VEC)";
  text.block = "BLOCK";
  text.args = "x, y, VEC";
  text.requires_ = {"x.numel() % VEC == 0"};
  text.values = {{"BLOCK", "256"}, {"VEC", "4"}};
  const Implementation made = make_implementation(op, text);
  EXPECT_EQ(made.launch.block[0].eval_int(nullptr), 256);
  EXPECT_EQ(made.launch.grid[0].text(), "ceil_div(x.numel(), 256 * 4)");
  EXPECT_EQ(made.launch.entry.template_args[0].eval_int(nullptr), 256);
  EXPECT_EQ(made.launch.args[2].expr.eval_int(nullptr), 4);
  EXPECT_EQ(made.requires_[0].text(), "x.numel() % 4 == 0");

  text.values = {{"x", "4"}};
  EXPECT_EQ(refusal([&] { make_implementation(op, text); }),
            "tune of m::f, implementation 'cuda': 'x' is an argument or a result; choose another "
            "name");
  text.values = {{"BLOCK", "256"}, {"VEC", "4"}, {"WARPS", "4"}};
  EXPECT_EQ(refusal([&] { make_implementation(op, text); }),
            "tune of m::f, implementation 'cuda': no expression uses 'WARPS'; write it where its "
            "value is meant, as in block=\"WARPS\", or leave it out");
}

}  // namespace
}  // namespace opaq
