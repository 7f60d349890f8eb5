// <limits.h> for device code.
#pragma once

#include <climits>
