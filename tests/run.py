"""Builds and runs the tests.

    python tests/run.py                 the parts that every change must pass: cpp, python, fuzz
    python tests/run.py python          one part: format, cpp, asan, tsan, python, life, fuzz,
                                        oldest; python+fuzz is both in one run
    python tests/run.py format --fix    formats the tree (clang-format, ruff)
    python tests/run.py all             every part that needs no GPU
    python tests/run.py gpu             the tests that need a GPU; without one they fail
    python tests/run.py fuzz --minutes 60 [--seed N] [--workers N] [--device cpu|cuda]
                                        random programs against PyTorch's own arithmetic, for longer

Run it with the Python in which opaq is installed.
"""

from __future__ import annotations

import atexit
import concurrent.futures
import contextlib
import functools
import glob
import importlib.metadata
import importlib.util
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
import zipfile

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
# Tests of state that threads share. The other C++ tests run under AddressSanitizer only.
THREADED = [
    "counter_test",
    "expr_test",
    "registry_test",
    "tensor_lists_test",
    "wrapper_nodes_test",
    "cache_test",
    "driver_test",
    "launch_test",
    "tensor_map_test",
    "choose_test",
]


def main() -> int:
    if sys.argv[1:2] == ["fuzz"] and sys.argv[2:]:
        return subprocess.call(
            [sys.executable, os.path.join(ROOT, "tests", "fuzz", "run.py"), *sys.argv[2:]]
        )
    if sys.argv[1:] == ["format", "--fix"]:
        format_check(fix=True)
        return 0
    known = {
        "format": format_check,
        "cpp": cpp,
        "python": python,
        "python-without-nvcc": python_without_nvcc,
        "python+fuzz": python_and_fuzz,
        "asan": asan,
        "tsan": tsan,
        "life": life,
        "fuzz": fuzz,
        "oldest": oldest,
        "gpu": gpu,
    }
    parts = sys.argv[1:] or ["cpp", "python+fuzz"]
    implied = ("python", "python-without-nvcc", "fuzz", "gpu")
    if parts == ["all"]:
        parts = [part for part in known if part not in implied]
    for part in parts:
        if part not in known:
            print(f"unknown part {part!r}; expected {', '.join(known)}", file=sys.stderr)
            return 2
    if "oldest" in parts:
        oldest_python()  # starts its installation, which leaves a core idle, beside the first part
    for part in parts:
        print(f"==== {part}: {known[part].__doc__}", flush=True)
        start = time.monotonic()
        known[part]()
        print(f"==== {part}: passed in {time.monotonic() - start:.0f} s", flush=True)
    return 0


