// Follows includes through the search path and folds what they reach into a digest.
#include "includes.h"

#include <sys/stat.h>

#include <algorithm>
#include <filesystem>
#include <fstream>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <unordered_map>
#include <unordered_set>

#include "opaq/sha256.h"

namespace opaq {
namespace {

// A file that was written this recently may change again without its time changing: it is read anew each time.
constexpr int64_t kUnsettledSeconds = 2;

bool is_file(const std::string& path) {
  struct stat facts{};
  return stat(path.c_str(), &facts) == 0 && S_ISREG(facts.st_mode);
}

bool exists(const std::string& path) {
  struct stat facts{};
  return stat(path.c_str(), &facts) == 0;
}

std::string folder_of(const std::string& path) {
  const size_t slash = path.rfind('/');
  return slash == std::string::npos ? "." : slash == 0 ? "/" : path.substr(0, slash);
}

std::string first_component(std::string_view name) { return std::string(name.substr(0, name.find('/'))); }

struct FileFacts {
  std::string stamp;
  bool settled = false;
  std::string digest;  // of the content; "" for the toolkit's, which count by path and stamp
  IncludeScan scan;
};

// Everything a header of the toolkit reaches within the toolkit.
struct ToolkitClosure {
  std::string digest;
  // First folder or file of each name searched for: a user's folder that has none of them changes nothing.
  std::set<std::string> components;
};

struct Memo {
  std::mutex mutex;
  std::map<std::string, std::shared_ptr<const FileFacts>> files;
  std::map<std::string, std::shared_ptr<const ToolkitClosure>> toolkit;  // by search path and header
};

Memo& memo() {
  static Memo instance;
  return instance;
}

std::shared_ptr<const FileFacts> facts_of(const std::string& path, bool toolkit) {
  const std::string stamp = file_stamp(path);
  {
    std::lock_guard lock(memo().mutex);
    auto it = memo().files.find(path);
    if (it != memo().files.end() && it->second->settled && it->second->stamp == stamp && (toolkit || !it->second->digest.empty())) {
      return it->second;
    }
  }
  auto facts = std::make_shared<FileFacts>();
  facts->stamp = stamp;
  struct stat now{};
  timespec clock{};
  clock_gettime(CLOCK_REALTIME, &clock);
  facts->settled = stat(path.c_str(), &now) == 0 && clock.tv_sec - now.st_mtim.tv_sec > kUnsettledSeconds;
  const std::string text = file_text(path);
  if (!toolkit) facts->digest = Sha256().update(text).hex();
  facts->scan = scan_includes(text);
  std::lock_guard lock(memo().mutex);
  memo().files[path] = facts;
  return facts;
}

class Walk {
 public:
  explicit Walk(const IncludeSearch& search, bool toolkit_alone = false) : search_(search), toolkit_alone_(toolkit_alone) {}

  void text(const IncludeScan& scan, const std::string& folder) {
    for (const Include& include : scan.includes) follow(include, folder);
    while (!pending_.empty()) {
      const std::string path = std::move(pending_.back());
      pending_.pop_back();
      const bool toolkit = in_toolkit(path);
      const auto facts = facts_of(path, toolkit);
      if (toolkit) {
        hash_.field("toolkit").field(path).field(facts->stamp);
      } else {
        hash_.field("file").field(facts->digest);
        closure_.files.insert(path);
        if (closure_.computed.empty() && !facts->scan.computed.empty()) closure_.computed = path + ": " + facts->scan.computed;
      }
      // A computed include inside the toolkit names another file of the toolkit, chosen by the toolkit's own macros.
      const std::string here = folder_of(path);
      for (const Include& include : facts->scan.includes) follow(include, here);
    }
  }

  void follow(const Include& include, const std::string& folder) {
    hash_.field(include.name);
    if (include.name.starts_with('/')) return reach(include.name);
    if (include.quoted && !include.next) {
      const std::string beside = folder + '/' + include.name;
      if (is_file(beside)) return reach(beside);
    }
    components_.insert(first_component(include.name));
    if (include.next) {
      for (const std::string& path : matches(include.name, true)) reach(path);
      return;
    }
    auto [it, first] = resolved_.try_emplace(include.name);
    if (first) it->second = matches(include.name, false);
    if (it->second.empty()) hash_.field("none");
    for (const std::string& path : it->second) reach(path);
  }

