// <float.h> for device code.
#pragma once

#include <cfloat>
