// <stdlib.h> for device code.
#pragma once

#include <cstdlib>
