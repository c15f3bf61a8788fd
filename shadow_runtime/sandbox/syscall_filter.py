"""A seccomp filter: a job may read, compute and answer; it may not connect, execute, fork, signal or change files.

Runs in: the sandbox's own processes. Linux on x86-64 and aarch64; elsewhere the other limits stand alone.
"""

from __future__ import annotations

import ctypes
import errno
import os
import platform
import struct
from collections.abc import Mapping
from dataclasses import dataclass

_PR_SET_SECCOMP = 22
_SECCOMP_MODE_FILTER = 2
_ALLOW = 0x7FFF0000
_REFUSE = 0x00050000 | errno.EPERM

# Classic BPF: load a word, jump when equal or when bits are set, return.
_LOAD, _JUMP_EQUAL, _JUMP_SET, _RETURN = 0x20, 0x15, 0x45, 0x06
_NUMBER_AT, _ARCHITECTURE_AT, _ARGUMENTS_AT = 0, 4, 16
_X32_BIT = 0x40000000
_WRITE_FLAGS = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND


@dataclass(frozen=True, slots=True)
class _Machine:
    """Numbers of one architecture: its audit value, refused calls, and open calls with their flags' place."""

    audit: int
    refused: Mapping[str, int]
    opens: Mapping[int, int]


# fmt: off
_X86_64 = _Machine(
    audit=0xC000003E,
    refused={
        "socket": 41, "connect": 42, "accept": 43, "sendto": 44, "sendmsg": 46, "bind": 49, "listen": 50,
        "socketpair": 53, "accept4": 288, "sendmmsg": 307,
        "clone": 56, "fork": 57, "vfork": 58, "execve": 59, "clone3": 435, "execveat": 322,
        "kill": 62, "tkill": 200, "tgkill": 234, "rt_sigqueueinfo": 129, "rt_tgsigqueueinfo": 297,
        "pidfd_send_signal": 424, "pidfd_open": 434, "pidfd_getfd": 438,
        "ptrace": 101, "process_vm_readv": 310, "process_vm_writev": 311, "prlimit64": 302,
        "creat": 85, "truncate": 76, "rename": 82, "mkdir": 83, "rmdir": 84, "link": 86, "unlink": 87,
        "symlink": 88, "chmod": 90, "fchmod": 91, "chown": 92, "fchown": 93, "lchown": 94, "mknod": 133,
        "mkdirat": 258, "mknodat": 259, "fchownat": 260, "unlinkat": 263, "renameat": 264, "linkat": 265,
        "symlinkat": 266, "fchmodat": 268, "renameat2": 316, "openat2": 437, "open_by_handle_at": 304,
        "utime": 132, "utimes": 235, "utimensat": 280, "setxattr": 188, "lsetxattr": 189, "fsetxattr": 190,
        "chroot": 161, "mount": 165, "umount2": 166, "pivot_root": 155, "unshare": 272, "setns": 308,
        "open_tree": 428, "move_mount": 429, "fsopen": 430, "mount_setattr": 442,
        "io_setup": 206, "io_uring_setup": 425, "bpf": 321, "perf_event_open": 298, "userfaultfd": 323,
        "memfd_create": 319, "add_key": 248, "request_key": 249, "keyctl": 250, "shmget": 29, "msgget": 68,
        "mq_open": 240, "inotify_init1": 294, "fanotify_init": 300, "init_module": 175, "finit_module": 313,
        "kexec_load": 246, "reboot": 169, "swapon": 167, "acct": 163, "settimeofday": 164,
        "setuid": 105, "setgid": 106, "setresuid": 117, "setresgid": 119, "capset": 126,
    },
    opens={2: 1, 257: 2},
)
_AARCH64 = _Machine(
    audit=0xC00000B7,
    refused={
        "socket": 198, "socketpair": 199, "bind": 200, "listen": 201, "accept": 202, "connect": 203,
        "sendto": 206, "sendmsg": 211, "accept4": 242, "sendmmsg": 269,
        "clone": 220, "execve": 221, "clone3": 435, "execveat": 281,
        "kill": 129, "tkill": 130, "tgkill": 131, "rt_sigqueueinfo": 138, "rt_tgsigqueueinfo": 240,
        "pidfd_send_signal": 424, "pidfd_open": 434, "pidfd_getfd": 438,
        "ptrace": 117, "process_vm_readv": 270, "process_vm_writev": 271, "prlimit64": 261,
        "truncate": 45, "mknodat": 33, "mkdirat": 34, "unlinkat": 35, "symlinkat": 36, "linkat": 37,
        "renameat": 38, "fchmod": 52, "fchmodat": 53, "fchownat": 54, "fchown": 55, "renameat2": 276,
        "openat2": 437, "open_by_handle_at": 265, "utimensat": 88, "setxattr": 5, "lsetxattr": 6,
        "fsetxattr": 7, "umount2": 39, "mount": 40, "pivot_root": 41, "chroot": 51, "unshare": 97,
        "setns": 268, "open_tree": 428, "move_mount": 429, "fsopen": 430, "mount_setattr": 442,
        "io_setup": 0, "io_uring_setup": 425, "bpf": 280, "perf_event_open": 241, "userfaultfd": 282,
        "memfd_create": 279, "add_key": 217, "request_key": 218, "keyctl": 219, "shmget": 194,
        "msgget": 186, "mq_open": 180, "inotify_init1": 26, "fanotify_init": 262, "init_module": 105,
        "finit_module": 273, "kexec_load": 104, "reboot": 142, "swapon": 224, "acct": 89,
        "settimeofday": 170, "setgid": 144, "setuid": 146, "setresuid": 147, "setresgid": 149, "capset": 91,
    },
    opens={56: 2},
)
# fmt: on
_MACHINES = {"x86_64": _X86_64, "aarch64": _AARCH64}


