// host_example model.pt2 cases.pt: runs a package on several inputs with LibTorch and nothing else,
// and compares with what eager gave. cases.pt: a dict saved by torch.save, {"count": n, "x0":
// Tensor, "y0": Tensor, "x1": ...}; the model's result on x<i> must be y<i>.
#include <ATen/ATen.h>
#include <c10/core/InferenceMode.h>
#include <torch/csrc/inductor/aoti_package/model_package_loader.h>
#include <torch/csrc/jit/serialization/pickle.h>

#include <exception>
#include <fstream>
#include <iostream>
#include <iterator>
#include <string>
#include <vector>

int main(int argc, char** argv) {
  if (argc != 3) {
    std::cerr << "usage: host_example model.pt2 cases.pt\n";
    return 2;
  }
  try {
    const c10::InferenceMode inference;
    std::ifstream in(argv[2], std::ios::binary);
    const std::vector<char> bytes{std::istreambuf_iterator<char>(in), {}};
    const auto cases = torch::jit::pickle_load(bytes).toGenericDict();
    torch::inductor::AOTIModelPackageLoader model(argv[1]);
    const int64_t count = cases.at("count").toInt();
    for (int64_t i = 0; i < count; ++i) {
      const at::Tensor x = cases.at("x" + std::to_string(i)).toTensor(),
                       expected = cases.at("y" + std::to_string(i)).toTensor();
      const at::Tensor y = model.run({x}).at(0);
      if (y.sizes() != expected.sizes() || !at::allclose(y, expected, 1e-5, 1e-6)) {
        std::cerr << "case " << i << ", x of " << x.sizes()
                  << ": the result differs from eager's\n";
        return 1;
      }
      std::cout << "case " << i << ", x of " << x.sizes() << ": equal\n";
    }
    std::cout << count << " cases equal\n";
    return 0;
  } catch (const std::exception& error) {
    std::cerr << error.what() << "\n";
    return 1;
  }
}
