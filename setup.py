"""The compiled part: a library with a plain C interface, which needs neither Python nor PyTorch to build and
serves every version of both. Without a compiler the installation succeeds and PyTorch computes.
``HYPKERNELS_PURE=1`` leaves the compiled part out: docs/releasing.md.
"""

import os
import platform
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_ext import build_ext
from setuptools.command.sdist import sdist
from setuptools.errors import CompileError

SOURCES = Path("hypkernels", "cpu", "src")
FLAGS = [
    *("-std=c++17", "-O2", "-g0", "-fPIC", "-fvisibility=hidden", "-w"),
    *("-fno-exceptions", "-fno-rtti", "-fno-threadsafe-statics"),  # no C++ runtime to link
    *("-fno-fast-math", "-fno-math-errno", "-fno-trapping-math"),
]
# Instruction sets beyond the architecture's baseline, chosen when the library is loaded.
AVX2 = ["-mavx2", "-mfma", "-mf16c", "-mbmi", "-mbmi2"]
AVX512 = [f"-mavx512{part}" for part in ("f", "bw", "cd", "dq", "vl")]
COPIES = {"avx2": AVX2, "avx512": [*AVX2, *AVX512, "-mprefer-vector-width=512"]}


class BuildNative(build_ext):
    """Compiles the kernels once for each instruction set, and links one library."""

    def get_ext_filename(self, fullname):  # the same for every Python, and no module of its
        return os.path.join(*fullname.split(".")[:-1], "libhypkernels.so.1")

    def build_extension(self, ext):
        if self.compiler.compiler_type != "unix":
            raise CompileError(
                f"the kernels are written for GCC and Clang, not for {self.compiler.compiler_type}"
            )
        sanitizers = os.environ.get("HYPKERNELS_SANITIZE")  # for developers: address,undefined
        extra = [f"-fsanitize={sanitizers}", "-fno-omit-frame-pointer", "-g"] if sanitizers else []
        copies = COPIES if platform.machine() in ("x86_64", "AMD64") else {}
        with ThreadPoolExecutor() as pool:
            jobs = {
                name: pool.submit(self._compile, "kernels.cpp", name, [*flags, f"-DHK_API=hk_{name}", *extra])
                for name, flags in {"baseline": [], **copies}.items()
            }
        objects, built = jobs.pop("baseline").result(), []
        for name, job in jobs.items():
            try:
                objects += job.result()
                built.append(f"-DHK_WITH_{name.upper()}")
            except CompileError as error:
                print(f"the {name} kernels are left out: {error}", file=sys.stderr)
        objects += self._compile("library.cpp", "library", [*built, *extra])
        # Without the folders that Python was linked with: a search path would stay in the wheel.
        linker = self.compiler.linker_so
        self.compiler.linker_so = [part for part in linker if not part.startswith(("-L", "-Wl,-rpath"))]
        path = Path(self.get_ext_fullpath(ext.name))
        path.parent.mkdir(parents=True, exist_ok=True)
        self.compiler.link_shared_object(objects, str(path), libraries=["m"], extra_postargs=extra)

    def _compile(self, source, copy, flags):
        """Objects of one copy, in a folder of its own."""
        folder = os.path.join(self.build_temp, copy)
        return self.compiler.compile([str(SOURCES / source)], folder, extra_postargs=[*FLAGS, *flags])


class PlatformWheel(bdist_wheel):
    """For any Python 3 on this platform."""

    def get_tag(self):
        *_, platform_tag = super().get_tag()
        return "py3", "none", platform_tag


class Checkout(sdist):
    """With the tests, the pages and the results that they read."""

    def make_distribution(self):
        for folder in (".ci", "benchmarks", "docs", "findings", "tests"):
            self.filelist.graft(folder)
        self.filelist.extend([".gitignore", "CONTRIBUTING.md", "Makefile"])
        self.filelist.global_exclude("*.pyc")
        super().make_distribution()


native = Extension(
    "hypkernels.cpu.libhypkernels",
    sources=[str(SOURCES / "kernels.cpp"), str(SOURCES / "library.cpp")],
    depends=sorted(str(header) for header in SOURCES.glob("*.h")),
    optional=True,
)
pure = os.environ.get("HYPKERNELS_PURE") == "1"
setup(
    ext_modules=[] if pure else [native],
    cmdclass={"build_ext": BuildNative, "bdist_wheel": PlatformWheel, "sdist": Checkout},
)
