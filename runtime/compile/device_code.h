// What NVRTC gets of a source and of the headers that it includes: at first all of it, later
// without the functions of the host (host_code.h) in the source and in the user's headers.
#pragma once

#include <map>
#include <set>
#include <string>
#include <string_view>
#include <vector>

#include "host_code.h"
#include "includes.h"

namespace opaq {

class DeviceCode {
 public:
  // `file`: the source's name in diagnostics. The closure must outlive this.
  DeviceCode(const std::string& source, std::string file, const IncludeClosure& closure);

  // Leaves out what cannot be device code.
  void leave_out_obvious();

  // Leaves out what NVRTC's log has errors about, see HostCodeFilter::leave_out. False if there was
  // nothing that could be left out.
  bool leave_out(std::string_view log);

  const std::string& source() const { return source_.text(); }
  std::vector<std::string> headers() const;  // as NvrtcRequest::headers
  std::vector<std::string> dirs() const;     // to be searched for what these headers include
  std::set<std::string> names() const;       // of what was left out

 private:
  HostCodeFilter* code_of(const std::string& file);  // null for files that are not the user's

  const IncludeClosure& closure_;
  std::string file_;
  HostCodeFilter source_;
  std::vector<std::string> host_headers_;
  std::map<std::string, HostCodeFilter> headers_;  // of those with something left out, by path
};

// The lines with errors in a log of NVRTC, by file; where a template has an error, the lines that
// use it as well.
std::map<std::string, std::set<int>> lines_of_errors(std::string_view log);

}  // namespace opaq
