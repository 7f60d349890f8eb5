// A matrix product by cuBLASLt, which is declared by what each tensor is to it: a, b and d of
// d = a b, and what its epilogue adds, scales or writes beside.
#include "kinds/cublaslt.h"

#include <algorithm>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "base/error.h"
#include "compile/library_place.h"
#include "kinds/kind.h"
#include "standalone/matmul.h"

namespace opaq {
namespace {

using standalone::DlTensor;
using standalone::Matmul;
using standalone::MatmulRule;
namespace lt = standalone::lt;

constexpr const char* kWorkspaceName = "cublaslt_workspace";
constexpr const char* kDefaultWorkspace = "33554432";  // what NVIDIA recommends for Hopper

struct Named {
  std::string_view name;
  int32_t number;
};
constexpr Named kEpilogues[] = {{"relu", lt::kRelu},           {"gelu", lt::kGelu},
                                {"relu_backward", lt::kDRelu}, {"gelu_backward", lt::kDGelu},
                                {"sum_a", lt::kBiasGradientB},  // its B is a
                                {"sum_b", lt::kBiasGradientA}};
constexpr Named kComputes[] = {
    {"float32", lt::kComputeFloat32},     {"tf32", lt::kComputeTF32},
    {"float16", lt::kComputeFloat16Fast}, {"bfloat16", lt::kComputeBFloat16Fast},
    {"float64", lt::kComputeFloat64},     {"int32", lt::kComputeInt32}};
// cublasLtMatmulMatrixScale_t
constexpr Named kScales[] = {{"tensor", 0},   {"row", 3},   {"vec128", 4},
                             {"block128", 5}, {"vec32", 2}, {"vec16", 1}};

// What is no role: how the product is made.
constexpr std::string_view kOptions[] = {"epilogue",     "compute",      "fast_accum",
                                         "a_scale_mode", "b_scale_mode", "d_out_scale_mode",
                                         "workspace"};

class Completion {
 public:
  Completion(ImplementationText text, const std::string& owner)
      : text_(std::move(text)), owner_(owner) {}

  ImplementationText take() {
    for (const auto& [role, given] : text_.roles) check_name(role);
    for (const char* role : {"a", "b", "d"}) {
      if (find(role).empty())
        refuse(role,
               "not given; a matrix product needs a, b and d: name the tensors, as in "
               "a=\"x\", b=\"weight.t()\", d=\"y\"");
    }
    std::string roles, args;
    const auto add = [&](const std::string& role, const std::string& argument) {
      roles += (roles.empty() ? "" : " ") + role;
      args += (args.empty() ? "" : ", ") + argument;
    };
    for (int i = 0; i < MatmulRule::Workspace; ++i) {
      const std::string role = MatmulRule::kNames[i];
      if (const std::string given = find(role); !given.empty()) {
        const View view = tensor(role, given);
        add(role + (view.rows ? ".r" : "") + (view.transposed ? ".t" : ""), view.name);
      }
    }
    add_workspace(add);
    for (const int i : {int{MatmulRule::Alpha}, int{MatmulRule::Beta}}) {
      const std::string role = MatmulRule::kNames[i];
      if (const std::string given = find(role); !given.empty()) add(role, "float64(" + given + ")");
    }
    if (!find("beta").empty() && find("c").empty())
      refuse("beta", "given without c, which it multiplies; give c, or leave beta out");
    text_.code = roles + ";" + options();
    text_.entry = "cublasLtMatmul";
    text_.args = args;
    for (const auto& [name, value] : text_.values) {
      if (name != "algorithm")
        refuse("tune", "got '" + name + "'; of a matrix product the algorithm may be chosen");
      text_.code += " algorithm=" + value;
    }
    require();
    text_.roles.clear();
    text_.values.clear();
    return std::move(text_);
  }

 private:
  [[noreturn]] void refuse(const std::string& role, const std::string& problem) const {
    fail(ErrorKind::Declaration, owner_ + ", " + role + ": " + problem);
  }

  std::string find(std::string_view role) const {
    for (const auto& [name, given] : text_.roles) {
      if (name == role) return std::string(spec::trimmed(given));
    }
    return "";
  }

  void check_name(const std::string& role) const {
    std::vector<std::string> names(std::begin(MatmulRule::kNames), std::end(MatmulRule::kNames));
    names.insert(names.end(), std::begin(kOptions), std::end(kOptions));
    if (std::ranges::find(names, role) == names.end())
      refuse(role, "a matrix product has no such part; its parts are " + join(names) +
                       did_you_mean(role, names));
  }

  struct View {
    std::string name;
    bool rows, transposed;  // as in MatmulRule
  };

