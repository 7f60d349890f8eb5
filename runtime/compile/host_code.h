// Leaves the functions of the host out of CUDA C++ sources, so that NVRTC compiles what is left.
//
// nvcc gives the functions that are not marked __device__ or __global__ to the host's compiler.
// NVRTC has no such compiler. With the option -default-device it takes them as device code, which
// is right for small helpers and impossible for functions that launch kernels or use the host's
// library.
#pragma once

#include <set>
#include <string>
#include <string_view>
#include <vector>

namespace opaq {

// A source or header, divided into its declarations without preprocessing it. All that is left out
// is replaced by spaces: lines keep their numbers, and preprocessor directives stay.
class HostCodeFilter {
 public:
  explicit HostCodeFilter(std::string_view text);

  const std::string& text() const { return text_; }  // without what was left out

  // Leaves out what cannot be device code: functions that are marked __host__ alone, that launch
  // kernels, or that name something of the host's libraries; and explicit instantiations of
  // functions of the host. True if there was any.
  bool leave_out_obvious();

  // Leaves out the smallest function, class or variable of the host around each of these lines,
  // which did not compile as device code. Never left out: what is marked __device__ or __global__,
  // and members other than functions, since the others depend on their layout. True if something
  // was left out that was there before.
  bool leave_out(const std::set<int>& lines);

  const std::set<std::string>& names() const { return names_; }  // of what was left out

 private:
  struct Declaration {
    size_t begin = 0, end = 0;  // in the text
    int first_line = 0, last_line = 0;
    std::string name;       // of a function; "" where unknown
    bool device = false;    // marked for the device, itself or a member
    bool function = false;  // with a body
    bool prototype = false, class_type = false, is_virtual = false;
    bool instance = false;    // an explicit instantiation of a template
    bool host_alone = false;  // marked __host__ and not __device__
    bool left_out = false;
    std::vector<Declaration> members;
  };
  struct Token;
  class Parser;

  bool leave_out_obvious(Declaration& declaration, bool member);
  bool leave_out(Declaration& declaration, const std::set<int>& lines, bool member);
  void blank(Declaration& declaration);
  bool names_the_host(const Declaration& declaration) const;

  std::string source_, text_;
  std::vector<Declaration> declarations_;
  std::vector<bool> directive_;  // by position in the text
  std::set<std::string> names_;
};

}  // namespace opaq
