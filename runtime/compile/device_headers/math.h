// <math.h> for device code.
#pragma once

#include <cmath>