  // "grad.flatten(0, -2).t()"
  View tensor(const std::string& role, const std::string& given) const {
    View view{given, false, false};
    const auto take = [&](std::string_view end) {
      if (!view.name.ends_with(end)) return false;
      view.name.resize(view.name.size() - end.size());
      return true;
    };
    view.transposed = take(".t()") || take(".mT");
    view.rows = take(".flatten(0, -2)");
    if ((view.transposed || view.rows) && role != "a" && role != "b")
      refuse(role, "'" + given + "': only a and b may be views; give the tensor as it is");
    return view;
  }

  template <class Add>
  void add_workspace(const Add& add) {
    const std::string given = find("workspace"), bytes = given.empty() ? kDefaultWorkspace : given;
    if (bytes == "0") return;
    text_.scratch.push_back({.name = kWorkspaceName, .like = "", .shape = bytes, .dtype = "uint8"});
    add("workspace", kWorkspaceName);
  }

  template <size_t N>
  std::string option(const std::string& name, const Named (&choices)[N],
                     const std::string& key) const {
    const std::string given = find(name);
    if (given.empty()) return "";
    std::vector<std::string> names;
    for (const Named& choice : choices) {
      if (choice.name == given) return " " + key + "=" + std::to_string(choice.number);
      names.emplace_back(choice.name);
    }
    refuse(name,
           "got '" + given + "'; expected one of " + join(names) + did_you_mean(given, names));
  }

  std::string options() const {
    const std::string epilogue = find("epilogue");
    if (epilogue.ends_with("backward") && find("aux").empty())
      refuse("epilogue", "'" + epilogue + "' needs aux, which the forward pass has written");
    if (epilogue.starts_with("sum_") && find("bias").empty())
      refuse("epilogue", "'" + epilogue + "' needs bias, to which the sums are written");
    for (const char* role : {"a_scale", "b_scale", "d_out_scale"}) {
      if (!find(std::string(role) + "_mode").empty() && find(role).empty())
        refuse(std::string(role) + "_mode", std::string("given without ") + role);
    }
    return option("epilogue", kEpilogues, "epilogue") + option("compute", kComputes, "compute") +
           option("a_scale_mode", kScales, "a_scale") + option("b_scale_mode", kScales, "b_scale") +
           option("d_out_scale_mode", kScales, "d_out_scale") +
           (find("fast_accum").empty() ? "" : " fast_accum=1");
  }

  // What cuBLASLt cannot do is left to the op's next implementation.
  void require() {
    require_dtypes(tensor("a", find("a")).name + ".dtype", tensor("b", find("b")).name + ".dtype");
    for (const char* role : {"a", "b"}) {
      const View view = tensor(role, find(role));
      const auto each = [&](std::string text) {
        for (size_t at = text.find('$'); at != std::string::npos; at = text.find('$'))
          text.replace(at, 1, view.name);
        text_.requires_.push_back(text);
      };
      each("$.dim() >= 2");
      if (view.rows)
        each("$.is_contiguous() or ($.dim() == 2 and ($.stride(0) == 1 or $.stride(1) == 1))");
      else
        each("$.stride(-1) == 1 or $.stride(-2) == 1 or $.size(-1) == 1 or $.size(-2) == 1");
      if (role[0] == 'a')
        each(!view.transposed ? "$.size(-1) > 0" : view.rows ? "$.numel() > 0" : "$.size(-2) > 0");
    }
  }

  // One dtype, or two of float8.
  void require_dtypes(const std::string& a, const std::string& b) {
    const auto one_of = [](const std::string& dtype, std::initializer_list<const char*> names) {
      std::string text;
      for (const char* name : names) text += (text.empty() ? "" : " or ") + dtype + " == " + name;
      return text;
    };
    const auto float8 = [&](const std::string& dtype) {
      return "(" + one_of(dtype, {"float8_e4m3fn", "float8_e5m2"}) + ")";
    };
    text_.requires_.push_back(
        "(" + a + " == " + b + " and (" +
        one_of(a, {"float16", "bfloat16", "float32", "float64", "int8", "float4_e2m1fn_x2"}) +
        ")) or (" + float8(a) + " and " + float8(b) + ")");
  }

  ImplementationText text_;
  const std::string& owner_;
};

LibraryPlace place() {
  return find_library({.stem = "libcublasLt.so",
                       .title = "cuBLASLt, the CUDA library of matrix products,",
                       .variable = "",
                       .given = "",
                       .advice = [] { return std::string("pip install nvidia-cublas"); },
                       .loaded = true});
}

// nullptr where there is none
const char* library_path() {
  static const std::string found = place().path;
  return found.empty() ? nullptr : found.c_str();
}

struct Product : HostFunction {
  explicit Product(const Implementation& implementation)
      : matmul(rule(implementation), library_path()) {
    for (const Argument& argument : implementation.launch.args)
      is_tensor.push_back(argument.expr.type() == Type::Tensor);
    invoke = [](void** values) { (*static_cast<const Product* const*>(values[0]))->call(values); };
  }

