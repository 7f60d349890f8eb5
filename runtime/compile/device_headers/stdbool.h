// <stdbool.h> for device code: C++ has bool.
#pragma once
