// Sizes of results that only a launch knows. Private to runtime/spec.
#pragma once

#include <vector>

#include "spec/expressions.h"
#include "spec/spec.h"

namespace opaq::spec {

// Puts the counts that the texts declare into op.counts, without their bounds, and those that the
// op does not return after its returns. Throws Declaration.
void name_counts(OpSpec& op, const std::vector<OutputText>& texts);

// Parses the bounds. Throws Declaration.
void parse_bounds(OpSpec& op, const std::vector<OutputText>& texts);

bool is_count(const OpSpec& op, size_t output);
OutputText rule_of_count(const std::vector<OutputText>& texts);  // a 0-d tensor of int64

// A scope in which the sizes of a shape may name counts too.
Scope with_counts(const Scope& scope, const std::vector<CountRule>& counts);

// Replaces the counts among sizes, which were parsed with that scope, by their bounds. scope: that
// without counts. Throws Declaration for a count within another expression.
std::vector<OutputRule::Counted> take_counts(const Scope& scope,
                                             const std::vector<CountRule>& counts,
                                             std::vector<Expr>& sizes);

}  // namespace opaq::spec
