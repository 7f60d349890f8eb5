# find_package(opaq): the target opaq::opaq.
include(${CMAKE_CURRENT_LIST_DIR}/opaqTargets.cmake)

# LibTorch's library for the CPU is all that ops need. It lies beside opaq (Python packages), or below
# CMAKE_PREFIX_PATH: the folder of LibTorch, or torch.utils.cmake_prefix_path.
set(opaq_torch_hints ${CMAKE_CURRENT_LIST_DIR}/../../../../torch/lib)
foreach(prefix IN LISTS CMAKE_PREFIX_PATH)
  list(APPEND opaq_torch_hints ${prefix}/lib ${prefix}/../../lib)
endforeach()
find_library(OPAQ_TORCH_LIBRARY torch_cpu HINTS ${opaq_torch_hints})
if(OPAQ_TORCH_LIBRARY)
  set_property(TARGET opaq::opaq APPEND PROPERTY INTERFACE_LINK_LIBRARIES ${OPAQ_TORCH_LIBRARY})
else()
  message(STATUS "opaq: libtorch_cpu.so was not found, which libraries that declare ops link; set "
                 "CMAKE_PREFIX_PATH to LibTorch's folder, or OPAQ_TORCH_LIBRARY to the file")
endif()
