// <assert.h> for device code.
#include <cassert>
