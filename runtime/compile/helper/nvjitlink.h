// nvJitLink, opened and asked once.
#pragma once

#include "../message.h"

namespace opaq {

Message ask_nvjitlink(const Message& request);  // the requests and answers that main.cpp lists

}  // namespace opaq