  static MatmulRule rule(const Implementation& implementation) {
    return MatmulRule(implementation.code.c_str());
  }

  // `values` are the product, the arguments and the stream.
  void call(void** values) const {
    const Operands operands(*this, values + 1);
    matmul(operands.tensors, operands.numbers,
           *static_cast<void* const*>(values[1 + is_tensor.size()]));
  }

  struct Operands {
    Operands(const Product& product, void** values) {
      for (size_t i = 0; i < product.is_tensor.size(); ++i) {
        if (product.is_tensor[i])
          tensors[i] = static_cast<const DlTensor*>(values[i]);
        else
          numbers[i] = *static_cast<const double*>(values[i]);
      }
    }
    const DlTensor* tensors[MatmulRule::kRoles];
    double numbers[MatmulRule::kRoles];
  };

  const Matmul matmul;
  std::vector<bool> is_tensor;
};

class CublasLt final : public Kind {
 public:
  CublasLt()
      : Kind({.name = "cublaslt",
              .article = "a matrix product by cuBLASLt",
              .code = "the roles of tensors",
              .devices = {DeviceType::CUDA},
              .takes_tensors = true,
              .takes_roles = true}) {}

  ImplementationText completed(ImplementationText text, const std::string& owner) const override {
    return Completion(std::move(text), owner).take();
  }

  void check(const spec::Scope& scope, const Implementation& implementation) const override {
    const MatmulRule rule(implementation.code.c_str());
    for (int i = 0; i < MatmulRule::Workspace; ++i) {
      if (rule.item[i] < 0) continue;
      const auto role = static_cast<MatmulRule::Role>(i);
      const Argument& argument = implementation.launch.args[static_cast<size_t>(rule.item[i])];
      const int symbol = argument.expr.argument();
      if (argument.expr.type() != Type::Tensor || symbol < 0)
        scope.fail(MatmulRule::kNames[i], "'" + argument.text +
                                              "' is no tensor by its name; name an argument or a "
                                              "result, as in \"x\" or \"weight.t()\"");
      if (is_written(rule, role) && !scope.symbols[static_cast<size_t>(symbol)].written)
        scope.fail(MatmulRule::kNames[i], "the product writes to it, and '" + argument.text +
                                              "' is an argument that the op only reads; give a "
                                              "result, or declare it Tensor(a!)");
    }
  }

  std::string code_in_messages(const std::string& code) const override { return code; }

  HostCode host_code(const std::string&, const Implementation& implementation,
                     const std::string&) const override {
    const auto product = std::make_shared<const Product>(implementation);
    HostCode code{product, param_types(implementation)};
    code.address = reinterpret_cast<uint64_t>(product.get());
    return code;
  }

  WrapperHostCode wrapper_code(const std::string&, const Implementation& implementation,
                               const std::string&) const override {
    WrapperHostCode code;
    code.params = param_types(implementation);
    code.matmul = implementation.code;
    return code;
  }

  std::string known_algorithm(const Implementation& implementation, void** values) const override {
    const Product product(implementation);
    const Product::Operands operands(product, values);
    return MatmulRule::text_of(product.matmul.known(operands.tensors, operands.numbers));
  }

  std::string missing_library() const override { return cublaslt_info().why_not; }

 private:
  static bool is_written(const MatmulRule& rule, MatmulRule::Role role) {
    const bool backward = (rule.epilogue & (lt::kDRelu | lt::kDGelu)) != 0;
    switch (role) {
      case MatmulRule::D:
      case MatmulRule::DOutScale:
      case MatmulRule::Amax:
        return true;
      case MatmulRule::Aux:
        return !backward;
      case MatmulRule::Bias:
        return backward || (rule.epilogue & (lt::kBiasGradientA | lt::kBiasGradientB)) != 0;
      default:
        return false;
    }
  }

  static std::vector<ParamType> param_types(const Implementation& implementation) {
    std::vector<ParamType> types;
    for (const Argument& argument : implementation.launch.args) {
      if (argument.expr.type() == Type::Tensor)
        types.push_back({ParamType::Kind::Tensor, 8, "tensor", "", false});
      else
        types.push_back({ParamType::Kind::Float, 8, "double", "", false});
    }
    return types;
  }
};

}  // namespace

CublasLtInfo cublaslt_info() {
  const LibraryPlace found = place();
  CublasLtInfo info{.path = found.path, .why_not = found.why_not};
  if (found.path.empty()) return info;
  try {
    const size_t number = lt::open_library(found.path.c_str()).version();
    info.version = std::to_string(number / 10000) + "." + std::to_string(number / 100 % 100) + "." +
                   std::to_string(number % 100);
    info.found = true;
  } catch (const Error& error) {
    info.why_not = error.what();
  }
  return info;
}

const Kind& cublaslt_kind();
const Kind& cublaslt_kind() {
  static const CublasLt kind;
  return kind;
}

}  // namespace opaq
