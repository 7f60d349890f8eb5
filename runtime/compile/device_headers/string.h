// <string.h> for device code.
#pragma once

#include <cstring>
