// Follows includes through the search path and folds what they reach into a digest.
#include "includes.h"

#include <map>
#include <memory>
#include <unordered_map>
#include <unordered_set>

#include "base/sha256.h"
#include "base/shared_state.h"
#include "toolkit.h"

namespace opaq {
namespace {

std::string folder_of(const std::string& path) {
  const size_t slash = path.rfind('/');
  return slash == std::string::npos ? "." : slash == 0 ? "/" : path.substr(0, slash);
}

std::string first_component(std::string_view name) {
  return std::string(name.substr(0, name.find('/')));
}

struct FileFacts {
  Stamp stamp;
  bool whole = false;    // it could be read to its end
  bool settled = false;  // else it is read anew each time
  std::string digest;    // of the content; "" for the toolkit's, which count by path and stamp
  IncludeScan scan;
};

struct Memo {  // guarded by shared_state()
  std::map<std::string, std::shared_ptr<const FileFacts>> files;
  std::map<std::string, std::shared_ptr<const ToolkitClosure>>
      toolkit;  // by search path and header
};

Memo& memo() {
  // never destroyed: threads may compile while the process exits
  static Memo& instance = *new Memo;
  return instance;
}

std::shared_ptr<const FileFacts> facts_of(const std::string& path, const Stamp& stamp, bool toolkit,
                                          FileReader& reader) {
  {
    std::lock_guard lock(shared_state());
    auto it = memo().files.find(path);
    if (it != memo().files.end() && it->second->settled && it->second->stamp == stamp &&
        (toolkit || !it->second->digest.empty())) {
      return it->second;
    }
  }
  auto facts = std::make_shared<FileFacts>();
  facts->stamp = stamp;
  const int64_t now = clock_now();
  std::string_view text;
  facts->whole = reader.read(path, text, facts->stamp);
  facts->settled = facts->whole && facts->stamp.settled(now);
  if (!toolkit) facts->digest = Sha256().update(text).hex();
  facts->scan = scan_includes(text);
  std::lock_guard lock(shared_state());
  memo().files[path] = facts;
  return facts;
}

class Walk {
 public:
  explicit Walk(const IncludeSearch& search, bool toolkit_alone = false)
      : search_(search), toolkit_alone_(toolkit_alone) {}

  void text(const IncludeScan& scan, const std::string& folder) {
    for (const Include& include : scan.includes) follow(include, folder);
    while (!pending_.empty()) {
      const std::string path = std::move(pending_.back());
      pending_.pop_back();
      const bool toolkit = in_toolkit(path);
      const auto facts = read(path, toolkit);
      if (toolkit) {
        hash_.field("toolkit").field(path).field(facts->stamp.text());
      } else {
        hash_.field("file").field(facts->digest);
        closure_.files.insert(path);
        if (closure_.computed.empty() && !facts->scan.computed.empty())
          closure_.computed = path + ": " + facts->scan.computed;
      }
      // A computed include inside the toolkit names another file of the toolkit, chosen by the
      // toolkit's own macros.
      const std::string here = folder_of(path);
      for (const Include& include : facts->scan.includes) follow(include, here);
    }
  }

  void follow(const Include& include, const std::string& folder) {
    hash_.field(include.name);
    std::set<std::string>* found = nullptr;
    if (!in_toolkit(folder + "/x")) found = &closure_.names[include.name];
    const auto reach = [&](const std::string& path) {
      if (found != nullptr) found->insert(path);
      this->reach(path);
    };
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
    if (it->second.empty()) {
      hash_.field("none");
      closure_.missing.insert(include.name);
    }
    for (const std::string& path : it->second) reach(path);
  }

  void note(const std::string& computed) {
    if (closure_.computed.empty()) closure_.computed = computed;
  }

  IncludeClosure finish() {
    closure_.digest = hash_.hex();
    return std::move(closure_);
  }
  ToolkitClosure finish_toolkit() { return {finish().digest, std::move(components_)}; }
  const Answers& answers() const { return seen_; }
  bool whole() const {
    return whole_;
  }  // no file of the toolkit was left unread, so that the answers account for all that was found

 private:
  // One look a path: later questions get the same answer.
  const Stamp& look(const std::string& path) {
    auto [it, first] = seen_.try_emplace(path);
    if (first) it->second = stamp_of(path);
    return it->second;
  }
  bool is_file(const std::string& path) { return look(path).kind == Stamp::Kind::File; }
  bool exists(const std::string& path) { return look(path).kind != Stamp::Kind::Absent; }

  std::shared_ptr<const FileFacts> read(const std::string& path, bool toolkit) {
    Stamp& stamp = seen_[path];
    auto facts = facts_of(path, stamp, toolkit, reader_);
    stamp = facts->stamp;
    whole_ = whole_ && facts->whole;
    return facts;
  }

  std::vector<std::string> matches(const std::string& name, bool all) {
    std::vector<std::string> paths;
    const size_t component = name.find('/');
    for (const auto* dirs : {&search_.dirs, &search_.toolkit}) {
      for (const std::string& dir : *dirs) {
        std::string path = dir + '/' + name;
        // Most names of a toolkit begin with one of few folders, which are in one of its places
        // only.
        if (component != std::string::npos && !exists(path.substr(0, dir.size() + 1 + component)))
          continue;
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
    if (!reached_.insert(path).second) return;
    if (!toolkit_alone_ && in_toolkit(path) && take_toolkit(path)) return;
    pending_.push_back(path);
  }

  // The remembered closure of a toolkit header stands for it, unless a user's folder could shadow a
  // name that it searches for.
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

  std::shared_ptr<const ToolkitClosure> toolkit_closure(const std::string& path) {
    std::string name = path;
    for (const std::string& dir : search_.toolkit) name += '\n' + dir;
    {
      std::lock_guard lock(shared_state());
      auto it = memo().toolkit.find(name);
      if (it != memo().toolkit.end()) return it->second;
    }
    const std::string key = closure_key(path, look(path), search_.toolkit);
    std::shared_ptr<const ToolkitClosure> closure = recall_closure(key);
    if (closure == nullptr) {
      const int64_t started = clock_now();
      const IncludeSearch alone{folder_of(path), {}, search_.toolkit};
      Walk walk(alone, true);
      IncludeScan root;
      root.includes.push_back({path, true, false});
      walk.text(root, alone.folder);
      closure = std::make_shared<ToolkitClosure>(walk.finish_toolkit());
      if (!walk.whole()) return closure;
      keep_closure(key, *closure, walk.answers(), started);
    }
    std::lock_guard lock(shared_state());
    return memo().toolkit.emplace(name, std::move(closure)).first->second;
  }

  const IncludeSearch& search_;
  const bool toolkit_alone_;
  Sha256 hash_;
  IncludeClosure closure_;
  std::set<std::string> components_;
  Answers seen_;
  bool whole_ = true;
  std::unordered_set<std::string> reached_;
  std::unordered_map<std::string, std::vector<std::string>>
      resolved_;  // names looked for in the folders, not beside the includer
  std::vector<std::string> pending_;
  FileReader reader_;
};

}  // namespace

IncludeClosure include_closure(std::string_view source, std::string_view file,
                               const IncludeSearch& search, std::span<const std::string> forced) {
  Walk walk(search);
  IncludeScan scan = scan_includes(source);
  if (!scan.computed.empty()) walk.note(std::string(file) + ": " + scan.computed);
  for (const std::string& header : forced) scan.includes.push_back({header, true, false});
  walk.text(scan, search.folder);
  return walk.finish();
}

}  // namespace opaq