class _Program(ctypes.Structure):
    _fields_ = (("length", ctypes.c_ushort), ("filter", ctypes.c_char_p))


def is_supported() -> bool:
    """Return whether this machine and kernel take the filter."""
    return platform.machine() in _MACHINES and os.path.exists("/proc/sys/kernel/seccomp")


def install_filter() -> None:
    """Refuse the calls from now on with EPERM, also in whatever this process becomes.

    Needs `PR_SET_NO_NEW_PRIVS`. Does nothing where `is_supported` is false; raises OSError where the kernel refuses.
    """
    if not is_supported():
        return
    code = _assemble(_MACHINES[platform.machine()])
    program = _Program(len(code) // 8, code)
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_SECCOMP, _SECCOMP_MODE_FILTER, ctypes.byref(program), 0, 0) != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"the system-call filter was refused: {os.strerror(number)}")


def _assemble(machine: _Machine) -> bytes:
    """Return the program; every jump skips at most the next instruction, so that none can be miscounted."""
    program = [
        _load(_ARCHITECTURE_AT),
        _instruction(_JUMP_EQUAL, machine.audit, on_true=1),
        _instruction(_RETURN, _REFUSE),
        _load(_NUMBER_AT),
        _instruction(_JUMP_SET, _X32_BIT, on_false=1),
        _instruction(_RETURN, _REFUSE),
    ]
    for number in sorted(set(machine.refused.values())):
        program += [
            _instruction(_JUMP_EQUAL, number, on_false=1),
            _instruction(_RETURN, _REFUSE),
        ]
    for number, position in machine.opens.items():
        program += [
            _load(_NUMBER_AT),
            _instruction(_JUMP_EQUAL, number, on_false=3),
            _load(_ARGUMENTS_AT + 8 * position),
            _instruction(_JUMP_SET, _WRITE_FLAGS, on_false=1),
            _instruction(_RETURN, _REFUSE),
        ]
    return b"".join([*program, _instruction(_RETURN, _ALLOW)])


def _load(offset: int) -> bytes:
    return _instruction(_LOAD, offset)


def _instruction(code: int, value: int, *, on_true: int = 0, on_false: int = 0) -> bytes:
    return struct.pack("=HBBI", code, on_true, on_false, value)