def format_check(fix: bool = False) -> None:
    """clang-format, ruff format, ruff check"""
    listed = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
    tracked = subprocess.run(listed, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    cpp_files = [path for path in tracked.split() if path.endswith((".cpp", ".h", ".cu", ".cuh"))]
    run("clang-format", *(["-i"] if fix else ["--dry-run", "--Werror"]), *cpp_files)
    run("ruff", "check", *(["--fix"] if fix else []), ".")
    run("ruff", "format", *([] if fix else ["--check"]), ".")


def cpp() -> None:
    """GoogleTest"""
    with concurrent.futures.ThreadPoolExecutor(1) as beside:
        installed = beside.submit(install_nvcc)  # waits for the network most of the time
        build = configure("plain", "")
        run("cmake", "--build", build, env=fast_linker())
        installed.result()
    ctest(build)


def asan() -> None:
    """GoogleTest under AddressSanitizer and UBSan"""
    # LeakSanitizer must not read the thread-local memory of libraries that are opened at run time:
    # with NVRTC, it crashes ("Tracer caught signal 11") in some environments.
    build = configure("asan", "address,undefined")
    run("cmake", "--build", build)
    ctest(build, {"ASAN_OPTIONS": "detect_leaks=1:intercept_tls_get_addr=0"})


def tsan() -> None:
    """GoogleTest under ThreadSanitizer"""
    build = configure("tsan", "thread")
    run("cmake", "--build", build, "--target", *THREADED)
    for name in THREADED:
        run(os.path.join(build, "tests", name), "--gtest_brief=1", env=cuda_compilers())


def python() -> None:
    """pytest"""
    install_nvcc()
    python_without_nvcc()


def python_without_nvcc() -> None:
    """pytest; tests that need nvcc are skipped where it is not installed"""
    pytest("python", env=fast_linker() | fast_packages())


def python_and_fuzz() -> None:
    """pytest of both at once, so that no core waits for the last tests of the one; without tests of
    the mark `life`, which that part runs"""
    install_nvcc()
    pytest("python", "fuzz", marks="not life", env=fast_linker() | fast_packages())


def life() -> None:
    """pytest of forks, threads, signals, full disks, cache storms; OPAQ_LIFE=long for longer
    ones; and the tests of python and fuzz that have the mark `life`"""
    pytest("life")
    fast = fast_linker() | fast_packages()  # as in the parts whose tests these are
    pytest(*marked_files("python", "fuzz"), marks="life", env=fast)


def marked_files(*folders: str) -> list[str]:
    """Those with tests of the mark `life`: to import them all takes pytest ten seconds."""
    found = []
    for folder in folders:
        for path in sorted(glob.glob(os.path.join(ROOT, "tests", folder, "test_*.py"))):
            with open(path, encoding="utf-8") as file:
                if re.search(r"mark\.life|\bARCHS\b", file.read()):  # kernel_checks.ARCHS has it
                    found.append(path)
    return found


def fuzz() -> None:
    """random programs against PyTorch's own arithmetic, the same each time"""
    pytest("fuzz", env=fast_linker() | fast_packages())


def oldest() -> None:
    """pytest with the oldest torch that is supported, in a virtual environment of its own"""
    # Tests that do not depend on torch's version, or take longest, run only with the newest.
    newest = [
        "test_add_rms_norm",
        "test_advice",
        "test_bench",
        "test_bench_compare",
        "test_bench_measure",
        "test_bench_models",
        "test_bench_page",
        "test_bench_table",
        "test_binaries",
        "test_bincount",
        "test_code_check",
        "test_compiler_features",
        "test_compiler_rules",
        "test_cross_entropy",
        "test_cross_entropy_extras",
        "test_cross_entropy_large_logits",
        "test_cross_entropy_with_gradient",
        "test_cuda_prelude",
        "test_cumsum",
        "test_damaged_caches",
        "test_declaration_errors",
        "test_demo",
        "test_device_code",
        "test_embedding",
        "test_examples",
        "test_expression_agreement",
        "test_float8",
        "test_function_digest",
        "test_gelu_mul",
        "test_headers",
        "test_host_types",
        "test_inspect",
        "test_inspect_hostile",
        "test_layer_norm",
        "test_linear_cross_entropy",
        "test_lto",
        "test_matmul",
        "test_moe",
        "test_multinomial",
        "test_names",
        "test_notebook",
        "test_nvcc",
        "test_opcheck",
        "test_pages",
        "test_patterns",
        "test_penalize",
        "test_properties",
        "test_random_scratch",
        "test_report_figures",
        "test_rms_norm",
        "test_rooms",
        "test_rope",
        "test_rope_paged",
        "test_run_googletest",
        "test_sampling",
        "test_schema_table",
        "test_shipped_kernels",
        "test_silu_mul",
        "test_skeleton",
        "test_softmax",
        "test_sort",
        "test_structs",
        "test_sum_of_blocks",
        "test_substituted_models",
        "test_tuning",
        "test_tvm_ffi",
        "test_typing",
        "test_value_lists",
    ]
    ignored = " ".join(
        f"--ignore={os.path.join(ROOT, 'tests', 'python', name)}.py" for name in newest
    )
    copies = "tests/python/test_lowering_copies.py::test_every_program_agrees_with_eager"
    ignored += f" --deselect={copies}[parts"
    # This one is of `life`, and about what each version of torch keeps in its caches.
    too = os.path.join(ROOT, "tests", "life", "test_lowering_cache.py")
    run(
        oldest_python().result(),
        os.path.join(ROOT, "tests", "run.py"),
        "python-without-nvcc",  # what needs nvcc is among `newest`
        env={
            "PYTEST_ADDOPTS": f"{ignored} {too}",
            "PYTHONPATH": os.path.join(ROOT, "tests", "oldest"),
            # Python compiles a module of torch when it is first imported, and must keep it:
            # otherwise, each process of a test takes 8 seconds more.
            "PYTHONDONTWRITEBYTECODE": "",
        },
    )


@functools.cache
def oldest_python() -> concurrent.futures.Future[str]:
    """The interpreter of a virtual environment with the oldest torch, when that is installed."""
    folder = tempfile.mkdtemp()
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    interpreter = os.path.join(folder, "bin", "python")

    def install() -> str:
        run(sys.executable, "-m", "venv", folder)
        opaq = f"{installed_wheel(folder)}[test]"
        # --no-compile: most of torch's 10,000 modules are never imported
        run(interpreter, "-m", "pip", "install", "-q", "--no-compile", "torch==2.11.*", opaq)
        return interpreter

    return concurrent.futures.ThreadPoolExecutor(1).submit(install)


def installed_wheel(folder: str) -> str:
    """The installed opaq as a wheel again. What is compiled is the same for each version of torch,
    and compiling it takes minutes.
    """
    package = importlib.metadata.distribution("opaq")
    tag = re.search("^Tag: (.*)$", package.read_text("WHEEL") or "", re.MULTILINE)
    if tag is None or not package.files:
        sys.exit("opaq is not installed from a wheel: pip install '.[test]'")
    path = os.path.join(folder, f"opaq-{package.version}-{tag[1]}.whl")
    with zipfile.ZipFile(path, "w") as wheel:
        for file in package.files:
            if ".." not in file.parts and "__pycache__" not in file.parts:
                wheel.write(file.locate(), str(file))
    return path


def gpu() -> None:
    """pytest on a GPU; a skipped test is a failure"""
    pytest("gpu", "python", env={"OPAQ_REQUIRE_GPU": "1"})


def pytest(*folders: str, marks: str = "", env: dict[str, str] | None = None) -> None:
    """Runs one worker with one thread on each core. Each worker takes one test at a time, since
    some take a hundred times as long as others; those of the mark `long` come first.
    """
    one_core = {"OMP_NUM_THREADS": "1"}
    # In each new cache folder, Inductor compiles and loads five small files with vector
    # instructions, half of what a test with a folder of its own costs. This tells it that the
    # compiler has those that the processor has.
    vectors = {"TORCHINDUCTOR_VEC_ISA_OK": "1"}
    workers = min(14, os.cpu_count() or 1)
    paths = [os.path.join(ROOT, "tests", folder) for folder in folders]
    run(
        sys.executable,
        "-m",
        "pytest",
        "-n",
        str(workers),
        "--maxschedchunk=1",
        "--durations=30",
        *(["-m", marks] if marks else []),
        *paths,
        env={**one_core, **vectors, **(env or {})},
    )


def fast_linker() -> dict[str, str]:
    """With this, g++ links by lld or gold, if there is one. Inductor links each kernel with
    libtorch_cpu.so, which takes the usual linker a quarter of the time of compiling it. (Tests of
    the folders life and gpu, asan, tsan and the wheel keep the usual one.)
    """
    linker = shutil.which("ld.lld") or shutil.which("ld.gold")
    if linker is None:
        return {}
    folder = os.path.join(ROOT, "build", os.path.basename(linker))
    os.makedirs(folder, exist_ok=True)
    with contextlib.suppress(FileExistsError):
        os.symlink(linker, os.path.join(folder, "ld"))
    others = os.environ.get("COMPILER_PATH")
    return {"COMPILER_PATH": os.pathsep.join([folder, others] if others else [folder])}


def fast_packages() -> dict[str, str]:
    """With this, wrappers of packages are compiled without optimization, and with a header of
    `fast_packages` in the place of a large one, in half of the time; kernels stay as they are.
    (Tests of the folders life and gpu compile wrappers as users do.)
    """
    folders = [os.path.join(ROOT, "tests", "fast_packages"), os.environ.get("CPATH", "")]
    return {
        "AOT_INDUCTOR_COMPILE_WRAPPER_OPT_LEVEL": "O0",
        "CPATH": os.pathsep.join(folder for folder in folders if folder),
    }


def ctest(build: str, env: dict[str, str] | None = None) -> None:
    run(
        "ctest",
        "--test-dir",
        build,
        "--output-on-failure",
        "--no-tests=error",
        "-j",
        str(os.cpu_count() or 1),
        env={**cuda_compilers(), **(env or {})},
    )


def configure(name: str, sanitizers: str) -> str:
    build = os.path.join(ROOT, "build", name)
    command = [
        "cmake",
        "-S",
        ROOT,
        "-B",
        build,
        "-G",
        "Ninja",
        "-DCMAKE_BUILD_TYPE=None",
        # Tests find the same without optimisation, in three quarters of the time of compiling, with
        # sanitizers in half of it. The wheel, which pytest tests, is optimised.
        "-DCMAKE_CXX_FLAGS=-O0 -g1",
        "-DCMAKE_UNITY_BUILD=ON",
        "-DOPAQ_PYTHON=OFF",
        "-DOPAQ_TESTS=ON",
        f"-DOPAQ_SANITIZE={sanitizers}",
        f"-DPython_EXECUTABLE={sys.executable}",
    ]
    done = subprocess.run(
        command, cwd=ROOT, env=environment(), check=False, stderr=subprocess.PIPE, text=True
    )
    print(done.stderr, end="", file=sys.stderr, flush=True)
    if "GoogleTest is missing" in done.stderr:  # as tests/CMakeLists.txt says
        install_googletest()
        run(*command)
    elif done.returncode != 0:
        sys.exit(f"failed ({done.returncode}): {' '.join(command)}")
    return build


def install_googletest() -> None:
    """Installs the distribution's package, the last resort, if this user is root."""
    packages = {"apt-get": "libgtest-dev", "dnf": "gtest-devel"}
    manager = next((program for program in packages if shutil.which(program)), None)
    if manager is None or os.geteuid() != 0:
        sys.exit(
            "GoogleTest is missing and cannot be downloaded: `sudo apt-get install libgtest-dev` "
            "(Debian, Ubuntu) or `sudo dnf install gtest-devel` (Fedora), then run this again"
        )
    print(f"==== installing the system package {packages[manager]} with {manager}", flush=True)
    if manager == "apt-get":
        run("apt-get", "update", "-qq")
    run(manager, "install", "-y", packages[manager])


def install_nvcc() -> None:
    """Installs nvcc's wheels, 320 MB, in the version of torch's CUDA headers, unless there is one.
    (No extra of the package can say which version that is.)
    """
    from opaq import _runtime

    nvrtc, nvcc = _runtime.doctor()["nvrtc"], _runtime.doctor()["nvcc"]
    if not nvrtc["found"] or (nvcc["found"] and not nvcc["why_not"]):
        return
    packages = re.findall(r"'(nvidia-[\w-]+==[\d.*]+)'", nvcc["why_not"])
    if packages and importlib.util.find_spec("pip"):
        print(f"==== installing {' '.join(packages)}", flush=True)
        run(sys.executable, "-m", "pip", "install", "-q", *packages)


def cuda_compilers() -> dict[str, str]:
    """Where the wheels keep NVRTC and nvcc, for C++ tests that compile; they skip without them."""
    from opaq import _runtime

    facts = _runtime.doctor()
    env = {}
    if facts["nvrtc"]["found"]:
        env |= {"OPAQ_NVRTC": facts["nvrtc"]["path"], "OPAQ_REQUIRE_NVRTC": "1"}
    if facts["nvcc"]["found"] and not facts["nvcc"]["why_not"]:
        env |= {"OPAQ_NVCC": facts["nvcc"]["path"], "OPAQ_REQUIRE_NVCC": "1"}
    return env


def run(*command: str, env: dict[str, str] | None = None) -> None:
    done = subprocess.run(command, cwd=ROOT, env=environment(env), check=False)
    if done.returncode != 0:
        sys.exit(f"failed ({done.returncode}): {' '.join(command)}")


def environment(changes: dict[str, str] | None = None) -> dict[str, str]:
    """This process's variables, with cmake and ninja of this Python's environment on the path."""
    bin_folder = os.path.dirname(sys.executable)
    path = bin_folder + os.pathsep + os.environ["PATH"]
    return {**os.environ, "PATH": path, **(changes or {})}


if __name__ == "__main__":
    sys.exit(main())
