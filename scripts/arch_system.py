"""The machines that scripts/test-arch emulates: CPUs, and an ARM system. Judges nothing.

Nothing is registered in the kernel and nothing needs root: qemu's user mode runs one process,
and `-L` lets that process see an unpacked Debian instead of this machine's files.
"""

import platform
import resource
import subprocess
import sys
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

DEBIAN, PYTHON = "bookworm", "3.11"
ARM_PACKAGES = (f"python{PYTHON}", "libstdc++6", "libgomp1")
RUNTIMES = {"onnx": "onnxruntime", "openvino": "openvino", "tflite": "ai-edge-litert"}
# glibc versions up to that of the Debian above.
PLATFORMS = [f"manylinux_2_{minor}_aarch64" for minor in range(17, 37)]
ARMV8 = "fp asimd evtstrm aes pmull sha1 sha2 crc32 cpuid"
ARMV82 = f"{ARMV8} atomics fphp asimdhp asimdrdm lrcpc dcpop asimddp"
LONGEST_S = 300.0


@dataclass(frozen=True)
class Cpu:
    """A class of CPU: how qemu calls it, and what an ARM one tells in /proc/cpuinfo."""

    name: str
    says: str
    machine: str
    part: str = ""
    features: str = ""
    saturates: bool = False
    """Whether onnxruntime's uint8 x int8 sums overflow 16 bits here: only its AVX2 kernels' do."""


CPUS = (
    Cpu("Haswell", "x86-64, AVX2, no VNNI", "x86_64", saturates=True),
    Cpu("Denverton", "x86-64, SSE4.2, no AVX", "x86_64"),
    Cpu("cortex-a72", "ARMv8.0, no dot product", "aarch64", "0xd08", ARMV8),
    Cpu("cortex-a76", "ARMv8.2, dot product", "aarch64", "0xd0b", ARMV82),
)


def make_arm_system(work: Path, wheel: Path) -> None:
    """Put an ARM Debian with Python into WORK/root, and edgepack from WHEEL into WORK/site."""
    _fetch_debian(work / "apt", work / "root")
    pins = [f"{name}=={version(name)}" for name in RUNTIMES.values()]
    chosen = [word for name in PLATFORMS for word in ("--platform", name)]
    subprocess.run(
        [sys.executable, "-m", "pip", "install", "-qq", "--disable-pip-version-check",
         "--target", work / "site", *chosen, "--only-binary=:all:", "--python-version", PYTHON,
         f"{wheel}[{','.join(RUNTIMES)}]", *pins],
        check=True, stdout=sys.stderr,
    )  # fmt: skip


def _fetch_debian(apt: Path, root: Path) -> None:
    """Unpack Python and what it needs, for ARM, with an apt that leaves this machine's alone."""
    for folder in ("lists/partial", "cache/archives/partial", "parts"):
        (apt / folder).mkdir(parents=True)
    (apt / "status").touch()
    keyring = "/usr/share/keyrings/debian-archive-keyring.gpg"
    (apt / "sources.list").write_text(
        f"deb [arch=arm64 signed-by={keyring}] http://deb.debian.org/debian {DEBIAN} main\n"
    )
    settings = {
        "Dir::State": apt, "Dir::State::status": apt / "status", "Dir::Cache": apt / "cache",
        "Dir::Etc::sourcelist": apt / "sources.list", "Dir::Etc::sourceparts": apt / "parts",
        "APT::Architecture": "arm64", "APT::Architectures": "arm64",
        "APT::Sandbox::User": "root", "Debug::NoLocking": "1",
    }  # fmt: skip
    options = [word for name, value in settings.items() for word in ("-o", f"{name}={value}")]
    install = ("install", "-y", "--no-install-recommends", "--download-only", *ARM_PACKAGES)
    for words in (("update",), install):
        subprocess.run(["apt-get", "-qq", *options, *words], check=True, stdout=sys.stderr)
    for package in sorted((apt / "cache/archives").glob("*.deb")):
        subprocess.run(["dpkg-deb", "-x", package, root], check=True)


def run(cpu: Cpu | None, work: Path, *words: str | Path) -> str:
    """Run Python with WORDS on CPU, or here without an emulator if it is None; return stdout.

    Raises:
        RuntimeError: it failed, with the last it said.
    """
    command = [*_command(cpu, work), *map(str, words)]
    done = subprocess.run(
        command,
        check=False,
        capture_output=True,
        text=True,
        timeout=LONGEST_S,
        preexec_fn=_no_core_dump,
    )
    if done.returncode:
        lines = [line for line in done.stderr.splitlines() if line.strip()]
        raise RuntimeError(f"exit {done.returncode}: {lines[-1] if lines else 'no output'}")
    return done.stdout


def _command(cpu: Cpu | None, work: Path) -> list[str]:
    if cpu is None:
        return [sys.executable]
    if cpu.machine == "x86_64":
        return ["qemu-x86_64-static", "-cpu", cpu.name, sys.executable]
    root = work / "root"
    _describe_cpu(cpu, root)
    environment = {"PYTHONHOME": "/usr", "PYTHONPATH": str(work / "site")}
    given = [word for name, value in environment.items() for word in ("-E", f"{name}={value}")]
    python = root / "usr" / "bin" / f"python{PYTHON}"
    return ["qemu-aarch64-static", "-cpu", cpu.name, "-L", str(root), *given, str(python)]


def _describe_cpu(cpu: Cpu, root: Path) -> None:
    """Write the /proc/cpuinfo that the emulated process sees.

    qemu passes the one of this machine through, and the library by which onnxruntime and
    XNNPACK choose their kernels crashes on an x86 one, or trusts what it says of a better CPU.
    """
    core = (
        "processor\t: {}\nBogoMIPS\t: 100.00\n"
        f"Features\t: {cpu.features}\nCPU implementer\t: 0x41\nCPU architecture: 8\n"
        f"CPU variant\t: 0x0\nCPU part\t: {cpu.part}\nCPU revision\t: 3\n\n"
    )
    (root / "proc").mkdir(exist_ok=True)
    (root / "proc/cpuinfo").write_text("".join(core.format(i) for i in range(4)))


def _no_core_dump() -> None:
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def require_x86() -> None:
    """End with a message where the emulators of the list make no sense."""
    if platform.machine() != "x86_64":
        raise SystemExit("test-arch: this runs on x86-64 only: it compares with what VNNI computes")
