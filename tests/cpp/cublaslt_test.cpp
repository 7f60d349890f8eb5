// Matrix products by cuBLASLt: what is declared, and what the library is told, by a fake library.
#include <dlfcn.h>

#include <cstring>

#include "../fake_cublaslt/fake.h"
#include "kinds/kind.h"
#include "refusal.h"
#include "standalone/matmul.h"

namespace opaq {
namespace {

using fake_cublaslt::Product;
using fake_cublaslt::Record;
using standalone::DlTensor;
using standalone::Matmul;
using standalone::MatmulRule;

Record& record() {
  static Record& found = [&]() -> Record& {
    // Its name is that of the library, so that opening the library finds it.
    void* opened = dlopen(OPAQ_FAKE_CUBLASLT, RTLD_NOW | RTLD_GLOBAL);
    EXPECT_NE(opened, nullptr) << dlerror();
    return *reinterpret_cast<Record* (*)()>(dlsym(opened, "fake_cublaslt_record"))();
  }();
  return found;
}

struct Tensor {
  std::vector<int64_t> sizes, strides;
  DlTensor view;
  Tensor(uintptr_t data, std::vector<int64_t> shape, uint8_t code = 4, uint8_t bits = 16)
      : sizes(std::move(shape)), strides(sizes.size(), 1) {
    for (size_t i = sizes.size() - 1; i-- > 0;) strides[i] = strides[i + 1] * sizes[i + 1];
    view = {reinterpret_cast<void*>(data),
            {standalone::kDlCuda, 0},
            static_cast<int32_t>(sizes.size()),
            {code, bits, 1},
            nullptr,
            nullptr,
            0};
  }
  const DlTensor* get() {
    view.shape = sizes.data();
    view.strides = strides.data();
    return &view;
  }
};

template <class T>
T value(const std::map<int32_t, std::string>& attributes, int32_t number) {
  T result{};
  const auto found = attributes.find(number);
  EXPECT_NE(found, attributes.end()) << "no attribute " << number;
  if (found != attributes.end()) std::memcpy(&result, found->second.data(), sizeof result);
  return result;
}

const Product& product(const Matmul& matmul, std::vector<const DlTensor*> operands,
                       std::vector<double> numbers = {}) {
  numbers.resize(operands.size());
  matmul(operands.data(), numbers.data(), reinterpret_cast<void*>(7));
  return record().products.back();
}

class CublasLt : public ::testing::Test {
 protected:
  void SetUp() override {
    Record& all = record();
    all.products.clear();
    all.heuristics = all.checks = 0;
    all.has_algorithm = true;
  }
};

TEST_F(CublasLt, RowMajorMatricesAreHandedOverAsTheirTransposes) {
  const Matmul matmul(MatmulRule("a b d workspace;"));
  Tensor a(0x1000, {3, 8}), b(0x2010, {8, 16}), d(0x3000, {3, 16}), w(0x4000, {4096}, 1, 8);
  const Product& p = product(matmul, {a.get(), b.get(), d.get(), w.get()});
  EXPECT_EQ(p.at_a, b.view.data);
  EXPECT_EQ(p.at_b, a.view.data);
  EXPECT_EQ(p.at_d, d.view.data);
  EXPECT_EQ(p.at_c, p.at_d);  // which beta = 0 does not read
  EXPECT_EQ(value<int32_t>(p.attributes, 3), 0);
  EXPECT_EQ(value<int32_t>(p.attributes, 4), 0);
  EXPECT_EQ(p.a.rows, 16u);
  EXPECT_EQ(p.a.columns, 8u);
  EXPECT_EQ(p.a.ld, 16);
  EXPECT_EQ(p.b.rows, 8u);
  EXPECT_EQ(p.b.columns, 3u);
  EXPECT_EQ(p.b.ld, 8);
  EXPECT_EQ(p.d.rows, 16u);
  EXPECT_EQ(p.d.columns, 3u);
  EXPECT_EQ(p.d.type, standalone::lt::kBFloat16);
  EXPECT_EQ(p.compute, standalone::lt::kComputeFloat32);
  EXPECT_EQ(p.workspace, w.view.data);
  EXPECT_EQ(p.workspace_bytes, 4096u);
  EXPECT_EQ(p.stream, reinterpret_cast<void*>(7));
  EXPECT_EQ(value<uint64_t>(record().preference, 1), 4096u);
  EXPECT_EQ(value<uint32_t>(record().preference, 5), 16u);   // of b: real alignments
  EXPECT_EQ(value<uint32_t>(record().preference, 6), 256u);  // of a
}

TEST_F(CublasLt, ATransposedViewIsALeadingDimension) {
  const Matmul matmul(MatmulRule("a b.t d;"));
  Tensor a(0x1000, {3, 8}), weight(0x2000, {16, 8}), d(0x3000, {3, 16});
  const Product& p = product(matmul, {a.get(), weight.get(), d.get()});
  EXPECT_EQ(value<int32_t>(p.attributes, 3), 1);
  EXPECT_EQ(p.a.rows, 8u);
  EXPECT_EQ(p.a.columns, 16u);
  EXPECT_EQ(p.a.ld, 8);
  // The same of a tensor that is a view already, and of rows that lie apart
  const Matmul plain(MatmulRule("a b d;"));
  Tensor view(0x2000, {8, 16});
  view.strides = {1, 20};
  const Product& q = product(plain, {a.get(), view.get(), d.get()});
  EXPECT_EQ(value<int32_t>(q.attributes, 3), 1);
  EXPECT_EQ(q.a.ld, 20);
}

TEST_F(CublasLt, AsksForAnAlgorithmOnceForEqualProducts) {
  const Matmul matmul(MatmulRule("a b.t d bias;"));
  for (const uintptr_t at : {0x1000, 0x5000, 0x9000}) {
    Tensor a(at, {3, 8}), b(0x2000, {16, 8}), d(0x3000, {3, 16}), bias(at + 0x100, {16});
    const Product& p = product(matmul, {a.get(), b.get(), d.get(), bias.get()});
    EXPECT_EQ(value<void*>(p.attributes, 8), bias.view.data);  // of this call
    EXPECT_EQ(value<int32_t>(p.attributes, 7), standalone::lt::kBias);
  }
  EXPECT_EQ(record().heuristics, 1);
  Tensor a(0x1002, {3, 8}), b(0x2000, {16, 8}), d(0x3000, {3, 16}), bias(0x6000, {16});
  product(matmul, {a.get(), b.get(), d.get(), bias.get()});  // another alignment
  EXPECT_EQ(record().heuristics, 2);
  const Product& p = product(matmul, {a.get(), b.get(), d.get(), nullptr});  // no bias
  EXPECT_EQ(value<int32_t>(p.attributes, 7), standalone::lt::kNone);
  EXPECT_EQ(record().heuristics, 3);
}

TEST_F(CublasLt, ManyMatricesAreABatchOrMoreRows) {
  const Matmul matmul(MatmulRule("a b d;"));
  Tensor a(0x1000, {5, 3, 8}), b(0x2000, {8, 16}), d(0x3000, {5, 3, 16});
  const Product& rows = product(matmul, {a.get(), b.get(), d.get()});
  EXPECT_EQ(rows.b.columns, 15u);
  EXPECT_TRUE(rows.b.attributes.empty());
  Tensor each(0x2000, {5, 8, 16});
  const Product& batch = product(matmul, {a.get(), each.get(), d.get()});
  EXPECT_EQ(batch.b.columns, 3u);
  EXPECT_EQ(value<int32_t>(batch.a.attributes, 5), 5);
  EXPECT_EQ(value<int64_t>(batch.a.attributes, 6), 128);
  a.strides = {100, 8, 1};  // rows that do not follow each other: one b for all
  const Product& apart = product(matmul, {a.get(), b.get(), d.get()});
  EXPECT_EQ(value<int32_t>(apart.a.attributes, 5), 5);
  EXPECT_EQ(value<int64_t>(apart.a.attributes, 6), 0);
  EXPECT_EQ(value<int64_t>(apart.b.attributes, 6), 100);
}

TEST_F(CublasLt, AllRowsOfAViewAreOneMatrix) {
  const Matmul matmul(MatmulRule("a.r.t b.r d;"));  // of a weight's gradient
  Tensor grad(0x1000, {5, 3, 16}), x(0x2000, {5, 3, 8}), d(0x3000, {16, 8});
  const Product& p = product(matmul, {grad.get(), x.get(), d.get()});
  EXPECT_EQ(p.a.rows, 8u);
  EXPECT_EQ(p.a.columns, 15u);
  EXPECT_EQ(value<int32_t>(p.attributes, 4), 1);
  EXPECT_EQ(p.b.rows, 16u);
  EXPECT_EQ(p.b.columns, 15u);
}

TEST_F(CublasLt, EpiloguesHoldBiasAndAux) {
  const Matmul forward(MatmulRule("a b d bias aux; epilogue=32"));
  Tensor a(0x1000, {4, 8}), b(0x2000, {8, 16}), d(0x3000, {4, 16}), bias(0x4000, {16}),
      aux(0x5000, {4, 16});
  const Product& p = product(forward, {a.get(), b.get(), d.get(), bias.get(), aux.get()});
  EXPECT_EQ(value<int32_t>(p.attributes, 7), 32 | 4 | 128);
  EXPECT_EQ(value<void*>(p.attributes, 11), aux.view.data);
  EXPECT_EQ(value<int64_t>(p.attributes, 12), 16);
  const Matmul backward(MatmulRule("a b d bias aux; epilogue=64"));
  const Product& q = product(backward, {a.get(), b.get(), d.get(), bias.get(), aux.get()});
  EXPECT_EQ(value<int32_t>(q.attributes, 7), 64 | 128 | 16);
  Tensor mask(0x5000, {4, 16}, 1, 8);  // a bit for each element, rows of 128
  const Matmul relu(MatmulRule("a b d aux; epilogue=2"));
  const Product& r = product(relu, {a.get(), b.get(), d.get(), mask.get()});
  EXPECT_EQ(value<int32_t>(r.attributes, 7), 2 | 128);
  EXPECT_EQ(value<int64_t>(r.attributes, 12), 128);
}

TEST_F(CublasLt, ScalesAndTypesOfNarrowFloats) {
  const Matmul matmul(
      MatmulRule("a b.t d a_scale b_scale d_scale; a_scale=3 b_scale=3 fast_accum=1"));
  Tensor a(0x1000, {16, 32}, 10, 8), b(0x2000, {16, 32}, 10, 8), d(0x3000, {16, 16}, 10, 8),
      sa(0x4000, {16}, 2, 32), sb(0x5000, {16}, 2, 32), sd(0x6000, {1}, 2, 32);
  const Product& p = product(matmul, {a.get(), b.get(), d.get(), sa.get(), sb.get(), sd.get()});
  EXPECT_EQ(value<void*>(p.attributes, 17), sb.view.data);  // its A is b
  EXPECT_EQ(value<void*>(p.attributes, 18), sa.view.data);
  EXPECT_EQ(value<void*>(p.attributes, 20), sd.view.data);
  EXPECT_EQ(value<int32_t>(p.attributes, 31), 3);
  EXPECT_EQ(value<int8_t>(p.attributes, 25), 1);
  EXPECT_EQ(p.d.type, standalone::lt::kFloat8E4M3);
  EXPECT_EQ(p.c.type, standalone::lt::kBFloat16);
  EXPECT_EQ(p.at_c, nullptr);
  EXPECT_EQ(value<int32_t>(p.attributes, 3), 1);  // both have K contiguous
  EXPECT_EQ(value<int32_t>(p.attributes, 4), 0);
}

TEST_F(CublasLt, AlphaAndBetaAreOfTheTypeOfTheSum) {
  const Matmul matmul(MatmulRule("a b c d alpha beta;"));
  Tensor a(0x1000, {4, 8}, 2, 64), b(0x2000, {8, 16}, 2, 64), c(0x3000, {4, 16}, 2, 64),
      d(0x4000, {4, 16}, 2, 64);
  const Product& p =
      product(matmul, {a.get(), b.get(), c.get(), d.get(), nullptr, nullptr}, {0, 0, 0, 0, 0.5, 2});
  double alpha = 0, beta = 0;
  std::memcpy(&alpha, p.alpha.data(), 8);
  std::memcpy(&beta, p.beta.data(), 8);
  EXPECT_EQ(alpha, 0.5);
  EXPECT_EQ(beta, 2);
  EXPECT_EQ(p.compute, standalone::lt::kComputeFloat64);
  EXPECT_EQ(p.at_c, c.view.data);
}

TEST_F(CublasLt, NothingIsDoneForEmptyResultsAndLargeSizesAreTaken) {
  const Matmul matmul(MatmulRule("a b d;"));
  Tensor a(0x1000, {0, 8}), b(0x2000, {8, 16}), d(0x3000, {0, 16});
  const DlTensor* operands[] = {a.get(), b.get(), d.get()};
  matmul(operands, nullptr, nullptr);
  EXPECT_TRUE(record().products.empty());
  const int64_t many = int64_t{1} << 32;
  Tensor large(0x1000, {many, 8}), result(0x3000, {many, 16});
  EXPECT_EQ(product(matmul, {large.get(), b.get(), result.get()}).b.columns, 1ull << 32);
}

TEST_F(CublasLt, SaysWhatItCannotDo) {
  const Matmul matmul(MatmulRule("a b d;"));
  Tensor a(0x1000, {3, 8}), b(0x2000, {9, 16}), d(0x3000, {3, 16});
  const auto message = [&]() -> std::string {
    const DlTensor* operands[] = {a.get(), b.get(), d.get()};
    try {
      matmul(operands, nullptr, nullptr);
    } catch (const standalone::Error& error) {
      EXPECT_EQ(error.kind, standalone::ErrorKind::Launch);
      return error.what();
    }
    return "";
  };
  EXPECT_EQ(message(), "`a` has 8 columns, and `b` 9 rows; they must be equal");
  b = Tensor(0x2000, {8, 16});
  d = Tensor(0x3000, {4, 16});
  EXPECT_EQ(message(), "`d` is 4 x 16; the product of `a` and `b` is 3 x 16");
  d = Tensor(0x3000, {3, 16});
  a.strides = {20, 2};
  EXPECT_EQ(message(),
            "`a` has strides (20, 2) in its last two dimensions; cuBLASLt needs one of them to be "
            "1 and no overlap: make it contiguous");
  a = Tensor(0x1000, {3, 8});
  record().has_algorithm = false;
  EXPECT_NE(message().find("cuBLASLt has no algorithm for it (CUBLAS_STATUS_NOT_SUPPORTED); the "
                           "product is 3 x 16 x 8, batch 1, of bfloat16 and bfloat16 to bfloat16"),
            std::string::npos)
      << message();
}

TEST_F(CublasLt, TakesAnotherAlgorithmThanTheFirstWhereAsked) {
  Tensor a(0x1000, {3, 8}), b(0x2000, {8, 16}), d(0x3000, {3, 16});
  const std::vector<const DlTensor*> operands = {a.get(), b.get(), d.get()};
  product(Matmul(MatmulRule("a b d;")), operands);
  EXPECT_EQ(record().requested, 1);
  product(Matmul(MatmulRule("a b d; algorithm=3")), operands);
  EXPECT_EQ(record().requested, 4);
}

// ---- declarations -------------------------------------------------------------------------------

ImplementationText declared(std::vector<std::pair<std::string, std::string>> roles) {
  ImplementationText text;
  text.device = "cuda";
  text.kind = "cublaslt";
  text.roles = std::move(roles);
  return text;
}

TEST_F(CublasLt, AKnownAlgorithmServesItsProductAndItsVersionOfTheLibrary) {
  Tensor a(0x1000, {3, 8}), b(0x2000, {8, 16}), d(0x3000, {3, 16}), other(0x3000, {3, 16}, 2, 32);
  Tensor w(0x4000, {4096}, 1, 8);
  const std::string rule = "a b d workspace; algorithm=2";
  const std::vector<const DlTensor*> operands{a.get(), b.get(), d.get(), w.get()};
  const std::vector<double> numbers(4);
  MatmulRule::Known known = Matmul(MatmulRule(rule.c_str())).known(operands.data(), numbers.data());
  EXPECT_EQ(known.version, 130400u);
  EXPECT_TRUE(record().products.empty());
  record().heuristics = 0;
  known.algorithm.data[0] = known.algorithm.data[7] = 0xfedcba9876543210;
  const auto with = [&] { return MatmulRule((rule + MatmulRule::text_of(known)).c_str()); };
  EXPECT_EQ(with().known.product, known.product);
  EXPECT_EQ(with().known.algorithm.data[7], known.algorithm.data[7]);
  const Matmul packaged(with());
  EXPECT_EQ(product(packaged, operands).algorithm, 0xfedcba9876543210);
  EXPECT_EQ(record().heuristics, 0);
  EXPECT_EQ(record().checks, 1);
  product(packaged, operands);
  EXPECT_EQ(record().checks, 1);
  // Another product, less alignment, a device that refuses it: as if nothing were known
  product(packaged, {a.get(), b.get(), other.get(), w.get()});
  EXPECT_EQ(record().heuristics, 1);
  EXPECT_EQ(record().requested, 3);
  Tensor low(0x1010, {3, 8});
  product(packaged, {low.get(), b.get(), d.get(), w.get()});
  EXPECT_EQ(record().heuristics, 2);
  record().workspace = 8192;
  product(Matmul(with()), operands);
  EXPECT_EQ(record().heuristics, 3);
  record().workspace = 4096;
  // Another version of the library counts its algorithms in another order
  known.version = 120900;
  product(Matmul(with()), operands);
  EXPECT_EQ(record().heuristics, 4);
  EXPECT_EQ(record().requested, 1);
}

TEST(CublasLtKind, TurnsRolesIntoAnArgumentList) {
  const OpSpec op = make_op("m::f(Tensor x, Tensor w, Tensor? b) -> (Tensor y)",
                            {OutputText{.shape = "x.size(0), w.size(0)", .dtype = "x.dtype"}});
  const Implementation made = make_implementation(op, declared({{"d", "y"},
                                                                {"a", "x"},
                                                                {"b", "w.t()"},
                                                                {"bias", "b"},
                                                                {"epilogue", "gelu"},
                                                                {"alpha", "0.5"}}));
  EXPECT_EQ(made.code, "a b.t d bias workspace alpha; epilogue=32");
  ASSERT_EQ(made.launch.args.size(), 6u);
  EXPECT_EQ(made.launch.args[1].text, "w");
  EXPECT_EQ(made.launch.args[4].text, "cublaslt_workspace");
  EXPECT_EQ(made.scratch.at(0).shape.at(0).text(), "33554432");
  EXPECT_EQ(made.needs_contiguous, (std::vector<bool>{false, false, true, false}));
}

TEST(CublasLtKind, RefusesWhatIsNoProduct) {
  const OpSpec op = make_op("m::f(Tensor x, Tensor w) -> (Tensor y)", {OutputText{.like = "x"}});
  const auto message = [&](std::vector<std::pair<std::string, std::string>> roles) {
    return refusal([&] { make_implementation(op, declared(std::move(roles))); });
  };
  const std::string owner = "m::f, implementation 'cuda', ";
  EXPECT_EQ(message({{"a", "x"}, {"d", "y"}}),
            owner +
                "b: not given; a matrix product needs a, b and d: name the tensors, as in "
                "a=\"x\", b=\"weight.t()\", d=\"y\"");
  const auto with = [&](std::string role, std::string given) {
    return message({{"a", "x"}, {"b", "w"}, {"d", "y"}, {std::move(role), std::move(given)}});
  };
  EXPECT_NE(with("bia", "w").find("did you mean 'bias'"), std::string::npos) << with("bia", "w");
  EXPECT_NE(with("epilogue", "glu").find("did you mean 'gelu'"), std::string::npos);
  EXPECT_EQ(with("epilogue", "gelu_backward"),
            owner + "epilogue: 'gelu_backward' needs aux, which the forward pass has written");
  EXPECT_EQ(with("beta", "2"), owner +
                                   "beta: given without c, which it multiplies; give c, or "
                                   "leave beta out");
  EXPECT_EQ(with("amax", "w"),
            "amax of m::f, implementation 'cuda': the product writes to it, and 'w' is an argument "
            "that the op only reads; give a result, or declare it Tensor(a!)");
}

}  // namespace
}  // namespace opaq