  void note(const std::string& computed) {
    if (closure_.computed.empty()) closure_.computed = computed;
  }

  IncludeClosure finish() {
    closure_.digest = hash_.hex();
    return std::move(closure_);
  }
  std::set<std::string> take_components() { return std::move(components_); }

 private:
  std::vector<std::string> matches(const std::string& name, bool all) const {
    std::vector<std::string> paths;
    for (const auto* dirs : {&search_.dirs, &search_.toolkit}) {
      for (const std::string& dir : *dirs) {
        std::string path = dir + '/' + name;
        if (!is_file(path)) continue;
        paths.push_back(std::move(path));
        if (!all) return paths;
      }
    }
    return paths;
  }

  bool in_toolkit(const std::string& path) const {
    for (const std::string& dir : search_.toolkit) {
      if (path.size() > dir.size() && path.starts_with(dir) && path[dir.size()] == '/') return true;
    }
    return false;
  }

  void reach(const std::string& path) {
    if (!seen_.insert(path).second) return;
    if (!toolkit_alone_ && in_toolkit(path) && take_toolkit(path)) return;
    pending_.push_back(path);
  }

  // The remembered closure of a toolkit header stands for it, unless a user's folder could shadow a name that it searches for.
  bool take_toolkit(const std::string& path) {
    const auto closure = toolkit_closure(path);
    for (const std::string& dir : search_.dirs) {
      if (in_toolkit(dir + "/x")) continue;
      for (const std::string& component : closure->components) {
        if (exists(dir + '/' + component)) return false;
      }
    }
    hash_.field("closure").field(closure->digest);
    return true;
  }

  std::shared_ptr<const ToolkitClosure> toolkit_closure(const std::string& path) const {
    std::string key = path;
    for (const std::string& dir : search_.toolkit) key += '\n' + dir;
    {
      std::lock_guard lock(memo().mutex);
      auto it = memo().toolkit.find(key);
      if (it != memo().toolkit.end()) return it->second;
    }
    const IncludeSearch alone{folder_of(path), {}, search_.toolkit};
    Walk walk(alone, true);
    IncludeScan root;
    root.includes.push_back({path, true, false});
    walk.text(root, alone.folder);
    auto closure = std::make_shared<ToolkitClosure>();
    closure->components = walk.take_components();
    closure->digest = walk.finish().digest;
    std::lock_guard lock(memo().mutex);
    return memo().toolkit.emplace(key, std::move(closure)).first->second;
  }

  const IncludeSearch& search_;
  const bool toolkit_alone_;
  Sha256 hash_;
  IncludeClosure closure_;
  std::set<std::string> components_;
  std::unordered_set<std::string> seen_;
  std::unordered_map<std::string, std::vector<std::string>> resolved_;  // names looked for in the folders, not beside the includer
  std::vector<std::string> pending_;
};

}  // namespace

std::string file_stamp(const std::string& path) {
  struct stat facts{};
  if (stat(path.c_str(), &facts) != 0) return "";
  return std::to_string(facts.st_size) + ' ' + std::to_string(facts.st_mtim.tv_sec) + '.' + std::to_string(facts.st_mtim.tv_nsec);
}

std::string file_text(const std::string& path) {
  std::ifstream in(path, std::ios::binary);
  std::error_code error;
  std::string text(in ? std::filesystem::file_size(path, error) : 0, '\0');
  if (error) text.clear();
  in.read(text.data(), static_cast<std::streamsize>(text.size()));
  text.resize(static_cast<size_t>(std::max<std::streamsize>(in.gcount(), 0)));
  return text;
}

IncludeClosure include_closure(std::string_view source, std::string_view file, const IncludeSearch& search,
                               std::span<const std::string> forced) {
  Walk walk(search);
  IncludeScan scan = scan_includes(source);
  if (!scan.computed.empty()) walk.note(std::string(file) + ": " + scan.computed);
  for (const std::string& header : forced) scan.includes.push_back({header, true, false});
  walk.text(scan, search.folder);
  return walk.finish();
}

}  // namespace opaq
